"""A network traced by torch, converted and compared with what it was: `python -m gliomap.tracing MODEL FORMAT FOLDER`."""

import io
import math
import sys
import tempfile
import textwrap
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gliomap.conversion import RESULT, failure
from gliomap.data.cache import Cache, Entry, store
from gliomap.errors import GliomapError, UsageError, import_extra
from gliomap.model_file import Model, load_model
from gliomap.networks import Network
from gliomap.openvino_engine import SLICES_PER_BATCH, import_openvino, in_slices, openvino_engine, threads
from gliomap.recipe import Size
from gliomap.segmenter import activate
from gliomap.torch_engine import bytes_per_voxel, load_networks, only_size, torch_engine
from gliomap.windows import padded_size

Array = np.ndarray[Any, np.dtype[Any]]

LARGEST_DIFFERENCE = 1e-3
"""Of probabilities from torch's; rounding alone makes about 1e-6."""
LONG_AXIS = 160
"""Voxels of the longest axis that is compared, as long as a brain."""
TIMED_AXIS = 64
"""Voxels along the axes of what is timed: enough that a whole brain takes as long for each of them."""
OPSET = 18


def convert(model: Model, to: str) -> Entry:
    """What `convert_apart` describes, in this process.

    Raises:
        UsageError: the network cannot be converted, or the result disagrees with torch.
        IntegrityError: the weights do not fit the network that the recipe names.
    """
    (network,) = load_networks(model)
    network.requires_grad_(False)  # a file of torch's would ask for gradients, too
    size = only_size(network)
    about: dict[str, Any] = {
        "spatial_dims": network.spatial_dims,
        "divisors": network.divisors,
        "only_size": size,
        "bytes_per_voxel": bytes_per_voxel(model.recipe),
    }
    traced_size, *compared_sizes = _sizes(network)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of what a trace may miss, which is what the comparison is for
            entry, run = _WRITERS[to](network, _images(network, 1, traced_size), about)
            about["largest_difference"] = _largest_difference(network, run, compared_sizes, model)
            if to == "openvino":
                about |= {"seconds_per_voxel": _seconds_per_voxel(network, run), "threads": threads()}
    except GliomapError:
        raise
    except Exception as error:  # whatever the tools raise of what they cannot do
        raise UsageError(textwrap.shorten(str(error) or repr(error), 400)) from error
    return entry


def _sizes(network: Network) -> list[Size]:
    """What is traced, then what is compared: other sizes on every axis, one of them long."""
    size = only_size(network)
    if size is not None:
        return [size, size, size]
    d, h, w = (-(-16 // n) * n if n > 1 else 1 for n in network.divisors)
    return [(2 * d, 2 * h, 2 * w), (d, 3 * h, 4 * w), (3 * d, h, -(-LONG_AXIS // w) * w)]


def _images(network: Network, batch: int, size: Size, seed: int = 0) -> torch.Tensor:
    """Noise (B, C, *S) for the network itself: of a 2-D one, as many slices as there are images."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, network.in_channels, *size[-network.spatial_dims :], generator=generator)


def _largest_difference(network: Network, run: Callable[[Array], Array], sizes: list[Size], model: Model) -> float:
    """Of the probabilities of images (2, C, D, H, W) and (1, C, D, H, W) from torch's.

    Raises:
        UsageError: it is more than `LARGEST_DIFFERENCE`, or the shapes differ.
    """
    largest, reference = 0.0, torch_engine(network)
    rng = np.random.default_rng(0)
    for batch, size in zip((2, 1), sizes, strict=True):
        images = rng.standard_normal((batch, network.in_channels, *size), np.float32)
        expected, found = reference(images), run(images)
        if found.shape != expected.shape:
            raise UsageError(f"of images of size {size} it makes logits of shape {found.shape}, torch {expected.shape}")
        pairs = zip(expected, found, strict=True)
        apart = [np.abs(activate(a, model.recipe.target) - activate(b, model.recipe.target)).max() for a, b in pairs]
        largest = float(np.max([largest, *apart]))
    if not largest <= LARGEST_DIFFERENCE:  # nor is what is not a number
        raise UsageError(
            f"its probabilities differ from torch's by {largest:.2g}; expected at most {LARGEST_DIFFERENCE:g}"
        )
    return largest


def _openvino(network: Network, images: torch.Tensor, about: dict[str, Any]) -> tuple[Entry, Callable[[Array], Array]]:
    openvino = import_openvino()
    converted = openvino.convert_model(torch.jit.trace(network, images, check_trace=False))
    free = [-1] * network.spatial_dims if about["only_size"] is None else list(images.shape[2:])
    converted.reshape([-1, network.in_channels, *free])
    converted.inputs[0].get_tensor().set_names({"images"})
    converted.outputs[0].get_tensor().set_names({"logits"})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.xml"
        openvino.save_model(converted, path, compress_to_fp16=False)
        entry = Entry({s: np.fromfile(path.with_suffix(f".{s}"), np.uint8) for s in ("xml", "bin")}, about)
    return entry, openvino_engine(entry).run


def _onnx(network: Network, images: torch.Tensor, about: dict[str, Any]) -> tuple[Entry, Callable[[Array], Array]]:
    import_extra("onnx", "export")
    onnxruntime = import_extra("onnxruntime", "export")
    onnxruntime.disable_telemetry_events()
    spatial = ("depth", "height", "width")[-network.spatial_dims :] if about["only_size"] is None else ()
    axes = dict(enumerate(("batch", "channel", *spatial)))
    del axes[1]
    content = io.BytesIO()
    torch.onnx.export(
        network,
        (images,),
        content,  # pyright: ignore[reportArgumentType] - takes files, too
        dynamo=False,  # the other exporter takes thirty times as long, for the same result
        opset_version=OPSET,
        input_names=["images"],
        output_names=["logits"],
        dynamic_axes={"images": axes, "logits": axes},
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    session = onnxruntime.InferenceSession(content.getvalue(), options, providers=["CPUExecutionProvider"])
    return _entry("onnx", content, about), _of_volumes(network, lambda x: session.run(None, {"images": x})[0])


def _torchscript(
    network: Network, images: torch.Tensor, about: dict[str, Any]
) -> tuple[Entry, Callable[[Array], Array]]:
    content = io.BytesIO()
    torch.jit.save(torch.jit.trace(network, images, check_trace=False), content)
    content.seek(0)
    loaded = torch.jit.load(content)
    return _entry("pt", content, about), _of_volumes(network, lambda x: loaded(torch.from_numpy(x)).numpy())


def _seconds_per_voxel(network: Network, run: Callable[[Array], Array]) -> float:
    """Of a second pass: the first of a size compiles it."""
    slices = 1 if network.spatial_dims == 3 else SLICES_PER_BATCH
    size = only_size(network) or padded_size(
        (TIMED_AXIS if slices == 1 else slices, TIMED_AXIS, TIMED_AXIS), network.divisors
    )
    images = np.zeros((1, network.in_channels, *size), np.float32)
    run(images)
    start = time.perf_counter()
    run(images)
    return (time.perf_counter() - start) / math.prod(size)


_WRITERS = {"openvino": _openvino, "onnx": _onnx, "torchscript": _torchscript}


def _entry(suffix: str, content: io.BytesIO, about: dict[str, Any]) -> Entry:
    return Entry({suffix: np.frombuffer(content.getvalue(), np.uint8)}, about)


def _of_volumes(network: Network, run: Callable[[Array], Array]) -> Callable[[Array], Array]:
    def whole(images: Array) -> Array:
        return run(np.ascontiguousarray(images))

    return whole if network.spatial_dims == 3 else in_slices(whole)


def main() -> None:
    """Convert the model of the file MODEL and leave the result, or why there is none, in FOLDER."""
    path, to, folder = sys.argv[1:]
    try:
        entry = convert(load_model(Path(path)), to)
    except GliomapError as error:
        entry = failure(str(error))
    if problem := store(Cache(Path(folder), sys.maxsize), RESULT, entry):
        sys.exit(problem)


if __name__ == "__main__":
    main()
