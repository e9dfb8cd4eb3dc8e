"""gliomap train: a recipe and labelled studies in, a model file out. Read from top to bottom in the order of time."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from gliomap import augment
from gliomap.checkpoint import load_checkpoint, save_checkpoint
from gliomap.classes import region_mask
from gliomap.data.datasets import count_layouts, find_studies, parse_labels
from gliomap.data.folds import draw_split, read_fold
from gliomap.data.patches import PatchSampler, PreparedStudies, prepare_studies
from gliomap.data.study import Study
from gliomap.engines import find_device, torch_engine
from gliomap.errors import InputError, Interrupted, UsageError
from gliomap.files import json_bytes, sha256, write_file
from gliomap.losses import Loss, build_loss
from gliomap.manifest import RunRecord, plain
from gliomap.metrics import dice
from gliomap.model_file import save_model
from gliomap.networks import Network, Outputs, as_slices, build_network, channels_last, fast_layout
from gliomap.plan import check, check_memory
from gliomap.progress import Bar, interruptible, progress_bar
from gliomap.recipe import Recipe, Start, cautions, recipe_json, with_settings
from gliomap.recipes import find_recipe
from gliomap.rows import table_csv
from gliomap.schedules import rate_factor
from gliomap.segmenter import Segmenter
from gliomap.starts import (
    ENOUGH,
    FINISHED,
    MODEL,
    NOTHING,
    OUT_OF_TIME,
    STARTS,
    STOPPED_EARLY,
    begin_with,
    finished_training,
    own_place,
    places_beside,
    training_time_s,
)

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_EVERY_S = 120.0

_Split = tuple[list[Study], list[Study], list[Study]]
"""The studies that train, validate, and are kept for a test."""


@dataclass(frozen=True)
class TrainOptions:
    """What `train` is asked for.

    ``recipe``: a recipe's name or JSON file, with ``settings`` such as ``training.patches=2000``. Validation studies are
    fold ``fold`` of ``folds``, or the recipe's share of the patients drawn by ``seed``. ``max_time_s`` ends training early.
    ``cut_starts``: begin with trainings that ended so, too, where they are found.
    """

    recipe: str
    data: Path
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


@dataclass
class _Run:
    """Everything one training needs while it runs.

    ``log`` has one line per validation; ``starts`` the models it began with, see `begin_with`.
    """

    options: TrainOptions
    recipe: Recipe
    limit_s: float
    fabric: Fabric
    network: Network
    supervised: Callable[[torch.Tensor], Outputs]
    loss: Loss
    optimizer: torch.optim.Optimizer
    sampler: PatchSampler
    validation: list[Study]
    test: list[str] = field(default_factory=list)
    starts: dict[str, dict[str, str]] = field(default_factory=dict)
    patches: int = 0
    time_s: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)
    log: list[dict[str, float]] = field(default_factory=list)

    @property
    def scores(self) -> list[float]:
        return [line["dice_mean"] for line in self.log]

    @property
    def best(self) -> dict[str, float]:
        return max(self.log, key=lambda line: line["dice_mean"], default={})


def train(options: TrainOptions) -> TrainResult:
    """Train a recipe on the labelled studies of a folder.

    Leaves in ``output``: model.safetensors (best validation Dice), last.safetensors, checkpoint.pt (for ``resume``),
    recipe.json, log.csv, run.json. Studies that cannot be read are left out and reported. What the recipe starts from is
    trained first, or taken over where it is found trained.

    Raises:
        UsageError: the recipe, a setting or the folds do not exist, or the output already holds a training.
        InputError: no study is left, or the loss is not finite.
        Interrupted: Ctrl-C was pressed; the step at hand was finished and everything is saved.
    """
    recipe = with_settings(find_recipe(options.recipe), options.settings)
    _refuse_wrong_place(options, recipe)
    studies = [s for s in find_studies(options.data, parse_labels(options.labels)) if s.label or s.problem]
    split = _divide(options, recipe, studies)
    check(recipe)
    result = _train(options, recipe, split)
    unused = len(studies) - sum(len(part) for part in split)
    odd = [f"{unused} studies are in no fold of {options.folds} and are not used"] if unused else []
    return replace(result, warnings=odd + result.warnings, layouts=count_layouts(studies))


def _train(options: TrainOptions, recipe: Recipe, split: _Split) -> TrainResult:
    """One training of the studies as divided, after those that it starts from, which see the same studies."""
    record = RunRecord("train", options)
    write_file(options.output / "recipe.json", recipe_json(recipe).encode())
    starts, limit_s = _starts(options, recipe, split)
    training, validation, test = split
    found = prepare_studies(training, validation, recipe, quiet=options.quiet)
    run = _set_up(options, recipe, found, limit_s)
    run.test = [s.id for s in test]
    if (options.output / CHECKPOINT).exists():
        _restore(run)
    else:
        run.starts = begin_with(run.network, starts)
    warnings = [f"reproduction: {text}" for text in cautions(recipe)]
    warnings += [f"it starts from {name}, which did not come to its end ({how['ended']})"
                 for name, how in run.starts.items() if how["ended"] not in FINISHED] + found.warnings  # fmt: skip
    with interruptible(run.stop):
        ended = _fit(run)
    _save(run)
    used: dict[str, Any] = {"training": [s.id for s in found.training], "validation": [s.id for s in found.validation]}
    used |= {"test": run.test, "failed": found.failed}
    outcome = {"ended": ended, "patches": run.patches, "train_time_s": run.time_s, "best": run.best}
    outcome |= {"studies": used, "warnings": warnings, "inputs_sha256": found.inputs_sha256}
    outcome["starts_from"] = run.starts
    outcome["outputs_sha256"] = {p.name: sha256(p) for p in sorted(options.output.glob("*.safetensors"))}
    content = record.content(seed=options.seed, threads=torch.get_num_threads(), **outcome)
    write_file(options.output / "run.json", json_bytes(content))
    if run.stop.is_set():
        raise Interrupted(f"interrupted after {run.patches} patches; continue with the same command and --resume")
    best = {r: run.best[f"dice_{r}"] for r in recipe.target.regions} if run.best and found.validation else {}
    model = options.output / MODEL
    return TrainResult(model, best, run.patches, ended, found.failed, warnings)


def _refuse_wrong_place(options: TrainOptions, recipe: Recipe) -> None:
    """An output that holds a training is continued only when asked to, and only with its own recipe."""
    begun = (options.output / CHECKPOINT).exists() or any((options.output / STARTS).rglob(CHECKPOINT))
    if begun and not options.resume:
        raise UsageError(
            f"{options.output} already holds a training; continue it with --resume or choose another place with -o"
        )
    if options.resume and not begun:
        raise InputError(f"{options.output} has no {CHECKPOINT}, so there is nothing to resume; train without --resume")
    written = options.output / "recipe.json"
    if options.resume and written.exists() and find_recipe(str(written)) != recipe:
        raise UsageError(f"the recipe is not the one in {options.output}; resume with the same recipe and settings")


def _divide(options: TrainOptions, recipe: Recipe, studies: list[Study]) -> _Split:
    if not studies:
        raise InputError(f"{options.data} has no study with a label map; training needs labelled studies")
    if options.folds is not None:
        return (*read_fold(options.folds, options.fold, studies), [])
    settings = recipe.training
    return draw_split(studies, settings.validation_share, settings.test_share, options.fold, options.seed)


def _starts(options: TrainOptions, recipe: Recipe, split: _Split) -> tuple[list[tuple[Start, Path]], float]:
    """The trained models that this training begins with, and the seconds that are left for itself.

    Each is one found below or beside the output (see `finished_training`), or is trained now, below the output. What time
    is left is divided equally among the trainings that have still to run.
    """
    limit, device = options.max_time_s or math.inf, find_device(options.device)
    if (options.output / CHECKPOINT).exists():  # which holds them already
        check_memory(recipe, device)
        return [], limit - sum(training_time_s(own_place(options.output, start)) for start in recipe.starts_from)
    folders: list[Path | None] = []
    for start in recipe.starts_from:
        places = [own_place(options.output, start), *places_beside(options.output)]
        alike = (start.recipe, options.seed, options.labels, split)
        folders.append(finished_training(places, *alike, cut_too=options.cut_starts))
    missing = [start for start, folder in zip(recipe.starts_from, folders, strict=True) if folder is None]
    for needed in [*(start.recipe for start in missing), recipe]:
        check_memory(needed, device)
    for number, start in enumerate(missing):
        own = own_place(options.output, start)
        share = limit / (len(missing) - number + 1)
        _train(replace(options, output=own, max_time_s=share), start.recipe, split)
        limit = max(limit - training_time_s(own), 1e-3)  # time for one step is always left
    found = zip(recipe.starts_from, folders, strict=True)
    return [(start, folder or own_place(options.output, start)) for start, folder in found], limit


def _set_up(options: TrainOptions, recipe: Recipe, found: PreparedStudies, limit_s: float) -> _Run:
    settings = recipe.training
    device = find_device(options.device)
    fabric = Fabric(accelerator=device.type, devices=1)
    torch.manual_seed(options.seed)
    network = channels_last(build_network(recipe))
    network.freeze(recipe.frozen)
    optimizer = torch.optim.Adam(
        network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, amsgrad=settings.amsgrad
    )
    wrapped, wrapped_optimizer = fabric.setup(network, optimizer)
    wrapped.mark_forward_method("supervised")
    sampler = PatchSampler(found.training, settings, options.seed)
    loss = build_loss(settings.loss)
    return _Run(options, recipe, limit_s, fabric, network, wrapped.supervised, loss, wrapped_optimizer, sampler,
                found.validation)  # fmt: skip


def _fit(run: _Run) -> str:
    """Train until the budget or the time is used up, the scores no longer rise or somebody stops it; returns which."""
    settings = run.recipe.training
    budget, limit = settings.patches, run.limit_s
    begun, saved = time.perf_counter() - run.time_s, time.perf_counter()
    losses: list[dict[str, float]] = []
    with progress_bar("training", budget, quiet=run.options.quiet) as bar:
        if not any(p.requires_grad for p in run.network.parameters()):
            if not run.log:
                _validate(run, losses, bar)
            return NOTHING
        bar.advance(run.patches)
        while run.patches < budget and run.time_s < limit and not run.stop.is_set() and not _stops_early(run):
            before = run.patches
            losses.append(_step(run, bar))
            run.time_s = time.perf_counter() - begun
            every = settings.validate_every
            if run.patches // every > before // every or run.patches >= budget or run.time_s >= limit:
                _validate(run, losses, bar)
                losses = []
                run.time_s = time.perf_counter() - begun
                saved = time.perf_counter()
            elif time.perf_counter() - saved > CHECKPOINT_EVERY_S:
                _save(run)
                saved = time.perf_counter()
    if run.patches >= budget:
        return ENOUGH
    if _stops_early(run):
        return STOPPED_EARLY
    return "interrupted" if run.stop.is_set() else OUT_OF_TIME


def _stops_early(run: _Run) -> bool:
    """Whether the last ``early_stopping`` validations were all no better than one before them."""
    patience, scores = run.recipe.training.early_stopping, run.scores
    return patience is not None and bool(scores) and len(scores) - 1 - scores.index(max(scores)) >= patience


def _step(run: _Run, bar: Bar) -> dict[str, float]:
    settings = run.recipe.training
    count = min(settings.batch_size, settings.patches - run.patches)
    images, classes, ids, generators = run.sampler.batch(run.patches, count)
    draws = [augment.draw(run.recipe.augmentation, images.shape[1], settings.patch_size, rng) for rng in generators]
    x, y = run.fabric.to_device((torch.from_numpy(images), torch.from_numpy(classes)))
    x, y = augment.apply(x, y, draws)
    factor = rate_factor(settings, run.patches / settings.patches, run.scores)
    for group in run.optimizer.param_groups:
        group["lr"] = settings.learning_rate * factor
    if run.network.spatial_dims == 2:
        x, y = as_slices(x), as_slices(y)
    seed = np.random.default_rng([run.options.seed, 3, run.patches]).integers(2**62)
    torch.manual_seed(int(seed))  # dropout, too, depends on the seed and the patch alone
    outputs = run.supervised(fast_layout(x))
    terms = run.loss(outputs, y, run.recipe.target, run.patches // settings.validate_every)
    loss = torch.stack(list(terms.values())).sum()
    values = {name: float(term.detach()) for name, term in terms.items()}
    if not math.isfinite(sum(values.values())):
        raise InputError(
            f"the loss is not finite after {run.patches} patches ({values}), with the studies {', '.join(ids)} in the batch. "
            "Look at these studies, or train anew with a lower training.learning_rate"
        )
    run.optimizer.zero_grad()
    run.fabric.backward(loss)
    run.optimizer.step()
    run.patches += count
    bar.advance(count)
    return values


def _validate(run: _Run, losses: list[dict[str, float]], bar: Bar) -> None:
    """Segment the validation studies as `gliomap segment` would, log, and keep the best and the last weights."""
    segmenter = Segmenter(run.recipe, torch_engine(run.network, run.fabric.device), run.network.divisors)
    regions = run.recipe.target.regions
    found: list[list[float]] = []
    for number, study in enumerate(run.validation):
        bar.say(f"validating {number + 1}/{len(run.validation)}")
        volume, _ = study.read(run.recipe.modalities)
        truth = study.read_classes()[0]
        classes = segmenter(volume, truth).array[0]
        scores = [dice(region_mask(classes, region), region_mask(truth.array[0], region)) for region in regions]
        found.append([1.0 if math.isnan(score) else score for score in scores])
    means = np.mean(found, 0) if found else np.full(len(regions), math.nan)
    rate = run.optimizer.param_groups[0]["lr"]
    terms = {
        f"loss_{name}": float(np.mean([v[name] for v in losses]))
        for name in dict.fromkeys(n for v in losses for n in v)
    }
    validation = {f"dice_{region}": float(mean) for region, mean in zip(regions, means, strict=True)}
    mean_dice = float(means.mean()) if found else -sum(terms.values())
    line = {"patches": run.patches, "time_s": round(run.time_s, 1), "learning_rate": rate, **terms, **validation}
    run.log.append(line | {"dice_mean": mean_dice})
    bar.say(f"training, validation Dice {mean_dice:.3f}" if found else "training")
    if run.best is run.log[-1]:
        _save_weights(
            run, MODEL
        )  # before the checkpoint that says so: whoever resumes from an older one makes it again
    _save(run)


def _save(run: _Run) -> None:
    """The state to resume from, the last weights and the log."""
    state: dict[str, Any] = {
        "network": run.network.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "patches": run.patches,
        "time_s": run.time_s,
        "log": run.log,
        "starts": run.starts,
        "seed": run.options.seed,
        "training_studies": [s.id for s in run.sampler.studies],
    }
    save_checkpoint(run.options.output / CHECKPOINT, state)
    _save_weights(run, "last.safetensors")
    if run.log:
        write_file(run.options.output / "log.csv", table_csv(run.log, list(run.log[0])))


def _save_weights(run: _Run, name: str) -> None:
    weights = {key: tensor.contiguous().cpu().numpy() for key, tensor in run.network.state_dict().items()}
    card = {
        "patches": run.patches,
        "seed": run.options.seed,
        "validation": plain(run.log[-1]) if run.log else {},
        "training_studies": [s.id for s in run.sampler.studies],
        "validation_studies": [s.id for s in run.validation],
        "test_studies": run.test,
        "cautions": cautions(run.recipe),
        "starts_from": run.starts,
    }
    save_model(run.options.output / name, run.recipe, weights, card)


def _restore(run: _Run) -> None:
    state = load_checkpoint(run.options.output / CHECKPOINT)
    if state["seed"] != run.options.seed or state["training_studies"] != [s.id for s in run.sampler.studies]:
        raise UsageError(
            "the seed or the training studies are not those of the checkpoint; resume with the same data and seed"
        )
    run.network.load_state_dict(state["network"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.patches, run.time_s, run.log, run.starts = (state[name] for name in ("patches", "time_s", "log", "starts"))
    settings = run.recipe.training
    before = (run.patches - settings.batch_size) // settings.validate_every
    if run.log and run.patches < settings.patches and run.patches // settings.validate_every == before:
        run.log = [
            line for line in run.log if line["patches"] < run.patches
        ]  # made by the time limit, not by an epoch's end
