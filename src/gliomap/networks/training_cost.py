"""What training a recipe will take: memory as counted on the meta device, time as timed for a moment on the device itself."""

import time

import torch
from torch import Tensor

from gliomap.errors import InputError
from gliomap.losses import build_loss
from gliomap.networks import Network, build_network
from gliomap.networks.base import Outputs
from gliomap.networks.counting import Step, count_step, parameters
from gliomap.recipe import Recipe

HEAP_BYTES = 500_000_000
"""What Linux's C library keeps of the memory that tensors no longer use: 0.4 to 0.7 GB were measured, whatever the network."""
_FLOAT_BYTES = 4


def training_memory_bytes(recipe: Recipe) -> int:
    """The largest memory of a training step on a CPU, beyond the program itself and the studies.

    Weights, their gradients and Adam's moments, the batch, its activations and those of the loss, and `HEAP_BYTES`. On a GPU
    there is no such heap, but what kernels take for themselves, which is not known here.
    """
    network = _build(recipe, "meta")
    size, batch = patch_size(network, recipe.training.patch_size)
    step = _count(recipe, network, size, batch * recipe.training.batch_size)
    moments = 3 if recipe.training.amsgrad else 2
    weights = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    return weights + (1 + moments) * _FLOAT_BYTES * parameters(network) + step.memory_bytes + HEAP_BYTES


def patch_time_s(recipe: Recipe, device: torch.device | str = "cpu", limit_s: float = 3.0) -> float:
    """Seconds of training per patch, expected after trying smaller patches and batches for about ``limit_s``.

    The rate of the largest trial, in multiply-accumulates per second, is taken for the rate of a whole batch. A network that
    takes one size only is timed at that, however long it takes. Reading and augmenting patches, the optimiser's own
    arithmetic and validation come on top.
    """
    begun = time.perf_counter()
    network, twin = _build(recipe, device), _build(recipe, "meta")
    whole, slices = patch_size(network, recipe.training.patch_size)
    batch = slices * recipe.training.batch_size
    rate = 0.0
    for share, tried in ((8, 2), (4, 2), (2, 2), (1, 2), (1, batch)):
        size = tuple(_shorter(n, share, network.size_divisor) for n in whole)
        try:
            gmac = _count(recipe, twin, size, min(tried, batch)).gmac
        except InputError:  # the network takes no other size than the whole patch's
            continue
        if rate and time.perf_counter() + gmac / rate > begun + limit_s:
            break
        seconds = _step_time_s(recipe, network, size, min(tried, batch))
        if time.perf_counter() + seconds < begun + limit_s:  # the first of a size prepares the kernels
            seconds = _step_time_s(recipe, network, size, min(tried, batch))
        rate = gmac / seconds
    return _count(recipe, twin, whole, batch).gmac / rate / recipe.training.batch_size


def patch_size(network: Network, size: tuple[int, int, int]) -> tuple[tuple[int, ...], int]:
    """What a network sees of a patch (D, H, W): how large it is, and how many of it there are: D slices in 2-D."""
    return (size, 1) if network.spatial_dims == 3 else (size[1:], size[0])


def _shorter(length: int, share: int, divisor: int) -> int:
    """A length's share, rounded up to what the network takes, and twice that at least: one voxel cannot be normalised."""
    return min(max(-(-length // (share * divisor)), 2) * divisor, length)


def _build(recipe: Recipe, device: torch.device | str) -> Network:
    with torch.device(device):
        network = build_network(recipe)
    network.freeze(recipe.frozen)
    layout = torch.channels_last_3d if network.spatial_dims == 3 else torch.channels_last
    return network.train().to(memory_format=layout)  # pyright: ignore[reportCallIssue] - missing in torch's stubs


def _count(recipe: Recipe, network: Network, size: tuple[int, ...], batch: int) -> Step:
    return count_step(network, size, batch, lambda outputs: _loss(recipe, outputs))


def _step_time_s(recipe: Recipe, network: Network, size: tuple[int, ...], batch: int) -> float:
    device = next(network.parameters()).device
    layout = torch.channels_last_3d if network.spatial_dims == 3 else torch.channels_last
    images = torch.randn(batch, network.in_channels, *size, device=device).contiguous(memory_format=layout)
    network.zero_grad()
    begun = time.perf_counter()
    loss = _loss(recipe, network.supervised(images))
    if loss.requires_grad:
        loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def _loss(recipe: Recipe, outputs: Outputs) -> Tensor:
    """The recipe's loss in its last epoch, when every term counts, on healthy brain."""
    logits = outputs.logits[0]
    classes = torch.zeros(logits.shape[0], *logits.shape[2:], dtype=torch.uint8, device=logits.device)
    epoch = recipe.training.patches // recipe.training.validate_every
    terms = build_loss(recipe.training.loss)(outputs, classes, recipe.target, epoch)
    return torch.stack(list(terms.values())).sum()
