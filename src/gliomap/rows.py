"""A row: the only shape a score ever has. And METRICS: what every score is called, means and counts as where a mask is empty."""

import csv
import difflib
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast, get_args

from gliomap.errors import InputError, UsageError

Protocol = Literal["plain", "brats2023", "brats2025"]
Status = Literal["ok", "both_empty", "prediction_empty", "truth_empty", "failed"]

PENALTY_MM: dict[Protocol, float | None] = {"plain": None, "brats2023": 374.0, "brats2025": 373.0}
"""What a distance counts as where one of the two masks is empty; None: it is missing."""


@dataclass(frozen=True)
class Metric:
    """What a score means. ``better`` says which way is better, or that the number is a quantity and no score.

    ``both_empty`` is the value where both masks are empty; None leaves what the formula gives, if anything.
    """

    unit: str
    definition: str
    better: Literal["higher", "lower", "neither"]
    both_empty: float | None = None


def _distance(definition: str) -> Metric:
    return Metric("mm", definition, "lower", 0.0)


_SLICES = "mean over the axial slices of the grid; a slice empty in both counts"

METRICS: dict[str, Metric] = {
    "dice": Metric("1", "2|A&B|/(|A|+|B|)", "higher", 1.0),
    "iou": Metric("1", "|A&B|/|A or B|", "higher", 1.0),
    "hd95": _distance("surface voxels; max of the two directed 95th percentiles"),
    "hd100": _distance("surface voxels; max of the two directed maxima"),
    "hd95_pooled": _distance("surface voxels; 95th percentile of both directions pooled, as medpy"),
    "hd95_area_weighted": _distance("surface elements weighted by area; max of the two directed 95 %, as DeepMind"),
    "hd95_all_voxels": _distance(
        "all voxels; 95th percentile of both directions pooled; only to reproduce such numbers"
    ),
    "assd": _distance("surface voxels; mean of the distances of both directions pooled"),
    "sensitivity": Metric("1", "TP/(TP+FN)", "higher"),
    "specificity": Metric("1", "TN/(TN+FP) over the whole grid", "higher"),
    "precision": Metric("1", "TP/(TP+FP)", "higher"),
    "accuracy": Metric("1", "(TP+TN)/all voxels of the grid", "higher"),
    "volume": Metric("ml", "of the prediction", "neither"),
    "volume_truth": Metric("ml", "of the truth", "neither"),
    "volume_error": Metric("ml", "prediction - truth", "neither"),
    "volume_error_absolute": Metric("ml", "|prediction - truth|", "lower"),
    "volume_error_relative": Metric("1", "(prediction - truth)/truth", "neither"),
    "mean_iou_with_background": Metric("1", "mean of the IoU of the region and of the rest of the grid", "higher"),
    "mean_dice_of_slices": Metric("1", f"{_SLICES} 1", "higher"),
    "mean_iou_of_slices": Metric("1", f"{_SLICES} 1", "higher"),
    "mean_iou_of_slices_empty_0": Metric("1", f"{_SLICES} 0", "higher"),
    "mean_iou_of_classes": Metric("1", "mean IoU of NCR, ED and ET; a class absent from both counts 1", "higher"),
    "mean_iou_of_classes_and_background": Metric(
        "1", "mean IoU of background, NCR, ED and ET; a class absent from both counts 1", "higher"
    ),
    "lesion_dice": Metric("1", "mean over lesions (brats2023: and false positives), see docs/lesions.md", "higher"),
    "lesion_hd95": Metric("mm", "mean over lesions (brats2023: and false positives), see docs/lesions.md", "lower"),
    "lesion_nsd_1mm": Metric("1", "mean over matched lesions, see docs/lesions.md", "higher"),
    "lesions": Metric("1", "lesions of the truth that count", "neither"),
    "lesions_missed": Metric("1", "lesions of the truth that nothing matches", "lower"),
    "lesions_false": Metric("1", "components of the prediction that match no lesion", "lower"),
    "ece": Metric(
        "1", "|mean probability - share of truth| over 10 equal bins, weighted by voxels, of the brain's", "lower"
    ),
    "brier": Metric("1", "mean (probability - truth)^2 of the brain's voxels", "lower"),
    "confidence_0_10": Metric("1", "share of the brain's voxels with probability in [0, 0.1)", "neither"),
    "confidence_10_50": Metric("1", "share of the brain's voxels with probability in [0.1, 0.5)", "neither"),
    "confidence_50_90": Metric("1", "share of the brain's voxels with probability in [0.5, 0.9)", "neither"),
    "confidence_90_100": Metric("1", "share of the brain's voxels with probability in [0.9, 1]", "neither"),
}
"""Metric by name. nsd_1mm, nsd_2.5mm and so on, with _area_weighted or without, are metrics too: see `metric`."""

DEFAULT_METRICS = ("dice", "hd95", "sensitivity", "specificity", "volume", "volume_truth")
CALIBRATION_METRICS = tuple(name for name in METRICS if name in ("ece", "brier") or name.startswith("confidence_"))
"""What needs a model's probabilities."""
LESION_METRICS = tuple(name for name in METRICS if name.startswith("lesion"))
"""What only a challenge's protocol defines."""
PROTOCOL_METRICS: dict[Protocol, tuple[str, ...]] = {
    "plain": DEFAULT_METRICS,
    "brats2023": (*DEFAULT_METRICS, *(name for name in LESION_METRICS if name != "lesion_nsd_1mm")),
    "brats2025": (*DEFAULT_METRICS, *LESION_METRICS),
}
"""What is measured where no metric is named."""

_NSD = re.compile(r"nsd_(\d+(?:\.\d+)?)mm(_area_weighted)?")


def metric(name: str) -> Metric:
    """The metric of that name.

    Raises:
        UsageError: there is none.
    """
    if name in METRICS:
        return METRICS[name]
    if tolerance := nsd_tolerance_mm(name):
        what = "surface area, as DeepMind" if name.endswith("_area_weighted") else "share of the surface voxels"
        return Metric("1", f"{what}, of both masks within {tolerance:g} mm of the other", "higher", 1.0)
    near = difflib.get_close_matches(name, METRICS, 3, 0.5)
    raise UsageError(
        f"no metric is called {name!r}; "
        + (f"near it are {', '.join(near)}" if near else f"expected some of {', '.join(METRICS)}, nsd_1mm")
    )


def worst_value(name: str, protocol: str) -> float | None:
    """What a study that could not be scored counts as under a row's protocol; None where that does not say."""
    penalty_mm = PENALTY_MM[cast("Protocol", protocol.partition(",")[0])]
    kind = metric(name)
    if penalty_mm is None or kind.better == "neither":
        return None
    if kind.unit == "mm":
        return penalty_mm
    return 0.0 if kind.better == "higher" else None


def nsd_tolerance_mm(name: str) -> float | None:
    """The tolerance in a name such as nsd_1mm or nsd_2.5mm_area_weighted; None for any other metric."""
    found = _NSD.fullmatch(name)
    return float(found[1]) if found else None


@dataclass(frozen=True)
class Row:
    """One score. ``value`` is None where there is none; ``status`` says why. ``region`` is empty for what has none."""

    study: str
    model: str
    region: str
    metric: str
    value: float | None
    unit: str
    definition: str
    protocol: str
    status: Status


COLUMNS = tuple(f.name for f in fields(Row))


def score_rows(
    study: str, model: str, measured: Mapping[tuple[str, str], float], protocol: Protocol = "plain"
) -> list[Row]:
    """Rows for what was measured by (region, metric), with empty regions counted as the protocol says.

    ``measured`` has the volumes of every region (see `gliomap.metrics.measure`). Both empty: Dice 1, distances 0. One
    empty: Dice 0, and a distance is missing (``plain``) or counts `PENALTY_MM`. What is undefined stays without a value.
    """
    return [_row(study, model, key, value, _status(measured, key[0]), protocol) for key, value in measured.items()]


def _row(study: str, model: str, key: tuple[str, str], value: float, status: Status, protocol: Protocol) -> Row:
    region, name = key
    kind = metric(name)
    if status == "both_empty" and kind.both_empty is not None:
        value = kind.both_empty
    known = None if math.isnan(value) else value
    if known is None and kind.unit == "mm" and status in ("prediction_empty", "truth_empty"):
        known = PENALTY_MM[protocol]
    return Row(study, model, region, name, known, kind.unit, kind.definition, protocol, status)


def _status(measured: Mapping[tuple[str, str], float], region: str) -> Status:
    if not region:
        return "ok"
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
    return b"".join(csv_lines(rows))


def csv_lines(rows: Iterable[Row]) -> Iterator[bytes]:
    """`rows_csv` a line at a time, for tables that need not be in memory."""
    yield table_csv([], COLUMNS)
    for row in rows:
        line = asdict(row) | {"value": "" if row.value is None else f"{row.value:.6g}"}
        yield table_csv([line], COLUMNS).split(b"\n", 1)[1]


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a table that `gliomap evaluate` or `gliomap segment --score` wrote, one at a time.

    Raises:
        InputError: it cannot be read, or is no such table; the message names the line.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            lines = csv.DictReader(stream, strict=True)
            if tuple(lines.fieldnames or ()) != COLUMNS:
                raise InputError(
                    f"{path} is no table of scores; expected the columns {', '.join(COLUMNS)}. Make one with: "
                    "gliomap evaluate PREDICTIONS TRUTH -o scores.csv"
                )
            for line in lines:
                yield _read_row(line, f"{path}, line {lines.line_num}")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no table of scores: {error}") from error


def _read_row(line: Mapping[str, Any], place: str) -> Row:
    if None in line or None in line.values() or line["status"] not in get_args(Status):
        raise InputError(f"{place} is no row of scores; expected {', '.join(COLUMNS)}. Write the table anew")
    try:
        value = float(line["value"]) if line["value"] else None
    except ValueError:
        value = math.nan
    if value is not None and not math.isfinite(value):
        raise InputError(
            f"{place}: the value {line['value']!r} is no number; expected one, or nothing where there is none"
        )
    words = {name: text for name, text in line.items() if name not in ("value", "status")}
    return Row(**words, value=value, status=cast("Status", line["status"]))


def table_csv(lines: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> bytes:
    """Lines as a CSV table with a header."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue().encode()
