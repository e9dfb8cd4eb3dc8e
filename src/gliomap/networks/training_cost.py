"""What training a recipe will take: memory as counted on the meta device, time as timed for a moment on the device itself."""

import math
import time
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from gliomap.errors import InputError
from gliomap.losses import build_loss
from gliomap.networks import Network, build_network, channels_last, fast_layout
from gliomap.networks.base import Outputs
from gliomap.networks.counting import Step, count_step, parameters
from gliomap.recipe import Recipe, Training, recipe_from_json, recipe_json

HEAP_BYTES = 500_000_000
"""What Linux's C library keeps of the memory that tensors no longer use: 0.4 to 0.7 GB were measured, whatever the network."""
_FLOAT_BYTES = 4
_GROWTH = 8
_Trial = tuple[tuple[int, ...], int]
"""The size of a patch, and how many of them."""


def training_memory_bytes(recipe: Recipe) -> int:
    """The largest memory of a training step on a CPU, in one process, beyond the program itself and the studies.

    Weights, their gradients and Adam's moments, their running mean if there is one, the batch, the activations of one part
    of it and those of the loss, and `HEAP_BYTES`. On a GPU there is no such heap, but what kernels take for themselves,
    which is not known here.
    """
    alike = replace(recipe, name="any", source="", starts_from=(), coarse=None)
    return _memory_bytes(recipe_json(alike))


@lru_cache(maxsize=256)
def _memory_bytes(recipe_text: str) -> int:
    """Counted once for each recipe, since that takes as long as a few steps of a small training."""
    recipe = recipe_from_json(recipe_text)
    network, settings = _build(recipe, "meta"), recipe.training
    size, slices = patch_size(network, settings.patch_size)
    part = part_size(settings)
    step = _count(recipe, network, size, slices * part)
    moments = 3 if settings.amsgrad else 2
    weights = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    copies = 1 if settings.ema_decay is None else 2
    others = (settings.batch_size - part) * math.prod(settings.patch_size) * (_FLOAT_BYTES * network.in_channels + 1)
    learnt = (1 + moments) * _FLOAT_BYTES * parameters(network)
    return copies * weights + learnt + others + step.memory_bytes + HEAP_BYTES


def patch_time_s(recipe: Recipe, device: torch.device | str = "cpu", limit_s: float = 3.0) -> float:
    """Seconds of training per patch, expected after trying smaller parts of smaller patches for about ``limit_s``.

    A step is taken to cost so much, and so much more for each voxel, as the smallest and the largest trial say. Where the
    smallest takes longer than that, as it may on a busy machine, others are tried all the same, since it says nothing of
    them. A network that takes one size only is tried at that. Reading and augmenting patches, the optimiser's own
    arithmetic and validation come on top.
    """
    network = _build(recipe, device)
    whole, slices = patch_size(network, recipe.training.patch_size)
    part = part_size(recipe.training)
    trials = _trials(network, whole, slices * part)
    begun = time.perf_counter()
    timed = [_timed(recipe, network, trial, limit_s) for trial in trials[:2]]
    left_s = max(limit_s - (time.perf_counter() - begun), timed[0][1])
    larger = [t for t in trials[2:] if _voxels(t) <= _GROWTH * timed[-1][0] and _hoped_s(timed, _voxels(t)) <= left_s]
    timed += [_timed(recipe, network, trial, limit_s) for trial in larger[-1:]]
    return _expected_s(timed, _voxels((whole, slices * part))) / part


def part_size(training: Training) -> int:
    """How many patches go through the network at once, in a training of one process."""
    return training.batch_size // training.accumulation


def patch_size(network: Network, size: tuple[int, int, int]) -> tuple[tuple[int, ...], int]:
    """What a network sees of a patch (D, H, W): how large it is, and how many of it there are: D slices in 2-D."""
    return (size, 1) if network.spatial_dims == 3 else (size[1:], size[0])


def _trials(network: Network, whole: tuple[int, ...], batch: int) -> list[_Trial]:
    """What to try, from few voxels to many: two patches of the sizes there are, four of the smallest, and the whole part.

    One patch, which on a CPU is slower than its share of two, where a part has no more, and only there. Nothing between the
    smallest and twice its voxels, which would tell little. No axis is shorter than two voxels where the network is coarsest:
    one cannot be normalised.
    """
    divisor = network.size_divisor
    sizes = [tuple(min(max(-(-n * part // (8 * divisor)), 2) * divisor, n) for n in whole) for part in range(1, 9)]
    sizes = [size for size in sizes if _takes(network, size)] or [whole]
    few, largest = min(batch, 2), (whole, batch)
    most_of_smallest = (sizes[0], 4 if few == 2 else 1)
    trials = {_voxels(trial): trial for trial in (*((size, few) for size in sizes), most_of_smallest, largest)}
    least, most = min(trials), _voxels(largest)
    return [trials[n] for n in sorted(trials) if n in (least, most) or 2 * least <= n < most]


def _takes(network: Network, size: tuple[int, ...]) -> bool:
    try:
        network.check_input(torch.empty(1, network.in_channels, *size, device="meta"))
    except InputError:
        return False
    return True


def _voxels(trial: _Trial) -> int:
    size, patches = trial
    return math.prod(size) * patches


def _expected_s(timed: list[tuple[int, float]], voxels: int) -> float:
    """Seconds of a step on so many voxels, on the line through the first and the last of those timed."""
    (fewest, shortest_s), (most, longest_s) = timed[0], timed[-1]
    if longest_s <= shortest_s:
        return longest_s * voxels / most
    return longest_s + (longest_s - shortest_s) / (most - fewest) * (voxels - most)


def _hoped_s(timed: list[tuple[int, float]], voxels: int) -> float:
    """The same if voxels cost nothing where more of them were no slower: what is worth trying."""
    return _expected_s(timed, voxels) if timed[-1][1] > timed[0][1] else timed[-1][1]


def _timed(recipe: Recipe, network: Network, trial: _Trial, limit_s: float) -> tuple[int, float]:
    """Voxels and seconds of a step; of the second one, where there is time, since the first of a size prepares the kernels."""
    seconds = _step_time_s(recipe, network, *trial)
    if seconds < limit_s / 4:
        seconds = min(seconds, _step_time_s(recipe, network, *trial))
    return _voxels(trial), seconds


def _build(recipe: Recipe, device: torch.device | str) -> Network:
    with torch.device(device):
        network = build_network(recipe)
    network.freeze(recipe.frozen)
    return channels_last(network.train())


def _count(recipe: Recipe, network: Network, size: tuple[int, ...], batch: int) -> Step:
    return count_step(network, size, batch, lambda outputs: _loss(recipe, outputs))


def _step_time_s(recipe: Recipe, network: Network, size: tuple[int, ...], batch: int) -> float:
    device = next(network.parameters()).device
    images = fast_layout(torch.randn(batch, network.in_channels, *size, device=device))
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
