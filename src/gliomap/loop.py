"""The training loop, in the order of time: `fit`, which makes a `step`, sometimes a `validation` and a `save`, again and again."""

import itertools
import math
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gliomap import augment
from gliomap.classes import region_mask
from gliomap.data.patches import Batch, batches
from gliomap.distribution import gathered, mean_of_all, own_share, share_of_batch
from gliomap.engines import model_segmenter
from gliomap.errors import InputError
from gliomap.files import write_file
from gliomap.machine import peak_memory_mb
from gliomap.metrics import dice
from gliomap.networks import as_slices, fast_layout
from gliomap.progress import Bar, progress_bar
from gliomap.report.training import Example, example, telling
from gliomap.schedules import rate_factor
from gliomap.segmenter import Engine, Segmenter
from gliomap.starts import ENOUGH, MODEL, NOTHING, OUT_OF_TIME, STOPPED_EARLY
from gliomap.torch_engine import torch_engine
from gliomap.training_state import BEST_EPOCH, INTERRUPTED, LAST, NOT_FINITE, Run, save, save_weights

CHECKPOINT_EVERY_S = 120.0
LINES = 400
"""About so many lines has steps.csv when the budget is reached."""


def fit(run: Run) -> str:
    """Train until the budget or the time is used up, the scores no longer rise or somebody stops it; returns which."""
    progress, settings = run.progress, run.settings
    begun, saved = time.perf_counter() - progress.time_s, time.perf_counter()
    every = max(settings.patches // LINES, 1)
    with progress_bar("training", settings.patches, quiet=run.quiet) as bar, closing(_batches(run)) as coming:
        bar.advance(progress.patches)
        run.late = progress.time_s >= run.limit_s
        while not (ended := _end(run)):
            before = progress.patches
            line = step(run, next(coming), begun)
            progress.patches += settings.batch_size
            progress.time_s = time.perf_counter() - begun
            progress.epoch.append(line)
            progress.interval.append(line)
            bar.advance(settings.batch_size)
            if _passed(before, progress.patches, every):
                _log_steps(run)
            if _passed(before, progress.patches, settings.validate_every) or progress.patches >= settings.patches:
                _end_epoch(run, bar)
                progress.time_s = time.perf_counter() - begun
                save(run)
                saved = time.perf_counter()
            elif time.perf_counter() - saved > CHECKPOINT_EVERY_S:
                _save_if_possible(run, bar)
                saved = time.perf_counter()
        if ended == OUT_OF_TIME and progress.epoch:
            _end_between_epochs(run, bar)
        elif ended == NOTHING and not progress.log:
            _end_epoch(run, bar)
    save(run, ended)
    return ended


def _end(run: Run) -> str:
    """How the training has come to its end; empty while it has not."""
    patience, scores = run.settings.early_stopping, [line["dice_mean"] for line in run.progress.log]
    if not any(p.requires_grad for p in run.network.parameters()):
        return NOTHING
    if run.progress.patches >= run.settings.patches:
        return ENOUGH
    if patience is not None and scores and len(scores) - 1 - scores.index(max(scores)) >= patience:
        return STOPPED_EARLY
    stopped = run.stopped or (run.stop.is_set() and run.fabric.world_size == 1)  # several have to agree in a step
    return INTERRUPTED if stopped else OUT_OF_TIME if run.late else ""


def _batches(run: Run) -> Generator[Batch, None, None]:
    """This process's patches of every step from here on. Sample n is the same in whatever process and after whatever pause."""
    own, rank = share_of_batch(run.settings, run.fabric.world_size), run.fabric.global_rank
    firsts = itertools.count(run.progress.patches + rank * own, run.settings.batch_size)
    return batches(run.sampler, (range(first, first + own) for first in firsts), run.workers)


def step(run: Run, batch: Batch, begun: float) -> dict[str, float]:
    """One step of the optimiser, begun at that time of `time.perf_counter`; returns its losses and the norm of its gradient.

    Raises:
        InputError: one of them is not finite. The weights are as they were before, and saved.
    """
    settings, progress = run.settings, run.progress
    scores = [line["dice_mean"] for line in progress.log]
    factor = rate_factor(settings, progress.patches / settings.patches, scores)
    for group in run.optimizer.param_groups:
        group["lr"] = settings.learning_rate * factor
    statistics = [buffer.clone() for buffer in run.network.buffers()]
    line = backward(run, batch)
    trained = [p for p in run.network.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    line["gradient_norm"] = float(norm)
    late = time.perf_counter() - begun >= run.limit_s
    line = mean_of_all({**line, "stopped": run.stop.is_set(), "late": late}, run.fabric)
    run.stopped, run.late = line.pop("stopped") > 0, line.pop("late") > 0
    if not all(math.isfinite(value) for value in line.values()):
        for buffer, before in zip(run.network.buffers(), statistics, strict=True):
            buffer.copy_(before)
        raise _not_finite(run, batch, line)
    if settings.clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(trained, settings.clip_norm, norm)
    run.optimizer.step()
    if run.mean is not None:
        run.mean.update_parameters(run.network)
    return line


def backward(run: Run, batch: Batch) -> dict[str, float]:
    """The gradients of a batch, which goes through the network in the recipe's parts; returns the mean of its losses."""
    settings, first = run.settings, run.progress.patches
    draws = [
        augment.draw(run.recipe.augmentation, batch.images.shape[1], settings.patch_size, rng)
        for rng in batch.generators
    ]
    seed = np.random.default_rng([run.seed, 3, first, run.fabric.global_rank]).integers(2**62)
    torch.manual_seed(int(seed))  # dropout, too, depends on the seed and the step alone
    run.optimizer.zero_grad()
    size = len(draws) // settings.accumulation
    total: dict[str, Tensor] = {}
    for start in range(0, len(draws), size):
        part = slice(start, start + size)
        x, y = run.fabric.to_device((torch.from_numpy(batch.images[part]), torch.from_numpy(batch.classes[part])))
        x, y = augment.apply(x, y, draws[part])
        if run.network.spatial_dims == 2:
            x, y = as_slices(x), as_slices(y)
        with run.fabric.no_backward_sync(run.wrapped, enabled=start + size < len(draws)):
            terms = run.loss(
                run.wrapped.supervised(fast_layout(x)), y, run.recipe.target, first // settings.validate_every
            )
            run.fabric.backward(torch.stack(list(terms.values())).sum() / settings.accumulation)
        for name, term in terms.items():
            total[name] = total.get(name, 0) + term.detach() / settings.accumulation
    values = torch.stack(list(total.values())).tolist()
    return {f"loss_{name}": value for name, value in zip(total, values, strict=True)}


def _not_finite(run: Run, batch: Batch, line: Mapping[str, float]) -> InputError:
    """What to say of a step that cannot be made; what was trained before it is saved."""
    where = f"{run.output / LAST} has the weights before it"
    try:
        save(run, NOT_FINITE)
    except InputError as error:
        where = f"the weights before it could not be saved ({error})"
    ids: list[Any] = [batch.ids]
    if run.fabric.world_size > 1:
        ids = [None] * run.fabric.world_size
        torch.distributed.all_gather_object(ids, batch.ids)
    wrong = ", ".join(f"{name} is {value}" for name, value in line.items() if not math.isfinite(value))
    first, size = run.progress.patches, run.settings.batch_size
    return InputError(
        f"not finite after {first} patches: {wrong} in step {first // size + 1}, with the studies "
        f"{', '.join(dict.fromkeys(itertools.chain(*ids)))} in the batch. {where}. Look at "
        "these studies, or train anew with a lower training.learning_rate or with training.clip_norm"
    )


def _passed(before: int, now: int, every: int) -> bool:
    return now // every > before // every


def _log_steps(run: Run) -> None:
    """A line of steps.csv: the mean of the steps since the last."""
    progress = run.progress
    memory_mb = torch.cuda.max_memory_allocated() / 1e6 if run.fabric.device.type == "cuda" else peak_memory_mb()
    line = {"patches": progress.patches, "time_s": round(progress.time_s, 3), "memory_mb": round(memory_mb)}
    line |= {"learning_rate": run.optimizer.param_groups[0]["lr"], **_means(progress.interval)}
    progress.steps.append(line)
    progress.interval = []
    if run.tracking is not None:
        run.tracking.scalars(progress.patches, line)


def _end_epoch(run: Run, bar: Bar) -> None:
    """Validate, log, and keep the weights if they are the best so far."""
    run.progress.log.append(validation(run, bar))
    run.progress.epoch = []
    if run.best is run.progress.log[-1]:
        save_weights(run, MODEL)  # before the checkpoint that says so: whoever resumes from an older one makes it again


def _end_between_epochs(run: Run, bar: Bar) -> None:
    """Validate where the time has ended, and leave the state as it was: whoever resumes comes to the same as without a limit."""
    save(run)
    epoch, best = list(run.progress.epoch), run.output / MODEL
    if run.fabric.is_global_zero and best.exists():
        write_file(run.output / BEST_EPOCH, best.read_bytes())
    _end_epoch(run, bar)
    if run.best is not run.progress.log[-1] and run.fabric.is_global_zero:
        (run.output / BEST_EPOCH).unlink(missing_ok=True)
    run.progress.epoch = epoch


def validation(run: Run, bar: Bar) -> dict[str, float]:
    """Segment the validation studies as `gliomap segment` would, each in one process; returns the line of the log."""
    engine = Engine(torch_engine(run.kept, run.fabric.device), run.kept.divisors)
    coarse = run.coarse and model_segmenter(run.coarse, run.fabric.device.type, "torch")
    segmenter = Segmenter(run.recipe, (engine,), coarse=coarse)
    if run.fabric.world_size > 1:
        for (
            buffer
        ) in run.kept.buffers():  # BatchNorm's statistics are each process's own on CPUs; those of the first are kept
            torch.distributed.broadcast(buffer, 0)
    regions = run.recipe.target.regions
    found: dict[int, list[float]] = {}
    shown: dict[int, Example] = {}
    for place, study in own_share(run.validation, run.fabric):
        bar.say(f"validating {place + 1}/{len(run.validation)}")
        volume, _ = study.read(run.recipe.modalities)
        truth = study.read_classes()[0]
        classes = segmenter(volume, truth)
        pairs = ((region_mask(classes.array[0], r), region_mask(truth.array[0], r)) for r in regions)
        found[place] = [1.0 if math.isnan(score := dice(*pair)) else score for pair in pairs]
        scores = dict(zip(regions, found[place], strict=True))
        shown = telling(shown | {place: example(study.id, volume, truth, classes, run.recipe, scores)})
    run.examples = list(telling(_of_all(shown, run)).values())
    table = gathered(found, len(run.validation), run.fabric)
    means = np.mean(table, 0) if table else np.full(len(regions), math.nan)
    losses = {name: value for name, value in _means(run.progress.epoch).items() if name.startswith("loss_")}
    mean_dice = float(means.mean()) if table else -sum(losses.values())
    line = {"patches": run.progress.patches, "time_s": round(run.progress.time_s, 1)}
    line |= {"learning_rate": run.optimizer.param_groups[0]["lr"], **losses}
    line |= {f"dice_{region}": float(mean) for region, mean in zip(regions, means, strict=True)}
    line["dice_mean"] = mean_dice
    bar.say(f"training, validation Dice {mean_dice:.3f}" if table else "training")
    if run.tracking is not None:
        run.tracking.scalars(run.progress.patches, {f"epoch/{name}": value for name, value in line.items()})
    return line


def _of_all(examples: dict[int, Example], run: Run) -> dict[int, Example]:
    """The examples of all processes, each of which has some of the studies."""
    found: list[Any] = [examples]
    if run.fabric.world_size > 1:
        found = [None] * run.fabric.world_size
        torch.distributed.all_gather_object(found, examples)
    return {place: one for part in found for place, one in part.items()}


def _means(lines: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each number over the lines that have it."""
    names = dict.fromkeys(name for line in lines for name in line)
    return {name: float(np.mean([line[name] for line in lines if name in line])) for name in names}


def _save_if_possible(run: Run, bar: Bar) -> None:
    """Between validations a training goes on when the disk is full; there is a checkpoint from before."""
    try:
        save(run)
    except InputError as error:
        if str(error) not in run.warnings:
            run.warnings.append(str(error))
        bar.say(f"training; could not save: {error}")
