"""gliomap evaluate: label maps, or what a model makes of the images, against the truth; one row per study, region and metric."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gliomap import __version__
from gliomap.classes import PARTS, REGIONS
from gliomap.cluster import kept, on_cluster
from gliomap.data.datasets import find_studies, parse_labels
from gliomap.data.folds import chosen_studies
from gliomap.data.mapping import name_patients, named_in, named_studies, read_mapping, unjoined_years
from gliomap.data.predictions import predictions_by_name, predictions_by_pattern, truths_by_pattern
from gliomap.data.study import Study
from gliomap.engines import model_segmenter
from gliomap.errors import InputError, UsageError, reason
from gliomap.files import json_bytes, read_json, sha256, write_files
from gliomap.journal import Journal
from gliomap.machine import cores
from gliomap.manifest import RunRecord, plain
from gliomap.model_file import Model, load_model
from gliomap.progress import progress_bar
from gliomap.recipe import cautions, recipe_json
from gliomap.rows import (
    CALIBRATION_METRICS,
    LESION_METRICS,
    PROTOCOL_METRICS,
    Protocol,
    Row,
    csv_lines,
    failed_row,
    metric,
    read_rows,
)
from gliomap.scoring import Question, Scores, Slices, Task, score, score_all
from gliomap.segmenter import Segmenter

MOST_NAMED = 20
"""Of the studies that trained a model so many are named where it is refused."""


@dataclass(frozen=True)
class EvaluateOptions:
    """What `evaluate` is asked for.

    ``predictions`` is a folder of label maps, one label map, or a model file; ``truth`` a folder of labelled studies.
    ``protocol`` says what empty regions count as, and which metrics are measured where ``metrics`` names none. ``name`` is
    the model's name in the rows. ``match`` and ``match_truth`` are patterns that say where label maps lie (see
    `predictions_by_pattern`). ``studies``: the ids of those to score, or ``fold`` of the folds.json ``folds``, where not all.
    ``seen_too``: score a model also on studies that trained it. ``mapping``: tables by which such studies are known under the
    names that their patients have elsewhere (see `read_mapping`). ``slices`` ``middle`` scores the middle axial slice only.
    ``labels`` and ``truth_labels`` say what values mean where nothing else does. ``jobs``: processes that score label maps, None
    as many as there are cores; a model uses all cores by itself. ``ray`` is the address of a Ray cluster whose machines score
    instead.
    """

    predictions: Path
    truth: Path
    output: Path
    protocol: Protocol = "plain"
    metrics: tuple[str, ...] = ()
    regions: tuple[str, ...] = tuple(REGIONS)
    name: str | None = None
    match: str | None = None
    match_truth: str | None = None
    studies: tuple[str, ...] = ()
    folds: Path | None = None
    fold: int | None = None
    seen_too: bool = False
    mapping: tuple[Path, ...] = ()
    slices: Slices = "all"
    labels: str | None = None
    truth_labels: str | None = None
    jobs: int | None = 1
    device: str = "auto"
    quiet: bool = False
    ray: str | None = None


@dataclass(frozen=True)
class EvaluateResult:
    """The table of scores, and what it is of: models, how many studies, how many of them an earlier run had finished that was
    cut short, what could not be scored with the reason, and what is odd about what could.
    """

    scores: Path
    models: tuple[str, ...]
    studies: int
    continued: int
    failed: dict[str, str]
    warnings: list[str]

    @property
    def rows(self) -> Iterator[Row]:
        """The rows of the table, read one at a time."""
        return read_rows(self.scores)


class Summary(NamedTuple):
    """A metric's mean and median over studies, how many values they are of, and how many are missing."""

    mean: float
    median: float
    studies: int
    missing: int


def evaluate(options: EvaluateOptions) -> EvaluateResult:
    """Score every labelled study of ``truth``; a study without a prediction is counted as failed, never dropped.

    Every finished study is written down at once, beside the table, so that a run that was killed continues where it stopped.

    Raises:
        InputError: there is no labelled study or no prediction at all, or the table cannot be written.
        IntegrityError: the model file is not what it says.
        UsageError: an option does not exist, options make no sense together, or the model was trained on some of the studies.
    """
    _check(options)
    record = RunRecord("evaluate", options)
    segmenter, models, tasks, cautioned = _predictor(options, _studies(options))
    regions = tuple(r for r in options.regions if _tells(options.predictions, segmenter, r))
    if not regions:
        raise UsageError(f"{options.predictions} cannot tell {', '.join(options.regions)}: ask for other --regions")
    metrics = options.metrics or PROTOCOL_METRICS[options.protocol]
    if options.slices != "all":
        metrics = tuple(m for m in metrics if _of_slices(m))
    question = Question(models, regions, metrics, options.protocol, options.slices)
    jobs = options.jobs or (1 if _is_model(options.predictions) else cores())
    with Journal(options.output, _all_of(options, question)) as journal:
        done = {task.truth.id for task in tasks if _is_done(journal, task)}
        with progress_bar("scoring", len(tasks), quiet=options.quiet) as bar:
            bar.advance(len(done))
            left = [task for task in tasks if task.truth.id not in done]
            scored = _on_cluster(left, question, options) if options.ray else score_all(left, question, segmenter, jobs)
            for task, scores in scored:
                rows = [list(vars(row).values()) for row in scores.rows]
                journal.add(task.truth.id, scores._asdict() | {"rows": rows})
                bar.say(task.truth.id)
                bar.advance()
        failed, warnings = _told(journal, tasks, models)
        if len(failed) == len(tasks) * len(models):
            journal.remove()
            first, why = next(iter(failed.items()))
            raise InputError(f"none of the {len(tasks)} studies can be scored; the first, {first}: {why}")
        if "hd95_all_voxels" in metrics:
            cautioned.append(
                "reproduction: hd95_all_voxels is no surface distance; where masks overlap it is smaller than hd95"
            )
        result = EvaluateResult(options.output, models, len(tasks), len(done), failed, cautioned + warnings)
        _write(record, options, result, journal, tasks)
        journal.remove()
    return result


def summarise(rows: Iterable[Row], name: str) -> dict[tuple[str, str], Summary]:
    """A metric's summary by model and region; a study that could not be scored is missing in all regions of its model."""
    values: dict[tuple[str, str], list[float | None]] = defaultdict(list)
    failed: dict[str, int] = defaultdict(int)
    for row in rows:
        if row.status == "failed":
            failed[row.model] += 1
        elif row.metric == name:
            values[row.model, row.region].append(row.value)
    out = {}
    for (model, region), found in values.items():
        known = [v for v in found if v is not None]
        mean, median = (float(np.mean(known)), float(np.median(known))) if known else (math.nan, math.nan)
        out[model, region] = Summary(mean, median, len(known), len(found) - len(known) + failed[model])
    return out


def _check(options: EvaluateOptions) -> None:
    """Refuse what no data could answer."""
    if not options.output.name or options.output.is_dir():
        raise UsageError(f"{options.output} is a folder; expected the table's file name, such as -o scores.csv")
    for name in options.metrics:
        metric(name)
    unknown = [r for r in options.regions if r not in PARTS]
    if unknown or not options.regions:
        raise UsageError(f"no region is called {', '.join(unknown) or 'so'}; expected some of {', '.join(PARTS)}")
    a_model = _is_model(options.predictions)
    if a_model and ((options.jobs or 1) > 1 or options.match or options.match_truth):
        raise UsageError(
            "a model reads images and uses all cores by itself; leave out --jobs, --match and --match-truth"
        )
    if not a_model and (options.mapping or options.seen_too):
        raise UsageError(
            "--mapping and --seen-too are about the studies that trained a model, and label maps do not tell these; leave them out"
        )
    calibration = [m for m in options.metrics if m in CALIBRATION_METRICS]
    if calibration and not a_model:
        raise UsageError(
            f"{', '.join(calibration)}: label maps have no probabilities; give a model file to measure calibration"
        )
    if wrong := [m for m in options.metrics if options.slices != "all" and not _of_slices(m)]:
        raise UsageError(f"{', '.join(wrong)}: of whole volumes only; leave out --slices")
    lesions = [m for m in options.metrics if m in LESION_METRICS and m not in PROTOCOL_METRICS[options.protocol]]
    if lesions:
        raise UsageError(
            f"the protocol {options.protocol} does not define {', '.join(lesions)}; "
            + "; ".join(f"--protocol {p} defines {', '.join(m for m in names if m in LESION_METRICS)}"
                        for p, names in PROTOCOL_METRICS.items() if p != "plain")
        )  # fmt: skip


def _is_model(predictions: Path) -> bool:
    return predictions.suffix == ".safetensors"


def _of_slices(name: str) -> bool:
    """Whether a metric makes sense of one slice, all of whose voxels are surface: no distance, lesion or probability does."""
    return metric(name).unit != "mm" and name not in {*LESION_METRICS, *CALIBRATION_METRICS} and "nsd" not in name


def _studies(options: EvaluateOptions) -> list[Study]:
    convention = parse_labels(options.truth_labels)
    if options.match_truth is not None:
        studies = truths_by_pattern(options.truth, options.match_truth, convention)
    else:
        studies = [s for s in find_studies(options.truth, convention) if s.label or s.problem]
    if not studies:
        raise InputError(f"{options.truth} has no label maps; expected labelled studies to compare with")
    return chosen_studies(options.truth, studies, options.folds, options.fold, options.studies)


def _predictor(
    options: EvaluateOptions, studies: Sequence[Study]
) -> tuple[Segmenter | None, tuple[str, ...], list[Task], list[str]]:
    """What segments, if anything does; the names of the models; one task a study; and what to know of the model."""
    path = options.predictions
    if _is_model(path):
        model = load_model(path)
        known = [f"reproduction: {text}" for text in cautions(model.recipe)] + _seen_before(options, model, studies)
        segmenter = model_segmenter(model, options.device)
        return segmenter, (options.name or model.name,), [Task(study, None) for study in studies], known
    labels = parse_labels(options.labels)
    if options.match is None:
        found = {"": predictions_by_name(path, studies, labels)}
    else:
        found = predictions_by_pattern(path, options.match, [s.id for s in studies], labels)
    if options.name and "" not in found:
        raise UsageError("the pattern of --match names the models with {model}; leave out --name")
    own_name = options.name or path.resolve().name
    named = {model or own_name: maps for model, maps in found.items()}
    tasks = [Task(s, {model: maps[s.id] for model, maps in named.items() if s.id in maps}) for s in studies]
    return None, tuple(named), tasks, _truths_again(tasks, named)


def _on_cluster(tasks: Sequence[Task], question: Question, options: EvaluateOptions) -> Iterator[tuple[Task, Scores]]:
    """Every task with what came of it, as they are done on the machines of a cluster."""
    model = load_model(options.predictions) if _is_model(options.predictions) else None
    shared = (question, model, options.device)
    for task, made in on_cluster(options.ray or "auto", _score_elsewhere, shared, tasks):
        if isinstance(made, Scores):
            yield task, made
        else:
            failed = dict.fromkeys(question.models, reason(made))
            yield task, Scores(task.inputs(), [failed_row(task.truth.id, name) for name in failed], failed, [])


def _score_elsewhere(shared: tuple[Question, Model | None, str], task: Task) -> Scores:
    question, model, device = shared
    if model is None:
        return score(task, question)
    key = (model.content_sha256, recipe_json(model.recipe), device)
    return score(task, question, kept(key, lambda: model_segmenter(model, device)))


def _truths_again(tasks: Sequence[Task], models: Iterable[str]) -> list[str]:
    """That the files of a model are the truth's own: an easy slip, whose scores are perfect."""
    found = []
    for model in models:
        same = [
            t.truth.id
            for t in tasks
            if t.truth.label and (t.label_maps or {}).get(model, Study("", {})).label == t.truth.label
        ]
        if same:
            found.append(
                f"{_listed(same)}: the label map of {model} is the truth itself; say where predictions lie with --match"
            )
    return found


def _seen_before(options: EvaluateOptions, model: Model, studies: Sequence[Study]) -> list[str]:
    """That some of the studies, or others of their patients, trained the model or chose its weights, or that it cannot be told.

    Raises:
        InputError: a name mapping is none.
        UsageError: some trained it, and it was not said that they are to be scored too.
    """
    trained, validated = (named_studies(model.card.get(f"{part}_studies", ())) for part in ("training", "validation"))
    known = [*studies, *trained, *validated]
    mappings = [read_mapping(path, known) for path in options.mapping]
    patient_of = name_patients(known, mappings)
    found = []
    for those, what in ((trained, "trained this model"), (validated, "chose its weights")):
        patients = {patient_of[study.id] for study in those}
        if seen := [study.id for study in studies if patient_of[study.id] in patients]:
            if those is trained and not options.seen_too:
                raise _refuse_seen(model, seen, len(studies))
            found.append(f"{_listed(seen)} of {len(studies)} {what}: their scores are no test of it")
    if (years := unjoined_years(studies, trained)) and not any(named_in(table, known) for table in mappings):
        found.append(
            f"these studies and those that trained this model are of {', '.join(years)}, and a patient of several years has "
            "several names, so whether it has seen them cannot be told; give the names with --mapping name_mapping.csv"
        )
    return found


def _refuse_seen(model: Model, seen: Sequence[str], count: int) -> UsageError:
    named = ", ".join(seen[:MOST_NAMED]) + (f" and {len(seen) - MOST_NAMED} more" if len(seen) > MOST_NAMED else "")
    instead = "leave them out with --folds and --fold or with --studies"
    if len(seen) == count:
        instead = "give others"
        if len(model.prefixes) > 1:
            instead += " (an ensemble of all folds has seen all studies; the scores of each by the network that has not are in the "
            instead += "scores.csv of gliomap train --fold all)"
    return UsageError(
        f"{len(seen)} of {count} studies, or others of their patients, have trained {model.name}: {named}. Their scores are no "
        f"test of it: {instead}, or have them scored with a warning by --seen-too"
    )


def _tells(predictions: Path, segmenter: Segmenter | None, region: str) -> bool:
    """Whether a region can be told by the model, or by the one that made these label maps where its run says so."""
    if segmenter is not None:
        return segmenter.recipe.target.tells(region)
    try:
        told = read_json(predictions / "run.json")["model"]["regions"]
        return region in told or (region not in REGIONS and set(REGIONS) <= set(told))
    except (InputError, LookupError, TypeError):
        return True


def _all_of(options: EvaluateOptions, question: Question) -> dict[str, Any]:
    """Everything but the studies' files that scores depend on."""
    model = sha256(options.predictions) if options.predictions.is_file() else ""
    asked = replace(options, jobs=1, quiet=True, ray=None, seen_too=False, mapping=())
    return plain(
        {"version": __version__, "model_sha256": model, "options": asdict(asked), "question": asdict(question)}
    )


def _is_done(journal: Journal, task: Task) -> bool:
    """Whether an earlier run scored these very files, and nothing failed."""
    study = task.truth.id
    return study in journal and not journal[study]["failed"] and journal[study]["inputs"] == task.inputs()


def _told(journal: Journal, tasks: Sequence[Task], models: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """What failed with the reason, and what is odd, each oddity once with the studies that have it."""
    failed: dict[str, str] = {}
    odd: dict[str, list[str]] = defaultdict(list)
    for task in tasks:
        study, entry = task.truth.id, journal[task.truth.id]
        failed |= {study if len(models) == 1 else f"{study}, {m}": why for m, why in entry["failed"].items()}
        for text in entry["odd"]:
            odd[text].append(study)
    return failed, [f"{_listed(studies)}: {text}" for text, studies in odd.items()]


def _listed(studies: Sequence[str]) -> str:
    return studies[0] if len(studies) == 1 else f"{len(studies)} studies, such as {studies[0]}"


def _write(
    record: RunRecord, options: EvaluateOptions, result: EvaluateResult, journal: Journal, tasks: Sequence[Task]
) -> None:
    """The table and the record of the run, both or neither."""
    outcome: dict[str, Any] = {"models": result.models, "continued": result.continued, "failed": result.failed}
    outcome |= {"warnings": result.warnings, "inputs": {t.truth.id: journal[t.truth.id]["inputs"] for t in tasks}}
    if options.predictions.is_file():
        outcome["predictions_sha256"] = sha256(options.predictions)
    rows = (Row(*line) for task in tasks for line in journal[task.truth.id]["rows"])
    record_path = options.output.with_name(f"{options.output.name.removesuffix('.csv')}.run.json")
    write_files({options.output: csv_lines(rows), record_path: json_bytes(record.content(**outcome))})
