"""Lesion-wise scores as BraTS 2023 and BraTS 2025 define them: every connected piece of a tumour counts as much as any other."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from gliomap.classes import region_mask
from gliomap.metrics import dice, hausdorff_area_weighted
from gliomap.rows import PENALTY_MM
from gliomap.surfaces import Spacing, surface_distances
from gliomap.volume import Box, bounding_box

Array = np.ndarray[Any, np.dtype[Any]]
LesionProtocol = Literal["brats2023", "brats2025"]

TOUCHING = ndimage.generate_binary_structure(3, 3)
"""Two voxels of one component share at least a corner."""

GROWING = ndimage.generate_binary_structure(3, 2)
"""A dilation adds the voxels that share a face or an edge."""

LEAST_DICE = 1e-6


def _score_2023(prediction: Array, truth: Array, spacing_mm: Spacing, threads: int) -> dict[str, float]:
    hd95_mm = hausdorff_area_weighted(prediction, truth, spacing_mm, threads=threads)
    return {"lesion_dice": dice(prediction, truth), "lesion_hd95": hd95_mm}


def _score_2025(prediction: Array, truth: Array, spacing_mm: Spacing, threads: int) -> dict[str, float]:
    distances = surface_distances(prediction, truth, spacing_mm, threads)
    hd95_mm = nsd = math.nan
    if distances:
        there, back = distances[:2]
        hd95_mm = float(np.percentile(np.concatenate([there, back]), 95))
        nsd = float(((there <= 1).mean() + (back <= 1).mean()) / 2)
    return {"lesion_dice": dice(prediction, truth), "lesion_hd95": hd95_mm, "lesion_nsd_1mm": nsd}


@dataclass(frozen=True)
class LesionRules:
    """What a protocol takes for a lesion, what finds it, and what a miss costs.

    Attributes:
        score: (prediction, truth, spacing_mm, threads) -> value by metric, of a lesion and what matches it, never empty.
        worst: What a missed lesion and a false positive count as, by metric.
        nothing: What counts where there is neither a lesion nor a false positive, by metric.
        dilation: Times that the truth is dilated: lesions whose dilations touch are one, and all components that touch a
            lesion's dilation match it together. None: a component of the truth is a lesion, and matches one component of
            the prediction at most, and it only that lesion, so that the sum of their Dice is the largest.
        ignored_mm3: A lesion of this volume or less does not count; what matches it is no false positive.
        unmatched_count: Whether missed lesions and false positives are in the means. If not, they are only where nothing
            is matched at all.
    """

    score: Callable[[Array, Array, Spacing, int], dict[str, float]]
    worst: Mapping[str, float]
    nothing: Mapping[str, float]
    dilation: int | None
    ignored_mm3: float
    unmatched_count: bool


LESION_RULES: dict[LesionProtocol, LesionRules] = {
    "brats2023": LesionRules(
        score=_score_2023,
        worst={"lesion_dice": 0.0, "lesion_hd95": PENALTY_MM["brats2023"] or math.inf},
        nothing={"lesion_dice": 1.0, "lesion_hd95": 0.0},
        dilation=3,
        ignored_mm3=50.0,
        unmatched_count=True,
    ),
    "brats2025": LesionRules(
        score=_score_2025,
        worst={"lesion_dice": 0.0, "lesion_hd95": PENALTY_MM["brats2025"] or math.inf, "lesion_nsd_1mm": 0.0},
        nothing=dict.fromkeys(("lesion_dice", "lesion_hd95", "lesion_nsd_1mm"), math.nan),
        dilation=None,
        ignored_mm3=0.0,
        unmatched_count=False,
    ),
}
"""As for gliomas. BraTS 2023 dilates once for meningiomas, and for metastases, where it ignores 2 mm3."""


def measure_lesions(
    prediction: Array,
    truth: Array,
    spacing_mm: Spacing,
    regions: Sequence[str],
    protocol: LesionProtocol,
    *,
    threads: int = -1,
) -> dict[tuple[str, str], float]:
    """Lesion-wise scores of a predicted class map (D, H, W) against the true one, by (region, metric).

    Metrics: lesion_dice, lesion_hd95 (mm), lesion_nsd_1mm (2025 only), lesions, lesions_missed and lesions_false, with what
    the protocol lays down for missed lesions, false positives and empty regions.
    """
    rules = LESION_RULES[protocol]
    box = bounding_box((prediction > 0) | (truth > 0)) or Box((0, 0, 0), (1, 1, 1))
    prediction, truth = prediction[box.slices], truth[box.slices]
    return {
        (region, metric): value
        for region in regions
        for metric, value in lesion_scores(
            region_mask(prediction, region), region_mask(truth, region), spacing_mm, rules, threads=threads
        ).items()
    }


def lesion_scores(
    prediction: Array, truth: Array, spacing_mm: Spacing, rules: LesionRules, *, threads: int = -1
) -> dict[str, float]:
    """Lesion-wise scores of two masks (D, H, W) by metric: the means over lesions, then the numbers of lesions.

    ``lesions`` has those of the truth that count, ``lesions_missed`` those of them without a match, ``lesions_false``
    the components of the prediction without one. Neither a lesion nor a false positive: `LesionRules.nothing`.
    """
    # What dilations touch outside the box they touch inside it, too: pushed back into it, a voxel stays as near.
    box = bounding_box(prediction | truth) or Box((0, 0, 0), (1, 1, 1))
    prediction, truth = prediction[box.slices], truth[box.slices]
    components, how_many = ndimage.label(prediction, TOUCHING)
    lesions, matches = _match(truth, components, rules)
    volumes_mm3 = np.bincount(lesions[truth]) * float(np.prod(spacing_mm))
    counted = [int(lesion) for lesion in np.flatnonzero(volumes_mm3 > rules.ignored_mm3)]
    matched = {lesion: matches[lesion] for lesion in counted if lesion in matches}
    missed = len(counted) - len(matched)
    false = how_many - len({component for found in matches.values() for component in found})
    scores = [rules.score(*pair, spacing_mm, threads) for pair in _crops(lesions, components, matched)]
    unmatched = missed + false if rules.unmatched_count or not scores else 0
    values = [*scores, *[rules.worst] * unmatched] or [rules.nothing]
    out = {name: float(np.mean([value[name] for value in values])) for name in rules.worst}
    return out | {"lesions": float(len(counted)), "lesions_missed": float(missed), "lesions_false": float(false)}


def _match(truth: Array, components: Array, rules: LesionRules) -> tuple[Array, dict[int, list[int]]]:
    """The truth's lesions as numbers from 1 in an array, and by lesion the components that match it, if any do."""
    if rules.dilation is None:
        lesions = ndimage.label(truth, TOUCHING)[0]
        return lesions, _one_to_one(lesions, components)
    grown = ndimage.binary_dilation(truth, GROWING, rules.dilation) if rules.dilation else truth
    grown = ndimage.label(grown, TOUCHING)[0]
    matches: dict[int, list[int]] = {}
    for lesion, component in zip(*_overlaps(grown, components)[:2], strict=True):
        matches.setdefault(int(lesion), []).append(int(component))
    return np.where(truth, grown, 0), matches


def _one_to_one(lesions: Array, components: Array) -> dict[int, list[int]]:
    lesion, component, voxels = _overlaps(lesions, components)
    sizes = np.bincount(lesions[lesions > 0])[lesion] + np.bincount(components[components > 0])[component]
    rows, row = np.unique(lesion, return_inverse=True)
    columns, column = np.unique(component, return_inverse=True)
    overlap = np.zeros((len(rows), len(columns)))
    overlap[row, column] = 2 * voxels / sizes
    best = zip(*linear_sum_assignment(overlap, maximize=True), strict=True)
    return {int(rows[r]): [int(columns[c])] for r, c in best if overlap[r, c] > LEAST_DICE}


def _overlaps(first: Array, second: Array) -> tuple[Array, Array, Array]:
    """The pairs of labels (N,) of two label arrays that share voxels, and how many (N,)."""
    both = (first > 0) & (second > 0)
    base = int(second.max(initial=0)) + 1
    codes, voxels = np.unique(first[both].astype(np.int64) * base + second[both], return_counts=True)
    return codes // base, codes % base, voxels


def _crops(lesions: Array, components: Array, matched: Mapping[int, list[int]]) -> Iterator[tuple[Array, Array]]:
    """Of each matched lesion the masks of its components and of itself, on the smallest box that has both."""
    lesion_boxes, component_boxes = ndimage.find_objects(lesions), ndimage.find_objects(components)
    for lesion, found in matched.items():
        boxes = [lesion_boxes[lesion - 1], *(component_boxes[component - 1] for component in found)]
        box = tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))
        yield np.isin(components[box], found), lesions[box] == lesion
