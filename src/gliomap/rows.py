"""A row: the only shape a score ever has."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

EmptyRule = Literal["plain"]
Status = Literal["ok", "both_empty", "prediction_empty", "truth_empty", "failed"]

DEFINITIONS: dict[str, tuple[str, str]] = {
    "dice": ("1", "2|A&B|/(|A|+|B|)"),
    "hd95": ("mm", "surface voxels; max of the two directed 95th percentiles"),
    "hd95_all_voxels": ("mm", "all voxels; 95th percentile of both directions pooled; only to reproduce such numbers"),
    "sensitivity": ("1", "TP/(TP+FN)"),
    "specificity": ("1", "TN/(TN+FP) over the whole grid"),
    "volume": ("ml", "of the prediction"),
    "volume_truth": ("ml", "of the truth"),
}
"""Metric -> unit and definition."""


@dataclass(frozen=True)
class Row:
    """One score. ``value`` is None where there is none; ``status`` says why."""

    study: str
    model: str
    region: str
    metric: str
    value: float | None
    unit: str
    definition: str
    protocol: str
    status: Status


def score_rows(
    study: str, model: str, measured: Mapping[tuple[str, str], float], empty: EmptyRule = "plain"
) -> list[Row]:
    """Rows for what `gliomap.metrics.measure` gave, with empty regions counted as the rule says.

    ``plain``: both empty gives Dice 1 and HD95 0; one empty gives Dice 0 and no HD95. Sensitivity and specificity that are
    undefined stay without a value.
    """
    return [_row(study, model, key, value, _status(measured, key[0]), empty) for key, value in measured.items()]


def _row(study: str, model: str, key: tuple[str, str], value: float, status: Status, empty: EmptyRule) -> Row:
    region, metric = key
    unit, definition = DEFINITIONS[metric]
    if status == "both_empty":
        value = {"dice": 1.0, "hd95": 0.0, "hd95_all_voxels": 0.0}.get(metric, value)
    known = None if math.isnan(value) else value
    return Row(study, model, region, metric, known, unit, definition, f"empty={empty}", status)


def _status(measured: Mapping[tuple[str, str], float], region: str) -> Status:
    found, true = measured[region, "volume"] > 0, measured[region, "volume_truth"] > 0
    if found and true:
        return "ok"
    if not found and not true:
        return "both_empty"
    return "truth_empty" if found else "prediction_empty"


def failed_row(study: str, model: str) -> Row:
    """The row of a study that could not be scored: it is counted, never dropped."""
    return Row(study, model, "", "", None, "", "", "", "failed")


def rows_csv(rows: Iterable[Row]) -> bytes:
    """Rows as a CSV table with a header; values with 6 significant digits, missing ones empty."""
    lines = [asdict(row) | {"value": "" if row.value is None else f"{row.value:.6g}"} for row in rows]
    return table_csv(lines, [f.name for f in fields(Row)])


def table_csv(lines: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> bytes:
    """Lines as a CSV table with a header."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue().encode()
