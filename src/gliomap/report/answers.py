"""What a comparison of models found, and how it is said: one sentence per asked pair and region."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from gliomap.report.scores import Array, Column, Scores
from gliomap.report.wording import higher_is_better, is_zero, metric_title, p_text, precise, region_title
from gliomap.rows import metric
from gliomap.statistics import ALPHA, PairedComparison, Verdict, adjusted, compare_paired, verdict

Outcome = Literal["better", "worse", "equal", "undecided"]


_OUTCOMES: dict[Outcome, str] = {
    "better": "it is better.",
    "worse": "it is worse.",
    "equal": "no difference.",
    "undecided": "undecided.",
}

TESTS = {
    "wilcoxon": "Wilcoxon signed-rank test",
    "t": "paired t test",
    "permutation": "permutation test of the mean by flips of signs",
}


class Pair(NamedTuple):
    """Is the mean of models a better than the mean of models b?"""

    a: tuple[str, ...]
    b: tuple[str, ...]


class Absent(NamedTuple):
    """In how many studies a side of a pair has no value.

    Attributes:
        gone: It should have one.
        empty: Correctly: neither the truth nor the prediction has a voxel.
        lacking: Those of ``gone`` in which the other side has a value.
        invented: Studies in which the other side is correctly empty and this one is not.
    """

    gone: int
    empty: int
    lacking: int
    invented: int

    @property
    def lost(self) -> int:
        """Studies that speak for the other side and in no difference."""
        return self.lacking + self.invented


@dataclass(frozen=True)
class Answer:
    """What came of one pair in one region and metric.

    Attributes:
        verdict: On the claim that a is better than b; undecided, too, where the better one lost more studies (`Absent`).
        test: A name in `TESTS`.
        tests: The comparisons of this metric that Holm's correction is for.
        reachable: Whether any scores of so many studies could have given an adjusted p below `ALPHA`.
        differences: (N,) a - b, NaN where one of them is missing.
        absent: Of a, and of b.
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
    absent: tuple[Absent, Absent]


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


def answers_to(pairs: Sequence[Pair], scores: Scores, test: str, seed: int) -> list[Answer]:
    """One answer per metric, pair and region in that order; Holm's correction is over the pairs and regions of a metric."""
    found = []
    for name in scores.metrics:
        asked = [(pair, (region, name)) for pair in pairs for region in scores.regions(name)]
        sides = [(scores.of(pair.a, column), scores.of(pair.b, column)) for pair, column in asked]
        compared = adjusted([compare_paired(a, b, test, seed) for a, b in sides])
        tests = sum(not np.isnan(one.p) for one in compared)
        least = min((one.smallest_p for one in compared if not np.isnan(one.p)), default=1.0)
        for (pair, column), (a, b), one in zip(asked, sides, compared, strict=True):
            reachable = bool(one.smallest_p < ALPHA and tests * least < ALPHA)
            absent = _absent(scores, pair.a, pair.b, column), _absent(scores, pair.b, pair.a, column)
            claim = _fair(verdict(one, higher_is_better(name), alpha=ALPHA), *absent)
            found.append(Answer(pair, column[0], name, one, claim, test, tests, reachable, a - b, absent))
    return found


def _absent(scores: Scores, side: tuple[str, ...], other: tuple[str, ...], column: Column) -> Absent:
    gone, empty = scores.gone(side, column), scores.empty(side, column)
    lacking = gone & ~np.isnan(scores.of(other, column))
    invented = scores.empty(other, column) & ~empty
    return Absent(*(int(np.count_nonzero(flags)) for flags in (gone, empty, lacking, invented)))


def _fair(claim: Verdict, a: Absent, b: Absent) -> Verdict:
    """Nobody is better by leaving out more than the other."""
    more = a.lost - b.lost
    unfair = (claim == "supported" and more > 0) or (claim == "not supported" and more < 0)
    return "undecided" if unfair else claim


def outcome(answer: Answer) -> Outcome:
    """What follows of a as against b; better and worse only where the test and the whole interval say so."""
    if answer.verdict != "undecided":
        return "better" if answer.verdict == "supported" else "worse"
    return "equal" if _same(answer) and not any(side.lost for side in answer.absent) else "undecided"


def _same(answer: Answer) -> bool:
    return answer.comparison.studies >= 2 and not np.nan_to_num(answer.differences).any()


def sentence(answer: Answer) -> Sentence:
    """An answer in one sentence, and another on what so many studies can show."""
    compared, title, unit = answer.comparison, metric_title(answer.metric), metric(answer.metric).unit
    a, b = side_name(answer.pair.a), side_name(answer.pair.b)
    region, result = f"{region_title(answer.region)}:", _OUTCOMES[outcome(answer)]
    studies = f"{_studies(compared)}{_left_out(answer)}"
    if compared.studies < 2:
        found = f"{a} and {b} have {title} in common in {studies}, and an answer needs 2:"
        return Sentence(region, found, result, _lost(answer))
    if _same(answer):
        return Sentence(region, f"{a} and {b} have exactly the same {title} in {studies}:", result, _lost(answer))
    interval = f"95 % interval {precise(compared.low, unit)} to {precise(compared.high, unit)}{_unit(unit)}"
    common = " in the studies that both have" if compared.missing else ""
    found = (
        f"{a} has a mean {title} {_amount(answer, unit)} {b}{common} ({interval}; {studies}; "
        f"Holm-adjusted {p_text(compared.p_holm)}):"
    )
    return Sentence(region, found, result, " ".join(part for part in (_why(answer), _outlook(answer, unit)) if part))


def _amount(answer: Answer, unit: str) -> str:
    difference = answer.comparison.difference
    if is_zero(difference):
        return "equal to that of"
    way = "higher" if difference > 0 else "lower"
    if not higher_is_better(answer.metric):
        way += " (worse)" if difference > 0 else " (better)"
    return f"{precise(abs(difference), unit)}{_unit(unit)} {way} than"


def _why(answer: Answer) -> str:
    """Why an answer is undecided though some of its numbers look decided."""
    if outcome(answer) != "undecided":
        return ""
    compared = answer.comparison
    decided, beyond = compared.p_holm < ALPHA, compared.low > 0 or compared.high < 0
    if decided and beyond:
        return _lost(answer)
    if beyond and answer.reachable:
        return "The interval leaves out 0, but the corrected p-value does not bear that out."
    return _few_decide(answer) if decided else ""


def _few_decide(answer: Answer) -> str:
    """The test is of most studies, the interval is of the mean."""
    higher, lower = (np.count_nonzero(sign * answer.differences > 0) for sign in (1, -1))
    first, second = (higher, lower) if higher_is_better(answer.metric) else (lower, higher)
    side, most = (answer.pair.a, first) if first > second else (answer.pair.b, second)
    studies = answer.comparison.studies
    if 2 * most <= studies:
        return "The corrected p-value is below 0.05, but the interval of the mean reaches 0: a few studies decide it."
    favoured = f"Most studies favour {side_name(side)} ({most} of {studies})"
    return f"{favoured}, but the mean does not bear that out: a few studies decide it."


def _lost(answer: Answer) -> str:
    """What speaks against a side though no difference has it."""
    names = [side_name(side) for side in answer.pair]
    found = []
    for name, other, absent in zip(names, names[::-1], answer.absent, strict=True):
        if absent.lacking:
            found.append(f"{name} has no value in {_count(absent.lacking)} in which {other} has one")
        if absent.invented:
            found.append(f"{name} is not empty in {_count(absent.invented)} in which {other} correctly is")
    return f"{'; '.join(found)}." if found else ""


def _outlook(answer: Answer, unit: str) -> str:
    compared = answer.comparison
    if not answer.reachable:
        over = f" after Holm's correction over {answer.tests} comparisons" if answer.tests > 1 else ""
        return f"With {_studies(compared)} no {TESTS[answer.test]} can reach {ALPHA:g}{over}, whatever the scores."
    if not compared.detectable > 0:
        return ""
    shown = np.format_float_positional(float(f"{compared.detectable:.2g}"), trim="-")
    power = "80 % power, one test alone" if answer.tests > 1 else "80 % power"
    return f"{_studies(compared)} can show a difference of about {shown}{_unit(unit)} ({power})."


def _studies(compared: PairedComparison) -> str:
    return _count(compared.studies)


def _count(studies: int) -> str:
    return f"{studies} {'study' if studies == 1 else 'studies'}"


def _left_out(answer: Answer) -> str:
    """The studies without a difference, and which side is why."""
    if not answer.comparison.missing:
        return ""
    sides = []
    for place, absent in zip(("first", "second"), answer.absent, strict=True):
        parts = [
            f"{n} {what}" for n, what in ((absent.gone, "without a value"), (absent.empty, "correctly empty")) if n
        ]
        sides.append(f"{place} {' and '.join(parts) or 'none'}")
    return f", {answer.comparison.missing} more left out: {', '.join(sides)}"


def _unit(unit: str) -> str:
    return "" if unit == "1" else f" {unit}"
