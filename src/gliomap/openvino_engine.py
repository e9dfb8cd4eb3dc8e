"""Networks run by OpenVINO on a CPU, from what `gliomap.conversion` made of them. No torch in here."""

import os
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from gliomap.data.cache import Entry
from gliomap.errors import InputError, import_extra
from gliomap.machine import cores
from gliomap.recipe import Size
from gliomap.segmenter import Engine

Array = np.ndarray[Any, np.dtype[Any]]

SLICES_PER_BATCH = 8
"""Slices of a volume that a 2-D network sees at once."""


def openvino_engine(converted: Entry) -> Engine:
    """The engine of a converted network, in float32.

    ``converted`` holds the arrays ``xml`` and ``bin`` of OpenVINO's format and, in ``about``, ``spatial_dims`` and the
    numbers of an `Engine`. A size that is no multiple of the divisors is an InputError when the engine runs.

    Raises:
        UsageError: OpenVINO is not installed.
    """
    openvino = import_openvino()
    weights = openvino.Tensor(np.ascontiguousarray(converted.arrays["bin"]))
    network = _Compiled(openvino_core().read_model(converted.arrays["xml"].tobytes(), weights))

    def run_volumes(images: Array) -> Array:
        logits = [network.run(one[None], (1, *one.shape)) for one in images]
        return logits[0] if len(logits) == 1 else np.concatenate(logits)

    def run_slices(slices: Array) -> Array:
        return network.run(slices, (-1, *slices.shape[1:]))

    about = converted.about
    divisors = _size(about["divisors"])
    only_size = None if about["only_size"] is None else _size(about["only_size"])
    run = run_volumes if about["spatial_dims"] == 3 else in_slices(run_slices)
    return Engine(
        _checked(run, divisors, only_size),
        divisors,
        about["bytes_per_voxel"],
        only_size,
        "openvino",
        about["seconds_per_voxel"] if about.get("threads") == threads() else 0.0,
        release=network.release,
    )


class _Compiled:
    """A network that is compiled for the shape that is asked for, and again where another is.

    Compiled for any shape it would take twice the memory: where sizes are known, what is computed later lies where what is
    not needed any more was.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._by_shape: dict[tuple[int, ...], Any] = {}
        self._lock = threading.Lock()

    def run(self, images: Array, shape: tuple[int, ...]) -> Array:
        """What the network, compiled for that shape (-1 is any length), makes of the images."""
        request = self._for(shape).create_infer_request()  # of each thread's own, as is the result
        return request.infer([np.ascontiguousarray(images)], share_inputs=True, share_outputs=True)[0]

    def release(self) -> None:
        """Give back the memory of passes; the next one takes it anew."""
        with self._lock:
            for compiled in self._by_shape.values():
                compiled.release_memory()

    def _for(self, shape: tuple[int, ...]) -> Any:
        with self._lock:
            if shape not in self._by_shape:
                self._by_shape.clear()
                self._model.reshape(list(shape))
                self._by_shape[shape] = openvino_core().compile_model(self._model, "CPU", _settings())
            return self._by_shape[shape]


def _settings() -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # two processes would be pinned to the same core
    }


def in_slices(run: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """What runs a 2-D network, (N, C, H, W) to (N, K, H, W), for volumes: (B, C, D, H, W) to (B, K, D, H, W)."""

    def run_volumes(images: Array) -> Array:
        slices = np.moveaxis(images, 2, 1).reshape(-1, images.shape[1], *images.shape[3:])
        firsts = range(0, len(slices), SLICES_PER_BATCH)
        logits = np.concatenate([run(slices[first : first + SLICES_PER_BATCH]) for first in firsts])
        return np.moveaxis(logits.reshape(len(images), images.shape[2], *logits.shape[1:]), 1, 2)

    return run_volumes


@cache
def openvino_core() -> Any:
    """The one core of this process, which holds the plugin of the CPU until the process ends.

    Each plugin gives the thread that loads it a stack for signals, and takes it back when it goes. Where two go in the
    order in which they came, the thread is left with a stack that was freed, and Ctrl-C is a segmentation fault.
    """
    return import_openvino().Core()


def import_openvino() -> ModuleType:
    """OpenVINO without its telemetry, which it would import and replaces by nothing where there is none.

    Raises:
        UsageError: it is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType] - None forbids the import
    return import_extra("openvino", "fast")


def threads() -> int:
    """How many threads compute: OMP_NUM_THREADS, or the cores that this process may use."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdecimal() and int(told) else cores()


def _size(numbers: Sequence[int]) -> Size:
    d, h, w = numbers
    return d, h, w


def _checked(run: Callable[[Array], Array], divisors: Size, only_size: Size | None) -> Callable[[Array], Array]:
    """OpenVINO computes something for sizes that the network refuses."""

    def run_checked(images: Array) -> Array:
        size = images.shape[2:]
        if only_size is not None and size != only_size:
            raise InputError(f"got images of size {size}; this network was built for {only_size} and takes no other")
        if any(n % divisor for n, divisor in zip(size, divisors, strict=True)):
            raise InputError(f"got images of size {size}; every size must be a multiple of {divisors}")
        return run(images)

    return run_checked
