"""What a comparison of models found, and how it is said: scores by study and model, and one sentence per asked pair and region."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gliomap.rows import METRICS, metric, nsd_tolerance_mm
from gliomap.statistics import PairedComparison, Verdict, adjusted, compare_paired, verdict

Array = NDArray[np.float64]
Column = tuple[str, str]
"""(region, metric); the region is empty for a metric of the whole label map."""

Outcome = Literal["better", "worse", "not better", "equal", "undecided"]

ALPHA = 0.05

_OUTCOMES: dict[Outcome, str] = {
    "better": "it is better.",
    "worse": "it is worse.",
    "not better": "it is not better.",
    "equal": "no difference.",
    "undecided": "undecided.",
}

TESTS = {
    "wilcoxon": "Wilcoxon signed-rank test",
    "t": "paired t test",
    "permutation": "permutation test of the mean by flips of signs",
}

TITLES = {
    "dice": "Dice",
    "iou": "IoU",
    "hd95": "HD95",
    "hd100": "HD100",
    "assd": "ASSD",
    "lesion_dice": "lesion-wise Dice",
    "lesion_hd95": "lesion-wise HD95",
    "lesion_nsd_1mm": "lesion-wise NSD at 1 mm",
    "ece": "ECE",
    "brier": "Brier score",
}


@dataclass(frozen=True)
class Scores:
    """Scores of K models on N studies, by column.

    Attributes:
        values: (N, K), NaN where there is none.
        status: (N, K) texts: why; "failed" where the study could not be scored, empty where there is no row.
        protocol: What all rows say of it.
    """

    studies: tuple[str, ...]
    models: tuple[str, ...]
    values: dict[Column, Array]
    status: dict[Column, NDArray[np.str_]]
    protocol: str

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of the columns, each once."""
        return tuple(dict.fromkeys(name for _, name in self.values))

    def regions(self, name: str) -> tuple[str, ...]:
        """The regions that a metric has."""
        return tuple(region for region, other in self.values if other == name)

    def of(self, side: tuple[str, ...], column: Column) -> Array:
        """Values (N,) of a side of a pair: the mean of its models, missing where one of them is."""
        return self.values[column][:, [self.models.index(model) for model in side]].mean(axis=1)


class Pair(NamedTuple):
    """Is the mean of models a better than the mean of models b?"""

    a: tuple[str, ...]
    b: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """What came of one pair in one region and metric.

    Attributes:
        verdict: On the claim that a is better than b.
        test: A name in `TESTS`.
        tests: The comparisons of this metric that Holm's correction is for.
        reachable: Whether any scores of so many studies could have given an adjusted p below `ALPHA`.
        differences: (N,) a - b, NaN where one of them is missing.
        missing: Studies without a value of a, and of b.
    """

    pair: Pair
    region: str
    metric: str
    comparison: PairedComparison
    verdict: Verdict
    test: str
    tests: int
    reachable: bool
    differences: Array
    missing: tuple[int, int]


class Sentence(NamedTuple):
    """An answer in words: the region, what was measured, what follows, and what the sample can show."""

    region: str
    found: str
    outcome: str
    outlook: str

    def __str__(self) -> str:
        return " ".join(part for part in self if part)


def side_name(side: tuple[str, ...]) -> str:
    """The models of a side of a pair as text."""
    return " + ".join(side)


def pair_name(pair: Pair) -> str:
    """Both sides as text."""
    return f"{side_name(pair.a)} against {side_name(pair.b)}"


def metric_title(name: str) -> str:
    """A metric's name as the field writes it."""
    tolerance = nsd_tolerance_mm(name)
    if tolerance and name not in METRICS:
        return f"NSD at {tolerance:g} mm" + (", area-weighted" if name.endswith("weighted") else "")
    return TITLES.get(name, name.replace("_", " "))


def higher_is_better(name: str) -> bool:
    """Which way of a metric is better."""
    return metric(name).better == "higher"


def region_title(region: str) -> str:
    """A region's name; what has none is about all of the label map."""
    return region or "All classes"


def number(value: float, unit: str) -> str:
    """A value with as many decimals as make sense in its unit, without the unit; a dash where there is none."""
    if not math.isfinite(value):
        return "-"
    digits = 3 if unit == "1" else 2 if abs(value) < 10 else 1
    return f"{round(value, digits) + 0.0:.{digits}f}"  # never -0.000


def p_text(p: float) -> str:
    """A p-value after its letter: "p 0.21", "p < 0.001"."""
    if math.isnan(p):
        return "p not defined"
    return "p < 0.001" if p < 0.001 else f"p {p:.3g}" if p < 0.1 else f"p {p:.2f}"


def answers_to(pairs: Sequence[Pair], scores: Scores, test: str, seed: int) -> list[Answer]:
    """One answer per metric, pair and region in that order; Holm's correction is over the pairs and regions of a metric."""
    found = []
    for name in scores.metrics:
        asked = [(pair, region) for pair in pairs for region in scores.regions(name)]
        sides = [(scores.of(pair.a, (region, name)), scores.of(pair.b, (region, name))) for pair, region in asked]
        compared = adjusted([compare_paired(a, b, test, seed) for a, b in sides])
        tests = sum(not np.isnan(one.p) for one in compared)
        least = min((one.smallest_p for one in compared if not np.isnan(one.p)), default=1.0)
        for (pair, region), (a, b), one in zip(asked, sides, compared, strict=True):
            reachable = bool(one.smallest_p < ALPHA and tests * least < ALPHA)
            missing = int(np.isnan(a).sum()), int(np.isnan(b).sum())
            claim = verdict(one, higher_is_better(name), alpha=ALPHA)
            found.append(Answer(pair, region, name, one, claim, test, tests, reachable, a - b, missing))
    return found


def undirected(answer: Answer) -> Answer:
    """The answer where nobody claims that the first is better: not so only where the second is, else undecided."""
    unclear = answer.verdict == "not supported" and outcome(answer) != "worse"
    return replace(answer, verdict="undecided") if unclear else answer


def outcome(answer: Answer) -> Outcome:
    """What follows of a as against b; better and worse only where the test and the whole interval say so."""
    compared = answer.comparison
    if answer.verdict == "supported":
        return "better"
    if verdict(compared, not higher_is_better(answer.metric)) == "supported":
        return "worse"
    if answer.verdict == "not supported":
        return "not better"
    return "equal" if compared.studies >= 2 and not np.nan_to_num(answer.differences).any() else "undecided"


def sentence(answer: Answer) -> Sentence:
    """An answer in one sentence, and another on what so many studies can show."""
    compared, title = answer.comparison, metric_title(answer.metric)
    a, b = side_name(answer.pair.a), side_name(answer.pair.b)
    region = f"{region_title(answer.region)}:"
    if compared.studies < 2:
        found = f"{a} and {b} have {title} in common in {_studies(compared)}{_missing(answer)}, and an answer needs 2:"
        return Sentence(region, found, "undecided.", "")
    result = outcome(answer)
    if result == "equal":
        found = f"{a} and {b} have exactly the same {title} in {_studies(compared)}{_missing(answer)}:"
        return Sentence(region, found, _OUTCOMES[result], "")
    unit = metric(answer.metric).unit
    interval = f"95 % interval {number(compared.low, unit)} to {number(compared.high, unit)}{_unit(unit)}"
    found = (
        f"{a} has a mean {title} {_amount(answer, unit)} {b} ({interval}; {_studies(compared)}{_missing(answer)}; "
        f"Holm-adjusted {p_text(compared.p_holm)}):"
    )
    return Sentence(region, found, _OUTCOMES[result], _outlook(answer, unit))


def _amount(answer: Answer, unit: str) -> str:
    difference = answer.comparison.difference
    if difference == 0:
        return "equal to that of"
    smallest = 10.0 ** -(3 if unit == "1" else 2)
    size = number(abs(difference), unit) if abs(difference) >= smallest / 2 else f"less than {smallest:g}"
    way = "higher" if difference > 0 else "lower"
    if not higher_is_better(answer.metric):
        way += " (worse)" if difference > 0 else " (better)"
    return f"{size}{_unit(unit)} {way} than"


def _outlook(answer: Answer, unit: str) -> str:
    compared = answer.comparison
    if not answer.reachable:
        over = f" after Holm's correction over {answer.tests} comparisons" if answer.tests > 1 else ""
        return f"With {_studies(compared)} no {TESTS[answer.test]} can reach {ALPHA:g}{over}, whatever the scores."
    shown = float(f"{compared.detectable:.2g}")
    power = (
        f"{_studies(compared)} can show a difference of about {shown:g}{_unit(unit)} (80 % power)." if shown > 0 else ""
    )
    beyond = outcome(answer) in ("not better", "undecided") and (compared.low > 0 or compared.high < 0)
    return f"The interval leaves out 0, but the corrected p-value does not bear that out. {power}" if beyond else power


def _studies(compared: PairedComparison) -> str:
    return f"{compared.studies} {'study' if compared.studies == 1 else 'studies'}"


def _missing(answer: Answer) -> str:
    if not answer.comparison.missing:
        return ""
    first, second = answer.missing
    return f", {answer.comparison.missing} more without a value ({first} of the first, {second} of the second)"


def _unit(unit: str) -> str:
    return "" if unit == "1" else f" {unit}"
