"""How well two masks of one grid agree. NaN is where a metric is not defined; what that counts as is not decided here."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from gliomap.classes import REGIONS, region_mask
from gliomap.volume import Box, bounding_box

Array = np.ndarray[Any, np.dtype[Any]]
Spacing = tuple[float, float, float]


def dice(prediction: Array, truth: Array) -> float:
    """2 |A and B| / (|A| + |B|) of two boolean masks of one shape; NaN if both are empty."""
    total = int(prediction.sum()) + int(truth.sum())
    return 2 * int((prediction & truth).sum()) / total if total else math.nan


def sensitivity(prediction: Array, truth: Array) -> float:
    """Share of the truth's voxels that were found; NaN if the truth is empty."""
    positives = int(truth.sum())
    return int((prediction & truth).sum()) / positives if positives else math.nan


def specificity(prediction: Array, truth: Array, outside: int = 0) -> float:
    """Share of the voxels outside the truth that were left out; NaN if there are none.

    ``outside``: voxels of the grid that the masks were cropped from, empty in both. The value depends on how much
    background the grid has.
    """
    negatives = truth.size - int(truth.sum()) + outside
    return 1 - int((prediction & ~truth).sum()) / negatives if negatives else math.nan


def hausdorff(prediction: Array, truth: Array, spacing_mm: Spacing, percentile: float = 95.0) -> float:
    """The larger of the two directed percentiles of surface distances in mm, (D, H, W) masks; NaN if one is empty.

    The surface is the voxels of the mask with a 6-neighbour outside it or outside the grid; distances run between voxel
    centres. Percentiles are interpolated linearly. 95 gives HD95, 100 the Hausdorff distance.
    """
    a, b = surface_points_mm(prediction, spacing_mm), surface_points_mm(truth, spacing_mm)
    there, back = _nearest_distances(a, b)
    return float(max(np.percentile(there, percentile), np.percentile(back, percentile))) if there.size else math.nan


def hausdorff_of_all_voxels(prediction: Array, truth: Array, spacing_mm: Spacing, percentile: float = 95.0) -> float:
    """Like `hausdorff`, of all voxels instead of the surface and both directions pooled; NaN if one mask is empty.

    Every voxel the masks share counts as a distance of 0, so the value says more of the overlap than of the surfaces. It
    is what the public successor of paper 001 reports, and is there to reproduce such numbers only.
    """
    a, b = (np.argwhere(mask) * np.asarray(spacing_mm) for mask in (prediction, truth))
    pooled = np.concatenate(_nearest_distances(a, b))
    return float(np.percentile(pooled, percentile)) if pooled.size else math.nan


def _nearest_distances(a: Array, b: Array) -> tuple[Array, Array]:
    """From each point (N, 3) to the nearest of the other set, both ways; empty if one set is."""
    if not len(a) or not len(b):
        return np.empty(0), np.empty(0)
    return KDTree(b).query(a, workers=-1)[0], KDTree(a).query(b, workers=-1)[0]


def surface_points_mm(mask: Array, spacing_mm: Spacing) -> Array:
    """Positions (N, 3) in mm, z y x from the grid's first voxel, of a mask's surface voxels."""
    box = bounding_box(mask)
    if box is None:
        return np.empty((0, 3))
    inner = mask[box.slices]
    surface = inner & ~ndimage.binary_erosion(inner)
    return (np.argwhere(surface) + box.start) * np.asarray(spacing_mm)


def measure(
    prediction: Array,
    truth: Array,
    spacing_mm: Spacing,
    regions: Sequence[str] = tuple(REGIONS),
    *,
    all_voxels: bool = False,
) -> dict[tuple[str, str], float]:
    """All scores of a predicted class map (D, H, W) against the true one, by (region, metric); NaN where undefined.

    Metrics: dice, hd95 (mm), sensitivity, specificity, volume (ml, of the prediction) and volume_truth (ml);
    hd95_all_voxels (mm) on request, see `hausdorff_of_all_voxels`.
    """
    box = bounding_box((prediction > 0) | (truth > 0), margin=1) or Box((0, 0, 0), (1, 1, 1))
    outside = truth.size - int(np.prod(box.shape))
    prediction, truth = prediction[box.slices], truth[box.slices]
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0
    out: dict[tuple[str, str], float] = {}
    for region in regions:
        a, b = region_mask(prediction, region), region_mask(truth, region)
        out[region, "dice"] = dice(a, b)
        out[region, "hd95"] = hausdorff(a, b, spacing_mm)
        if all_voxels:
            out[region, "hd95_all_voxels"] = hausdorff_of_all_voxels(a, b, spacing_mm)
        out[region, "sensitivity"] = sensitivity(a, b)
        out[region, "specificity"] = specificity(a, b, outside)
        out[region, "volume"] = int(a.sum()) * voxel_ml
        out[region, "volume_truth"] = int(b.sum()) * voxel_ml
    return out
