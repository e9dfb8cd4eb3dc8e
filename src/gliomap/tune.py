"""gliomap tune: how small a component, and how little enhancing tumour, is too small to be believed; found on labelled studies."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from gliomap.data.datasets import labelled_studies
from gliomap.data.folds import chosen_studies
from gliomap.data.predictions import predictions_by_name
from gliomap.data.study import Study
from gliomap.engines import model_segmenter
from gliomap.errors import InputError, UsageError, reason
from gliomap.files import json_bytes, sha256, write_files
from gliomap.manifest import RunRecord
from gliomap.metrics import measure
from gliomap.model_file import Model, load_model, save_changed
from gliomap.postprocess import postprocess
from gliomap.preprocess import brain_mask
from gliomap.progress import progress_bar
from gliomap.recipe import Recipe, StepSpec
from gliomap.rows import Protocol, score_rows, table_csv
from gliomap.scoring import Task
from gliomap.segmenter import Segmenter
from gliomap.statistics import bca_interval
from gliomap.volume import Box, Volume, bounding_box

Array = np.ndarray[Any, np.dtype[Any]]

LIMITS_ML = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0)
"""What is tried, for components and for ET, beside no limit at all and the recipe's own."""
COMPONENTS, LITTLE_ET = "remove_small_components", "small_et_to_ncr"
EMPTY: Protocol = "plain"
"""What empty regions count as: Dice 1 where both are empty and 0 where one is, as in every BraTS challenge."""


@dataclass(frozen=True)
class TuneOptions:
    """What `tune` is asked for.

    ``data`` is a folder of labelled studies. Of these ``fold`` of the folds.json ``folds`` is used, or those that
    ``studies`` names, or all. ``label_maps``: a folder of label maps of them as the network left them, such as out-of-fold
    ones; then the model is not run. ``labels`` says what label values mean where nothing else does.
    """

    model: Path
    data: Path
    output: Path
    folds: Path | None = None
    fold: int | None = None
    studies: tuple[str, ...] = ()
    label_maps: Path | None = None
    labels: str | None = None
    device: str = "auto"
    engine: str = "auto"
    quiet: bool = False


@dataclass(frozen=True)
class Candidate:
    """Two steps that were tried together, None for a step that is left out, and the mean Dice by region and of all regions."""

    components: StepSpec | None
    little_et: StepSpec | None
    dice: dict[str, float]
    mean_dice: float


@dataclass(frozen=True)
class Choice:
    """The best candidate and what it is worth, as indices and values of a table of Dice (studies, candidates).

    ``kept`` is ``best``, or 0 where it does not help. ``held_out``: for each study the gain over candidate 0 of the
    candidate that is best without its patient. ``alike``: the patients without whom the best is the same.
    """

    best: int
    kept: int
    held_out: Array
    alike: int


@dataclass(frozen=True)
class TuneResult:
    """The tuned model and its steps, all candidates with the best and the kept one, what is to be said of them, what could
    not be used with the reason, and what is odd.
    """

    model: Path
    table: Path
    steps: tuple[StepSpec, ...]
    candidates: tuple[Candidate, ...]
    best: Candidate
    kept: Candidate
    statement: tuple[str, ...]
    failed: dict[str, str]
    warnings: list[str]


def tune(options: TuneOptions) -> TuneResult:
    """Find the limits of two post-processing steps that maximise the mean Dice of the regions, and write the model with them.

    The network runs once for each study, and the limits are tried on its class map. A study that cannot be read is
    reported. The model's other steps stay; see `tuned_steps`.

    Raises:
        UsageError: options make no sense together, studies are the model's test, or they are of a single patient.
        InputError: there is no labelled study, none can be used, or a file cannot be written.
        IntegrityError: the model file is not what it says.
    """
    record = RunRecord("tune", options)
    if options.output.suffix != ".safetensors":
        raise UsageError(f"{options.output} is no name of a model file; expected such as -o tuned.safetensors")
    model, model_sha256 = load_model(options.model), sha256(options.model)
    studies = _studies(options)
    _refuse_test(model, studies)
    tasks = _tasks(options, model, studies)
    scores, failed = _all_scores(options, model, tasks)
    used = [study for study in studies if study.id in scores]
    patients = [study.patient for study in used]
    if len(set(patients)) < 2:
        raise UsageError("all studies that can be used are of one patient; expected at least 2 patients to tune on")
    dice = np.stack([scores[study.id] for study in used])  # (studies, candidates and the model as it is, regions)
    choice = choose(dice[:, :-1].mean(2), patients)
    candidates = tuple(_candidates(model.recipe, dice[:, :-1].mean(0)))
    best, kept = candidates[choice.best], candidates[choice.kept]
    statement = _statement(dice.mean(2), choice, best, patients, model.recipe)
    steps = tuned_steps(model.recipe, kept.components, kept.little_et)
    _save(options.output, model, steps, used, statement)
    paths = options.output.with_suffix(".csv"), options.output.with_suffix(".run.json")
    gains = {study.id: float(gain) for study, gain in zip(used, choice.held_out, strict=True)}
    result = TuneResult(
        options.output, paths[0], steps, candidates, best, kept, statement, failed, _warnings(options, model, used)
    )
    told = {"steps": [asdict(step) for step in steps], "statement": statement, "held_out_gains": gains}
    told |= {"failed": failed, "warnings": result.warnings, "inputs": {t.truth.id: t.inputs() for t in tasks}}
    told |= {"model_sha256": model_sha256, "tuned_sha256": sha256(options.output)}
    write_files({paths[0]: _csv(result), paths[1]: json_bytes(record.content(**told))})
    return result


def tuned_steps(recipe: Recipe, components: StepSpec | None, little_et: StepSpec | None) -> tuple[StepSpec, ...]:
    """The recipe's steps with these in the place of its own: small components go first, and little ET last."""
    others = [step for step in recipe.postprocessing if step.name not in (COMPONENTS, LITTLE_ET)]
    return tuple(step for step in (components, *others, little_et) if step is not None)


def choose(dice: Array, patients: Sequence[str]) -> Choice:
    """The candidate with the best mean of a table of Dice (studies, candidates), the first of equals; 0 is to change nothing.

    It is kept if what would be chosen without a patient gains on that patient's studies, in the mean over all.
    """
    best, owner = _best(dice), np.array(patients)
    held_out, alike = np.zeros(len(dice)), 0
    for patient in dict.fromkeys(patients):
        own = owner == patient
        chosen = _best(dice[~own])
        held_out[own] = dice[own, chosen] - dice[own, 0]
        alike += chosen == best
    return Choice(best, best if held_out.mean() > 0 else 0, held_out, alike)


def limit_text(step: StepSpec | None) -> str:
    """The limit of a step in words, such as 0.1 ml, 150 voxels or none."""
    if step is None:
        return "none"
    ((name, value),) = ((n, v) for n, v in step.settings.items() if v is not None)
    return f"{value:g} {name.removeprefix('min_')}"


def _best(dice: Array) -> int:
    return int(np.round(dice.mean(0), 9).argmax())


def _limits(recipe: Recipe, name: str) -> list[StepSpec | None]:
    """No step of that name, one for each limit, and the recipe's own."""
    tried = [StepSpec(name, {"min_ml": ml}) for ml in LIMITS_ML]
    own = [step for step in recipe.postprocessing if step.name == name and step not in tried]
    return [None, *tried, *own]


def _axes(recipe: Recipe) -> tuple[list[StepSpec | None], list[StepSpec | None]]:
    """The limits of components and of ET, each of which is tried with each; none of ET if the model does not tell it."""
    return _limits(recipe, COMPONENTS), _limits(recipe, LITTLE_ET) if "ET" in recipe.target.regions else [None]


def _candidates(recipe: Recipe, means: Array) -> list[Candidate]:
    """The candidates with their Dice (N, R)."""
    regions, pairs = recipe.target.regions, product(*_axes(recipe))
    return [
        Candidate(*pair, dict(zip(regions, values.tolist(), strict=True)), float(values.mean()))
        for pair, values in zip(pairs, means, strict=True)
    ]


def _scores(classes: Array, truth: Volume, recipe: Recipe) -> Array:
    """The Dice of each region for every candidate, and in the last line for the steps that the recipe has: (N + 1, R)."""
    box = bounding_box(classes | truth.array[0]) or Box((0, 0, 0), truth.shape)
    classes, voxel_ml = classes[box.slices], truth.voxel_ml
    dice = partial(_dice, truth=truth.array[0][box.slices], spacing_mm=truth.spacing_mm, regions=recipe.target.regions)
    lines, (all_components, all_little_et) = list[list[float]](), _axes(recipe)
    for components in all_components:
        tidy, _ = postprocess(classes, tuned_steps(recipe, components, None), voxel_ml)
        kept, relabelled = dice(tidy), list[float]()  # ET stays or goes as a whole: two maps for all limits
        for little_et in all_little_et:
            found, changes = postprocess(tidy, (little_et,) if little_et else (), voxel_ml)
            if changes and not relabelled:
                relabelled = dice(found)
            lines.append(relabelled if changes else kept)
    return np.array([*lines, dice(postprocess(classes, recipe.postprocessing, voxel_ml)[0])])


def _dice(found: Array, truth: Array, spacing_mm: tuple[float, float, float], regions: Sequence[str]) -> list[float]:
    rows = score_rows("", "", measure(found, truth, spacing_mm, regions, ("dice",)), EMPTY)
    by_region = {row.region: row.value for row in rows if row.metric == "dice" and row.value is not None}
    return [by_region[region] for region in regions]


def _studies(options: TuneOptions) -> list[Study]:
    studies = labelled_studies(options.data, options.labels)
    return chosen_studies(options.data, studies, options.folds, options.fold, options.studies)


def _tasks(options: TuneOptions, model: Model, studies: Sequence[Study]) -> list[Task]:
    """Each study with its label map, where maps are given and it has one."""
    if options.label_maps is None:
        return [Task(study, None) for study in studies]
    maps = predictions_by_name(options.label_maps, studies, None)
    return [Task(study, {model.name: maps[study.id]} if study.id in maps else {}) for study in studies]


def _refuse_test(model: Model, studies: Sequence[Study]) -> None:
    tested = _of_patients(model.card.get("test_studies", ()), studies)
    if tested:
        raise UsageError(
            f"{len(tested)} of {len(studies)} studies, such as {tested[0]}, are the test of this model, and would be none "
            "afterwards; choose others with --folds and --fold, or --studies"
        )


def _of_patients(ids: Sequence[str], studies: Sequence[Study]) -> list[str]:
    """Those of the studies whose patients are among those of the ids."""
    patients = {Study(study, {}).patient for study in ids}
    return [study.id for study in studies if study.patient in patients]


def _warnings(options: TuneOptions, model: Model, studies: Sequence[Study]) -> list[str]:
    if options.label_maps is None:
        trained = _of_patients(model.card.get("training_studies", ()), studies)
        return [
            f"{len(trained)} of {len(studies)} studies trained this model: it errs less on them than on others, and "
            "limits that suit them may not suit others. Choose others with --folds and --fold, or --studies"
        ] * bool(trained)
    own = [step.name for step in model.recipe.postprocessing]
    return [
        f"the model has the steps {', '.join(own)}: what they took out of the label maps cannot be brought back, so that the "
        "maps should be made without them (--set postprocessing=[])"
    ] * bool(own)


def _all_scores(options: TuneOptions, model: Model, tasks: Sequence[Task]) -> tuple[dict[str, Array], dict[str, str]]:
    """The scores of each study by its id, and why some have none."""
    segmenter = None
    if options.label_maps is None:
        bare = replace(model.recipe, postprocessing=())
        segmenter = replace(model_segmenter(model, options.device, options.engine), recipe=bare)
    scores, failed = dict[str, Array](), dict[str, str]()
    with progress_bar("tuning", len(tasks), quiet=options.quiet) as bar:
        for task in tasks:
            study = task.truth.id
            bar.say(study)
            try:
                found, truth = _segmented(task.truth, segmenter) if segmenter else _read(task)
                scores[study] = _scores(found.array[0], truth, model.recipe)
            except Exception as error:  # one bad study never ends a folder
                failed[study] = reason(error)
            bar.advance()
    if not scores:
        first, why = next(iter(failed.items()), ("", "the fold is empty"))
        raise InputError(f"none of the {len(tasks)} studies can be used; the first, {first}: {why}")
    return scores, failed


def _segmented(study: Study, segmenter: Segmenter) -> tuple[Volume, Volume]:
    """What a model makes of a study, and the truth."""
    volume, _ = study.read(segmenter.recipe.modalities)
    truth, _, _ = study.read_classes(volume.with_array(brain_mask(volume)))
    return segmenter(volume, truth), truth


def _read(task: Task) -> tuple[Volume, Volume]:
    """The label map of a study, in the convention of its truth where nothing else says, and the truth."""
    if not task.label_maps:
        raise InputError("it has no label map among those given")
    truth, convention, _ = task.truth.read_classes()
    (label_map,) = task.label_maps.values()
    known = replace(label_map, convention=label_map.convention or convention)
    classes, _, _ = known.read_classes(truth.with_array(np.ones(truth.shape, bool)))
    return classes, truth


def _statement(
    dice: Array, choice: Choice, best: Candidate, patients: Sequence[str], recipe: Recipe
) -> tuple[str, ...]:
    """What to know of the choice; ``dice`` (studies, candidates and the model as it is) is the mean of the regions."""
    means, people = dice.mean(0), len(set(patients))
    low, high = bca_interval(choice.held_out)
    limits = f"components under {limit_text(best.components)}, ET under {limit_text(best.little_et)}"
    told = (
        f"{len(patients)} studies of {people} patients, mean Dice of {', '.join(recipe.target.regions)}: {means[0]:.4f} without "
        f"limits, {means[-1]:.4f} with the model's own steps, {means[choice.best]:.4f} with the best limits ({limits})",
        f"limits chosen without the patient that they are then scored on gain {choice.held_out.mean():+.4f} over none "
        f"(95 % interval {low:+.4f} to {high:+.4f}); {choice.alike} of {people} such choices are the same",
    )
    if choice.kept == 0:
        return (*told, "no limit helps: the model is written without both steps")
    doubt = "" if low > 0 else "; the interval reaches 0, so that more studies may show that they do not help"
    return (*told, f"the best limits are kept{doubt}")


def _save(
    path: Path, model: Model, steps: tuple[StepSpec, ...], studies: Sequence[Study], statement: Sequence[str]
) -> None:
    """The same weights with the tuned steps; studies that it was tuned on count as validation from now on."""
    name = model.recipe.name if model.recipe.name.endswith("_tuned") else f"{model.recipe.name}_tuned"
    recipe = replace(model.recipe, name=name, postprocessing=steps)
    seen = {*model.card.get("validation_studies", ()), *(study.id for study in studies)}
    own = {"validation_studies": sorted(seen - {*model.card.get("training_studies", ())}), "tuning": list(statement)}
    save_changed(path, model, recipe, model.card | own)


def _csv(result: TuneResult) -> bytes:
    """A line for each candidate."""
    lines = [
        {"components_under": limit_text(one.components), "et_under": limit_text(one.little_et)}
        | {f"dice_{region}": f"{value:.6g}" for region, value in one.dice.items()}
        | {"dice_mean": f"{one.mean_dice:.6g}", "kept": "yes" if one is result.kept else ""}
        for one in result.candidates
    ]
    return table_csv(lines, list(lines[0]))
