"""What every row of a leaderboard takes, tried for a few steps, and the budget of patches that all of them can have."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from gliomap.data.datasets import labelled_studies
from gliomap.data.rounds import Rounds, cross_validation, dependences, draw_patients, read_cross_validation
from gliomap.data.study import Study
from gliomap.errors import InputError, Interrupted, UsageError, reason
from gliomap.files import json_bytes, sha256, write_file
from gliomap.manifest import plain
from gliomap.plan import check
from gliomap.recipe import Recipe, recipe_json, with_settings
from gliomap.recipes import RECIPES
from gliomap.recipes.fair import BUDGET_STEP, PATCHES, with_budget
from gliomap.repeat import read_record, refuse_another, unfinished
from gliomap.starts import STARTS
from gliomap.train import TrainOptions, train
from gliomap.workers import worker_pool

_T = TypeVar("_T")

MAIN = {
    "dual_fusion_fair": "system of paper 000",
    "druwas_fair": "system of paper 001",
    "cga_unet_fair": "system of paper 002",
    "aspp_attention_unet_fair": "system of paper 003",
    "attention_resunet_fair": "system of paper 004",
    "segresnet_fair": "baseline",
    "dynunet_fair": "baseline",
    "unet3d_fair": "baseline",
}
"""The rows that a budget is chosen for, and what each is."""
ABLATED = {
    "druwas_resnet_fair": "druwas_fair",
    "cga_unet_baseline_fair": "cga_unet_fair",
    "attention_resunet_baseline_fair": "attention_resunet_fair",
    "dual_fusion_early_fair": "dual_fusion_fair",
    "dual_fusion_late_fair": "dual_fusion_fair",
}
"""Networks without the part that their paper adds, and the network with it."""
ROWS = MAIN | {"attention_unet_fair": "baseline"} | {name: f"ablation of {full}" for name, full in ABLATED.items()}
"""All rows in the order in which they are run."""

QUESTION, FOLDS, TRIALS = "leaderboard.json", "folds.json", "trials"
FOLD_COUNT = 3
TRIAL_PATCHES = BUDGET_STEP
KEPT = 0.15
"""The share of the time that no budget is chosen for: what is tried for a moment is not what hours bring."""
_BUDGET_SETTINGS = ("training.patches", "training.batch_size", "training.validate_every", "training.early_stopping")


@dataclass(frozen=True)
class ReproduceOptions:
    """What `reproduce` or `leaderboard` is asked for: the ``table``, with its trainings on ``data`` and below ``output``.

    ``table`` is the address of a paper's, or ``leaderboard``. ``rows``: names or recipes of the rows to run, where not all.
    ``settings`` apply to every recipe. ``studies``: so many patients, drawn by ``seed``, and not all. ``folds``: how many in a
    cross-validation, or a folds.json. ``max_time_s`` is divided equally among the trainings of a paper's table that are left,
    and scoring comes on top; of the leaderboard no row is begun that is not expected to end in it.

    Of the leaderboard alone are ``patches``, the budget of every row, a multiple of 12 (without it the largest that the time
    allows, and without a limit the protocol's own), and ``spacing_mm``, the voxel size that networks work at, where not the
    studies' own.
    """

    table: str
    output: Path
    data: Path | None = None
    rows: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    studies: int | None = None
    folds: int | Path | None = None
    seed: int = 0
    max_time_s: float | None = None
    labels: str | None = None
    device: str = "auto"
    quiet: bool = False
    patches: int | None = None
    spacing_mm: float | None = None


@dataclass(frozen=True)
class Trial:
    """What a few steps of a row took: seconds per patch, seconds to validate and score one study, and peak memory in GB."""

    patch_s: float
    study_s: float
    memory_gb: float


@dataclass(frozen=True)
class Estimate:
    """The budget of every row, what each took for a moment, and the rows that could not even be tried, with the reason."""

    patches: int
    folds: int
    studies: int
    trials: dict[str, Trial]
    failed: dict[str, str]

    def row_s(self, name: str) -> float:
        """Seconds that the whole cross-validation of a row is expected to take."""
        trial = self.trials[name]
        return self.folds * self.patches * trial.patch_s + self.studies * trial.study_s


@dataclass(frozen=True)
class Plan:
    """What is to be run: the rows' recipes of the protocol's own budget, the studies, and the folds that all rows share."""

    recipes: dict[str, Recipe]
    studies: dict[str, Study]
    rounds: Rounds
    warnings: tuple[str, ...]


def estimate(options: ReproduceOptions) -> Estimate:
    """Try every row for a few steps in a process of its own, and choose the budget that all of them get.

    The budget is written down, so that whoever continues has the same.

    Raises:
        UsageError: a row or setting does not exist, the output holds another leaderboard, or the time is too short.
        InputError: the data cannot be read, or no row can be trained.
        Interrupted: Ctrl-C was pressed.
    """
    plan = planned(options)
    place = options.output / QUESTION
    asked = _question(options, plan)
    refuse_another(place, asked, "a leaderboard")
    recorded = read_record(place).get("patches")
    if recorded and options.patches not in (None, recorded):
        raise UsageError(
            f"{options.output} has a budget of {recorded} patches; leave out --patches, or choose another -o"
        )
    write_file(options.output / FOLDS, json_bytes(_folds(options, plan.rounds, plan.rounds.folds)))
    few = [(fold[0],) for fold in plan.rounds.folds[:2]]
    write_file(options.output / TRIALS / FOLDS, json_bytes(_folds(options, plan.rounds, few)))
    trials, failed = dict[str, Trial](), dict[str, str]()
    for name, recipe in plan.recipes.items():
        try:
            trials[name] = _tried(options, recipe)
        except (Interrupted, KeyboardInterrupt) as error:
            raise Interrupted("interrupted while rows were tried; the same command continues") from error
        except Exception as error:  # one bad row never ends the others
            failed[name] = reason(error)
    if not trials:
        first, why = next(iter(failed.items()))
        raise InputError(f"none of the {len(failed)} rows can be trained; the first, {first}: {why}")
    found = Estimate(0, len(plan.rounds.folds), len(plan.rounds.studies), trials, failed)
    patches = recorded or options.patches or _affordable(options.max_time_s, found)
    write_file(place, json_bytes(asked | {"patches": patches}))
    return replace(found, patches=patches)


def planned(options: ReproduceOptions) -> Plan:
    """The rows asked for and those that the output has, in their order, the studies, and the folds that all rows share.

    Raises:
        UsageError: there is no data, a row or setting does not exist or changes the budget of one row, or the budget does not
            divide.
        InputError: the data or folds cannot be read.
    """
    if options.data is None:
        raise UsageError("the leaderboard needs DATA, a folder of labelled studies")
    unknown = [name for name in options.rows if name not in ROWS]
    if unknown:
        raise UsageError(f"the leaderboard has no row {', '.join(unknown)}; it has {', '.join(ROWS)}")
    if taken := [text for text in options.settings if any(name in text for name in _BUDGET_SETTINGS)]:
        raise UsageError(
            f"cannot set {', '.join(taken)}: the budget is the same for all rows, what they start from included; give it with "
            "--patches"
        )
    if options.patches is not None and (options.patches < 1 or options.patches % BUDGET_STEP):
        raise UsageError(
            f"got --patches {options.patches}; expected a multiple of {BUDGET_STEP}, whose thirds are whole batches"
        )
    asked = [n for n in ROWS if n in (options.rows or ROWS) or (options.output / "rows" / n).exists()]
    recipes = {name: with_settings(RECIPES[name], list(options.settings)) for name in asked}
    studies = labelled_studies(options.data, options.labels)
    if options.studies is not None:
        studies = draw_patients(studies, options.studies, options.seed)
    if isinstance(options.folds, Path):
        rounds = read_cross_validation(options.folds, studies)
    else:
        rounds = cross_validation(studies, FOLD_COUNT if options.folds is None else options.folds, options.seed)
    used = {s.id: s for s in studies if s.id in set(rounds.studies)}
    return Plan(recipes, used, rounds, tuple(dependences(rounds, studies)))


def _question(options: ReproduceOptions, plan: Plan) -> dict[str, Any]:
    """What must not change while an output is continued; rows may be added."""
    return plain(
        {
            "labels_sha256": {i: sha256(s.label.path) if s.label else "" for i, s in plan.studies.items()},
            "folds": plan.rounds.folds,
            "seed": options.seed,
            "spacing_mm": options.spacing_mm,
            "settings": options.settings,
            "labels": options.labels,
        }
    )


def _folds(options: ReproduceOptions, rounds: Rounds, folds: Sequence[Sequence[str]]) -> dict[str, Any]:
    return plain(
        {"seed": options.seed, "folds": folds, "patients": {i: rounds.patients[i] for ids in folds for i in ids}}
    )


def _tried(options: ReproduceOptions, recipe: Recipe) -> Trial:
    """A few steps on one study and a validation of another, unless they were made before."""
    few = with_budget(recipe, TRIAL_PATCHES, options.spacing_mm)
    check(few)
    output = options.output / TRIALS / recipe.name / "run"  # alone in its folder, so that it starts from no other
    asked = training_options(options, few, output.with_name("recipe.json"), output)
    if (left := unfinished(replace(asked, folds=options.output / TRIALS / FOLDS))) is not None:
        apart(train, left)
    return _measured(output)


def _measured(output: Path) -> Trial:
    """What the trial in a folder took: every step but the first, in which kernels are prepared, and the validation."""
    patch_s = study_s = 0.0
    for stage in (output, *sorted((output / STARTS).glob("*"))):
        run, steps = read_record(stage / "run.json"), _lines(stage / "steps.csv")
        if len(steps) > 1:
            (first, first_s), (last, last_s) = steps[0], steps[-1]
            patch_s += (last_s - first_s) / (last - first) * run["patches"] / TRIAL_PATCHES
            study_s += run["train_time_s"] - last_s
    memory_gb = read_record(output / "run.json")["peak_memory_mb"] / 1e3
    return Trial(patch_s, 2 * study_s, memory_gb)  # a study is segmented to validate, and again to be scored


def _lines(path: Path) -> list[tuple[float, float]]:
    """Patches and seconds of the lines of a training's steps.csv."""
    if not path.exists():
        return []
    with path.open(newline="") as stream:
        return [(float(line["patches"]), float(line["time_s"])) for line in csv.DictReader(stream)]


def _affordable(limit_s: float | None, found: Estimate) -> int:
    """The largest budget, the same for all, with which the main rows, or else all that were tried, end in time."""
    most = PATCHES // BUDGET_STEP * BUDGET_STEP
    if limit_s is None:
        return most
    names = [name for name in found.trials if name in MAIN] or list(found.trials)
    fixed_s = sum(found.row_s(name) for name in names)
    patch_s = found.folds * sum(found.trials[name].patch_s for name in names)
    budget = int(((1 - KEPT) * limit_s - fixed_s) / patch_s) // BUDGET_STEP * BUDGET_STEP
    if budget < BUDGET_STEP:
        raise UsageError(
            f"{limit_s / 60:.0f} min are too short for {len(names)} rows: {found.folds} trainings of {BUDGET_STEP} patches each, "
            f"with validation and scoring, take about {(fixed_s + BUDGET_STEP * patch_s) / (1 - KEPT) / 60:.0f} min; give a longer "
            "--max-time, fewer --studies or --rows, or --spacing 2"
        )
    return min(budget, most)


def training_options(options: ReproduceOptions, recipe: Recipe, written: Path, output: Path) -> TrainOptions:
    """The training of a recipe, which is written down for it."""
    write_file(written, recipe_json(recipe).encode())
    return TrainOptions(
        recipe=str(written),
        data=options.data,
        output=output,
        folds=options.output / FOLDS,
        seed=options.seed,
        labels=options.labels,
        device=options.device,
        quiet=options.quiet,
    )


def apart(what: Callable[..., _T], *given: Any) -> _T:
    """The same in a process of its own, whose memory is nobody else's."""
    with worker_pool(1, "the process was killed, most likely for want of memory") as pool:
        return pool.submit(what, *given).result()
