"""gliomap evaluate: label maps, or what a model makes of the images, against the truth; one row per study, region and metric."""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gliomap.classes import REGIONS
from gliomap.data.datasets import find_studies, parse_labels
from gliomap.data.images import image_stem
from gliomap.data.study import GRID_TOLERANCE_MM, ImageFile, Study
from gliomap.engines import load_engine
from gliomap.errors import InputError, UsageError, reason
from gliomap.files import json_bytes, read_json, sha256, write_files
from gliomap.manifest import RunRecord
from gliomap.metrics import measure
from gliomap.model_file import load_model
from gliomap.progress import progress_bar
from gliomap.recipe import cautions
from gliomap.rows import Row, failed_row, rows_csv, score_rows
from gliomap.segmenter import Segmenter
from gliomap.volume import Volume, grid_distance_mm


class _Predictor(NamedTuple):
    """Where predictions come from: ``predict`` gives a study's class map, and what is odd about it, given the true one."""

    name: str
    predict: Callable[[Study, Volume], tuple[Volume, list[str]]]
    regions: tuple[str, ...]
    cautions: list[str]


@dataclass(frozen=True)
class EvaluateOptions:
    """What `evaluate` is asked for.

    ``predictions`` is a folder of label maps, one label map, or a model file; ``truth`` a folder of labelled studies.
    ``labels`` and ``truth_labels`` say what the values mean where nothing else does. ``hd_all_voxels`` adds the Hausdorff
    distance of all voxels (`metrics.hausdorff_of_all_voxels`), to reproduce numbers that were made with it.
    """

    predictions: Path
    truth: Path
    output: Path
    labels: str | None = None
    truth_labels: str | None = None
    hd_all_voxels: bool = False
    device: str = "auto"
    quiet: bool = False


@dataclass(frozen=True)
class EvaluateResult:
    """The rows, the studies that could not be scored with the reason, and what is odd about label maps that could."""

    rows: list[Row]
    failed: dict[str, str]
    warnings: list[str]


def evaluate(options: EvaluateOptions) -> EvaluateResult:
    """Score every labelled study of ``truth``; a study without a prediction is counted as failed, never dropped.

    Raises:
        InputError: there is no labelled study or no prediction at all, or the table cannot be written.
        IntegrityError: the model file is not what it says.
    """
    if not options.output.name or options.output.is_dir():
        raise UsageError(f"{options.output} is a folder; expected the table's file name, such as -o scores.csv")
    record = RunRecord("evaluate", options)
    studies = [s for s in find_studies(options.truth, parse_labels(options.truth_labels)) if s.label or s.problem]
    if not studies:
        raise InputError(f"{options.truth} has no label maps; expected labelled studies to compare with")
    predictor = _predictor(options, studies)
    name = predictor.name
    rows: list[Row] = []
    failed: dict[str, str] = {}
    warnings = [f"reproduction: {text}" for text in predictor.cautions]
    if options.hd_all_voxels:
        warnings.append(
            "reproduction: hd95_all_voxels is no surface distance; where masks overlap it is smaller than hd95"
        )
    with progress_bar("scoring", len(studies), quiet=options.quiet) as bar:
        for study in studies:
            bar.say(study.id)
            try:
                scored, odd = _score(study, predictor, all_voxels=options.hd_all_voxels)
                rows += scored
                warnings += [f"{study.id}: {text}" for text in odd]
            except Exception as error:  # one bad study never ends a folder
                failed[study.id] = reason(error)
                rows.append(failed_row(study.id, name))
            bar.advance()
    if len(failed) == len(studies):
        raise InputError(
            f"none of the {len(studies)} studies can be scored; the first, {studies[0].id}: {failed[studies[0].id]}"
        )
    outcome = {
        "model": name,
        "scored": [s.id for s in studies if s.id not in failed],
        "failed": failed,
        "warnings": warnings,
    }
    labels = {s.id: sha256(s.label.path) for s in studies if s.label and s.id not in failed}
    if options.predictions.is_file():
        outcome["predictions_sha256"] = sha256(options.predictions)
    record_path = options.output.with_name(f"{options.output.stem}.run.json")
    content = json_bytes(record.content(**outcome, truth_sha256=labels))
    write_files({options.output: rows_csv(rows), record_path: content})
    return EvaluateResult(rows, failed, warnings)


def summarise(rows: list[Row], metric: str) -> dict[str, tuple[float, float, int, int]]:
    """For each region the mean and median of a metric, how many values they are of, and how many are missing."""
    out = {}
    for region in REGIONS:
        values = [r.value for r in rows if r.region == region and r.metric == metric]
        known = [v for v in values if v is not None]
        missing = len(values) - len(known) + sum(r.status == "failed" for r in rows)
        mean, median = (float(np.mean(known)), float(np.median(known))) if known else (math.nan, math.nan)
        out[region] = (mean, median, len(known), missing)
    return out


def _score(study: Study, predictor: _Predictor, *, all_voxels: bool) -> tuple[list[Row], list[str]]:
    truth, _, odd = study.read_classes()
    prediction, doubts = predictor.predict(study, truth)
    distance = grid_distance_mm(prediction, truth)
    if distance > GRID_TOLERANCE_MM:
        detail = (
            f"shapes {prediction.shape[::-1]} and {truth.shape[::-1]}"
            if math.isinf(distance)
            else f"{distance:.1f} mm apart"
        )
        raise InputError(
            f"the prediction and the truth of {study.id} are on different grids ({detail}); resample the prediction first"
        )
    measured = measure(prediction.array[0], truth.array[0], truth.spacing_mm, predictor.regions, all_voxels=all_voxels)
    return score_rows(study.id, predictor.name, measured), odd + doubts


def _predictor(options: EvaluateOptions, studies: list[Study]) -> _Predictor:
    path = options.predictions
    if path.suffix == ".safetensors":
        model = load_model(path)
        segmenter = Segmenter(model.recipe, *load_engine(model, options.device))

        def segmented(study: Study, truth: Volume) -> tuple[Volume, list[str]]:
            volume, odd = study.read(model.recipe.modalities)
            return segmenter(volume, truth), odd

        return _Predictor(model.name, segmented, model.recipe.target.regions, cautions(model.recipe))
    predictions = _label_maps(options, studies)
    return _Predictor(
        path.resolve().name, lambda study, _: _read_prediction(study, predictions), _regions_told(path), []
    )


def _regions_told(path: Path) -> tuple[str, ...]:
    """The regions that label maps can tell: those of the model that made them, where its run says so."""
    try:
        model = read_json(path / "run.json")["model"]
        return tuple(region for region in REGIONS if region in model["regions"])
    except (InputError, LookupError, TypeError):
        return tuple(REGIONS)


def _label_maps(options: EvaluateOptions, studies: list[Study]) -> dict[str, Study]:
    labels = parse_labels(options.labels)
    path = options.predictions
    if path.is_file() and len(studies) == 1:
        return {studies[0].id: Study(studies[0].id, {}, ImageFile(path), labels)}
    try:
        found = {s.id: s for s in find_studies(path, labels, outputs=True) if s.label is not None}
    except InputError:
        if not path.is_dir():
            raise
        found = {}  # no name says what it is; perhaps they are the ids
    named: dict[str, list[Path]] = defaultdict(list)
    for file in sorted(path.rglob("*")):
        named[image_stem(file) or ""].append(file)
    for study in studies:
        files = named[study.id]
        if study.id in found or not files:
            continue
        several = (
            f"{len(files)} files could be the prediction: {', '.join(map(str, files))}; give the folder of one of them"
        )
        found[study.id] = Study(study.id, {}, ImageFile(files[0]), labels, problem=several if len(files) > 1 else "")
    if not any(s.id in found for s in studies):
        raise InputError(
            f"{path} has no label map for any of the {len(studies)} studies in {options.truth}, such as {studies[0].id}; "
            "expected ID.nii.gz, ID_seg.nii.gz, ID-seg.nii.gz or ID/segmentation.nii.gz"
        )
    return found


def _read_prediction(study: Study, predictions: dict[str, Study]) -> tuple[Volume, list[str]]:
    if study.id not in predictions:
        raise InputError(f"there is no prediction for {study.id}")
    classes, _, odd = predictions[study.id].read_classes()
    return classes, [f"prediction: {text}" for text in odd]
