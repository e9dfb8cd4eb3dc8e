"""gliomap train: a recipe and labelled studies in, a model file out. Read from top to bottom in the order of time."""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from gliomap.checkpoint import CHECKPOINT, has_checkpoint
from gliomap.data.datasets import count_layouts, labelled_studies
from gliomap.data.folds import draw_split, read_fold
from gliomap.data.patches import PatchSampler
from gliomap.data.phantoms import phantom_studies
from gliomap.data.prepared import PreparedStudies, prepare_studies
from gliomap.data.study import Study
from gliomap.distribution import (
    mean_of_all,
    reproducible,
    start_processes,
    threads_of_each,
    with_joint_norms,
)
from gliomap.errors import InputError, Interrupted, UsageError
from gliomap.files import read_json, write_file
from gliomap.loop import fit
from gliomap.losses import build_loss
from gliomap.machine import cores
from gliomap.manifest import RunRecord
from gliomap.model_file import load_model
from gliomap.networks import Network, build_network, channels_last
from gliomap.plan import check, check_memory, keep_heap_if_roomy
from gliomap.progress import interruptible
from gliomap.recipe import Recipe, cautions, recipe_json, trained_before, with_settings
from gliomap.recipes import find_recipe
from gliomap.starts import (
    COARSE,
    FINISHED,
    GIVEN,
    MODEL,
    STARTS,
    begin_with,
    begin_with_model,
    begun,
    finished_training,
    own_place,
    places_beside,
    training_time_s,
)
from gliomap.torch_engine import find_device
from gliomap.training_state import INTERRUPTED, Run, restore, tracked

MOST_WORKERS = 8

_Split = tuple[list[Study], list[Study], list[Study]]
"""The studies that train, validate, and are kept for a test."""


@dataclass(frozen=True)
class TrainOptions:
    """What `train` is asked for.

    ``recipe``: a recipe's name or JSON file, with ``settings`` such as ``training.patches=2000``. Validation studies are
    fold ``fold`` of ``folds``, or the recipe's share of the patients drawn by ``seed``. ``phantoms``: so many synthetic
    studies train besides; without ``data`` they are all there is. ``begin_with``: a model file whose weights are the first.
    ``max_time_s`` ends training early. ``cut_starts``: begin with trainings that ended so, too, where they are found.
    ``division``: the ids that train, validate and test, as `again` takes them from a record.

    ``workers`` cut patches and prepare studies ahead; ``threads`` compute, in each of ``processes``. None: what fits the
    machine. ``deterministic``: refuse algorithms whose results differ between runs. ``mlflow``: where a tracking server is.
    """

    recipe: str
    data: Path | None
    output: Path
    settings: list[str] = field(default_factory=list)
    folds: Path | None = None
    fold: int = 0
    seed: int = 0
    max_time_s: float | None = None
    resume: bool = False
    labels: str | None = None
    device: str = "auto"
    quiet: bool = False
    cut_starts: bool = False
    division: dict[str, list[str]] | None = None
    begin_with: Path | None = None
    phantoms: int = 0
    phantom_size: int = 240
    workers: int | None = None
    threads: int | None = None
    processes: int = 1
    precision: str = "auto"
    deterministic: bool = False
    mlflow: str | None = None


@dataclass(frozen=True)
class TrainResult:
    """What `train` did: the best model, its validation Dice, patches seen, why it ended, the studies left out, and warnings."""

    model: Path
    validation_dice: dict[str, float]
    patches: int
    ended: str
    failed: dict[str, str]
    warnings: list[str]
    layouts: dict[str, int] = field(default_factory=dict)


def train(options: TrainOptions) -> TrainResult:
    """Train a recipe on the labelled studies of a folder, on phantoms, or on both.

    Leaves in ``output``: model.safetensors (best validation Dice), last.safetensors, checkpoint.pt (for ``resume``),
    recipe.json, log.csv, steps.csv, training.html, tensorboard, run.json. Studies that cannot be read are left out and
    reported. What the recipe starts from is trained first, or taken over where it is found trained.

    Raises:
        UsageError: the recipe, a setting or the folds do not exist, or the output already holds a training.
        InputError: no study is left, or the loss is not finite.
        Interrupted: Ctrl-C was pressed; the step at hand was finished and everything is saved.
    """
    options = replace(
        options, **{n: p.resolve() for n in ("data", "folds", "begin_with") if (p := getattr(options, n))}
    )
    recipe = with_settings(find_recipe(options.recipe), options.settings)
    fabric = start_processes(find_device(options.device), options.processes, options.precision)
    _refuse_wrong_place(options, recipe)
    studies = _studies(options)
    split = _divide(options, recipe, studies)
    check(recipe)
    unused = len(studies) - sum(len(part) for part in split)
    if options.data is not None:
        split = (split[0] + phantom_studies(options.phantoms, options.seed, options.phantom_size), *split[1:])
    with reproducible(_threads(options, fabric), deterministic=options.deterministic):
        result = _train(options, recipe, split, fabric)
    odd = [f"{unused} studies are in no fold of {options.folds} and are not used"] if unused else []
    if not split[1]:
        odd.append("no study validates, for all are of one patient; the weights of the lowest training loss are kept")
    return replace(result, warnings=odd + result.warnings, layouts=count_layouts(studies))


def again(asked: TrainOptions) -> TrainOptions:
    """The options that the run.json of a training records, whose path is the ``recipe`` asked for, for the same in ``output``.

    Raises:
        UsageError: something else is asked for that would make another training of it.
        InputError: the file is no record of a training.
    """
    free = {n: getattr(asked, n) for n in ("recipe", "output", "resume", "quiet", "workers", "device", "mlflow")}
    if other := [name for name, value in vars(replace(_PLAIN, **free)).items() if value != getattr(asked, name)]:
        raise UsageError(
            f"a run.json says all of a training but -o (got {', '.join(other)}); to change something give its recipe.json and DATA"
        )
    run = read_json(Path(asked.recipe))
    if (
        not isinstance(run, dict)
        or run.get("verb") != "train"
        or not run.get("options", {}).keys() <= vars(_PLAIN).keys()
    ):
        raise InputError(
            f"{asked.recipe} is no record of a training by this gliomap; expected the run.json of gliomap train. A repetition "
            "(--fold all, --seeds) is run again by its command"
        )
    told = run["options"] | {"settings": [], "threads": run["threads"], "processes": run["processes"]}
    told |= {name: Path(told[name]) for name in ("data", "folds", "begin_with") if told.get(name)}
    told["division"] = {part: run["studies"][part] for part in ("training", "validation", "test")}
    return TrainOptions(**told | free)


_PLAIN = TrainOptions("", None, Path())


def _train(options: TrainOptions, recipe: Recipe, split: _Split, fabric: Fabric) -> TrainResult:
    """One training of the studies as divided, after those that it starts from, which see the same studies."""
    fabric.barrier()
    record = RunRecord("train", options)
    if fabric.is_global_zero:
        write_file(options.output / "recipe.json", recipe_json(recipe).encode())
    before, limit_s = _trained_before(options, recipe, split, fabric)
    with fabric.rank_zero_first(local=True):  # the others find what it has prepared
        found = prepare_studies(*split[:2], recipe, quiet=options.quiet, workers=_workers(options, fabric))
    keep_heap_if_roomy(recipe, fabric.device)
    run = _set_up(options, recipe, found, fabric, record, limit_s)
    _keep_finder(options, recipe, before, run)
    run.told["studies"] |= {"test": [s.id for s in split[2]], "failed": found.failed}
    if has_checkpoint(options.output):
        restore(run)
    elif options.begin_with is not None:
        run.told["starts_from"], odd = begin_with_model(
            run.network, options.begin_with, run.told["studies"]["validation"]
        )
        run.warnings += odd
    else:
        run.told["starts_from"] = begin_with(run.network, [(s, before[s.recipe.name]) for s in recipe.starts_from])
    if run.mean is not None and not int(run.mean.n_averaged):
        run.kept.load_state_dict(
            run.network.state_dict()
        )  # until the first step, the mean is what training begins with
    run.warnings = list(dict.fromkeys([*_warnings(run), *found.warnings, *run.warnings]))
    with interruptible(run.stop), tracked(run, options.mlflow):
        ended = fit(run)
    stopped = (
        mean_of_all({"stopped": run.stop.is_set()}, fabric)["stopped"] > 0
    )  # waits for what the first process saves
    if ended == INTERRUPTED:
        raise Interrupted(
            f"interrupted after {run.progress.patches} patches; continue with the same command and --resume"
        )
    if stopped:  # in its last step or validation: what was to come after it is not begun
        raise Interrupted(f"interrupted; this training has come to its end after {run.progress.patches} patches")
    best = {r: run.best[f"dice_{r}"] for r in recipe.target.regions} if run.best and found.validation else {}
    return TrainResult(options.output / MODEL, best, run.progress.patches, ended, found.failed, run.warnings)


def _refuse_wrong_place(options: TrainOptions, recipe: Recipe) -> None:
    """An output that holds a training is continued only when asked to, and only with its own recipe.

    One that was killed before its first checkpoint is begun anew either way.
    """
    holds, written = begun(options.output), options.output / "recipe.json"
    if holds and not options.resume:
        raise UsageError(
            f"{options.output} already holds a training; continue it with --resume or choose another place with -o"
        )
    if options.resume and not holds and not written.exists():
        raise InputError(f"{options.output} has no {CHECKPOINT}, so there is nothing to resume; train without --resume")
    if options.resume and written.exists() and find_recipe(str(written)) != recipe:
        raise UsageError(f"the recipe is not the one in {options.output}; resume with the same recipe and settings")


def _studies(options: TrainOptions) -> list[Study]:
    """What there is to train on, but for phantoms that are added to real studies."""
    if options.data is None and not options.phantoms:
        raise UsageError("training needs studies: give DATA, a folder of labelled studies, or --phantoms 100")
    if options.data is None:
        return phantom_studies(options.phantoms, options.seed, options.phantom_size)
    return labelled_studies(options.data, options.labels)


def _divide(options: TrainOptions, recipe: Recipe, studies: list[Study]) -> _Split:
    if options.division is not None:
        return _as_recorded(options, studies)
    if options.folds is not None:
        return (*read_fold(options.folds, options.fold, studies), [])
    settings = recipe.training
    return draw_split(studies, settings.validation_share, settings.test_share, options.fold, options.seed)


def _as_recorded(options: TrainOptions, studies: list[Study]) -> _Split:
    """The studies of a recorded division, but for the phantoms, which are added to it anew."""
    division, by_id = options.division or {}, {s.id: s for s in studies}
    grown = {s.id for s in phantom_studies(options.phantoms, options.seed, options.phantom_size)}
    gone = [i for ids in division.values() for i in ids if i not in by_id and i not in grown]
    if gone:
        raise InputError(
            f"{options.data} lacks {len(gone)} studies of the recorded training, such as {gone[0]}; give it the data it had"
        )
    training, validation, test = ([by_id[i] for i in ids if i in by_id] for ids in division.values())
    return training, validation, test


def _threads(options: TrainOptions, fabric: Fabric) -> int:
    """As many threads as asked for; else as many as the training was begun with, whose results depend on it."""
    records = [options.output / "run.json", *sorted((options.output / STARTS).rglob("run.json"))]
    written = [path for path in records if path.exists()] if options.resume else []
    before = read_json(written[0]).get("threads") if written else None
    return options.threads or before or threads_of_each(fabric)


def _workers(options: TrainOptions, fabric: Fabric) -> int:
    """On a CPU the cores are busy with the network."""
    if options.workers is not None:
        return options.workers
    return min(cores(), MOST_WORKERS) if fabric.device.type == "cuda" else 0


def _trained_before(
    options: TrainOptions, recipe: Recipe, split: _Split, fabric: Fabric
) -> tuple[dict[str, Path], float]:
    """The folders of the trainings that this one needs, by recipe, and the seconds that are left for itself.

    Each is one found below or beside the output (see `finished_training`), or is trained now, below the output. What time
    is left is divided equally among the trainings that have still to run.
    """
    begun_already = has_checkpoint(options.output)
    own_weights = begun_already or options.begin_with is not None
    starts = [] if own_weights else [start.recipe for start in recipe.starts_from]
    finders = [] if begun_already or recipe.coarse is None else [recipe.coarse.recipe]
    needed = list({before.name: before for before in (*starts, *finders)}.values())
    found: dict[str, Path] = {}
    for before in needed:
        places = [own_place(options.output, before), *places_beside(options.output)]
        folder = finished_training(places, before, options.seed, options.labels, split, cut_too=options.cut_starts)
        if folder is not None:
            found[before.name] = folder
    missing = [before for before in needed if before.name not in found]
    for one in [*missing, recipe]:
        check_memory(one, fabric.device, fabric.world_size)
    limit = options.max_time_s or math.inf
    over = {own_place(options.output, before) for before in trained_before(recipe) if before not in missing}
    limit = max(limit - sum(training_time_s(own) for own in over), 1e-3)
    for number, before in enumerate(missing):
        own = own_place(options.output, before)
        share = limit / (len(missing) - number + 1)
        _train(replace(options, output=own, max_time_s=share, begin_with=None), before, split, fabric)
        limit = max(limit - training_time_s(own), 1e-3)  # time for one step is always left
        found[before.name] = own
    return found, limit


def _keep_finder(options: TrainOptions, recipe: Recipe, before: dict[str, Path], run: Run) -> None:
    """The model that finds the tumour first, of which the output keeps a copy of its own for when it is resumed."""
    if recipe.coarse is None:
        return
    place, name = options.output / COARSE, recipe.coarse.recipe.name
    if name in before:
        ended = read_json(before[name] / "run.json")["ended"]
        if run.fabric.is_global_zero:
            write_file(place, (before[name] / MODEL).read_bytes())
        run.fabric.barrier()
        run.coarse = load_model(place)
        run.told["coarse"] = {name: {"content_sha256": run.coarse.content_sha256, "ended": ended}}
    else:
        run.coarse = load_model(place)


def _set_up(
    options: TrainOptions, recipe: Recipe, found: PreparedStudies, fabric: Fabric, record: RunRecord, limit_s: float
) -> Run:
    settings = recipe.training
    torch.manual_seed(options.seed)
    network = channels_last(with_joint_norms(build_network(recipe), fabric))
    network.freeze(recipe.frozen)
    optimizer = torch.optim.Adam(
        network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, amsgrad=settings.amsgrad
    )
    wrapped: Any = network
    if any(p.requires_grad for p in network.parameters()):
        wrapped, optimizer = fabric.setup(network, optimizer)
        wrapped.mark_forward_method("supervised")
    else:
        fabric.to_device(network)
    used = {"training": [s.id for s in found.training], "validation": [s.id for s in found.validation]}
    told = {
        "recipe": json.loads(recipe_json(recipe)),
        "inputs_sha256": found.inputs_sha256,
        "studies": used,
        "coarse": {},
    }
    return Run(
        recipe=recipe,
        output=options.output,
        seed=options.seed,
        limit_s=limit_s,
        workers=_workers(options, fabric),
        quiet=options.quiet or not fabric.is_global_zero,
        fabric=fabric,
        network=network,
        wrapped=wrapped,
        loss=build_loss(settings.loss),
        optimizer=optimizer,
        sampler=PatchSampler(found.training, settings, options.seed),
        validation=found.validation,
        record=record,
        told=told,
        mean=running_mean(network, settings.ema_decay) if settings.ema_decay else None,
    )


def running_mean(network: Network, decay: float) -> AveragedModel:
    """A copy of a network whose weights follow it: at step n by at least (10 - 1) / (10 + n), so that the first are forgotten.

    BatchNorm's statistics follow as slowly. Those of a small batch by themselves move validation by a twentieth of Dice.
    """

    @torch.no_grad()
    def follow(means: Any, weights: Any, steps: Tensor | int) -> None:
        kept = min(decay, (1 + int(steps)) / (10 + int(steps)))
        for average, weight in zip(means, weights, strict=True):
            if average.is_floating_point():
                average.lerp_(weight, 1 - kept)
            else:  # how many batches BatchNorm has seen
                average.copy_(weight)

    return AveragedModel(network, multi_avg_fn=follow, use_buffers=True)


def _warnings(run: Run) -> list[str]:
    """What a careful reader of the results has to know."""
    told = [f"reproduction: {text}" for text in cautions(run.recipe)]
    for what, part in (("it starts from", "starts_from"), ("the tumour is found for it by", "coarse")):
        cut = {name: how["ended"] for name, how in run.told[part].items() if how["ended"] not in (*FINISHED, GIVEN)}
        told += [f"{what} {name}, which did not come to its end ({ended})" for name, ended in cut.items()]
    return told
