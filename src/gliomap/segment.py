"""gliomap segment: studies in; label maps, volumes and a report out."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gliomap import __version__
from gliomap.classes import (
    ALL_CLASSES,
    CLASS_NAMES,
    REGIONS,
    Convention,
    Target,
    convention_from_values,
    named_convention,
)
from gliomap.data.datasets import count_layouts, find_studies, parse_labels, study_from_files
from gliomap.data.images import label_bytes
from gliomap.data.study import Study
from gliomap.engines import load_engines
from gliomap.errors import InputError, Interrupted, UsageError, reason
from gliomap.files import json_bytes, read_json, sha256, write_files
from gliomap.manifest import RunRecord
from gliomap.metrics import measure
from gliomap.model_file import Model, default_model, load_model
from gliomap.preprocess import brain_mask
from gliomap.progress import progress_bar
from gliomap.recipe import cautions
from gliomap.report.study import StudyReport, study_page
from gliomap.rows import Row, rows_csv, score_rows
from gliomap.segmenter import Segmenter
from gliomap.volume import Volume


@dataclass(frozen=True)
class SegmentOptions:
    """What `segment` is asked for.

    ``study`` is a study's folder or a folder of studies; ``files`` gives one study's images by modality instead, and
    ``reference`` its label map.
    ``score`` also compares with the study's own label map. ``labels`` and ``output_labels`` as on the command line.
    """

    study: Path | None
    output: Path
    files: dict[str, Path] = field(default_factory=dict)
    reference: Path | None = None
    model: Path | None = None
    labels: str | None = None
    output_labels: str | None = None
    score: bool = False
    skull_on_anyway: bool = False
    device: str = "auto"
    engine: str = "auto"
    quiet: bool = False


@dataclass(frozen=True)
class StudyResult:
    """One study's outcome: the class map on its RAS grid, volumes, rows of scores, warnings, and the record for run.json."""

    study: str
    classes: Volume
    volumes_ml: dict[str, float]
    scores: list[Row]
    warnings: list[str]
    record: dict[str, Any]


@dataclass(frozen=True)
class SegmentResult:
    """What `segment` did: the studies that are done, those that failed with the reason, and where everything is."""

    done: list[StudyResult]
    failed: dict[str, str]
    output: Path
    layouts: dict[str, int]


def segment(options: SegmentOptions) -> SegmentResult:
    """Segment one study or a folder of studies.

    A single study's files go to ``output`` itself, those of a folder of studies to ``output/ID``; ``run.json`` records all.

    Raises:
        UsageError: neither a folder nor files, or no model.
        InputError: the only study cannot be used; then nothing is written.
        IntegrityError: the model file is not what it says.
    """
    record = RunRecord("segment", options)
    studies = _find(options)
    model, segmenter = load_segmenter(options.model, options.device, options.engine)
    single = len(studies) == 1 and _is_study_folder(studies[0], options)
    done: list[StudyResult] = []
    failed: dict[str, str] = {}
    contents: dict[Path, bytes] = {}
    interrupted = False
    with progress_bar("segmenting", len(studies), quiet=options.quiet) as bar:
        for study in studies:
            bar.say(study.id)
            folder = Path() if single else Path(study.id)
            try:
                result, contents = _segment_study(study, folder, model, segmenter, options)
                if not single:
                    write_files({options.output / path: content for path, content in contents.items()})
            except Exception as error:  # one bad study never ends a folder
                if single:
                    raise
                failed[study.id] = reason(error)
            except KeyboardInterrupt:
                interrupted = True
                break
            else:
                done.append(result)
            bar.advance()
    if not done:
        if interrupted:
            raise Interrupted("interrupted before a study was finished; nothing was written")
        raise InputError(f"none of the {len(studies)} studies can be segmented; the first failure is {_first(failed)}")
    summary = contents if single else {Path("volumes.csv"): rows_csv(_volume_rows(done, model.name))}
    if options.score:
        summary[Path("scores.csv")] = rows_csv([row for r in done for row in r.scores])
    tables = {p.name: hashlib.sha256(content).hexdigest() for p, content in summary.items() if p.suffix == ".csv"}
    rows = [r.record for r in done] + [{"study": s, "status": "failed", "error": e} for s, e in failed.items()]
    summary[Path("run.json")] = json_bytes(record.content(model=_model_facts(model), studies=rows, tables=tables))
    stale = _stale_tables(options.output, tables)
    write_files({options.output / path: content for path, content in summary.items()})
    for table in stale:
        table.unlink()
    if interrupted:
        raise Interrupted(
            f"interrupted; {len(done)} of {len(studies)} studies are done and recorded in {options.output}"
        )
    return SegmentResult(done, failed, options.output, count_layouts(studies))


def _first(failed: dict[str, str]) -> str:
    return next(f"{study}: {why}" for study, why in failed.items())


def _stale_tables(output: Path, written: Mapping[str, str]) -> list[Path]:
    """Tables that an earlier run left here, unchanged since, and this one does not write: they speak of other maps."""
    try:
        earlier = read_json(output / "run.json")
    except InputError:  # none, or somebody else's
        return []
    tables = earlier.get("tables", {}) if isinstance(earlier, dict) and earlier.get("verb") == "segment" else {}
    left = [output / name for name in ("scores.csv", "volumes.csv") if name in tables and name not in written]
    return [path for path in left if path.is_file() and sha256(path) == tables[path.name]]


def load_segmenter(path: Path | None, device: str = "auto", engine: str = "auto") -> tuple[Model, Segmenter]:
    """The model in a file, or the one that ships, and a segmenter that runs it.

    Raises:
        UsageError: no file is given and none ships.
        InputError, IntegrityError: as `load_model`.
    """
    path = path or default_model()
    if path is None:
        raise UsageError("this gliomap ships no model; train one (gliomap train) and give it with -m")
    model = load_model(path)
    return model, Segmenter(model.recipe, load_engines(model, device, engine))


def _find(options: SegmentOptions) -> list[Study]:
    labels = parse_labels(options.labels)
    if options.files:
        if options.study is not None:
            raise UsageError("give either a folder or files (--t1 --t1c --t2 --flair), not both")
        return [study_from_files(options.files, options.reference, labels)]
    if options.study is None:
        raise UsageError("nothing to segment; give a study's folder, a folder of studies, or --t1 --t1c --t2 --flair")
    return [s for s in find_studies(options.study, labels) if s.images or s.problem] or _no_images(options.study)


def _no_images(path: Path) -> list[Study]:
    raise InputError(f"{path} has label maps only; expected images named by modality, such as t1.nii.gz")


def _is_study_folder(study: Study, options: SegmentOptions) -> bool:
    return bool(options.files) or any(f.path.parent == options.study for f in study.images.values())


def _segment_study(
    study: Study, folder: Path, model: Model, segmenter: Segmenter, options: SegmentOptions
) -> tuple[StudyResult, dict[Path, bytes]]:
    """One study's result and the files it makes, by path relative to the output."""
    start = time.perf_counter()
    modalities = model.recipe.modalities
    volume, warnings = study.read(modalities, skull_on_anyway=options.skull_on_anyway)
    told = model.recipe.preprocessing.crop == "truth_centre"
    convention, truth, odd = _known_labels(study, volume, options, needed=told)
    odd += [f"reproduction: {text}" for text in cautions(model.recipe)] + _coarse(model.recipe.target)
    read = time.perf_counter()
    classes = segmenter(volume, truth)
    times = {"read": read - start, "segment": time.perf_counter() - read}
    volumes = volumes_ml(classes, model.recipe.target)
    scores: list[Row] = []
    if truth and options.score:
        measured = measure(classes.array[0], truth.array[0], classes.spacing_mm, model.recipe.target.regions)
        scores = score_rows(study.id, model.name, measured)
    result = StudyResult(study.id, classes, volumes, scores, warnings + odd, {})
    labels = classes.with_array(convention.encode(classes.array[0]))
    facts = _facts(study, model, convention, times)
    page = study_page(_report(result, modalities, volume, truth, facts))
    contents = {
        folder / "segmentation.nii.gz": label_bytes(labels, study.images[modalities[0]].path),
        folder / "report.html": page.encode(),
    }
    result.record.update(
        study=study.id,
        status="done",
        segmentation=(folder / "segmentation.nii.gz").as_posix(),
        labels={str(value): CLASS_NAMES[tissue] for value, tissue in convention.values},
        convention=convention.name,
        convention_evidence=convention.evidence,
        volumes_ml=volumes,
        warnings=result.warnings,
        time_s={name: round(t, 3) for name, t in (times | {"total": time.perf_counter() - start}).items()},
        inputs={m: {"path": str(study.images[m].path), "sha256": sha256(study.images[m].path)} for m in modalities},
        outputs={path.as_posix(): hashlib.sha256(content).hexdigest() for path, content in contents.items()},
    )
    return result, contents


def _coarse(target: Target) -> list[str]:
    """What a map cannot tell that its colours and label values would seem to."""
    if len(target.regions) == len(REGIONS):
        return []
    return [
        f"this model tells {', '.join(target.regions)} only; the tissues inside are not told apart in its label map"
    ]


def _known_labels(
    study: Study, volume: Volume, options: SegmentOptions, *, needed: bool
) -> tuple[Convention, Volume | None, list[str]]:
    """The convention to write in, the reference if it is asked for or ``needed``, and what is odd about it."""
    truth, odd, known = None, [], study.convention
    try:
        if options.score or needed:
            truth, known, odd = study.read_classes(Volume(brain_mask(volume)[None], volume.affine))
        elif known is None and study.label is not None:
            known = convention_from_values(study.label.read().array)
    except InputError as error:
        if needed:
            raise InputError(
                f"{error}. This model's recipe crops about the true tumour: use another for such studies"
            ) from error
        # the images are good, and most segmentations need no label map
        odd = [f"its own label map was not used: {error}"]
    if options.output_labels is not None:
        known = named_convention(options.output_labels, "--output-labels")
    return known or named_convention("brats2023", "the default, since nothing says what the study uses"), truth, odd


def volumes_ml(classes: Volume, target: Target = ALL_CLASSES) -> dict[str, float]:
    """Volume in ml of the regions that the target tells, and, if those are all, of NCR and ED (and RC where present)."""
    voxels = np.bincount(classes.array.ravel(), minlength=5)
    regions = {name: float(sum(voxels[c] for c in REGIONS[name])) for name in target.regions}
    others: dict[str, float] = {}
    if len(regions) == len(REGIONS):
        others = {
            n: float(voxels[v]) for v, n in CLASS_NAMES.items() if n in ("NCR", "ED") or (n == "RC" and voxels[v])
        }
    return {name: round(count * classes.voxel_ml, 3) for name, count in (regions | others).items()}


def _model_facts(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "recipe": model.recipe.name,
        "networks": len(model.prefixes),
        "content_sha256": model.content_sha256,
        "regions": list(model.recipe.target.regions),
    }


def _facts(study: Study, model: Model, convention: Convention, times: dict[str, float]) -> dict[str, str]:
    networks = f", {len(model.prefixes)} networks together" if len(model.prefixes) > 1 else ""
    return {
        "Model": f"{model.name} (recipe {model.recipe.name}{networks})",
        "Model sha256": model.content_sha256,
        "Found as": study.layout,
        "Label values": f"{convention}, from {convention.evidence}",
        "Time": ", ".join(f"{name} {seconds:.1f} s" for name, seconds in times.items()),
        "gliomap": __version__,
    }


def _report(
    result: StudyResult, modalities: tuple[str, ...], volume: Volume, truth: Volume | None, facts: dict[str, str]
) -> StudyReport:
    shown = [
        {"region": r.region, "metric": r.metric, "value": _shown(r), "unit": r.unit, "definition": r.definition}
        for r in result.scores
    ]
    return StudyReport(
        study=result.study,
        modalities=modalities,
        images=volume.array,
        classes=result.classes.array[0],
        spacing_mm=volume.spacing_mm,
        volumes_ml=result.volumes_ml,
        facts=facts,
        warnings=tuple(result.warnings),
        truth=None if truth is None else truth.array[0],
        scores=tuple(shown),
    )


def _shown(row: Row) -> str:
    return row.status.replace("_", " ") if row.value is None else f"{row.value:.3f}"


def _volume_rows(done: list[StudyResult], model: str) -> list[Row]:
    return [
        Row(r.study, model, region, "volume", ml, "ml", "of the prediction", "", "ok")
        for r in done
        for region, ml in r.volumes_ml.items()
    ]
