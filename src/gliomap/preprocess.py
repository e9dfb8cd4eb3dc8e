"""From a study's Volume to what a network sees: brain box, resampling, normalisation. numpy only."""

from typing import Any, Literal

import numpy as np

from gliomap.errors import InputError
from gliomap.recipe import Preprocessing
from gliomap.volume import Box, Volume, bounding_box

Array = np.ndarray[Any, np.dtype[Any]]


def brain_mask(volume: Volume) -> Array:
    """True (D, H, W) where any modality is not zero: the brain of a skull-stripped study."""
    return (volume.array != 0).any(0)


def brain_box(volume: Volume, margin: int = 0) -> Box:
    """The bounding box of the brain.

    Raises:
        InputError: every voxel is zero.
    """
    box = bounding_box(brain_mask(volume), margin)
    if box is None:
        raise InputError("the study is all zero; expected an image of a brain. Are these the right files?")
    return box


def prepare(volume: Volume, settings: Preprocessing) -> Volume:
    """The network's input for a study: float32 (C, D, H, W), cropped to the brain, resampled, normalised; background 0."""
    cropped = volume.crop(brain_box(volume))
    mask = brain_mask(cropped)
    if settings.spacing_mm is not None:
        cropped, mask = _resampled_brain(cropped, mask, settings.spacing_mm)
    return cropped.with_array(normalise(cropped.array, mask, settings.normalisation))


def normalise(array: Array, mask: Array, kind: Literal["zscore", "minmax"]) -> Array:
    """Each channel of (C, D, H, W) normalised by its own non-zero voxels in ``mask``; 0 elsewhere.

    ``zscore``: mean 0, standard deviation 1. ``minmax``: the range of those voxels and the background 0 becomes [0, 1].
    """
    out = np.zeros(array.shape, np.float32)
    for channel, image in enumerate(array):
        inside = mask & (image != 0)
        values = image[inside]
        if not values.size:
            continue
        if kind == "zscore":
            out[channel][inside] = (values - values.mean()) / max(float(values.std()), 1e-6)
        else:
            low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
            out[channel][inside] = (values - low) / (high - low)
    return out


def grid_at_spacing(
    shape: tuple[int, int, int], affine: Array, spacing_mm: float
) -> tuple[tuple[int, int, int], Array]:
    """Shape (D, H, W) and affine of the isotropic grid that covers the same box, corner on corner."""
    sizes = np.linalg.norm(affine[:3, :3], axis=0)  # x, y, z
    ratio = spacing_mm / sizes
    counts = [max(int(np.ceil(n / r - 1e-6)), 1) for n, r in zip(shape[::-1], ratio, strict=True)]
    out = affine.copy()
    out[:3, :3] = affine[:3, :3] * ratio
    out[:3, 3] = affine[:3, 3] + affine[:3, :3] @ ((ratio - 1) / 2)
    return (counts[2], counts[1], counts[0]), out


def resample(array: Array, shape: tuple[int, int, int], ratio: tuple[float, float, float]) -> Array:
    """(C, D, H, W) on a grid of ``shape`` whose voxels are ``ratio`` (z, y, x) times as large, sharing the first corner.

    Linear interpolation where the new voxels are smaller; where they are larger the kernel widens with them, so that
    nothing between their centres is lost. Weights at the border are renormalised.
    """
    return _weighted(array, [_linear_weights(*axis) for axis in zip(array.shape[1:], shape, ratio, strict=True)])


def resample_classes(classes: Array, shape: tuple[int, int, int], ratio: tuple[float, float, float]) -> Array:
    """A class map (D, H, W) on another grid: at each voxel the class that fills most of it."""
    present = np.unique(classes)
    weights = [_overlap_weights(*axis) for axis in zip(classes.shape, shape, ratio, strict=True)]
    shares = _weighted(np.stack([classes == value for value in present]), weights)
    return present[shares.argmax(0)].astype(np.uint8)


def _resampled_brain(volume: Volume, mask: Array, spacing_mm: float) -> tuple[Volume, Array]:
    """Intensities averaged over brain voxels only, so that the brain's edge does not darken; a voxel half in is in."""
    shape, affine = grid_at_spacing(volume.shape, volume.affine, spacing_mm)
    z, y, x = (spacing_mm / s for s in volume.spacing_mm)
    share = resample(mask[None].astype(np.float32), shape, (z, y, x))
    mean = resample(volume.array, shape, (z, y, x)) / np.maximum(share, 1e-6)
    inside = share[0] >= 0.5
    return Volume(mean * inside, affine), inside


def _weighted(array: Array, weights: list[Array]) -> Array:
    """(C, D, H, W) with D, H and W each multiplied by its (target, source) matrix."""
    out = array.astype(np.float32, copy=False)
    for axis, matrix in enumerate(weights, start=1):
        out = np.moveaxis(np.tensordot(matrix, out, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(out)


def _linear_weights(source: int, target: int, ratio: float) -> Array:
    centres = (np.arange(target) + 0.5) * ratio - 0.5
    distance = np.abs(np.clip(centres, 0, source - 1)[:, None] - np.arange(source)[None])
    weights = np.maximum(1 - distance / max(ratio, 1.0), 0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _overlap_weights(source: int, target: int, ratio: float) -> Array:
    """How much of each new voxel each old one fills."""
    start, old = (np.arange(target) * ratio)[:, None], np.arange(source)[None]
    overlap = np.minimum(start + ratio, old + 1) - np.maximum(start, old)
    return np.maximum(overlap, 0).astype(np.float32)
