"""gliomap explain: where a network looks in a study, with checks that say whether that means anything."""

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from gliomap.classes import CLASS_NAMES
from gliomap.data.datasets import find_studies, parse_labels
from gliomap.data.images import map_bytes
from gliomap.data.study import Study
from gliomap.errors import InputError, UsageError
from gliomap.explaining import Case, Checks, ExplainOptions, explain_case, segmented_case
from gliomap.files import json_bytes, read_json, sha256, write_files
from gliomap.manifest import RunRecord
from gliomap.model_file import default_model, load_model
from gliomap.progress import progress_bar
from gliomap.report.explanation import Explanation, explanation_page
from gliomap.segmenting import Asked, SegmentOptions, study_inputs


@dataclass(frozen=True)
class ExplainResult:
    """What was shown, what is odd about it, and the files that were written."""

    explanation: Explanation
    warnings: tuple[str, ...]
    files: list[Path]


def explain(options: ExplainOptions) -> ExplainResult:
    """Write where a model's network looks in a study: its maps on the study's grid, checks of them, and a page.

    Raises:
        UsageError: not one study, no such choice of checks, or a network without attention where Captum is not installed.
        InputError: the study cannot be used.
        IntegrityError: the model file is not what it says.
    """
    if options.checks not in get_args(Checks):
        raise UsageError(f"no checks are called {options.checks!r}; expected {', '.join(get_args(Checks))}")
    record = RunRecord("explain", options)
    path = options.model or default_model()
    study, model = _only_study(options), load_model(path)
    wanted = SegmentOptions(
        options.study, options.output, score=study.label is not None, skull_on_anyway=options.skull_on_anyway
    )
    asked = Asked(model, sha256(path), wanted, single=True)
    with progress_bar("reading and segmenting", 4, quiet=options.quiet) as bar:
        case, warnings = segmented_case(study, asked, options)
        bar.advance()
        explanation = explain_case(case, options, bar)
        explanation = replace(explanation, study=replace(explanation.study, warnings=warnings))
        contents = _contents(explanation, case)
    run = _record(record, explanation, case, contents)
    stale = _left_before(options.output, contents)
    write_files({options.output / name: content for name, content in {Path("run.json"): run, **contents}.items()})
    for file in stale:
        file.unlink()
    return ExplainResult(explanation, warnings, [options.output / name for name in (*contents, Path("run.json"))])


def _only_study(options: ExplainOptions) -> Study:
    studies = [s for s in find_studies(options.study, parse_labels(options.labels)) if s.images or s.problem]
    if len(studies) != 1:
        found = f"{len(studies)} studies, such as {studies[0].id}" if studies else "label maps only"
        raise UsageError(f"{options.study} holds {found}; explain takes one study at a time, so give its own folder")
    return studies[0]


def _contents(explanation: Explanation, case: Case) -> dict[Path, bytes]:
    """The files by path relative to the output, but for the record."""
    read, modalities = case.segmented.read, case.segmenter.recipe.modalities
    like = next(read.study.images[m].path for m in modalities if m in read.study.images)
    classes = case.segmented.found.classes
    labels = classes.with_array(read.convention.encode(classes.array[0]))
    contents = {Path("segmentation.nii.gz"): map_bytes(labels, like)}
    for one in explanation.maps:
        contents[Path("maps", f"{one.name}.nii.gz")] = map_bytes(read.volume.with_array(one.values), like)
    weights = [
        (one.name, modalities[n] if one.name.startswith("modalities_") else n + 1, f"{weight:.6g}")
        for one in explanation.channels
        for n, weight in enumerate(one.weights)
    ]
    checks = [
        (one.name, check.name, _number(check.value), "" if check.passed is None else check.passed, check.definition)
        for one in (*explanation.maps, *explanation.channels)
        for check in one.checks
    ]
    points = [
        (one.map_name, one.kind, *map(_number, point))
        for one in explanation.curves
        for point in zip(one.share, one.score, one.random, strict=True)
    ]
    contents[Path("channels.csv")] = _table(("name", "channel", "weight"), weights)
    contents[Path("checks.csv")] = _table(("map", "check", "value", "passed", "definition"), checks)
    contents[Path("curves.csv")] = _table(("map", "kind", "share", "score", "random"), points)
    contents[Path("explanation.html")] = explanation_page(explanation).encode()
    return contents


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().encode()


def _record(record: RunRecord, explanation: Explanation, case: Case, contents: Mapping[Path, bytes]) -> bytes:
    """run.json, whose row of the study has what `gliomap segment` says of one."""
    read = case.segmented.read
    row = {
        "study": read.study.id,
        "status": "done",
        "segmentation": "segmentation.nii.gz",
        "labels": {str(value): CLASS_NAMES[tissue] for value, tissue in read.convention.values},
        "volumes_ml": explanation.study.volumes_ml,
        "engine": case.segmented.engine,
        "passes": case.segmented.plans,
        "maps": {one.name: {"own_size": one.own_size, "limits": one.limits} for one in explanation.maps},
        "confidence": explanation.confidence,
        "warnings": explanation.study.warnings,
        "inputs": study_inputs(read.study, case.asked),
        "outputs": {path.as_posix(): hashlib.sha256(content).hexdigest() for path, content in contents.items()},
    }
    return json_bytes(record.content(model=case.asked.model_facts(), studies=[row]))


def _left_before(output: Path, contents: Mapping[Path, bytes]) -> list[Path]:
    """The maps that an earlier explanation left here and this one does not replace; those that were changed since stay."""
    try:
        earlier = read_json(output / "run.json")
        listed = earlier["studies"][0]["outputs"] if earlier["verb"] == "explain" else {}
        left = {output / name: digest for name, digest in listed.items() if Path(name) not in contents}
        return [file for file, digest in left.items() if file.is_file() and sha256(file) == digest]
    except (InputError, LookupError, TypeError, AttributeError):  # none, or somebody else's
        return []
