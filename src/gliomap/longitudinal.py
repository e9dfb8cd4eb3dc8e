"""gliomap report: examinations of one patient over time -> volumes, what changed in ml and per cent, and a page that shows it."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

from gliomap.classes import REGIONS, Convention
from gliomap.data.datasets import parse_labels
from gliomap.data.examinations import Examination, ReadExamination, find_examinations, read_examination
from gliomap.data.images import image_stem
from gliomap.errors import InputError, UsageError
from gliomap.files import json_bytes, read_json, sha256, write_files
from gliomap.manifest import RunRecord
from gliomap.progress import progress_bar
from gliomap.report.examination import examination_report, pane_of
from gliomap.report.lesion_table import find_lesions
from gliomap.report.longitudinal import LongitudinalReport, TimePoint, longitudinal_page, parts_over_time
from gliomap.report.volume_chart import TimeAxis
from gliomap.rows import table_csv

OUTPUTS = ("report.html", "volumes.csv", "lesions.csv", "run.json")
LESION_COLUMNS = (
    "time_point", "title", "when", "lesion", "ET_ml", "TC_ml", "WT_ml", "measured", "axial_slice", "largest_diameter_mm",
    "perpendicular_diameter_mm", "product_mm2",
)  # fmt: skip
MODALITIES = ("flair", "t1c")
"""What is shown of each time point: oedema and enhancement, or the page would be too large for all of its voxels."""


@dataclass(frozen=True)
class ReportOptions:
    """What `report` is asked for.

    ``time_points`` are outputs of `gliomap segment`, studies' folders or label maps, in the order of time. ``dates`` (such as
    2024-01-05) or ``weeks``, one for each, say when they were. ``labels`` says what label values mean where no record does.
    """

    time_points: tuple[Path, ...]
    output: Path
    dates: tuple[str, ...] = ()
    weeks: tuple[float, ...] = ()
    labels: str | None = None
    quiet: bool = False


@dataclass(frozen=True)
class ReportResult:
    """The page, the lines of volumes.csv and of lesions.csv, and what is odd."""

    page: Path
    volumes: list[dict[str, Any]]
    lesions: list[dict[str, Any]]
    warnings: list[str]


def report(options: ReportOptions) -> ReportResult:
    """Measure every time point, and write report.html, volumes.csv, lesions.csv and run.json.

    Nothing is registered: volumes and diameters do not need it.

    Raises:
        UsageError: fewer than two time points, dates or weeks that are not one for each in rising order, or no such convention.
        InputError: a time point cannot be used, or the output cannot be written.
    """
    record = RunRecord("report", options)
    if len(options.time_points) < 2:
        raise UsageError("a report over time needs two time points or more; gliomap view shows one examination")
    time, labels, titles = time_axis(options), parse_labels(options.labels), titles_of(options.time_points)
    _refuse_taken(options.output)
    found = [_examination(number, path, labels) for number, path in enumerate(options.time_points, start=1)]
    digests = [sha256(one.study.label.path) for one in found if one.study.label]
    warnings = _given_twice(titles, digests) + _other_patients(found)
    points: list[TimePoint] = []
    with progress_bar("measuring", len(found), quiet=options.quiet) as bar:
        for title, examination, place in zip(titles, found, time.words, strict=True):
            bar.say(title)
            try:
                seen = read_examination(examination, MODALITIES)
            except InputError as error:
                raise _at(len(points) + 1, options.time_points[len(points)], error) from error
            when = {"date": place, "week": f"week {place}"}.get(time.title, "")
            points.append(_time_point(title, when, seen))
            warnings += [f"{title}: {text}" for text in seen.warnings]
            bar.advance()
    shown = LongitudinalReport(f"{titles[0]} to {titles[-1]}", tuple(points), time, tuple(warnings))
    return _write(options, record, shown, [_inputs(*one) for one in zip(titles, found, digests, strict=True)])


def time_axis(options: ReportOptions) -> TimeAxis:
    """Where the time points lie: in weeks since the first date, in the weeks given, or one after the other.

    Raises:
        UsageError: dates or weeks are not one for each time point, cannot be read, or go back in time.
    """
    count = len(options.time_points)
    if options.dates and options.weeks:
        raise UsageError("--dates and --weeks are two ways to say when the time points were; give one")
    if not options.dates and not options.weeks:
        return TimeAxis(tuple(map(float, range(1, count + 1))), tuple(map(str, range(1, count + 1))), "time point")
    given, option = (options.dates, "--dates") if options.dates else (options.weeks, "--weeks")
    if len(given) != count:
        raise UsageError(f"{option} has {len(given)} entries and there are {count} time points; expected one for each")
    if options.dates:
        days = [_day(text) for text in options.dates]
        places, words = tuple((day - days[0]).days / 7 for day in days), options.dates
    else:
        places, words = options.weeks, tuple(f"{week:g}" for week in options.weeks)
    if any(b < a for a, b in pairwise(places)) or not all(map(math.isfinite, places)):
        raise UsageError(f"{option} {','.join(map(str, given))} goes back in time; give the time points in their order")
    return TimeAxis(places, words, "date" if options.dates else "week")


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"cannot read the date {text!r}; expected year-month-day, such as 2024-01-05") from error


def titles_of(paths: Sequence[Path]) -> list[str]:
    """The names of files without suffix, or of folders, with as many of the folders above as it takes to tell them apart."""
    whole = [Path(os.path.abspath(path)) for path in paths]
    parts = [(*path.parts[1:-1], image_stem(path) or path.name) for path in whole]
    deepest = max(map(len, parts))
    for depth in range(1, deepest + 1):
        titles = ["/".join(names[-depth:]) for names in parts]
        if len(set(titles)) == len(titles):
            return titles
    return [f"{names[-1]} ({number})" for number, names in enumerate(parts, start=1)]  # one path is there twice


def _examination(number: int, path: Path, labels: Convention | None) -> Examination:
    """The only examination that a path holds, with a label map."""
    try:
        found = find_examinations(path, labels)
        if len(found) > 1:
            several = ", ".join(str(one.study.id) for one in found[:3])
            raise InputError(f"it holds {len(found)} studies, such as {several}; give the folder of one of them")
        if found[0].study.label is None:
            raise InputError(
                found[0].study.problem
                or "it has images and no label map; segment it first and give what gliomap segment leaves"
            )
    except InputError as error:
        raise _at(number, path, error) from error
    return found[0]


def _at(number: int, path: Path, error: InputError) -> InputError:
    return InputError(f"time point {number}, {path}: {error}")


def _given_twice(titles: Sequence[str], digests: Sequence[str]) -> list[str]:
    first: dict[str, str] = {}
    return [
        f"{title} has the same label map as {first[digest]}, byte for byte: is it the right file?"
        for title, digest in zip(titles, digests, strict=True)
        if first.setdefault(digest, title) != title
    ]


def _other_patients(found: Sequence[Examination]) -> list[str]:
    """That names of datasets which tell the patient tell several."""
    patients = dict.fromkeys(one.study.patient for one in found if one.study.patient != one.study.id)
    return [f"the names are of several patients, {', '.join(patients)}: expected one"] if len(patients) > 1 else []


def _time_point(title: str, when: str, seen: ReadExamination) -> TimePoint:
    study = examination_report(title, seen)
    count, lesions = find_lesions(study.classes, study.spacing_mm, study.regions)
    d, h, w = study.classes.shape
    rc = {"RC": 0.0} if "RC" in seen.parts else {}
    layers = pane_of(study)._replace(title=f"{title} {when}".strip())
    return TimePoint(
        title, when, rc | study.volumes_ml, count, lesions, layers, study.spacing_mm, (w, h, d), study.facts
    )


def volume_lines(shown: LongitudinalReport) -> list[dict[str, Any]]:
    """A line for each time point and region, as in volumes.csv; what is not known is None."""
    lines: list[dict[str, Any]] = []
    parts = parts_over_time(shown)
    for number, point in enumerate(shown.points):
        for part in parts:
            change = part.changes[number]
            line: dict[str, Any] = {
                "time_point": number + 1,
                "title": point.title,
                "when": point.when,
                "region": part.name,
            }
            line["volume_ml"] = _rounded(change.volume_ml, 3)
            for since in ("first", "previous", "smallest"):
                ml, percent = getattr(change, f"since_{since}") or (None, None)
                line |= {f"since_{since}_ml": _rounded(ml, 3), f"since_{since}_percent": _rounded(percent, 1)}
            lines.append(line | {"note": change.note})
    return lines


def lesion_lines(shown: LongitudinalReport) -> list[dict[str, Any]]:
    """A line for each lesion of each time point, as in lesions.csv; slices count from 1."""
    return [
        {
            "time_point": number,
            "title": point.title,
            "when": point.when,
            "lesion": place,
            **{f"{region}_ml": _rounded(lesion.volumes_ml.get(region), 3) for region in REGIONS},
            "measured": lesion.measured,
            "axial_slice": lesion.centre[0] + 1,
            "largest_diameter_mm": _rounded(lesion.diameters.largest_mm, 1),
            "perpendicular_diameter_mm": _rounded(lesion.diameters.perpendicular_mm, 1),
            "product_mm2": _rounded(lesion.diameters.product_mm2, 0),
        }
        for number, point in enumerate(shown.points, start=1)
        for place, lesion in enumerate(point.lesions, start=1)
    ]


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _inputs(title: str, examination: Examination, digest: str) -> dict[str, Any]:
    """What a time point was made of."""
    study = examination.study
    files = {name: file.path for name, file in study.images.items() if name in MODALITIES and file.path.is_file()}
    inputs = {name: {"path": str(path), "sha256": sha256(path)} for name, path in files.items()}
    if study.label:
        inputs["label map"] = {"path": str(study.label.path), "sha256": digest}
    return {"title": title, "study": study.id, "inputs": inputs}


def _refuse_taken(output: Path) -> None:
    """Never write over what another command left, such as a time point."""
    path = output / "run.json"
    earlier = read_json(path) if path.is_file() else {"verb": "report"}
    if not isinstance(earlier, dict) or earlier.get("verb") != "report":
        raise InputError(f"{output} holds the output of another command ({path}); choose another folder with -o")


def _write(
    options: ReportOptions, record: RunRecord, shown: LongitudinalReport, inputs: list[dict[str, Any]]
) -> ReportResult:
    volumes, lesions = volume_lines(shown), lesion_lines(shown)
    told = {"time_points": inputs, "volumes": volumes, "lesions": lesions, "warnings": list(shown.warnings)}
    contents = (
        longitudinal_page(shown).encode(),
        table_csv(volumes, list(volumes[0])),
        table_csv(lesions, LESION_COLUMNS),
        json_bytes(record.content(**told)),
    )
    write_files(dict(zip((options.output / name for name in OUTPUTS), contents, strict=True)))
    return ReportResult(options.output / "report.html", volumes, lesions, list(shown.warnings))
