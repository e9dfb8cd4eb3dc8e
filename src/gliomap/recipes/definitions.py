"""What the papers call their scores in gliomap's own metrics, and how a score of a table comes from those of its studies."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gliomap.recipes.published import Published
from gliomap.rows import metric

Array = NDArray[np.float64]
Statistic = Literal["mean", "standard deviation", "pooled Dice"]
Scores = Mapping[tuple[str, str, str], float | None]
"""Value by study, region and metric."""

_OF_ONE_SLICE = {"miou": "mean_iou_of_slices_empty_0", "accuracy": "accuracy"}
_POOLED = ("dice", "volume", "volume_truth")
_SAME = 1e-12
"""Of their mean square, what variance numbers may have by rounding alone."""


@dataclass(frozen=True)
class Definition:
    """How gliomap measures what a paper prints: a ``metric`` of `gliomap.rows` and a ``statistic`` over the studies."""

    metric: str
    region: str
    statistic: Statistic = "mean"
    slices: Literal["all", "middle"] = "all"

    @property
    def text(self) -> str:
        """In words: what of which studies."""
        where = f" of {self.region}" + (", middle axial slice" if self.slices == "middle" else "")
        if self.statistic == "pooled Dice":
            return f"Dice{where}, all studies pooled"
        return f"{self.statistic} over studies of {self.metric}{where}"

    @property
    def higher_is_better(self) -> bool:
        """Whether more is better: never of a standard deviation."""
        return self.statistic != "standard deviation" and metric(self.metric).better == "higher"

    @property
    def measured_metrics(self) -> tuple[str, ...]:
        """The metrics that `gliomap evaluate` has to measure for it."""
        return _POOLED if self.statistic == "pooled Dice" else (self.metric,)


def definitions(number: Published) -> tuple[Definition, ...]:
    """Ours for a published score; claims are judged by the first, the others are printed beside it.

    Paper 001 does not say whose Hausdorff distance it has: its public successor's, of all voxels, stands beside the surface's.
    Paper 003 does not define its scores: they are read as SPECS and docs/aspp_attention_unet.md say, of the whole tumour on
    one slice per study, where an empty slice has an IoU of 0.
    """
    if number.paper == "003":
        if number.metric == "dice":
            return (Definition("dice", "WT", "pooled Dice", "middle"),)
        return (Definition(_OF_ONE_SLICE[number.metric], "WT", "mean", "middle"),)
    name = number.metric.removesuffix("_sd")
    statistic = "mean" if name == number.metric else "standard deviation"
    found = (Definition(name, number.region, statistic),)
    if number.paper == "001" and name == "hd95":
        found += (Definition("hd95_all_voxels", number.region, statistic),)
    return found


@dataclass(frozen=True)
class Estimate:
    """A statistic over studies, the raw ``values`` it is of (N, M), and how many studies are ``missing``, with NaN for values.

    M is the number of `Definition.measured_metrics`.
    """

    value: float
    values: Array
    missing: int


def estimate(definition: Definition, scores: Scores, studies: Sequence[str]) -> Estimate:
    """What a definition gives on these studies; NaN where none has a value."""
    table = np.array([[_value(scores, s, definition.region, m) for m in definition.measured_metrics] for s in studies])
    table = table.reshape(len(studies), len(definition.measured_metrics))
    known = ~np.isnan(table).any(axis=1)
    table[~known] = math.nan
    missing = len(studies) - int(known.sum())
    if not known.any():
        return Estimate(math.nan, table, missing)
    return Estimate(float(of_sums(definition, terms(definition, table[known]).sum(axis=0))), table, missing)


def terms(definition: Definition, values: Array) -> Array:
    """What each study adds to the sums that the statistic is of: (N, M) to (N, F); NaN stays NaN."""
    first = values[:, 0]
    if definition.statistic == "pooled Dice":  # of Dice and both volumes
        sizes = values[:, 1] + values[:, 2]
        return np.stack([first * sizes, sizes], axis=1)
    return np.stack([np.ones_like(first), first, first**2], axis=1)


def of_sums(definition: Definition, sums: Array) -> Array:
    """The statistic from the sums of `terms`, (..., F) to (...).

    A standard deviation is that of a sample, NaN of fewer than two; a pooled Dice is 2|A&B|/(|A|+|B|) with all studies as one,
    and 1 where nothing is in any of them.
    """
    if definition.statistic == "pooled Dice":
        overlap, sizes = np.moveaxis(sums, -1, 0)
        return np.divide(overlap, sizes, out=np.ones_like(sizes), where=sizes > 0)
    count, total, squares = np.moveaxis(sums, -1, 0)
    if definition.statistic == "mean":
        return total / count
    around_mean = squares - total**2 / count
    around_mean = np.where(around_mean > _SAME * squares, around_mean, 0.0)
    return np.sqrt(np.divide(around_mean, count - 1, out=np.full_like(count, math.nan), where=count > 1))


def metrics_of(numbers: Iterable[Published]) -> tuple[str, ...]:
    """The metrics that an evaluation has to measure for these numbers."""
    return tuple(dict.fromkeys(m for n in numbers for d in definitions(n) for m in d.measured_metrics))


def factor(number: Published, definition: Definition) -> float:
    """What our value is multiplied with to stand beside the published one: 100 where that is in percent."""
    return 100.0 if number.unit == "%" and metric(definition.metric).unit == "1" else 1.0


def _value(scores: Scores, study: str, region: str, name: str) -> float:
    found = scores.get((study, region, name))
    return math.nan if found is None else found
