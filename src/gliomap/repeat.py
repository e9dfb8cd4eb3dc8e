"""gliomap train --fold all, --seeds 1,2,3: one recipe trained again and again, scored on what each training did not see."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from gliomap.data.datasets import labelled_studies
from gliomap.data.images import map_bytes
from gliomap.data.rounds import Rounds, cross_validation, dependences, hold_out, read_cross_validation
from gliomap.data.study import ImageFile, Study
from gliomap.distribution import start_processes
from gliomap.errors import InputError, Interrupted, UsageError, reason
from gliomap.files import json_bytes, read_json, sha256, write_file, write_files
from gliomap.manifest import RunRecord, plain
from gliomap.model_file import load_model, save_ensemble
from gliomap.plan import check
from gliomap.preprocess import brain_mask
from gliomap.progress import progress_bar
from gliomap.recipe import Recipe, recipe_json, with_settings
from gliomap.recipes import find_recipe
from gliomap.report.repeats import Spread, spreads, spreads_csv, spreads_markdown
from gliomap.rows import PROTOCOL_METRICS, Row, failed_row, read_rows, rows_csv
from gliomap.scoring import Question, Scores, Task, score
from gliomap.segment import load_segmenter
from gliomap.segmenter import Segmenter
from gliomap.starts import FINISHED, MODEL, OUT_OF_TIME, begun, training_time_s
from gliomap.torch_engine import find_device
from gliomap.train import TrainOptions, train

QUESTION, FOLDS, SCORES, LABEL_MAPS = "repeat.json", "folds.json", "scores.csv", "out_of_fold"


@dataclass(frozen=True)
class RepeatOptions:
    """What `repeat` is asked for: the training ``train``, of all folds or of its ``fold``, with each of the ``seeds``.

    Without seeds its own counts. The folds are those of its folds.json; without one, ``folds_count`` of them or, for one
    fold, the recipe's share of the patients, drawn by its seed and the same for all seeds. Its ``max_time_s`` is divided
    equally among the trainings that are left; scoring comes on top.
    """

    train: TrainOptions
    all_folds: bool
    seeds: tuple[int, ...] = ()
    folds_count: int = 5


@dataclass(frozen=True)
class RepeatResult:
    """What `repeat` did: the ensemble, None where a training failed, and what it says.

    ``statement`` is to be read before the ``spreads``. ``failed`` has the trainings and studies that failed, with the reason.
    """

    output: Path
    model: Path | None
    statement: tuple[str, ...]
    spreads: list[Spread]
    failed: dict[str, str]
    warnings: list[str]


@dataclass(frozen=True)
class _Repetition:
    """One of the trainings: its folder below the output, its fold and seed, and the ids of the studies it is scored on.

    ``model`` is its name in the rows of scores, which the folds of a seed share, and ``maps`` the folder of its label maps.
    """

    name: str
    fold: int
    seed: int
    scored: tuple[str, ...]
    model: str
    maps: Path


class _Plan(NamedTuple):
    """What is to be trained, on which studies, and in which order."""

    recipe: Recipe
    studies: list[Study]
    rounds: Rounds
    repetitions: list[_Repetition]


def repeat(options: RepeatOptions) -> RepeatResult:
    """Train a recipe on every fold, with every seed, and score each study by models that did not train on it.

    Leaves in the output a folder for each training, ``out_of_fold`` label maps, scores.csv, summary.csv, summary.md, run.json
    and, if no training failed, model.safetensors, the ensemble of all. The same command continues what was cut short.

    Raises:
        UsageError: there is nothing to repeat, or the output holds something else.
        InputError: every training failed, or the data cannot be read.
        Interrupted: Ctrl-C was pressed; everything is saved.
    """
    record, asked = RunRecord("repeat", options), options.train
    _refuse_senseless(options)
    fabric = start_processes(find_device(asked.device), asked.processes, asked.precision)
    plan = _planned(options)
    question = _question(options, plan)
    refuse_another(asked.output / QUESTION, question, "a repetition")
    if fabric.is_global_zero:
        folds = plain({"seed": asked.seed, "folds": plan.rounds.folds, "patients": plan.rounds.patients})
        write_files({asked.output / QUESTION: json_bytes(question), asked.output / FOLDS: json_bytes(folds)})
    fabric.barrier()
    failed = _run(options, plan, scoring=fabric.is_global_zero)
    if not fabric.is_global_zero:
        return RepeatResult(asked.output, None, (), [], failed, [])
    return _written(options, plan, failed, record)


def unfinished(options: TrainOptions) -> TrainOptions | None:
    """The options to begin or continue a training with; None where it came to its end or used up its time.

    Raises:
        UsageError: the output holds a training by another recipe.
    """
    recipe, written = with_settings(find_recipe(options.recipe), options.settings), options.output / "recipe.json"
    if written.exists() and find_recipe(str(written)) != recipe:
        raise UsageError(
            f"{options.output} holds a training by another recipe of that name, most likely of another version of gliomap; "
            "choose another place with -o"
        )
    run = read_record(options.output / "run.json")
    used_up = training_time_s(options.output) >= (options.max_time_s or math.inf)
    if run.get("ended") in FINISHED or (run.get("ended") == OUT_OF_TIME and used_up):
        return None
    return replace(options, resume=begun(options.output))


def refuse_another(path: Path, question: dict[str, Any], what: str) -> None:
    """Refuse an output that holds ``what`` was asked something else, as the file there says.

    Raises:
        UsageError: the question differs; the message names in what.
    """
    if not path.exists():
        return
    before = read_json(path)
    if different := [name for name in question if not isinstance(before, dict) or before.get(name) != question[name]]:
        raise UsageError(
            f"{path.parent} holds {what} that differs in {', '.join(different)}; continue it with the same command, "
            "or choose another place with -o"
        )


def read_record(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing if it is not there or is no record."""
    try:
        found = read_json(path)
    except InputError:
        return {}
    return found if isinstance(found, dict) else {}


def _refuse_senseless(options: RepeatOptions) -> None:
    asked = options.train
    if len(set(options.seeds)) != len(options.seeds):
        raise UsageError(f"--seeds has a seed twice: {', '.join(map(str, options.seeds))}; expected each once")
    if not options.all_folds and len(options.seeds) < 2:
        raise UsageError("one fold and one seed are a single training; expected --fold all, or several --seeds 1,2,3")
    if asked.fold and asked.folds is None and not options.all_folds:
        raise UsageError(f"--fold {asked.fold} with several seeds needs --folds folds.json, as gliomap split makes it")
    if begun(asked.output):
        raise UsageError(f"{asked.output} already holds a single training; choose another place with -o")


def _planned(options: RepeatOptions) -> _Plan:
    asked = options.train
    recipe = with_settings(find_recipe(asked.recipe), asked.settings)
    check(recipe)
    studies = _labelled_studies(asked.data, asked.labels)
    rounds = _rounds(options, recipe, studies)
    return _Plan(recipe, studies, rounds, _repetitions(options, recipe, rounds))


def _labelled_studies(data: Path | None, labels: str | None) -> list[Study]:
    if data is None:
        raise UsageError("repeated trainings need DATA, a folder of labelled studies; gliomap phantom -o DIR makes one")
    return labelled_studies(data, labels)


def _rounds(options: RepeatOptions, recipe: Recipe, studies: Sequence[Study]) -> Rounds:
    """Who trains and who is scored, the same for every seed."""
    asked = options.train
    if asked.folds is not None:
        rounds = read_cross_validation(asked.folds, studies)
        if options.all_folds:
            return rounds
        if not 0 <= asked.fold < len(rounds.folds):
            raise UsageError(f"{asked.folds} has folds 0 to {len(rounds.folds) - 1}; got --fold {asked.fold}")
        scored = rounds.folds[asked.fold]
        remark = f"fold {asked.fold} of {len(rounds.folds)}: {len(scored)} studies are scored, which also choose the best weights"
        return replace(rounds, scored=(scored,), remark=remark)
    if options.all_folds:
        return cross_validation(studies, options.folds_count, asked.seed)
    return hold_out(studies, recipe.training.validation_share, recipe.training.test_share, asked.seed)


def _repetitions(options: RepeatOptions, recipe: Recipe, rounds: Rounds) -> list[_Repetition]:
    """The trainings in their order: the folds of the first seed, then those of the next."""
    asked, found = options.train, []
    folds = range(len(rounds.folds)) if options.all_folds else [asked.fold]
    for seed in options.seeds or (asked.seed,):
        of_seed = [f"seed_{seed}"] if options.seeds else []
        for fold, scored in zip(folds, rounds.scored, strict=True):
            name = "_".join([f"fold_{fold}"] * options.all_folds + of_seed)
            maps = asked.output.joinpath(LABEL_MAPS, *of_seed)
            found.append(_Repetition(name, fold, seed, scored, "_".join([recipe.name, *of_seed]), maps))
    return found


def _question(options: RepeatOptions, plan: _Plan) -> dict[str, Any]:
    """What must not change while an output is continued; seeds may be added."""
    asked, rounds = options.train, plan.rounds
    used = [study for study in plan.studies if study.id in rounds.patients]
    return plain(
        {
            "recipe": json.loads(recipe_json(plan.recipe)),
            "labels_sha256": {s.id: sha256(s.label.path) if s.label else "" for s in used},
            "folds": rounds.folds,
            "scored": rounds.scored,
            "seed": "several" if options.seeds else asked.seed,
            "labels": asked.labels,
            "from": sha256(asked.begin_with) if asked.begin_with else None,
            "phantoms": [asked.phantoms, asked.phantom_size] if asked.phantoms else None,
        }
    )


def _run(options: RepeatOptions, plan: _Plan, *, scoring: bool) -> dict[str, str]:
    """Train and score one after the other; returns what failed, of which no other training suffers."""
    asked, failed, spent_s = options.train, dict[str, str](), 0.0
    by_id, repetitions = {s.id: s for s in plan.studies}, plan.repetitions
    for number, repetition in enumerate(repetitions):
        folder = asked.output / repetition.name
        share_s = ((asked.max_time_s or math.inf) - spent_s) / (len(repetitions) - number)
        limit_s = None if math.isinf(share_s) else max(share_s, 1e-3)
        own = replace(asked, output=folder, folds=asked.output / FOLDS, fold=repetition.fold, seed=repetition.seed)
        try:
            if (left := unfinished(replace(own, max_time_s=limit_s))) is not None:
                train(left)
            if scoring:
                failed |= _scored(repetition, folder, [by_id[i] for i in repetition.scored], asked)
        except (Interrupted, KeyboardInterrupt) as error:
            raise Interrupted("interrupted; everything is saved, and the same command continues") from error
        except Exception as error:  # one bad training never ends the others
            failed[repetition.name] = reason(error)
        finally:
            spent_s += training_time_s(folder)
    if all(repetition.name in failed for repetition in repetitions):
        first, why = next(iter(failed.items()))
        raise InputError(f"none of the {len(repetitions)} trainings could be done; the first, {first}: {why}")
    return failed


def _scored(repetition: _Repetition, folder: Path, studies: Sequence[Study], asked: TrainOptions) -> dict[str, str]:
    """Label maps and scores of the studies that a training did not see, unless they are there; returns what failed."""
    model_sha256, places = sha256(folder / MODEL), {s.id: repetition.maps / f"{s.id}.nii.gz" for s in studies}
    told = read_record(folder / f"{LABEL_MAPS}.json") if (folder / SCORES).exists() else {}
    same = told.get("model_sha256") == model_sha256 and not told["failed"]
    done = told["label_maps"] if same else {}
    if all(place.is_file() and sha256(place) == done.get(study) for study, place in places.items()):
        return {}
    model, segmenter = load_segmenter(folder / MODEL, asked.device)
    regions = model.recipe.target.regions
    question = Question((repetition.model,), regions, PROTOCOL_METRICS["plain"], "plain", "all")
    rows, failed = list[Row](), dict[str, str]()
    with progress_bar(f"scoring {repetition.name}", len(studies), quiet=asked.quiet) as bar:
        for study in studies:
            found = _study_scores(study, places[study.id], segmenter, question)
            rows += found.rows
            failed |= {f"{study.id} by {repetition.name}": why for why in found.failed.values()}
            bar.advance()
    maps = {i: sha256(place) for i, place in places.items() if place.is_file()}
    facts = {"model_sha256": model_sha256, "label_maps": maps, "failed": failed}
    write_files({folder / SCORES: rows_csv(rows), folder / f"{LABEL_MAPS}.json": json_bytes(facts)})
    return failed


def _study_scores(study: Study, place: Path, segmenter: Segmenter, question: Question) -> Scores:
    """Segment a study as `gliomap segment` does, write its label map, and score what was written."""
    (model,), modalities = question.models, segmenter.recipe.modalities
    place.unlink(missing_ok=True)
    try:
        volume, _ = study.read(modalities)
        truth, convention, _ = study.read_classes(volume.with_array(brain_mask(volume)[None]))
        classes = segmenter(volume, truth)
        labels = classes.with_array(convention.encode(classes.array[0]))
        write_file(place, map_bytes(labels, study.images[modalities[0]].path))
    except Exception as error:  # one bad study never ends a folder
        return Scores({}, [failed_row(study.id, model)], {model: reason(error)}, [])
    return score(Task(study, {model: Study(study.id, {}, ImageFile(place), convention)}), question)


def _written(options: RepeatOptions, plan: _Plan, failed: dict[str, str], record: RunRecord) -> RepeatResult:
    """Everything that is said of all trainings together, and the ensemble."""
    output, place = options.train.output, options.train.output / MODEL
    folders = {one.name: output / one.name for one in plan.repetitions}
    runs = {name: read_record(folder / "run.json") for name, folder in folders.items() if name not in failed}
    try:
        if whole := len(runs) == len(folders):
            save_ensemble(place, [load_model(folder / MODEL) for folder in folders.values()])
    except InputError as error:  # what was trained and scored is not lost over it
        whole, failed["the ensemble"] = False, str(error)
    if not whole:
        place.unlink(missing_ok=True)
    rows = list(_rows(output, plan.repetitions, failed))
    found, statement = spreads(rows, "all seeds"), _statement(options, plan, runs)
    warnings = [*dependences(plan.rounds, plan.studies), *_unused(plan), *_warnings(runs)]
    listed = [*warnings, *(f"{name} failed: {why}" for name, why in failed.items())]
    title = f"{plan.recipe.name}: {len(folders)} trainings"
    keys = ("seed", "ended", "patches", "train_time_s", "best")
    outcome = {
        "trainings": {name: {key: run.get(key) for key in keys} for name, run in runs.items()},
        "failed": failed,
        "statement": statement,
        "warnings": warnings,
        "model_sha256": sha256(place) if whole else None,
    }
    write_files(
        {
            output / SCORES: rows_csv(rows),
            output / "summary.csv": spreads_csv(found),
            output / "summary.md": spreads_markdown(title, statement, found, listed).encode(),
            output / "run.json": json_bytes(record.content(**outcome)),
        }
    )
    return RepeatResult(output, place if whole else None, statement, found, failed, warnings)


def _unused(plan: _Plan) -> list[str]:
    used = {i for ids in (*plan.rounds.folds, *plan.rounds.scored) for i in ids}
    count = sum(study.id not in used for study in plan.studies)
    return [f"{count} of {len(plan.studies)} studies are in no fold and are not used"] if count else []


def _rows(output: Path, repetitions: Sequence[_Repetition], failed: dict[str, str]) -> Iterator[Row]:
    """The scores of all trainings; of one that failed, its studies as failed."""
    for repetition in repetitions:
        if repetition.name in failed:
            yield from (failed_row(study, repetition.model) for study in repetition.scored)
        else:
            yield from read_rows(output / repetition.name / SCORES)


def _statement(options: RepeatOptions, plan: _Plan, runs: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    """What to know before any number."""
    rounds, repetitions = plan.rounds, plan.repetitions
    out = [f"Who is scored: {rounds.remark}."]
    if set(rounds.scored) <= set(rounds.folds):
        out.append(
            f"No weights were trained on the study that they are scored on, but the best epoch of each {MODEL} was chosen by the "
            "mean Dice of these same studies, so the scores flatter: they are no test. A test needs studies outside all folds; "
            "last.safetensors of each training was not chosen by anything."
        )
    if len(options.seeds) > 1:
        out.append(
            f"{len(options.seeds)} seeds, the same studies for all: the standard error says how much a mean depends on the "
            "studies that were drawn, the standard deviation over seeds how much on the luck of a training. Two single "
            "trainings whose means differ by no more than the seed alone may do are not told apart."
        )
    cut = [name for name, run in runs.items() if run.get("ended") not in FINISHED]
    if cut:
        out.append(
            f"{len(cut)} of {len(repetitions)} trainings did not come to their end ({runs[cut[0]].get('ended')})."
        )
    missing = [repetition.name for repetition in repetitions if repetition.name not in runs]
    if missing:
        out.append(f"There is no ensemble, since it would lack {', '.join(missing)}; the same command tries again.")
    return tuple(out)


def _warnings(runs: dict[str, dict[str, Any]]) -> list[str]:
    """What trainings warned of and the studies they left out, each once with the trainings that say so."""
    names: dict[str, list[str]] = {}
    for name, run in runs.items():
        left_out = run["studies"]["failed"].items()
        for text in dict.fromkeys([*run["warnings"], *(f"{study} is left out: {why}" for study, why in left_out)]):
            names.setdefault(text, []).append(name)
    return [f"{own[0] if len(own) == 1 else f'{len(own)} trainings'}: {text}" for text, own in names.items()]
