"""The engines of a model file. What needs torch is imported when it is asked for."""

import ctypes
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path

from gliomap.conversion import convert_apart, failure
from gliomap.data.cache import Entry, entry_key, find_cache, load, store
from gliomap.errors import InputError, UsageError
from gliomap.model_file import Model, content_hash
from gliomap.openvino_engine import import_openvino, openvino_engine
from gliomap.segmenter import Engine, Segmenter

ENGINES = ("auto", "openvino", "torch")
KERNELS = 3.0
"""How much more memory a pass takes with torch than its tensors alone: 2.6 times were measured; OpenVINO takes no more."""


def load_engines(model: Model, device: str = "auto", name: str = "auto") -> tuple[Engine, ...]:
    """An engine of `ENGINES` for each network of a model file on a device (``auto``, ``cpu``, ``cuda``).

    ``auto`` is OpenVINO on a CPU, where it is installed and runs these networks as torch does, else torch. A network is
    converted for it once and kept in the cache; without a cache ``auto`` is torch, which needs no converting.

    Raises:
        UsageError: there is no such device or engine, or OpenVINO cannot run these networks; the message says why.
        IntegrityError: the weights do not fit the network that the recipe names.
    """
    if name not in ENGINES:
        raise UsageError(f"no engine is called {name!r}; expected one of {', '.join(ENGINES)}")
    if name != "torch" and not _on_gpu(device):
        try:
            return tuple(openvino_engine(_converted(alone, wanted=name == "openvino")) for alone in members(model))
        except (UsageError, InputError):
            if name == "openvino":
                raise
    elif name == "openvino":
        raise UsageError("OpenVINO runs networks on the CPU here; choose --device cpu, or --engine torch")
    from gliomap.torch_engine import (  # noqa: PLC0415 - torch takes two seconds
        bytes_per_voxel,
        find_device,
        load_networks,
        only_size,
        torch_engine,
    )

    where = find_device(device)
    memory = KERNELS * bytes_per_voxel(model.recipe)
    return tuple(
        Engine(torch_engine(network, where), network.divisors, memory, only_size(network))
        for network in load_networks(model, where)
    )


def model_segmenter(
    model: Model, device: str = "auto", engine: str = "auto", max_memory_bytes: int | None = None
) -> Segmenter:
    """What runs a model file as its recipe says; as `load_engines`."""
    coarse = None if model.coarse is None else model_segmenter(model.coarse, device, engine, max_memory_bytes)
    return Segmenter(model.recipe, load_engines(model, device, engine), max_memory_bytes, coarse)


def members(model: Model) -> Iterator[Model]:
    """A model of its own for each network of a model file, but for those that only find the tumour for them."""
    recipe = replace(model.recipe, coarse=None)
    for weights in model.members:
        yield replace(model, recipe=recipe, weights=weights, prefixes=("",), coarse=None)


def _converted(model: Model, *, wanted: bool) -> Entry:
    """The only network of a model for OpenVINO, from the cache or converted now; without a cache only if it is ``wanted``.

    Raises:
        UsageError: OpenVINO is not installed, or the network cannot be converted, now or when it was tried before.
    """
    version = import_openvino().get_version()
    cache = find_cache("engines")
    if cache.folder is None and not wanted:
        raise UsageError(cache.problem or "the cache is off")
    key = entry_key(
        {
            "weights": content_hash(model.weights),
            "network": asdict(model.recipe.network),
            "inputs": len(model.recipe.modalities),
            "target": asdict(model.recipe.target),
            "versions": [version, *(metadata.version(name) for name in ("torch", "monai"))],
            "sources": _sources_sha256(),
        }
    )
    entry = load(cache, key)
    if entry is None or "sha256" not in entry.about or _arrays_sha256(entry) != entry.about["sha256"]:
        try:
            entry = convert_apart(model, "openvino")
        except UsageError as error:
            entry = failure(str(error))
        entry.about["sha256"] = _arrays_sha256(entry)
        store(cache, key, entry)
    if problem := entry.about.get("problem"):
        raise UsageError(f"{problem}. Use --engine torch")
    return entry


def _arrays_sha256(entry: Entry) -> str:
    digest = hashlib.sha256()
    for name in sorted(entry.arrays):
        digest.update(entry.arrays[name].tobytes())
    return digest.hexdigest()


def _sources_sha256() -> str:
    """Of what networks and their conversion are made of, read without importing it."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*(here / "networks").glob("*.py"), here / "tracing.py"]):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _on_gpu(device: str) -> bool:
    """Whether that device is none of the CPU's; only a machine with a driver for GPUs waits for torch to say.

    Raises:
        UsageError: there is no such device.
    """
    if device == "cpu" or (device == "auto" and not _has_gpu_driver()):
        return False
    from gliomap.torch_engine import find_device  # noqa: PLC0415 - torch takes two seconds

    return find_device(device).type != "cpu"


def _has_gpu_driver() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
