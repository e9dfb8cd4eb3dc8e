"""One thread per test process, since the suite runs two at once on two cores, and a cache of its own."""

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests never read or write the user's cache, nor do the processes that they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLIOMAP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def no_cache() -> Iterator[None]:
    """For tests that train many networks: without a cache none is converted for OpenVINO, which takes seconds for each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLIOMAP_CACHE", "off")
        yield
