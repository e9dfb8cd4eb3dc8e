"""gliomap train: a recipe and labelled studies in, a model file out. Read from top to bottom in the order of time."""

import csv
import io
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from gliomap import augment
from gliomap.checkpoint import load_checkpoint, save_checkpoint
from gliomap.classes import REGIONS, region_mask
from gliomap.data.datasets import count_layouts, find_studies, parse_labels
from gliomap.data.folds import patient_folds, read_fold
from gliomap.data.patches import PatchSampler, PreparedStudy, prepare_study
from gliomap.data.study import Study
from gliomap.engines import channels_last, find_device, torch_engine
from gliomap.errors import InputError, Interrupted, UsageError, reason
from gliomap.files import json_bytes, sha256, write_file
from gliomap.losses import build_loss
from gliomap.manifest import RunRecord, plain
from gliomap.metrics import dice
from gliomap.model_file import save_model
from gliomap.networks import Network, Outputs, build_network
from gliomap.progress import Bar, progress_bar
from gliomap.recipe import Recipe, recipe_json, with_settings
from gliomap.recipes import find_recipe
from gliomap.schedules import rate_factor
from gliomap.segmenter import Segmenter

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_EVERY_S = 120.0


@dataclass(frozen=True)
class TrainOptions:
    """What `train` is asked for.

    ``recipe``: a recipe's name or JSON file, with ``settings`` such as ``training.patches=2000``. Validation studies are
    fold ``fold`` of ``folds``, or a fifth of the patients drawn by ``seed``. ``max_time_s`` ends training early.
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


@dataclass(frozen=True)
class TrainResult:
    """What `train` did: the best model, its validation Dice, patches seen, why it ended, the studies left out, and warnings."""

    model: Path
    validation_dice: dict[str, float]
    patches: int
    ended: str
    failed: dict[str, str]
    warnings: list[str]
    layouts: dict[str, int]


@dataclass
class _Run:
    """Everything one training needs while it runs; ``log`` has one line per validation."""

    options: TrainOptions
    recipe: Recipe
    fabric: Fabric
    network: Network
    supervised: Callable[[torch.Tensor], Outputs]
    optimizer: torch.optim.Optimizer
    sampler: PatchSampler
    validation: list[Study]
    patches: int = 0
    time_s: float = 0.0
    stop: bool = False
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
    recipe.json, log.csv, run.json. Studies that cannot be read are left out and reported.

    Raises:
        UsageError: the recipe, a setting or the folds do not exist, or the output already holds a training.
        InputError: no study is left, or the loss is not finite.
        Interrupted: Ctrl-C was pressed; the step at hand was finished and everything is saved.
    """
    record = RunRecord("train", options)
    recipe = _recipe(options)
    studies = [s for s in find_studies(options.data, parse_labels(options.labels)) if s.label or s.problem]
    training, validation = _divide(options, studies)
    unused = len(studies) - len(training) - len(validation)
    prepared, validation, failed, warnings, inputs = _read(training, validation, recipe, quiet=options.quiet)
    if unused:
        warnings.append(f"{unused} studies are in no fold of {options.folds} and are not used")
    run = _set_up(options, recipe, prepared, validation)
    write_file(options.output / "recipe.json", recipe_json(recipe).encode())
    if options.resume:
        _restore(run)
    with _interruptible(run):
        ended = _fit(run)
    _save(run)
    used = {"training": [s.id for s in prepared], "validation": [s.id for s in validation], "failed": failed}
    outcome = {"ended": ended, "patches": run.patches, "train_time_s": run.time_s, "best": run.best}
    outcome |= {"studies": used, "warnings": warnings, "inputs_sha256": inputs}
    outcome["outputs_sha256"] = {p.name: sha256(p) for p in sorted(options.output.glob("*.safetensors"))}
    content = record.content(seed=options.seed, threads=torch.get_num_threads(), **outcome)
    write_file(options.output / "run.json", json_bytes(content))
    if run.stop:
        raise Interrupted(f"interrupted after {run.patches} patches; continue with the same command and --resume")
    best = {region: run.best[f"dice_{region}"] for region in REGIONS} if run.best and validation else {}
    model = options.output / "model.safetensors"
    return TrainResult(model, best, run.patches, ended, failed, warnings, count_layouts(studies))


@contextmanager
def _interruptible(run: _Run) -> Iterator[None]:
    """Ctrl-C lets the step or validation at hand end, so that what is saved is whole; a second one leaves at once."""

    def stop(*_: object) -> None:
        if run.stop:
            raise KeyboardInterrupt
        run.stop = True

    if threading.current_thread() is not threading.main_thread():  # only the main thread is told of Ctrl-C
        yield
        return
    previous = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _recipe(options: TrainOptions) -> Recipe:
    recipe = with_settings(find_recipe(options.recipe), options.settings)
    begun = (options.output / CHECKPOINT).exists()
    if begun and not options.resume:
        raise UsageError(
            f"{options.output} already holds a training; continue it with --resume or choose another place with -o"
        )
    if options.resume and not begun:
        raise InputError(f"{options.output} has no {CHECKPOINT}, so there is nothing to resume; train without --resume")
    if options.resume and find_recipe(str(options.output / "recipe.json")) != recipe:
        raise UsageError(f"the recipe is not the one in {options.output}; resume with the same recipe and settings")
    return recipe


def _divide(options: TrainOptions, studies: list[Study]) -> tuple[list[Study], list[Study]]:
    if not studies:
        raise InputError(f"{options.data} has no study with a label map; training needs labelled studies")
    if options.folds is not None:
        return read_fold(options.folds, options.fold, studies)
    patients = len({s.patient for s in studies})
    if patients == 1:
        return studies, []
    folds = patient_folds(studies, min(5, patients), options.seed)
    if options.fold >= len(folds):
        raise UsageError(f"without --folds there are folds 0 to {len(folds) - 1}; got --fold {options.fold}")
    held_out = set(folds[options.fold])
    return [s for s in studies if s.id not in held_out], [s for s in studies if s.id in held_out]


def _read(
    training: list[Study], validation: list[Study], recipe: Recipe, *, quiet: bool
) -> tuple[list[PreparedStudy], list[Study], dict[str, str], list[str], dict[str, dict[str, str]]]:
    """Training studies in memory and validation studies that can be read, before hours are spent.

    Also what failed and why, warnings, and the hashes of the files by study.
    """
    prepared: list[PreparedStudy] = []
    usable: list[Study] = []
    failed: dict[str, str] = {}
    warnings: list[str] = []
    inputs: dict[str, dict[str, str]] = {}
    with progress_bar("reading studies", len(training) + len(validation), quiet=quiet) as bar:
        for number, study in enumerate([*training, *validation]):
            try:
                ready, odd = prepare_study(study, recipe)
                warnings += [f"{study.id}: {text}" for text in odd]
                if number < len(training):
                    prepared.append(ready)
                else:
                    usable.append(study)
                inputs[study.id] = {m: sha256(f.path) for m, f in {**study.images, "seg": study.label}.items() if f}
            except Exception as error:  # one bad study never ends a training
                failed[study.id] = reason(error)
            bar.advance()
    if not prepared:
        first = next(iter(failed.values()), "none was given")
        raise InputError(f"none of the {len(training)} training studies can be used; the first: {first}")
    return prepared, usable, failed, warnings, inputs


def _set_up(options: TrainOptions, recipe: Recipe, prepared: list[PreparedStudy], validation: list[Study]) -> _Run:
    settings = recipe.training
    device = find_device(options.device)
    fabric = Fabric(accelerator=device.type, devices=1)
    torch.manual_seed(options.seed)
    network = channels_last(build_network(recipe))
    for name, size in (("training.patch_size", settings.patch_size), ("inference.window", recipe.inference.window)):
        if size is not None and any(n % network.size_divisor for n in size):
            raise UsageError(f"{name} is {size}; expected multiples of {network.size_divisor}, which the network needs")
    optimizer = torch.optim.Adam(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    wrapped, wrapped_optimizer = fabric.setup(network, optimizer)
    wrapped.mark_forward_method("supervised")
    sampler = PatchSampler(prepared, settings, options.seed)
    return _Run(options, recipe, fabric, network, wrapped.supervised, wrapped_optimizer, sampler, validation)


def _fit(run: _Run) -> str:
    """Train until the budget or the time is used up or somebody stops it; returns which."""
    budget, limit = run.recipe.training.patches, run.options.max_time_s or math.inf
    begun, saved = time.perf_counter() - run.time_s, time.perf_counter()
    losses: list[dict[str, float]] = []
    with progress_bar("training", budget, quiet=run.options.quiet) as bar:
        bar.advance(run.patches)
        while run.patches < budget and run.time_s < limit and not run.stop:
            before = run.patches
            losses.append(_step(run, bar))
            run.time_s = time.perf_counter() - begun
            every = run.recipe.training.validate_every
            if run.patches // every > before // every or run.patches >= budget or run.time_s >= limit:
                _validate(run, losses, bar)
                losses = []
                run.time_s = time.perf_counter() - begun
                saved = time.perf_counter()
            elif time.perf_counter() - saved > CHECKPOINT_EVERY_S:
                _save(run)
                saved = time.perf_counter()
    if run.patches >= budget:
        return "budget reached"
    return "interrupted" if run.stop else "time limit reached"


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
    outputs = run.supervised(x.contiguous(memory_format=torch.channels_last_3d))
    terms = build_loss(settings.loss)(outputs, y, run.recipe.target, run.patches // settings.validate_every)
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
    engine = torch_engine(run.network, run.fabric.device)
    segmenter = Segmenter(run.recipe, engine, run.network.size_divisor)
    found: list[list[float]] = []
    for number, study in enumerate(run.validation):
        bar.say(f"validating {number + 1}/{len(run.validation)}")
        volume, _ = study.read(run.recipe.modalities)
        truth = study.read_classes()[0].array[0]
        classes = segmenter(volume).array[0]
        scores = [dice(region_mask(classes, region), region_mask(truth, region)) for region in REGIONS]
        found.append([1.0 if math.isnan(score) else score for score in scores])
    means = np.mean(found, 0) if found else np.full(3, math.nan)
    rate = run.optimizer.param_groups[0]["lr"]
    terms = {f"loss_{name}": float(np.mean([v[name] for v in losses])) for name in losses[0]}
    validation = {f"dice_{region}": float(mean) for region, mean in zip(REGIONS, means, strict=True)}
    mean_dice = float(means.mean()) if found else -sum(terms.values())
    line = {"patches": run.patches, "time_s": round(run.time_s, 1), "learning_rate": rate, **terms, **validation}
    run.log.append(line | {"dice_mean": mean_dice})
    bar.say(f"training, validation Dice {mean_dice:.3f}" if found else "training")
    _save(run)
    if run.best is run.log[-1]:
        _save_weights(run, "model.safetensors")


def _save(run: _Run) -> None:
    """The state to resume from, the last weights and the log."""
    state: dict[str, Any] = {
        "network": run.network.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "patches": run.patches,
        "time_s": run.time_s,
        "log": run.log,
        "seed": run.options.seed,
        "training_studies": [s.id for s in run.sampler.studies],
    }
    save_checkpoint(run.options.output / CHECKPOINT, state)
    _save_weights(run, "last.safetensors")
    if run.log:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(run.log[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(run.log)
        write_file(run.options.output / "log.csv", text.getvalue().encode())


def _save_weights(run: _Run, name: str) -> None:
    weights = {key: tensor.contiguous().cpu().numpy() for key, tensor in run.network.state_dict().items()}
    card = {
        "patches": run.patches,
        "seed": run.options.seed,
        "validation": plain(run.log[-1]) if run.log else {},
        "training_studies": [s.id for s in run.sampler.studies],
        "validation_studies": [s.id for s in run.validation],
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
    run.patches, run.time_s, run.log = state["patches"], state["time_s"], state["log"]
