"""The page that `gliomap compare` writes: one HTML file that opens offline, with the answers first."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jinja2 import Template
from markupsafe import Markup

from gliomap.classes import REGIONS
from gliomap.ranking import Ranking, cliques, friedman, mean_ranks, ranking
from gliomap.report import charts, pictures
from gliomap.report.answers import (
    TESTS,
    Answer,
    Pair,
    Sentence,
    outcome,
    pair_name,
    sentence,
    side_name,
)
from gliomap.report.extremes import Extreme
from gliomap.report.published_beside import published_beside
from gliomap.report.rank_chart import rank_chart
from gliomap.report.score_table import cells, marks_of, summary_of
from gliomap.report.scores import Array, Column, Scores, counts_as
from gliomap.report.templating import pages
from gliomap.report.wording import decimals, higher_is_better, metric_title, number, p_text, precise, region_title
from gliomap.rows import metric

MOST_SENTENCES = 12
MOST_DIFFERENCE_CHARTS = 24
LARGEST = 5


@dataclass(frozen=True)
class ComparisonReport:
    """What a comparison's page shows.

    Attributes:
        warnings: What was left out or is missing; printed before everything else.
        inputs: SHA-256 of each table of scores.
        extremes: The studies that are shown in pictures.
        not_shown: Why others are not.
    """

    scores: Scores
    answers: tuple[Answer, ...]
    test: str
    seed: int
    warnings: tuple[str, ...]
    inputs: dict[str, str]
    extremes: tuple[Extreme, ...] = ()
    not_shown: tuple[str, ...] = ()


class Told(NamedTuple):
    """The sentences of one metric: those to read first, and the rest; ``decided`` counts both."""

    metric: str
    decided: int
    first: list[Sentence]
    rest: list[Sentence]


class Largest(NamedTuple):
    """A study in which two sides differ most, as text."""

    study: str
    a: str
    b: str
    difference: str


class Difference(NamedTuple):
    """One answer's differences by study."""

    title: str
    chart: Markup
    largest: list[Largest]


def comparison_page(report: ComparisonReport) -> str:
    """The page as HTML text, with its charts inside."""
    scores = report.scores
    ranked = _ranking(report)
    best = scores.models[int(np.argmin(ranked.mean_ranks))]
    pairs = _shown_pairs(report, best)
    return _template().render(
        report=report,
        scores=scores,
        test=TESTS[report.test],
        best=best,
        told=[_told(report, name, best) for name in scores.metrics],
        joined=[side_name(s) for pair in _pairs(report) for s in pair if len(s) > 1],
        empty=_empty(scores),
        failed=any((status == "failed").any() for status in scores.status.values()),
        tables={
            name: list(zip(scores.models, cells(scores, report.answers, name), strict=True)) for name in scores.metrics
        },
        boxes={name: [_boxes(scores, region, name) for region in scores.regions(name)] for name in scores.metrics},
        rank_charts={
            name: [_ranks(report, region, name) for region in scores.regions(name)] for name in scores.metrics
        },
        joins=_all_pairs(report),
        ranking=ranked,
        order=[int(k) for k in np.argsort(ranked.mean_ranks, kind="stable")],
        pairs={pair_name(pair): _differences(report, pair) for pair in pairs},
        pairs_left=len(_pairs(report)) - len(pairs),
        extremes=report.extremes,
        outlined=tuple(REGIONS),
        colours=pictures.REGION_COLOURS,
        published=published_beside(scores),
    )


def _template() -> Template:
    """The page's template; every value that it prints is escaped."""
    environment = pages()
    environment.filters |= {
        "hexadecimal": pictures.hexadecimal,
        "metric_title": metric_title,
        "region_title": region_title,
        "p_text": p_text,
        "breakable": breakable,
    }
    environment.globals |= {"metric": metric, "summary_of": summary_of, "marks_of": marks_of, "counts_as": counts_as}
    return environment.get_template("comparison.html.j2")


def breakable(name: str) -> Markup:
    """A name that may be broken where its parts end."""
    return Markup("<wbr>").join(re.findall(r"[^_+.-]*[_+.-]+|[^_+.-]+", name))


def _pairs(report: ComparisonReport) -> list[Pair]:
    return list(dict.fromkeys(answer.pair for answer in report.answers))


def _told(report: ComparisonReport, name: str, best: str) -> Told:
    """All sentences of a metric where they are few, else first those that decide; if none does, the best-ranked model's."""
    answers = [answer for answer in report.answers if answer.metric == name]
    first, decided = answers, [answer for answer in answers if outcome(answer) != "undecided"]
    if len(answers) > MOST_SENTENCES:
        of_best = [answer for answer in answers if best in {*answer.pair.a, *answer.pair.b}]
        first = decided or (of_best or answers)[:MOST_SENTENCES]
    chosen = set(map(id, first))
    rest = [answer for answer in answers if id(answer) not in chosen]
    return Told(name, len(decided), [sentence(a) for a in first], [sentence(a) for a in rest])


def _empty(scores: Scores) -> list[tuple[str, list[str]]]:
    """By model what its values are in each column, where anything is not plainly there; else nothing."""
    if all((status == "ok").all() for status in scores.status.values()):
        return []
    return [(model, [_counted(scores, column, k) for column in scores.values]) for k, model in enumerate(scores.models)]


def _counted(scores: Scores, column: Column, k: int) -> str:
    known = int((~np.isnan(scores.values[column][:, k])).sum())
    why = Counter(
        str(status).replace("_", " ") or "not scored" for status in scores.status[column][:, k] if status != "ok"
    )
    return f"{known} of {len(scores.studies)}" + "".join(f"; {count} {text}" for text, count in sorted(why.items()))


def _axis_title(region: str, name: str) -> str:
    unit = metric(name).unit
    return f"{region_title(region)}: {metric_title(name)}" + ("" if unit == "1" else f" in {unit}")


def _boxes(scores: Scores, region: str, name: str) -> tuple[str, Markup]:
    title, column = _axis_title(region, name), (region, name)
    empty = np.stack([scores.empty((model,), column) for model in scores.models], axis=1)
    return title, charts.box_chart(title, scores.values[column], scores.models, scores.studies, empty)


def _ranks(report: ComparisonReport, region: str, name: str) -> tuple[str, Markup, str]:
    """A critical-difference diagram of one column, and Friedman's test of 3 models or more in words."""
    scores, title = report.scores, _axis_title(region, name)
    values, better = scores.ranked((region, name)), higher_is_better(name)
    ranks = mean_ranks(values, better)
    groups = _groups(report, (region, name), ranks) if _all_pairs(report) else None
    chart = rank_chart(title, ranks, scores.models, groups)
    if len(scores.models) < 3:
        return title, chart, ""
    found = friedman(values, better)
    return title, chart, f"Friedman: chi-squared {found.statistic:.1f}, {p_text(found.p)}."


def _all_pairs(report: ComparisonReport) -> bool:
    """Whether every two models were compared."""
    asked = {frozenset((*pair.a, *pair.b)) for pair in _pairs(report) if len(pair.a) == len(pair.b) == 1}
    return len(asked) == math.comb(len(report.scores.models), 2)


def _groups(report: ComparisonReport, column: Column, ranks: Array) -> list[tuple[int, ...]]:
    """The models that the answers do not tell apart, best rank first."""
    models = report.scores.models
    joined = np.ones((len(models), len(models)), bool)
    for answer in report.answers:
        of_two = len(answer.pair.a) == len(answer.pair.b) == 1
        if of_two and (answer.region, answer.metric) == column and outcome(answer) in ("better", "worse"):
            a, b = (models.index(side[0]) for side in answer.pair)
            joined[a, b] = joined[b, a] = False
    order = np.argsort(ranks, kind="stable")
    return [tuple(order[list(group)].tolist()) for group in cliques(joined[np.ix_(order, order)])]


def _ranking(report: ComparisonReport) -> Ranking:
    values = np.stack([report.scores.ranked(column) for column in report.scores.values], axis=2)
    return ranking(values, [higher_is_better(name) for _, name in report.scores.values], report.seed)


def _shown_pairs(report: ComparisonReport, best: str) -> list[Pair]:
    """As many pairs as there is room for charts of differences, those with the best-ranked model first."""
    pairs = _pairs(report)
    room = max(1, MOST_DIFFERENCE_CHARTS // len(report.scores.values))
    return sorted(pairs, key=lambda pair: best not in {*pair.a, *pair.b})[:room]


def _differences(report: ComparisonReport, pair: Pair) -> list[Difference]:
    return [_difference(report.scores, answer) for answer in report.answers if answer.pair == pair]


def _difference(scores: Scores, answer: Answer) -> Difference:
    up, down = ("first", "second") if higher_is_better(answer.metric) else ("second", "first")
    names = {"first": side_name(answer.pair.a), "second": side_name(answer.pair.b)}
    sides = f"↑ {names[up]} better", f"↓ {names[down]} better"
    title, column = _axis_title(answer.region, answer.metric), (answer.region, answer.metric)
    empty = ~scores.gone(answer.pair.a, column) & ~scores.gone(answer.pair.b, column)
    interval = answer.comparison.low, answer.comparison.high
    described = f"{title}, {names['first']} minus {names['second']}"
    chart = charts.difference_chart(described, answer.differences, scores.studies, interval, sides, empty)
    return Difference(title, chart, _largest(scores, answer))


def _largest(scores: Scores, answer: Answer) -> list[Largest]:
    column, unit = (answer.region, answer.metric), metric(answer.metric).unit
    a, b = (scores.of(side, column) for side in answer.pair)
    known = np.flatnonzero(~np.isnan(answer.differences))
    order: Sequence[int] = known[np.argsort(-np.abs(answer.differences[known]), kind="stable")][:LARGEST].tolist()
    return [
        Largest(scores.studies[i], *_apart(a[i], b[i], unit), _signed(float(answer.differences[i]), unit))
        for i in order
    ]


def _apart(a: float, b: float, unit: str) -> tuple[str, str]:
    """Two values as text that differs where they do."""
    digits = decimals((a, b), unit)
    return number(a, unit, digits), number(b, unit, digits)


def _signed(value: float, unit: str) -> str:
    return ("+" if value > 0 else "") + precise(value, unit)
