"""From a study's Volume to a class map on its grid: prepare, run the network, combine windows, decode. No torch in here."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy.special import expit

from gliomap.classes import Target
from gliomap.postprocess import postprocess
from gliomap.preprocess import brain_box, brain_mask, prepare, resample
from gliomap.recipe import Inference, Recipe
from gliomap.volume import Volume

Array = np.ndarray[Any, np.dtype[Any]]
Size = tuple[int, int, int]
Engine = Callable[[Array], Array]
"""Runs a trained network: images (B, C, D, H, W) float32 to logits (B, K, D, H, W) float32."""

WINDOW_SIGMA = 0.125
"""Width of a window's gaussian weight, relative to the window."""
WINDOWS_PER_BATCH = 2
"""torch sends small 3-D convolutions of a single sample down a slow path on a CPU; two at a time avoid it."""


@dataclass(frozen=True)
class Segmenter:
    """A recipe and the engine that runs its trained network."""

    recipe: Recipe
    engine: Engine
    size_divisor: int

    def __call__(self, volume: Volume) -> Volume:
        """The class map (1, D, H, W) uint8 of a study's Volume (C, D, H, W), on the same grid; 0 outside the brain."""
        brain = volume.crop(brain_box(volume))
        classes = self.recipe.target.decode(self.probabilities(brain).array)
        classes = postprocess(classes * brain_mask(brain), self.recipe.postprocessing)
        return brain.with_array(classes).placed_on(volume)

    def probabilities(self, volume: Volume) -> Volume:
        """The network's probabilities (K, D, H, W) float32 on the brain's bounding box of the study's grid."""
        prepared = prepare(volume, self.recipe.preprocessing)
        logits = self.logits(prepared.array)
        probabilities = activate(logits, self.recipe.target)
        crop = volume.crop(brain_box(volume))
        if self.recipe.preprocessing.spacing_mm is not None:
            z, y, x = (fine / coarse for fine, coarse in zip(crop.spacing_mm, prepared.spacing_mm, strict=True))
            probabilities = resample(probabilities, crop.shape, (z, y, x))
        return crop.with_array(probabilities)

    def logits(self, images: Array) -> Array:
        """Logits (K, D, H, W) of prepared images (C, D, H, W), in one pass or in windows as the recipe says."""
        window = self.recipe.inference.window
        if window is None:
            padded = pad_to_multiple(images, self.size_divisor)
            return self.engine(padded[None])[0][(slice(None), *centre_slices(padded.shape[1:], images.shape[1:]))]
        return self._windowed(images, window, self.recipe.inference)

    def _windowed(self, images: Array, window: Size, inference: Inference) -> Array:
        target = tuple(max(n, w) for n, w in zip(images.shape[1:], window, strict=True))
        padded = pad_to(images, (target[0], target[1], target[2]))
        weight = gaussian_weight(window)
        total = np.zeros((len(self.recipe.target.channels), *padded.shape[1:]), np.float32)
        weights = np.zeros(padded.shape[1:], np.float32)
        for places in _batches(window_starts(padded.shape[1:], window, inference.overlap), WINDOWS_PER_BATCH):
            slices = [tuple(slice(s, s + w) for s, w in zip(start, window, strict=True)) for start in places]
            logits = self.engine(np.stack([padded[(slice(None), *at)] for at in slices]))
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


def pad_to_multiple(images: Array, divisor: int) -> Array:
    """Zeros around (C, D, H, W) so that every size is a multiple of ``divisor``."""
    d, h, w = (-(-n // divisor) * divisor for n in images.shape[1:])
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
