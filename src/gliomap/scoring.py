"""Scoring one study against its truth, and many of them in several processes: rows, what failed, and what is odd."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from gliomap.calibration import calibrate
from gliomap.classes import CLASS_NAMES, PARTS, REGIONS, region_mask
from gliomap.data.study import GRID_TOLERANCE_MM, Study
from gliomap.errors import InputError, reason
from gliomap.files import sha256
from gliomap.lesions import measure_lesions
from gliomap.metrics import measure
from gliomap.preprocess import brain_mask
from gliomap.rows import CALIBRATION_METRICS, LESION_METRICS, Protocol, Row, failed_row, score_rows
from gliomap.segmenter import Segmenter
from gliomap.volume import Volume, grid_distance_mm
from gliomap.workers import worker_pool

Slices = Literal["all", "middle"]


@dataclass(frozen=True)
class Question:
    """What is asked of every study. ``slices`` ``middle`` scores the middle axial slice of its grid only."""

    models: tuple[str, ...]
    regions: tuple[str, ...]
    metrics: tuple[str, ...]
    protocol: Protocol
    slices: Slices


class Task(NamedTuple):
    """One study: its truth, and each model's label map where there is one; None where a model segments its images."""

    truth: Study
    label_maps: dict[str, Study] | None

    def inputs(self) -> dict[str, str]:
        """What the study's scores depend on: the SHA-256 of every file, or why it cannot be read, and what label values mean."""
        files = {"truth": self.truth.label}
        meanings = {"truth": self.truth.convention}
        if self.label_maps is None:
            files |= self.truth.images
        else:
            files |= {f"prediction of {model}": study.label for model, study in self.label_maps.items()}
            meanings |= {f"prediction of {model}": study.convention for model, study in self.label_maps.items()}
        found = {f"labels of the {name}": str(convention) for name, convention in meanings.items() if convention}
        for name, file in files.items():
            try:
                found[name] = sha256(file.path) if file else ""
            except OSError as error:
                found[name] = str(error)
        return found


class Scores(NamedTuple):
    """What came of one study: its inputs, its rows, by model why it could not be scored, and what is odd about its files."""

    inputs: dict[str, str]
    rows: list[Row]
    failed: dict[str, str]
    odd: list[str]


def score_all(
    tasks: Sequence[Task], question: Question, segmenter: Segmenter | None, jobs: int
) -> Iterator[tuple[Task, Scores]]:
    """Every task with what came of it, as they are done: in this process, or in ``jobs`` others with two tasks each at a time.

    Raises:
        InputError: one of the processes was killed.
    """
    jobs = min(jobs, len(tasks))
    if jobs < 2:
        yield from ((task, score(task, question, segmenter)) for task in tasks)
        return
    waiting = iter(tasks)
    running: dict[Future[Scores], Task] = {}
    killed = (
        "a process that scored was killed, most likely for want of memory. What was finished is kept: run the same command again "
        "with fewer --jobs"
    )
    with worker_pool(jobs, killed) as pool:
        try:
            while True:
                for task in waiting:
                    running[pool.submit(score, task, question, threads=1)] = task
                    if len(running) == 2 * jobs:
                        break
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            yield from ((task, f.result()) for f, task in running.items() if f.done() and not f.cancelled())
            raise


def score(task: Task, question: Question, segmenter: Segmenter | None = None, threads: int = -1) -> Scores:
    """One study's scores for every model; whatever goes wrong with one of them is in its ``failed``."""
    study, rows, failed, inputs = task.truth.id, list[Row](), dict[str, str](), task.inputs()
    try:
        truth, convention, odd = task.truth.read_classes()
    except Exception as error:  # one bad study never ends a folder
        why = f"truth: {reason(error)}".replace("--labels", "--truth-labels")
        failed = dict.fromkeys(question.models, why)
        return Scores(inputs, [failed_row(study, model) for model in failed], failed, [])
    for model in question.models:
        try:
            prediction = _predict(task, model, truth, segmenter)
            known = convention.classes & prediction.told
            untold = [part for part in question.regions if part not in REGIONS and not set(PARTS[part]) <= known]
            asked = replace(question, regions=tuple(part for part in question.regions if part not in untold))
            rows += _measure(study, model, prediction, truth, asked, threads)
            odd = odd + prediction.odd
            odd += [
                f"{part} is not scored, since the label values of truth or prediction have no such class"
                for part in untold
            ]
        except Exception as error:
            failed[model] = reason(error)
            rows.append(failed_row(study, model))
    return Scores(inputs, rows, failed, list(dict.fromkeys(odd)))


class _Prediction(NamedTuple):
    """A class map, the classes it can have, and what is odd about it; of a model its probabilities on a part of the grid, too."""

    classes: Volume
    told: frozenset[int]
    odd: list[str]
    probabilities: dict[str, Volume]
    brain: Volume | None


def _predict(task: Task, model: str, truth: Volume, segmenter: Segmenter | None) -> _Prediction:
    if segmenter is None:
        label_maps = task.label_maps or {}
        if model not in label_maps:
            raise InputError(f"there is no prediction for {task.truth.id}")
        classes, convention, odd = label_maps[model].read_classes()
        return _Prediction(classes, convention.classes, [f"prediction: {text}" for text in odd], {}, None)
    volume, odd = task.truth.read(segmenter.recipe.modalities, segmenter.recipe.needs_one_of)
    classes, probabilities = segmenter.with_probabilities(volume, truth)
    target = segmenter.recipe.target
    of_regions = {r: target.region_probability(probabilities.array, r) for r in target.regions}
    shown = {region: probabilities.with_array(array) for region, array in of_regions.items()}
    return _Prediction(
        classes, frozenset(CLASS_NAMES), odd, shown, volume.with_array(brain_mask(volume)).placed_on(probabilities)
    )


def _measure(
    study: str, model: str, prediction: _Prediction, truth: Volume, question: Question, threads: int
) -> list[Row]:
    _refuse_other_grid(study, prediction.classes, truth)
    found_map, true_map, protocol = prediction.classes.array[0], truth.array[0], str(question.protocol)
    if question.slices == "middle":
        middle = (truth.shape[0] - 1) // 2
        found_map, true_map = found_map[middle : middle + 1], true_map[middle : middle + 1]
        protocol += ", middle axial slice"
    maps = (found_map, true_map, truth.spacing_mm, question.regions)
    lesion_metrics = set(LESION_METRICS) & set(question.metrics)
    others = [m for m in question.metrics if m not in {*LESION_METRICS, *CALIBRATION_METRICS}]
    found = measure(*maps, others, threads=threads)
    if lesion_metrics and question.protocol != "plain":
        found |= measure_lesions(*maps, question.protocol, threads=threads)
    if set(CALIBRATION_METRICS) & set(question.metrics) and prediction.brain is not None:
        brain = prediction.brain.array[0]
        for region in [r for r in question.regions if r in prediction.probabilities]:
            probability = prediction.probabilities[region]
            true = region_mask(truth.placed_on(probability).array[0], region)
            calibration = calibrate(probability.array[0], true, brain)
            found |= {(region, name): value for name, value in calibration.items()}
    asked = {*question.metrics, "volume", "volume_truth"}
    rows = score_rows(study, model, {key: v for key, v in found.items() if key[1] in asked}, question.protocol)
    return [replace(row, protocol=protocol) for row in rows]


def _refuse_other_grid(study: str, prediction: Volume, truth: Volume) -> None:
    distance = grid_distance_mm(prediction, truth)
    if distance > GRID_TOLERANCE_MM:
        detail = (
            f"shapes {prediction.shape[::-1]} and {truth.shape[::-1]}"
            if math.isinf(distance)
            else f"{distance:.1f} mm apart"
        )
        raise InputError(
            f"the prediction and the truth of {study} are on different grids ({detail}); resample the prediction first"
        )
