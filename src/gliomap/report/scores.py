"""Scores of models by study, from tables of rows; refused where models cannot be compared by them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from gliomap.classes import PARTS
from gliomap.data.study import Study
from gliomap.errors import InputError, UsageError
from gliomap.report.wording import higher_is_better, metric_title
from gliomap.rows import PENALTY_MM, Protocol, Row, metric, read_rows, worst_value

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Column = tuple[str, str]
"""(region, metric); the region is empty for a metric of the whole label map."""

Key = tuple[str, str, str, str]

PREFERRED_METRICS = ("dice", "hd95", "lesion_dice", "lesion_hd95")
TRUTH_TOLERANCE = 1e-4
"""Relative; rows have 6 digits."""


@dataclass(frozen=True)
class Scores:
    """Scores of K models on N studies, by column.

    Attributes:
        values: (N, K), NaN where there is none. A failed study has the worst value under a protocol that says it.
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
        return self.values[column][:, self._places(side)].mean(axis=1)

    def empty(self, side: tuple[str, ...], column: Column) -> Flags:
        """Where (N,) a side has no value as it should: neither the truth nor a prediction of its models has a voxel."""
        return np.all(self._empty(column)[:, self._places(side)], axis=1)

    def gone(self, side: tuple[str, ...], column: Column) -> Flags:
        """Where (N,) a side has no value as one of its models has none, and that is not `empty`."""
        gone = np.isnan(self.values[column]) & ~self._empty(column)
        return np.any(gone[:, self._places(side)], axis=1)

    def ranked(self, column: Column) -> Array:
        """Values (N, K) to rank: what is correctly empty is infinitely good."""
        best = np.inf if higher_is_better(column[1]) else -np.inf
        return np.where(self._empty(column), best, self.values[column])

    def _empty(self, column: Column) -> Flags:
        return np.isnan(self.values[column]) & (self.status[column] == "both_empty")

    def _places(self, side: tuple[str, ...]) -> list[int]:
        return [self.models.index(model) for model in side]


def rows_by_key(paths: Iterable[Path]) -> dict[Key, Row]:
    """All rows by study, model, region and metric; a failed study's row has neither region nor metric.

    Raises:
        InputError: a table cannot be read, has no scores or one twice, or has a metric that nobody knows.
    """
    found: dict[Key, Row] = {}
    places: dict[Key, Path] = {}
    protocols: dict[str, Path] = {}
    for path in paths:
        before = len(found)
        for row in read_rows(path):
            key = (row.study, row.model, row.region, row.metric)
            if row.metric and len(protocols | {row.protocol: path}) > 1:
                ((other, place),) = protocols.items()
                raise InputError(
                    f"{path} was scored by the protocol {row.protocol}, and {place} by {other}: by different protocols no two "
                    "scores compare. Score them alike with gliomap evaluate --protocol"
                )
            protocols |= {row.protocol: path} if row.metric and not protocols else {}
            if key in found:
                raise _twice(f"{row.metric or 'the failure'} {row.region}".strip(), row, {places[key], path})
            _refuse_unknown(row, path)
            found[key], places[key] = row, path
        if len(found) == before:
            raise InputError(f"{path} has no rows; leave it out, or score again with gliomap evaluate")
    for key, row in found.items():
        failed = (row.study, row.model, "", "")
        if row.metric and failed in found:
            raise _twice("a score, once failed,", row, {places[key], places[failed]})
    if not any(row.metric for row in found.values()):
        raise InputError(
            f"there are no scores in {', '.join(map(str, paths))}; expected rows that gliomap evaluate wrote"
        )
    return found


def _twice(what: str, row: Row, places: set[Path]) -> InputError:
    return InputError(
        f"{what} of the model {row.model} in {row.study} is there twice, in {' and '.join(sorted(map(str, places)))}. Leave one "
        "out; if they are two models, give them different names with gliomap evaluate --name"
    )


def _refuse_unknown(row: Row, path: Path) -> None:
    try:
        _ = metric(row.metric) if row.metric else None
        _ = PENALTY_MM[cast("Protocol", row.protocol.partition(",")[0])] if row.metric else None
    except (UsageError, KeyError) as error:
        raise InputError(
            f"{path}: the metric {row.metric!r} or its protocol {row.protocol!r} is not known. Score again with gliomap evaluate"
        ) from error


def scores_of(
    rows: Mapping[Key, Row], metrics: Sequence[str] = (), regions: Sequence[str] = (), *, common: bool = False
) -> tuple[Scores, list[str]]:
    """The scores to compare, by study and model, and what has to be said of them.

    Without ``metrics`` those of `PREFERRED_METRICS` that are there, else all; without ``regions`` all.

    Raises:
        UsageError: a metric or region is asked for that is not there, or that has no better and worse.
        InputError: the models were not scored alike, or not on the same studies and ``common`` is not set.
    """
    models = tuple(dict.fromkeys(model for _, model, _, _ in rows))
    columns, warnings = _columns(rows, models, metrics, regions, common=common)
    chosen = [row for row in rows.values() if (row.region, row.metric) in columns]
    _refuse_other_definitions(chosen)
    protocol = chosen[0].protocol
    studies, left_out = _studies(rows, models, columns, common=common)
    warnings += left_out
    _refuse_other_truths(rows, models, studies)
    values, status = {}, {}
    for region, name in columns:
        found = [[_row(rows, study, model, region, name) for model in models] for study in studies]
        values[region, name] = np.array([[_value(row, name, protocol) for row in line] for line in found])
        status[region, name] = np.array([["" if r is None else r.status for r in line] for line in found])
    scores = Scores(tuple(studies), models, values, status, protocol)
    return scores, warnings + _absences(scores) + _repeated_patients(studies)


def _value(row: Row | None, name: str, protocol: str) -> float:
    """A row's value; a failed study counts what the protocol says, if it says anything."""
    value = worst_value(name, protocol) if row is not None and row.status == "failed" else row and row.value
    return np.nan if value is None else value


def _repeated_patients(studies: Sequence[str]) -> list[str]:
    patients = len({Study(study, {}).patient for study in studies})
    if patients == len(studies):
        return []
    return [
        f"{len(studies)} studies of {patients} patients: studies of one patient are not independent, and every p-value is too small"
    ]


def _absences(scores: Scores) -> list[str]:
    """What is missing, in a line per model that failed and a line per metric."""
    found = []
    count = len(scores.studies)
    for k, model in enumerate(scores.models):
        status = next(iter(scores.status.values()))[:, k]
        failed = [study for study, text in zip(scores.studies, status, strict=True) if text == "failed"]
        if failed:
            found.append(f"{model} failed in {len(failed)} of {count} studies: {_some(failed)}{counts_as(scores)}")
    for name in scores.metrics:
        gone = {
            (model, region): int(scores.gone((model,), (region, name)).sum())
            for region in scores.regions(name)
            for model in scores.models
        }
        (model, region), most = max(gone.items(), key=lambda item: item[1])
        if most:
            where = f"{model}, {region}" if region else model
            found.append(
                f"{metric_title(name)} has no value in up to {most} of {count} studies ({where}); the page counts all"
            )
    return found


def counts_as(scores: Scores) -> str:
    """What the protocol counts a failed study as, after a semicolon; nothing where it does not say."""
    worst = {name: worst_value(name, scores.protocol) for name in scores.metrics}
    said = [
        f"{metric_title(name)} {value:g}{' mm' if metric(name).unit == 'mm' else ''}"
        for name, value in worst.items()
        if value is not None
    ]
    return f"; by {scores.protocol} such a study counts as {', '.join(said)}" if said else ""


def _row(rows: Mapping[Key, Row], study: str, model: str, region: str, name: str) -> Row | None:
    return rows.get((study, model, region, name)) or rows.get((study, model, "", ""))


def _columns(
    rows: Mapping[Key, Row],
    models: Sequence[str],
    metrics: Sequence[str],
    asked_regions: Sequence[str],
    *,
    common: bool,
) -> tuple[list[Column], list[str]]:
    """The regions and metrics to compare, metric by metric, and those that some model lacks."""
    have = {(model, (region, name)) for _, model, region, name in rows if name}
    present = {column for _, column in have}
    names = list(dict.fromkeys(row.metric for row in rows.values() if row.metric))
    scored = [name for name in names if metric(name).better != "neither"]
    wanted = metrics or [name for name in PREFERRED_METRICS if name in names] or scored
    for name in wanted:
        if metric(name).better == "neither":
            raise UsageError(f"{name} is a quantity, neither better nor worse; compare some of {', '.join(scored)}")
        if name not in names:
            raise UsageError(f"the tables have no {name}; they have {', '.join(scored)}")
    regions = sorted({region for region, _ in present}, key=lambda region: ("", *PARTS, region).index(region))
    if unknown := [region for region in asked_regions if region not in regions]:
        has = ", ".join(region for region in regions if region)
        raise UsageError(f"the tables have no region {', '.join(unknown)}; they have {has}")
    asked = [
        (region, name)
        for name in dict.fromkeys(wanted)
        for region in regions
        if (region, name) in present and (not region or not asked_regions or region in asked_regions)
    ]
    lacking = {c: [model for model in models if (model, c) not in have] for c in asked}
    lacking = {column: without for column, without in lacking.items() if without}
    texts = [f"{name} {region}".strip() + f": not of {', '.join(w)}" for (region, name), w in lacking.items()]
    kept = [column for column in asked if column not in lacking]
    if (texts and not common) or not kept:
        raise InputError(
            f"not every model has the same scores ({'; '.join(texts) or 'none at all'}). Score them alike, choose with --metrics "
            "and --regions, or compare what all have with --common"
        )
    return kept, [f"left out, since not every model has it: {text}" for text in texts]


def _refuse_other_definitions(rows: Sequence[Row]) -> None:
    words = {(row.metric, row.unit, row.definition) for row in rows}
    for name, several in Counter(name for name, _, _ in words).items():
        if several > 1:
            told = " | ".join(sorted(f"{unit} {text}" for other, unit, text in words if other == name))
            models = ", ".join(dict.fromkeys(row.model for row in rows))
            raise InputError(
                f"the models {models} were scored the metric {name} by different definitions ({told}); score them again with "
                "gliomap evaluate, alike"
            )


def _studies(
    rows: Mapping[Key, Row], models: Sequence[str], columns: Sequence[Column], *, common: bool
) -> tuple[list[str], list[str]]:
    """The studies that every model has, failed or scored, and what was left out."""
    kept = {*columns, ("", "")}
    of: dict[str, set[str]] = {model: set() for model in models}
    for study, model, region, name in rows:
        if (region, name) in kept:
            of[model].add(study)
    every = sorted(set().union(*of.values()))
    shared = [study for study in every if all(study in found for found in of.values())]
    if len(shared) == len(every):
        return every, []
    lacking = [
        f"{model} lacks {len(gone)} of {len(every)}: {_some(gone)}"
        for model in models
        if (gone := [study for study in every if study not in of[model]])
    ]
    if not common:
        raise InputError(
            f"the models were scored on different studies. {'. '.join(lacking)}. Score the rest, or compare on the "
            f"{len(shared)} common ones with --common"
        )
    if not shared:
        raise InputError(f"no study was scored for every model. {'. '.join(lacking)}")
    gone = [study for study in every if study not in shared]
    return shared, [f"left out {len(gone)} of {len(every)} studies, which not every model has: {_some(gone)}", *lacking]


def _refuse_other_truths(rows: Mapping[Key, Row], models: Sequence[str], studies: Sequence[str]) -> None:
    """The volumes of the truth are in the rows: models scored against different ones cannot be compared."""
    regions = dict.fromkeys(region for _, _, region, name in rows if name == "volume_truth")
    for study in studies:
        for region in regions:
            found = {
                m: r.value
                for m in models
                if (r := rows.get((study, m, region, "volume_truth"))) and r.value is not None
            }
            if found and max(found.values()) - min(found.values()) > TRUTH_TOLERANCE * max(found.values()):
                told = ", ".join(f"{value:g} ml for {model}" for model, value in found.items())
                raise InputError(
                    f"the models were scored against different truths: {region} of {study} has {told}. Score all with the "
                    "same label maps and --truth-labels"
                )


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
