"""Whether a map means anything: shuffled weights, deletion and insertion, agreement with a reference."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import rankdata
from torch import nn

from gliomap.networks import Network

Array = np.ndarray[Any, np.dtype[Any]]

SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Of the brain's voxels, how many are taken away or brought back."""
RANDOM_ORDERS = 2
_RANKED = 100_000
"""Voxels that a rank correlation is computed of, where there are more; its error is then below 0.01."""


class Answers(NamedTuple):
    """A score at each of `SHARES` of the voxels, taken away (deletion) or brought back (insertion)."""

    deletion: tuple[float, ...]
    insertion: tuple[float, ...]


def shuffled(network: Network, seed: int) -> Network:
    """A copy of a network in which the values of every parameter and buffer tensor have changed places.

    Every layer keeps its distribution of weights and loses what it has learnt (Adebayo et al. 2018, "Sanity Checks for
    Saliency Maps", with permuted weights instead of new ones).
    """
    other = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(seed)
    for module in other.modules():
        for tensor in (*module.parameters(recurse=False), *_statistics(module)):
            order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
            tensor.data.copy_(tensor.data.flatten()[order].view(tensor.shape))
    return other


def rank_correlation(a: Array, b: Array, seed: int = 0) -> float | None:
    """Spearman's correlation of two arrays of one shape; None if one of them is constant."""
    a, b = a.ravel(), b.ravel()
    if len(a) > _RANKED:
        some = np.random.default_rng(seed).choice(len(a), _RANKED, replace=False)
        a, b = a[some], b[some]
    if not (len(a) > 1 and np.ptp(a) > 0 and np.ptp(b) > 0):
        return None
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def likeness(values: Array, others: Sequence[Array]) -> float | None:
    """The mean size of the rank correlations of a map with others, whichever way round; None if none can be computed."""
    found = [correlation for other in others if (correlation := rank_correlation(values, other)) is not None]
    return float(np.mean(np.abs(found))) if found else None


def lead(values: Array, others: Sequence[Array], mask: Array) -> float:
    """How much better a map tells a mask from the rest, |2 AUC - 1|, than the best of others; of arrays (N,).

    0 is no better, and 1 perfect where the others tell nothing. The mask has some of the voxels, but not all.
    """
    told = [abs(2 * (ranking_areas(one, {"": mask})[""] or 0.0) - 1) for one in (values, *others)]
    return told[0] - max(told[1:])


def ranking_areas(values: Array, masks: dict[str, Array]) -> dict[str, float | None]:
    """For each mask the probability that a voxel in it has a higher value than one outside, ties counting half (AUC).

    The Mann-Whitney statistic as a share of all pairs; None if all or none of the voxels are in the mask.
    """
    ranks = rankdata(values)
    areas: dict[str, float | None] = {}
    for name, mask in masks.items():
        inside = int(np.count_nonzero(mask))
        outside = mask.size - inside
        wins = ranks[mask.ravel()].sum() - inside * (inside + 1) / 2
        areas[name] = float(wins / (inside * outside)) if inside and outside else None
    return areas


def highest_first(values: Array, brain: Array, seed: int = 0) -> Array:
    """The brain's voxels, as places in the flat array, from the highest value to the lowest; equal ones in random order."""
    places = np.random.default_rng(seed).permutation(np.flatnonzero(brain))
    return places[np.argsort(-values.ravel()[places], kind="stable")]


def random_blocks(brain: Array, edge: int, seed: int) -> Array:
    """The brain's voxels, as places in the flat array, in cubes of ``edge`` voxels whose order is random.

    Cubes, since single voxels taken away at random would be noise, which a network bears worse than a hole.
    """
    d, h, w = (-(-n // edge) for n in brain.shape)
    z, y, x = (np.arange(n) // edge for n in brain.shape)
    cubes = ((z[:, None, None] * h + y[:, None]) * w + x).ravel()
    rank = np.random.default_rng(seed).permutation(d * h * w)
    places = np.flatnonzero(brain)
    return places[np.argsort(rank[cubes[places]], kind="stable")]


def ordered_answers(
    images: Array, maps: Mapping[str, Array], score: Callable[[Array], float], edge: int, seed: int
) -> tuple[dict[str, Answers], list[Answers]]:
    """The `answers` in the order of each map (D, H, W), and in that of `RANDOM_ORDERS` of random blocks of ``edge`` voxels."""
    brain = (images != 0).any(0)
    places = np.flatnonzero(brain)
    ends = score(images), score(without(images, places, places))
    blocks = [random_blocks(brain, edge, RANDOM_ORDERS * seed + n) for n in range(RANDOM_ORDERS)]
    own = {name: answers(images, highest_first(one, brain, seed), score, ends) for name, one in maps.items()}
    return own, [answers(images, order, score, ends) for order in blocks]


def answers(images: Array, order: Array, score: Callable[[Array], float], ends: tuple[float, float]) -> Answers:
    """How a score of images (C, D, H, W) falls and rises as voxels are taken away in an order, and brought back in it.

    What is taken away becomes its image's mean over the voxels of ``order`` (Petsiuk et al. 2018, "RISE"). ``ends``: the
    score of the whole images and that of images without any of these voxels.
    """
    whole, nothing = ends
    deletion, insertion = [whole], [nothing]
    for share in SHARES[1:-1]:
        count = round(share * len(order))
        deletion.append(score(without(images, order[:count], order)))
        insertion.append(score(without(images, order[count:], order)))
    return Answers((*deletion, nothing), (*insertion, whole))


def without(images: Array, places: Array, brain: Array) -> Array:
    """Images (C, D, H, W) with some places of the flat array at each image's mean over the places ``brain``."""
    out = images.copy()
    for image in out:
        flat = image.reshape(-1)
        mean = float(flat[brain].mean())
        flat[places] = mean if abs(mean) > 1e-6 else 1e-6  # windows of exact zeros would be taken for background
    return out


def area(scores: tuple[float, ...]) -> float:
    """The area below a curve of scores at `SHARES`."""
    return float(np.trapezoid(scores, SHARES))


def _statistics(module: nn.Module) -> list[torch.Tensor]:
    """The running statistics of a normalisation, but not how many batches they are of."""
    return [buffer for buffer in module.buffers(recurse=False) if buffer.is_floating_point()]
