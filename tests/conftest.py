"""One thread per test process, since the suite runs two at once on two cores, a cache of its own, and phantoms grown once."""

import gc
import os
from collections.abc import Generator, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import pytest

from gliomap import phantom
from gliomap.data.synthetic import Phantom, make_phantom

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """The tests and all that they import stay to the end: no collection of garbage need look at these again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests never read or write the user's cache, nor do the processes that they start; those of one run share theirs."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    place.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLIOMAP_CACHE", str(place))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_power_failure() -> Iterator[None]:
    """Nothing that a test writes has to be on the disk, where waiting for it takes longer than writing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@lru_cache(maxsize=64)
def grown(number: int, **how: object) -> Phantom:
    """A phantom that nobody can change, since others get the same."""
    made = make_phantom(number, **how)  # pyright: ignore[reportArgumentType]
    for array in (made.images, made.classes, made.affine):
        array.setflags(write=False)
    return made


@pytest.fixture(scope="session", autouse=True)
def phantoms_grow_once() -> Iterator[None]:
    """`gliomap phantom` writes studies that were grown before, if it can; that they do not depend on that is tested of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantom, "make_phantom", grown)
        yield


@pytest.fixture(scope="module")
def no_cache() -> Iterator[None]:
    """For tests that train many networks: without a cache none is converted for OpenVINO, which takes seconds for each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLIOMAP_CACHE", "off")
        yield


@pytest.fixture(scope="module")
def no_training_page() -> Iterator[None]:
    """For tests that train many networks: the page is drawn at every checkpoint, and is tested where pages are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gliomap.training_state.page", lambda _: "")
        yield


@pytest.fixture
def narrow_vnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """V-Net has one size only, of 46 million weights; here its levels have a quarter of their channels."""
    from monai.networks.nets import vnet  # noqa: PLC0415 - takes seconds

    def narrow(layer: Any, places: Sequence[int], *sizes: Any, **more: Any) -> Any:
        return layer(*(n // 4 if place in places else n for place, n in enumerate(sizes)), **more)

    widths = {"InputTransition": [2], "DownTransition": [1], "UpTransition": [1, 2], "OutputTransition": [1]}
    for name, places in widths.items():
        monkeypatch.setattr(vnet, name, partial(narrow, getattr(vnet, name), places))
