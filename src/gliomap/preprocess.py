"""From a study's Volume to what a network sees: brain box, resampling, normalisation. numpy only."""

from typing import Any, Literal

import numpy as np

from gliomap.errors import InputError
from gliomap.recipe import Preprocessing, Recipe
from gliomap.volume import Box, Volume, bounding_box

Array = np.ndarray[Any, np.dtype[Any]]

PERCENTILES = (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)
REFERENCE_PERCENTILES = {
    "t1": (-2.79, -1.35, -0.76, -0.40, -0.12, 0.12, 0.35, 0.59, 0.84, 1.13, 1.84),
    "t1c": (-2.44, -1.10, -0.65, -0.38, -0.17, 0.03, 0.20, 0.39, 0.61, 0.91, 3.23),
    "t2": (-1.66, -0.88, -0.69, -0.55, -0.41, -0.25, -0.06, 0.18, 0.56, 1.31, 3.52),
    "flair": (-2.37, -1.08, -0.60, -0.37, -0.19, -0.04, 0.12, 0.30, 0.54, 1.01, 3.25),
}
"""What histograms are matched to: the mean percentiles of the brain's standard scores in 39 BraTS studies of 2018 to 2023."""


def brain_mask(volume: Volume) -> Array:
    """True (D, H, W) where any modality is not zero: the brain of a skull-stripped study."""
    mask = volume.array[0] != 0
    for image in volume.array[1:]:  # one after the other: a mask of each at once takes four times the memory
        mask |= image != 0
    return mask


def brain_box(volume: Volume, margin: int = 0) -> Box:
    """The bounding box of the brain.

    Raises:
        InputError: every voxel is zero.
    """
    box = bounding_box(brain_mask(volume), margin)
    if box is None:
        raise InputError("the study is all zero; expected an image of a brain. Are these the right files?")
    return box


def study_box(volume: Volume, settings: Preprocessing, truth: Volume | None = None) -> Box:
    """The part of a study that the network is shown: its brain, or what the recipe says.

    ``truth`` (1, D, H, W) is the true class map, for recipes that crop about it; a study without tumour is cropped about
    its middle.

    Raises:
        InputError: the study is all zero, or the recipe needs the truth and there is none.
    """
    if settings.crop == "brain":
        return brain_box(volume)
    if truth is None:
        raise InputError(
            "this model's recipe crops about the centre of the true tumour (preprocessing.crop=truth_centre, a reproduction), "
            "so it can only look at studies with a label map; for others use a model whose recipe crops to the brain"
        )
    points = np.argwhere(truth.array[0] > 0)
    centre = np.round(points.mean(0)) if len(points) else np.array(volume.shape) // 2
    d, h, w = (int(c) - n // 2 for c, n in zip(centre, settings.crop_size, strict=True))
    size = settings.crop_size
    return Box((d, h, w), (d + size[0], h + size[1], w + size[2]))  # it may reach outside, and is zero there


def shows_brain_alone(recipe: Recipe) -> bool:
    """Whether a recipe's networks are shown the same of a study where all but the box of its brain was cut away before."""
    if recipe.coarse is not None and not shows_brain_alone(recipe.coarse.recipe):
        return False
    return recipe.preprocessing.crop == "brain" and recipe.preprocessing.grid is None


def voxel_ratio(volume: Volume, settings: Preprocessing) -> tuple[float, float, float] | None:
    """How many voxels of the study one of the network's spans along z, y, x; None where the network works on the study's own."""
    if settings.spacing_mm is not None:
        z, y, x = (settings.spacing_mm / s for s in volume.spacing_mm)
        return z, y, x
    if settings.grid is not None:
        z, y, x = (n / wanted for n, wanted in zip(volume.shape, settings.grid, strict=True))
        return z, y, x
    return None


def prepare(shown: Volume, recipe: Recipe, ratio: tuple[float, float, float] | None) -> Volume:
    """The network's input for the part of a study that it is shown: float32 (C, D, H, W), resampled, normalised; background 0.

    ``shown`` is cropped to `study_box`; ``ratio`` is the whole study's `voxel_ratio`.
    """
    settings = recipe.preprocessing
    mask = brain_mask(shown)
    if ratio is not None:
        shown, mask = _resampled_brain(shown, mask, ratio)
    array = shown.array
    if settings.histogram_matching:
        array = np.stack([match_histogram(a, mask, m) for a, m in zip(array, recipe.modalities, strict=True)])
    return shown.with_array(normalise(array, mask, settings.normalisation))


def match_histogram(image: Array, mask: Array, modality: str) -> Array:
    """One modality (D, H, W) with the percentiles of its non-zero voxels in ``mask`` brought to gliomap's reference.

    Between percentiles the map is linear, beyond the outermost it goes on with their slope; 0 elsewhere. The reference is
    of standard scores, so that the result is near them.
    """
    inside = mask & (image != 0)
    out = np.zeros(image.shape, np.float32)
    percentiles = np.percentile(image[inside], PERCENTILES) if inside.any() else np.zeros(1)
    own, which = np.unique(percentiles, return_index=True)
    if len(own) > 1:
        reference = np.array(REFERENCE_PERCENTILES[modality])[which]
        place = np.clip(np.searchsorted(own, image[inside]) - 1, 0, len(own) - 2)
        slope = np.diff(reference) / np.diff(own)
        out[inside] = reference[place] + slope[place] * (image[inside] - own[place])
    else:  # a constant image has no histogram to match
        out[inside] = image[inside]
    return out


def normalise(array: Array, mask: Array, kind: Literal["zscore", "slice_zscore", "minmax"]) -> Array:
    """Each channel of (C, D, H, W) normalised by its own non-zero voxels in ``mask``; 0 elsewhere.

    ``zscore``: mean 0, standard deviation 1; ``slice_zscore``: in every axial slice. ``minmax``: the range of those voxels
    and the background 0 becomes [0, 1].
    """
    out = np.zeros(array.shape, np.float32)
    if kind == "slice_zscore":
        for index in range(array.shape[1]):
            out[:, index] = normalise(array[:, index], mask[index], "zscore")
        return out
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


def coarser_grid(
    shape: tuple[int, int, int], affine: Array, ratio: tuple[float, float, float]
) -> tuple[tuple[int, int, int], Array]:
    """Shape (D, H, W) and affine of the grid on the same box, corner on corner, with voxels ``ratio`` (z, y, x) as large."""
    d, h, w = (max(int(np.ceil(n / r - 1e-6)), 1) for n, r in zip(shape, ratio, strict=True))
    scale = np.array(ratio[::-1])  # x, y, z
    out = affine.copy()
    out[:3, :3] = affine[:3, :3] * scale
    out[:3, 3] = affine[:3, 3] + affine[:3, :3] @ ((scale - 1) / 2)
    return (d, h, w), out


def resample(
    array: Array, shape: tuple[int, int, int], ratio: tuple[float, float, float], planes: slice = slice(None)
) -> Array:
    """(C, D, H, W) on a grid of ``shape`` whose voxels are ``ratio`` (z, y, x) times as large, sharing the first corner.

    Linear interpolation where the new voxels are smaller; where they are larger the kernel widens with them, so that
    nothing between their centres is lost. Weights at the border are renormalised. Of the new grid only ``planes`` along D.
    """
    z, y, x = (_linear_weights(*axis) for axis in zip(array.shape[1:], shape, ratio, strict=True))
    return _weighted(array, [z[planes], y, x])


def resample_classes(classes: Array, shape: tuple[int, int, int], ratio: tuple[float, float, float]) -> Array:
    """A class map (D, H, W) on another grid: at each voxel the class that fills most of it."""
    present = np.unique(classes)
    weights = [_overlap_weights(*axis) for axis in zip(classes.shape, shape, ratio, strict=True)]
    shares = _weighted(np.stack([classes == value for value in present]), weights)
    return present[shares.argmax(0)].astype(np.uint8)


def _resampled_brain(volume: Volume, mask: Array, ratio: tuple[float, float, float]) -> tuple[Volume, Array]:
    """Intensities averaged over brain voxels only, so that the brain's edge does not darken; a voxel half in is in."""
    shape, affine = coarser_grid(volume.shape, volume.affine, ratio)
    share = resample(mask[None].astype(np.float32), shape, ratio)
    mean = resample(volume.array, shape, ratio) / np.maximum(share, 1e-6)
    inside = share[0] >= 0.5
    return Volume(mean * inside, affine), inside


def _weighted(array: Array, weights: list[Array]) -> Array:
    """(C, D, H, W) with D, H and W each multiplied by its (target, source) matrix; no axis is moved, which would be a copy."""
    z, y, x = weights
    c, d, h, w = array.shape
    out = np.matmul(z, array.astype(np.float32, copy=False).reshape(c, d, h * w)).reshape(c, len(z), h, w)
    return np.matmul(np.matmul(y, out).reshape(-1, w), x.T).reshape(c, len(z), len(y), len(x))


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
