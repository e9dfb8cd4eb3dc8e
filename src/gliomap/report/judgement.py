"""From the scores of trained rows to lines beside the paper's numbers, and to a verdict per claim."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gliomap.recipes.claims import Claim
from gliomap.recipes.definitions import Definition, Scores, definitions, estimate, factor, of_sums, terms
from gliomap.recipes.published import Published
from gliomap.recipes.tables import SCORED
from gliomap.report.reproduction import Judged, Line
from gliomap.report.swaps import Statistic, bootstrap_interval, compare_by_swaps
from gliomap.statistics import ALPHA, PairedComparison, adjusted, bca_interval, compare_paired, verdict

Array = NDArray[np.float64]

TEST = "permutation"
"""Papers compare means, and so does this test: under flips of signs of the differences."""

_OTHER_DATA = {
    "hold-out": "comparable only as far as the data are {dataset}: the authors' split is not known",
    "cross-validation": "comparable only as far as the data are {dataset} with the authors' folds, which are not known",
    "official server": "not comparable: published on a server's studies, whose labels nobody has",
}
_NEVER = {
    "quoted": "never run: quoted from another publication, on its own data",
    "timed": "never run: the authors' machine",
}

Counts = Callable[[Published], Sequence[tuple[str, float]]]
"""What a published size is by our count: the definitions, of which claims are judged by the first, and values."""


@dataclass(frozen=True)
class Trained:
    """What came of a recipe: the ``scores`` of its ``studies``, and the patches that its training saw of its budget.

    ``trained`` is None where nothing is trained. ``whole``: it came to its end.
    ``warnings``: what is odd about the training or the studies.
    """

    scores: Scores
    studies: tuple[str, ...]
    trained: int | None
    budget: int | None
    whole: bool
    warnings: tuple[str, ...] = ()

    @property
    def share(self) -> float | None:
        """Of the recipe's patches, what was seen."""
        return self.trained / self.budget if self.trained is not None and self.budget else None


@dataclass(frozen=True)
class Outcome:
    """What there is to put beside a paper: rows that were trained, those that ``failed`` with the reason, and counts.

    ``partial`` says what keeps the whole run from being the paper's experiment; empty where nothing does.
    """

    trained: Mapping[str, Trained]
    failed: Mapping[str, str]
    counts: Counts
    partial: str = ""


def lines_of(numbers: Sequence[Published], outcome: Outcome) -> tuple[Line, ...]:
    """Every published number with what was measured of it, or with why nothing was."""
    return tuple(line for number in numbers for line in _lines(number, outcome))


def _lines(number: Published, outcome: Outcome) -> list[Line]:
    if number.how in _NEVER:
        return [Line(number, _NEVER[number.how])]
    if not number.recipe:
        return [Line(number, "never run: gliomap has no recipe for it")]
    if number.how == "counted":
        (text, value), *others = outcome.counts(number)
        return [Line(number, "", text, value), *(Line(number, "", t, v, beside=t) for t, v in others)]
    if number.recipe not in outcome.trained:
        return [Line(number, f"failed: {outcome.failed.get(number.recipe, 'it was not run')}")]
    first, *others = definitions(number)
    beside = [replace(_line(number, other, outcome), beside=f"as {other.metric}") for other in others]
    return [_line(number, first, outcome), *beside]


def _line(number: Published, definition: Definition, outcome: Outcome) -> Line:
    row = outcome.trained[number.recipe]
    found, scale = estimate(definition, row.scores, row.studies), factor(number, definition)
    known = found.values[~np.isnan(found.values[:, 0])]
    if definition.statistic == "mean":
        low, high = bca_interval(scale * known[:, 0])
    else:
        low, high = bootstrap_interval(terms(definition, known), _scaled(definition, scale))
    remark = _OTHER_DATA[number.how].format(dataset=number.dataset)
    if number.how != "official server" and (outcome.partial or not row.whole):
        remark = f"not comparable: {outcome.partial or 'the training was cut short'}"
    studies = len(row.studies) - found.missing
    line = Line(number, remark, definition.text, scale * found.value, low, high, studies, found.missing)
    return replace(line, trained=row.trained, budget=row.budget)


def judge(claims: Sequence[Claim], outcome: Outcome) -> tuple[Judged, ...]:
    """A verdict on every claim; p is adjusted over all that could be compared by study.

    The published gain is held only against whole runs, and samples that could have supported the claim: that a training
    which was cut short gains less, or that few studies show less, says nothing.
    """
    compared = {
        claim: _compared(claim, outcome) for claim in claims if not _why_not(claim, outcome) and _by_study(claim)
    }
    corrected = dict(zip(compared, adjusted(list(compared.values())), strict=True))
    smallest = [found.smallest_p for found in corrected.values() if not math.isnan(found.p)]
    out = []
    for claim in claims:
        if claim in corrected:
            found = corrected[claim]
            reachable = found.smallest_p < ALPHA and min(smallest) * len(smallest) < ALPHA
            fair = claim.published_gain > 0 and reachable and _is_whole(claim, outcome)
            judgement = verdict(found, claim.higher_is_better, claim.published_gain if fair else None, ALPHA)
            share = _least_share(claim, outcome)
            out.append(Judged(claim, judgement, found, tested=len(smallest), reachable=reachable, share=share))
        elif why := _why_not(claim, outcome):
            out.append(Judged(claim, "not tested", reason=why))
        else:
            out.append(_judge_counted(claim, outcome.counts))
    return tuple(out)


def _by_study(claim: Claim) -> bool:
    return claim.numbers[0].how in SCORED


def _compared(claim: Claim, outcome: Outcome) -> PairedComparison:
    """In the published unit."""
    number = claim.numbers[0]
    definition = definitions(number)[0]
    scale = factor(number, definition)
    rows = [outcome.trained[n.recipe] for n in claim.numbers]
    better, worse = (estimate(definition, row.scores, row.studies).values for row in rows)
    if definition.statistic == "mean":
        return compare_paired(scale * better[:, 0], scale * worse[:, 0], test=TEST)
    return compare_by_swaps(terms(definition, better), terms(definition, worse), _scaled(definition, scale))


def _scaled(definition: Definition, scale: float) -> Statistic:
    def statistic(sums: Array) -> Array:
        return scale * of_sums(definition, sums)

    return statistic


def _is_whole(claim: Claim, outcome: Outcome) -> bool:
    return not outcome.partial and all(outcome.trained[number.recipe].whole for number in claim.numbers)


def _least_share(claim: Claim, outcome: Outcome) -> float | None:
    shares = [outcome.trained[number.recipe].share for number in claim.numbers]
    return min((share for share in shares if share is not None), default=None)


def _judge_counted(claim: Claim, counts: Counts) -> Judged:
    (_, better), (_, worse) = (counts(number)[0] for number in claim.numbers)
    found = "supported" if better < worse else "not supported"
    unit = claim.numbers[0].unit
    printed = " against ".join(f"{number.value:g}" for number in claim.numbers)
    return Judged(claim, found, reason=f"counted {better:.4g} against {worse:.4g} {unit}; the paper prints {printed}")


def _why_not(claim: Claim, outcome: Outcome) -> str:
    """Why a claim cannot be judged; empty where it can."""
    for number in claim.numbers:
        if number.how in _NEVER or not number.recipe:
            return f"{number.row} cannot be run here"
        if number.how != "counted" and number.recipe not in outcome.trained:
            return f"{number.row} failed" if number.recipe in outcome.failed else f"{number.row} was not asked for"
    return ""
