"""The scores of repeated trainings summed up: what the studies' spread, and what the luck of a seed, do to a mean."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
from scipy import stats

from gliomap.report.wording import metric_title, number, precise, region_title
from gliomap.rows import Row, metric, table_csv
from gliomap.statistics import Array, bca_interval

METRICS = ("dice", "hd95")
"""What is summed up; the scores have more."""


@dataclass(frozen=True)
class Spread:
    """One metric of one region: of one seed's models, or of all seeds together.

    Only studies that every seed has a value for count, so that nothing but the seed differs; the others are ``missing``.
    All standard deviations are of a sample, and NaN where there are fewer than 2 values.

    Attributes:
        mean: Over the studies; of all seeds the mean of theirs. ``low`` and ``high`` are its BCa 95 % interval over studies.
        sd_studies: Standard deviation over the studies; of all seeds the root mean square of theirs.
        standard_error: Of one seed's mean, by the studies drawn: ``sd_studies`` over the root of their number.
        sd_seeds: Standard deviation of the seeds' means; NaN but for all seeds.
        seed_difference: By so much, in 95 of 100 cases at most, two means differ that differ in the seed only (t
            distribution, so that few seeds give a wide one); NaN but for all seeds.
    """

    model: str
    region: str
    metric: str
    unit: str
    studies: int
    missing: int
    mean: float
    low: float
    high: float
    sd_studies: float
    standard_error: float
    sd_seeds: float = math.nan
    seed_difference: float = math.nan


def spreads(rows: Iterable[Row], together: str) -> list[Spread]:
    """The spread of every model in rows of scores and, if there are several, of all of them by the name ``together``.

    Models are the seeds' and have rows of the same studies; one without any value is left out.
    """
    values: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    models, studies = dict[str, None](), dict[str, None]()
    for row in rows:
        models[row.model] = studies[row.study] = None
        if row.metric in METRICS and row.value is not None:
            values.setdefault((row.metric, row.region), {})[row.model, row.study] = row.value
    found = []
    for name, region in sorted(values, key=lambda column: METRICS.index(column[0])):
        scores = values[name, region]
        table = np.array([[scores.get((model, study), math.nan) for study in studies] for model in models])
        there = np.flatnonzero(~np.isnan(table).all(1))
        found += _of_column(table[there], [[*models][n] for n in there], together, region, name)
    return found


def _of_column(table: Array, models: Sequence[str], together: str, region: str, name: str) -> list[Spread]:
    """The spreads of one column's values (models, studies), NaN where one is missing."""
    complete = table[:, ~np.isnan(table).any(0)]
    count, missing = complete.shape[1], table.shape[1] - complete.shape[1]
    column = (region, name, metric(name).unit, count, missing)
    deviations = [_deviation(own) for own in complete]
    own = [
        Spread(model, *column, _mean(scores), *bca_interval(scores), deviation, _standard_error(deviation, count))
        for model, scores, deviation in zip(models, complete, deviations, strict=True)
    ]
    if len(models) < 2:
        return own
    deviation = math.sqrt(_mean(np.square(deviations)))
    means = np.array([spread.mean for spread in own])
    over_seeds = _deviation(means)
    of_all = Spread(
        together,
        *column,
        _mean(means),
        *bca_interval(complete.mean(0)),
        deviation,
        _standard_error(deviation, count),
        over_seeds,
        float(stats.t.ppf(0.975, len(models) - 1)) * math.sqrt(2) * over_seeds,
    )
    return [*own, of_all]


def _mean(values: Array) -> float:
    return float(values.mean()) if values.size else math.nan


def _deviation(values: Array) -> float:
    return float(values.std(ddof=1)) if values.size > 1 else math.nan


def _standard_error(deviation: float, count: int) -> float:
    return deviation / math.sqrt(count) if count else math.nan


def spreads_csv(found: Sequence[Spread]) -> bytes:
    """The spreads as a CSV table; values with 6 significant digits, missing ones empty."""
    lines = [
        {name: _cell(value) if isinstance(value, float) else value for name, value in asdict(one).items()}
        for one in found
    ]
    return table_csv(lines, [field.name for field in fields(Spread)])


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def spread_table(found: Sequence[Spread], name: str) -> tuple[list[str], list[list[str]]]:
    """A metric's headers and lines as text: the mean of each seed by region, then what it is uncertain by."""
    own = {(one.model, one.region): one for one in found if one.metric == name}
    models, regions = (list(dict.fromkeys(names)) for names in zip(*own, strict=True))
    lines = [[model, *(_cell_of(own.get((model, region)), _mean_text) for region in regions)] for model in models]
    told = [
        ("standard deviation over studies", "sd_studies"),
        ("standard error of a mean, by studies", "standard_error"),
    ]
    if len(models) > 1:
        told += [
            ("standard deviation over seeds", "sd_seeds"),
            ("difference by the seed alone, 95 %", "seed_difference"),
        ]
    last = [own.get((models[-1], region)) for region in regions]
    for title, field in told:
        lines.append(
            [title, *(_cell_of(one, lambda one, field=field: precise(getattr(one, field), one.unit)) for one in last)]
        )
    lines.append(["studies", *(_cell_of(one, _counts) for one in last)])
    unit = "" if metric(name).unit == "1" else f" in {metric(name).unit}"
    return [f"{metric_title(name)}{unit}", *map(region_title, regions)], lines


def _cell_of(one: Spread | None, text: Callable[[Spread], str]) -> str:
    return "-" if one is None else text(one)


def _counts(one: Spread) -> str:
    return f"{one.studies}, {one.missing} missing" if one.missing else str(one.studies)


def _mean_text(one: Spread) -> str:
    if math.isnan(one.low):
        return number(one.mean, one.unit)
    return f"{number(one.mean, one.unit)} [{number(one.low, one.unit)} to {number(one.high, one.unit)}]"


def spreads_markdown(title: str, statement: Sequence[str], found: Sequence[Spread], warnings: Sequence[str]) -> str:
    """A page of Markdown: what to know before any number, a table for each metric, and what is odd."""
    parts = [f"# {title}", *statement]
    for name in dict.fromkeys(one.metric for one in found):
        headers, lines = spread_table(found, name)
        cells = [headers, ["---"] * len(headers), *lines]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in cells))
    if found:
        parts.append("Brackets: BCa 95 % interval of the mean over studies.")
    if warnings:
        parts.append("\n".join(f"- {text}" for text in warnings))
    return "\n\n".join(parts) + "\n"
