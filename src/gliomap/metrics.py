"""How well two masks of one grid agree. NaN is where a metric is not defined; what that counts as is not decided here."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from gliomap.classes import ED, ET, NCR, PARTS, REGIONS
from gliomap.errors import UsageError
from gliomap.rows import DEFAULT_METRICS, metric, nsd_tolerance_mm
from gliomap.surfaces import Distances, element_distances, surface_distances, voxel_distances
from gliomap.volume import Box, bounding_box

Array = np.ndarray[Any, np.dtype[Any]]
Spacing = tuple[float, float, float]

_CUBE: Spacing = (1.0, 1.0, 1.0)


def dice(prediction: Array, truth: Array) -> float:
    """2 |A and B| / (|A| + |B|) of two boolean masks of one shape; NaN if both are empty."""
    return score(prediction, truth, _CUBE, "dice")


def hausdorff(
    prediction: Array, truth: Array, spacing_mm: Spacing, percentile: float = 95.0, *, threads: int = -1
) -> float:
    """The larger of the two directed percentiles of surface distances in mm, (D, H, W) masks; NaN if one is empty.

    The surface is the voxels of the mask with a 6-neighbour outside it or outside the grid; distances run between voxel
    centres. Percentiles are interpolated linearly. 95 gives HD95, 100 the Hausdorff distance.
    """
    return _hausdorff(surface_distances(prediction, truth, spacing_mm, threads), percentile)


def hausdorff_area_weighted(
    prediction: Array, truth: Array, spacing_mm: Spacing, percentile: float = 95.0, *, threads: int = -1
) -> float:
    """Like `hausdorff`, of surface elements weighted by their area, as DeepMind's surface-distance and the BraTS servers.

    A directed percentile is the distance within which that share of the area lies, not interpolated.
    """
    return _hausdorff_weighted(element_distances(prediction, truth, spacing_mm, threads), percentile)


def surface_dice(
    prediction: Array, truth: Array, spacing_mm: Spacing, tolerance_mm: float, *, threads: int = -1
) -> float:
    """Share of the surface voxels of both (D, H, W) masks within the tolerance of the other's.

    0 if one mask is empty, NaN if both are.
    """
    pair = _Pair(prediction, truth, _Grid(spacing_mm, truth.shape, threads))
    return _surface_dice(pair, pair.surface, tolerance_mm)


def score(prediction: Array, truth: Array, spacing_mm: Spacing, name: str, *, threads: int = -1) -> float:
    """The metric of that name (see `gliomap.rows.METRICS`) of two boolean masks (D, H, W); NaN where it is undefined.

    Raises:
        UsageError: there is no such metric of two masks.
    """
    return _formula(name)(_Pair(prediction, truth, _Grid(spacing_mm, truth.shape, threads)))


def measure(
    prediction: Array,
    truth: Array,
    spacing_mm: Spacing,
    regions: Sequence[str] = tuple(REGIONS),
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    threads: int = -1,
) -> dict[tuple[str, str], float]:
    """Scores of a predicted class map (D, H, W) against the true one, both uint8, by (region, metric); NaN where undefined.

    The volumes of every region are always among them. What is of all classes together has the region "". Only what is
    asked for is computed, in the box around both tumours, and what several metrics need is computed once.

    Raises:
        UsageError: a metric is not one of two class maps.
    """
    names = dict.fromkeys([*metrics, "volume", "volume_truth"])
    formulas = {name: _formula(name) for name in names if name not in _OF_CLASSES}
    grid = _Grid(spacing_mm, truth.shape, threads)
    box = bounding_box(prediction | truth) or Box((0, 0, 0), (0, 0, 0))
    prediction, truth = prediction[box.slices], truth[box.slices]
    out: dict[tuple[str, str], float] = {}
    for region in regions:
        pair = _pair(prediction, truth, PARTS[region], grid)
        out |= {(region, name): formula(pair) for name, formula in formulas.items()}
    for name in names:
        if name in _OF_CLASSES:
            out["", name] = _mean_iou(prediction, truth, grid, with_background=name.endswith("_background"))
    return out


class _Grid(NamedTuple):
    """What masks were cropped from: the distance of its voxels, its shape, and how many threads may search it."""

    spacing_mm: Spacing
    shape: tuple[int, ...]
    threads: int


class _Pair:
    """Two masks (D, H, W) with what the metrics share, computed when it is first needed. Outside them the grid is empty."""

    def __init__(self, prediction: Array, truth: Array, grid: _Grid) -> None:
        self.masks = prediction, truth
        self.grid = grid

    @cached_property
    def found(self) -> int:
        return int(np.count_nonzero(self.masks[0]))

    @cached_property
    def true(self) -> int:
        return int(np.count_nonzero(self.masks[1]))

    @cached_property
    def both(self) -> int:
        return int(np.count_nonzero(self.masks[0] & self.masks[1]))

    @property
    def either(self) -> int:
        return self.found + self.true - self.both

    @property
    def all(self) -> int:
        return math.prod(self.grid.shape)

    @property
    def voxel_ml(self) -> float:
        return math.prod(self.grid.spacing_mm) / 1000.0

    @cached_property
    def slices(self) -> tuple[Array, Array]:
        """Voxels in both, and in either, of every axial slice of the grid that is not empty in both."""
        a, b = self.masks
        both, either = ((m.sum((1, 2))) for m in (a & b, a | b))
        return both[either > 0], either[either > 0]

    @cached_property
    def surface(self) -> Distances | None:
        return surface_distances(*self.masks, self.grid.spacing_mm, self.grid.threads)

    @cached_property
    def elements(self) -> Distances | None:
        return element_distances(*self.masks, self.grid.spacing_mm, self.grid.threads)

    @cached_property
    def voxels(self) -> Distances | None:
        return voxel_distances(*self.masks, self.grid.spacing_mm, self.grid.threads)


_FORMULAS: dict[str, Callable[[_Pair], float]] = {
    "dice": lambda p: _ratio(2 * p.both, p.found + p.true),
    "iou": lambda p: _ratio(p.both, p.either),
    "hd95": lambda p: _hausdorff(p.surface, 95),
    "hd100": lambda p: _hausdorff(p.surface, 100),
    "hd95_pooled": lambda p: _pooled(p.surface, lambda distances: np.percentile(distances, 95)),
    "hd95_area_weighted": lambda p: _hausdorff_weighted(p.elements, 95),
    "hd95_all_voxels": lambda p: _pooled(p.voxels, lambda distances: np.percentile(distances, 95)),
    "assd": lambda p: _pooled(p.surface, np.mean),
    "sensitivity": lambda p: _ratio(p.both, p.true),
    "specificity": lambda p: _ratio(p.all - p.either, p.all - p.true),
    "precision": lambda p: _ratio(p.both, p.found),
    "accuracy": lambda p: _ratio(p.all - p.either + p.both, p.all),
    "volume": lambda p: p.found * p.voxel_ml,
    "volume_truth": lambda p: p.true * p.voxel_ml,
    "volume_error": lambda p: (p.found - p.true) * p.voxel_ml,
    "volume_error_absolute": lambda p: abs(p.found - p.true) * p.voxel_ml,
    "volume_error_relative": lambda p: _ratio(p.found - p.true, p.true),
    "mean_iou_with_background": lambda p: float(np.mean([_iou_or_1(p), _iou_of_rest(p)])),
    "mean_dice_of_slices": lambda p: _mean_of_slices(p, lambda both, either: 2 * both / (either + both), 1.0),
    "mean_iou_of_slices": lambda p: _mean_of_slices(p, lambda both, either: both / either, 1.0),
    "mean_iou_of_slices_empty_0": lambda p: _mean_of_slices(p, lambda both, either: both / either, 0.0),
}
_OF_CLASSES = ("mean_iou_of_classes", "mean_iou_of_classes_and_background")


def _formula(name: str) -> Callable[[_Pair], float]:
    if name in _FORMULAS:
        return _FORMULAS[name]
    metric(name)
    tolerance = nsd_tolerance_mm(name)
    if tolerance is None:
        raise UsageError(f"{name} is no metric of two masks; expected some of {', '.join(_FORMULAS)}, nsd_1mm")
    if name.endswith("_area_weighted"):
        return lambda p: _surface_dice(p, p.elements, tolerance)
    return lambda p: _surface_dice(p, p.surface, tolerance)


def _pair(prediction: Array, truth: Array, classes: Sequence[int], grid: _Grid) -> _Pair:
    a, b = (np.logical_or.reduce([array == c for c in classes]) for array in (prediction, truth))
    return _Pair(a, b, grid)


def _mean_iou(prediction: Array, truth: Array, grid: _Grid, *, with_background: bool) -> float:
    """The mean IoU of NCR, ED and ET; a resection cavity is background."""
    parts = [_iou_or_1(_pair(prediction, truth, (c,), grid)) for c in (NCR, ED, ET)]
    if with_background:
        parts.append(_iou_of_rest(_pair(prediction, truth, (NCR, ED, ET), grid)))
    return float(np.mean(parts))


def _iou_or_1(pair: _Pair) -> float:
    return pair.both / pair.either if pair.either else 1.0


def _iou_of_rest(pair: _Pair) -> float:
    rest = pair.all - pair.both
    return (pair.all - pair.either) / rest if rest else 1.0


def _mean_of_slices(pair: _Pair, formula: Callable[[Array, Array], Array], empty: float) -> float:
    values = formula(*pair.slices)
    return float(values.sum() + empty * (pair.grid.shape[0] - len(values))) / pair.grid.shape[0]


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _hausdorff(distances: Distances | None, percentile: float) -> float:
    if distances is None:
        return math.nan
    return float(max(np.percentile(distances.there, percentile), np.percentile(distances.back, percentile)))


def _pooled(distances: Distances | None, statistic: Callable[[Array], Any]) -> float:
    return math.nan if distances is None else float(statistic(np.concatenate(distances[:2])))


def _hausdorff_weighted(distances: Distances | None, percentile: float) -> float:
    if distances is None:
        return math.nan
    there, back, weight_there, weight_back = distances
    return max(_within(there, weight_there, percentile), _within(back, weight_back, percentile))


def _within(distances: Array, weights: Array, percentile: float) -> float:
    """The smallest of the distances within which that share of the weight lies."""
    order = np.lexsort((weights, distances))
    share = np.cumsum(weights[order]) / weights.sum()
    return float(distances[order[min(np.searchsorted(share, percentile / 100), len(order) - 1)]])


def _surface_dice(pair: _Pair, distances: Distances | None, tolerance_mm: float) -> float:
    if distances is None:
        return 0.0 if pair.either else math.nan
    there, back, weight_there, weight_back = distances
    near = weight_there[there <= tolerance_mm].sum() + weight_back[back <= tolerance_mm].sum()
    return float(near / (weight_there.sum() + weight_back.sum()))
