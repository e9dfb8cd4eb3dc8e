"""What the papers call their scores in gliomap's own metrics, and how a score of a table comes from those of its studies."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    """A statistic over studies, each study's part in it (N,), and how many studies are ``missing``, with NaN for a part.

    Of a mean the parts are the studies' values, of any other statistic their jackknife pseudo-values (Tukey 1958), whose
    mean estimates the statistic, so that intervals and paired tests of a mean serve for all.
    """

    value: float
    parts: Array
    missing: int


def estimate(definition: Definition, scores: Scores, studies: Sequence[str]) -> Estimate:
    """What a definition gives on these studies; NaN where none has a value."""
    table = np.array([[_value(scores, s, definition.region, m) for m in definition.measured_metrics] for s in studies])
    table = table.reshape(len(studies), len(definition.measured_metrics))
    known = ~np.isnan(table).any(axis=1)
    parts = np.full(len(studies), np.nan)
    missing = len(studies) - int(known.sum())
    if not known.any():
        return Estimate(math.nan, parts, missing)
    if definition.statistic == "mean":
        parts[known] = table[known, 0]
        return Estimate(float(table[known].mean()), parts, missing)
    statistic = pooled_dice if definition.statistic == "pooled Dice" else standard_deviation
    parts[known] = pseudo_values(statistic, table[known])
    return Estimate(statistic(table[known]), parts, missing)


def pseudo_values(statistic: Callable[[Array], float], values: Array) -> Array:
    """N times the statistic of all (N, M) values minus N - 1 times that without one, for each of them: (N,)."""
    count = len(values)
    if count == 1:
        return np.array([statistic(values)])
    without = np.array([statistic(np.delete(values, n, axis=0)) for n in range(count)])
    return count * statistic(values) - (count - 1) * without


def pooled_dice(values: Array) -> float:
    """2|A&B|/(|A|+|B|) with all studies as one: (N, 3) of Dice and both volumes; 1 where nothing is in any of them."""
    sums = values[:, 1] + values[:, 2]
    return float((values[:, 0] * sums).sum() / sums.sum()) if sums.sum() > 0 else 1.0


def standard_deviation(values: Array) -> float:
    """Of a sample, (N, 1); NaN of fewer than two."""
    return float(values.std(ddof=1)) if len(values) > 1 else math.nan


def metrics_of(numbers: Iterable[Published]) -> tuple[str, ...]:
    """The metrics that an evaluation has to measure for these numbers."""
    return tuple(dict.fromkeys(m for n in numbers for d in definitions(n) for m in d.measured_metrics))


def factor(number: Published, definition: Definition) -> float:
    """What our value is multiplied with to stand beside the published one: 100 where that is in percent."""
    return 100.0 if number.unit == "%" and metric(definition.metric).unit == "1" else 1.0


def _value(scores: Scores, study: str, region: str, name: str) -> float:
    found = scores.get((study, region, name))
    return math.nan if found is None else found
