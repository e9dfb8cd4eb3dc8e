"""From a study's Volume to a class map on its grid: prepare, run the network, combine windows, decode. No torch in here."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy.special import expit

from gliomap.classes import Target
from gliomap.postprocess import postprocess
from gliomap.preprocess import brain_mask, prepare, resample, study_box, voxel_ratio
from gliomap.recipe import Recipe, Size, View
from gliomap.volume import Volume

Array = np.ndarray[Any, np.dtype[Any]]

_FLIPS: dict[str, int] = {"flip_top_bottom": 1, "flip_front_back": 2, "flip_left_right": 3}
_QUARTERS: dict[str, int] = {"rotate_90": 1, "rotate_180": 2, "rotate_270": 3}

WINDOW_SIGMA = 0.125
"""Width of a window's gaussian weight, relative to the window."""
WINDOWS_PER_BATCH = 2
"""torch sends small 3-D convolutions of a single sample down a slow path on a CPU; two at a time avoid it."""

SLICES_PER_BATCH = 8
"""Windows of one slice are for 2-D networks, and small."""


@dataclass(frozen=True)
class Engine:
    """A trained network that is ready to run.

    ``run`` takes images (B, C, D, H, W) float32 to logits (B, K, D, H, W) float32. ``divisors``: what D, H, W must be
    multiples of. ``bytes_per_voxel``: the memory that a pass takes for each voxel of the images, beyond the weights.
    """

    run: Callable[[Array], Array]
    divisors: Size
    bytes_per_voxel: float = 0.0


@dataclass(frozen=True)
class Segmenter:
    """A recipe and an engine for its trained network, or for each of an ensemble."""

    recipe: Recipe
    engines: tuple[Engine, ...]

    def __call__(self, volume: Volume, truth: Volume | None = None) -> Volume:
        """The class map (1, D, H, W) uint8 of a study's Volume (C, D, H, W), on the same grid; 0 outside the brain.

        ``truth`` is the true class map (1, D, H, W), for recipes that crop about it (see `study_box`).
        """
        return self.with_probabilities(volume, truth)[0]

    def with_probabilities(self, volume: Volume, truth: Volume | None = None) -> tuple[Volume, Volume]:
        """The class map, and the probabilities (K, D, H, W) float32 on the part of the grid that the network is shown.

        Probabilities are the mean over views and engines, whatever these are combined by; they are summed up as they come and
        never all in memory.
        """
        shown = volume.crop(study_box(volume, self.recipe.preprocessing, truth))
        target, inference = self.recipe.target, self.recipe.inference
        mean, maps = np.zeros((len(target.channels), *shown.shape), np.float32), []
        for probabilities in self._opinions(shown, voxel_ratio(volume, self.recipe.preprocessing)):
            if inference.combine == "vote":
                maps.append(target.decode(probabilities))
            mean += probabilities
        mean /= len(inference.views) * len(self.engines)
        classes = majority(maps) if maps else target.decode(mean)
        classes = postprocess(classes * brain_mask(shown), self.recipe.postprocessing)
        return shown.with_array(classes).placed_on(volume), shown.with_array(mean)

    def _opinions(self, shown: Volume, ratio: tuple[float, float, float] | None) -> Iterator[Array]:
        """Each engine's probabilities (K, D, H, W) of each view, on the study's own voxels."""
        prepared = prepare(shown, self.recipe, ratio).array
        for view, engine in product(self.recipe.inference.views, self.engines):
            logits = turn_back(self.logits(turn(prepared, view), engine), view)
            probabilities = activate(logits, self.recipe.target)
            if ratio is not None:
                z, y, x = (1 / r for r in ratio)
                probabilities = resample(probabilities, shown.shape, (z, y, x))
            yield probabilities

    def logits(self, images: Array, engine: Engine) -> Array:
        """An engine's logits (K, D, H, W) of prepared images (C, D, H, W), in one pass or in windows as the recipe says."""
        window = self.recipe.inference.window
        if window is None:
            padded = pad_to_multiple(images, engine.divisors)
            return engine.run(padded[None])[0][(slice(None), *centre_slices(padded.shape[1:], images.shape[1:]))]
        return self._windowed(images, window, engine)

    def _windowed(self, images: Array, window: Size, engine: Engine) -> Array:
        target = tuple(max(n, w) for n, w in zip(images.shape[1:], window, strict=True))
        padded = pad_to(images, (target[0], target[1], target[2]))
        weight = gaussian_weight(window)
        total = np.zeros((len(self.recipe.target.channels), *padded.shape[1:]), np.float32)
        weights = np.zeros(padded.shape[1:], np.float32)
        per_batch = SLICES_PER_BATCH if window[0] == 1 else WINDOWS_PER_BATCH
        for places in _batches(window_starts(padded.shape[1:], window, self.recipe.inference.overlap), per_batch):
            slices = [tuple(slice(s, s + w) for s, w in zip(start, window, strict=True)) for start in places]
            logits = engine.run(np.stack([padded[(slice(None), *at)] for at in slices]))
            for at, part in zip(slices, logits, strict=True):
                total[(slice(None), *at)] += part * weight
                weights[at] += weight
        combined = total / weights
        return combined[(slice(None), *centre_slices(padded.shape[1:], images.shape[1:]))]


def activate(logits: Array, target: Target) -> Array:
    """Probabilities (K, D, H, W) of logits: softmax over the channels or a sigmoid each."""
    if target.kind == "sigmoid":
        return expit(logits)
    out = np.exp(logits - logits.max(0))
    out /= out.sum(0)
    return out


def turn(images: Array, view: View) -> Array:
    """(C, D, H, W) as a view shows it."""
    if view.startswith("rotate"):
        return np.rot90(images, _QUARTERS[view], axes=(2, 3))
    return images if view == "identity" else np.flip(images, _FLIPS[view])


def turn_back(images: Array, view: View) -> Array:
    """What `turn` gave, as it was."""
    return np.rot90(images, -_QUARTERS[view], axes=(2, 3)) if view.startswith("rotate") else turn(images, view)


def majority(maps: Sequence[Array]) -> Array:
    """At each voxel the class that most class maps (D, H, W) have; ties go to the earliest map among them."""
    elected, most = maps[0].copy(), np.zeros(maps[0].shape, np.uint16)
    for one in maps:
        votes = np.zeros_like(most)
        for other in maps:
            votes += one == other
        ahead = votes > most
        elected[ahead], most[ahead] = one[ahead], votes[ahead]
    return elected


def pad_to_multiple(images: Array, divisors: Size) -> Array:
    """Zeros around (C, D, H, W) so that every size is a multiple of its divisor."""
    d, h, w = (-(-n // divisor) * divisor for n, divisor in zip(images.shape[1:], divisors, strict=True))
    return pad_to(images, (d, h, w))


def pad_to(images: Array, size: Size) -> Array:
    """Zeros around (C, D, H, W) up to ``size``, the images in the middle."""
    out = np.zeros((len(images), *size), images.dtype)
    out[(slice(None), *centre_slices(size, images.shape[1:]))] = images
    return out


def centre_slices(outer: tuple[int, ...], inner: tuple[int, ...]) -> tuple[slice, ...]:
    """Where `pad_to` puts the images."""
    return tuple(slice((o - i) // 2, (o - i) // 2 + i) for o, i in zip(outer, inner, strict=True))


def window_starts(size: tuple[int, ...], window: Size, overlap: float) -> list[tuple[int, ...]]:
    """First voxels of the windows that cover ``size``, each a step of (1 - overlap) windows on, the last one flush."""
    axes = []
    for n, w in zip(size, window, strict=True):
        step = max(int(w * (1 - overlap)), 1)
        axes.append([min(i * step, n - w) for i in range(-(-(n - w) // step) + 1)])
    return list(product(*axes))


def gaussian_weight(window: Size) -> Array:
    """A window's weight (D, H, W): a gaussian about its centre, nowhere below 0.001, as MONAI's."""
    axes = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (WINDOW_SIGMA * n)) ** 2) for n in window]
    weight = np.einsum("i,j,k->ijk", *axes).astype(np.float32)
    return np.maximum(weight, np.float32(1e-3))


def _batches(items: list[tuple[int, ...]], size: int) -> Iterator[list[tuple[int, ...]]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
