"""The state of a training: what it needs while it runs, and how that is saved and taken up again."""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch.optim.swa_utils import AveragedModel

from gliomap.checkpoint import load_checkpoint, save_checkpoint
from gliomap.data.patches import PatchSampler
from gliomap.data.study import Study
from gliomap.errors import UsageError
from gliomap.files import json_bytes, sha256, write_file
from gliomap.losses import Loss
from gliomap.manifest import RunRecord, plain
from gliomap.model_file import Model, save_model
from gliomap.networks import Network
from gliomap.recipe import Recipe, Training, cautions
from gliomap.report.training import Example, TrainingProgress, page
from gliomap.rows import table_csv
from gliomap.starts import MODEL, OUT_OF_TIME
from gliomap.tracking import Tracking

LAST, BEST_EPOCH = "last.safetensors", "best_epoch.safetensors"
RUNNING, INTERRUPTED, NOT_FINITE = "running", "interrupted", "not finite"


@dataclass
class Progress:
    """How far a training is, in plain values: with the weights, all that the rest of it depends on.

    ``log`` has a line for each epoch, ``steps`` one for every so many patches; ``epoch`` and ``interval`` hold the losses of
    the steps that the next line of each will be the mean of.
    """

    patches: int = 0
    time_s: float = 0.0
    log: list[dict[str, float]] = field(default_factory=list)
    steps: list[dict[str, float]] = field(default_factory=list)
    epoch: list[dict[str, float]] = field(default_factory=list)
    interval: list[dict[str, float]] = field(default_factory=list)


@dataclass
class Run:
    """Everything one training needs while it runs.

    ``wrapped`` is the network as all processes train it together, ``mean`` the running mean of its weights if the recipe has
    one. ``coarse`` is the model that finds the tumour first. ``told`` is what the model's card and the record say of it besides.
    """

    recipe: Recipe
    output: Path
    seed: int
    limit_s: float
    workers: int
    quiet: bool
    fabric: Fabric
    network: Network
    wrapped: Any
    loss: Loss
    optimizer: torch.optim.Optimizer
    sampler: PatchSampler
    validation: Sequence[Study]
    record: RunRecord
    told: dict[str, Any]
    mean: AveragedModel | None = None
    coarse: Model | None = None
    tracking: Tracking | None = None
    progress: Progress = field(default_factory=Progress)
    examples: list[Example] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    stopped: bool = False
    late: bool = False

    @property
    def settings(self) -> Training:
        """How the recipe trains."""
        return self.recipe.training

    @property
    def kept(self) -> Network:
        """The network whose weights are validated and kept: their running mean if the recipe has one."""
        return self.network if self.mean is None else cast(Network, self.mean.module)

    @property
    def best(self) -> dict[str, float]:
        """The line of the best epoch; empty before the first."""
        return max(self.progress.log, key=lambda line: line["dice_mean"], default={})


def save(run: Run, ended: str = "") -> None:
    """The state to resume from, the last weights, the logs, the page and the record.

    Raises:
        InputError: they cannot be written.
    """
    if not run.fabric.is_global_zero:
        return
    progress = run.progress
    if ended != OUT_OF_TIME:  # which has saved it, before its last validation
        save_checkpoint(run.output, state_of(run))
    save_weights(run, LAST)
    for name, lines in (("log.csv", progress.log), ("steps.csv", progress.steps)):
        if lines:
            write_file(run.output / name, table_csv(lines, list(lines[0])))
    write_file(run.output / "run.json", json_bytes(_record(run, ended or RUNNING)))
    facts = {"output": str(run.output), "seed": str(run.seed), "processes": str(run.fabric.world_size)}
    shown = TrainingProgress(
        run.recipe,
        run.settings.patches,
        ended,
        progress.steps,
        progress.log,
        run.examples,
        facts,
        run.warnings,
        written=time.strftime("%d %B %Y, %H:%M:%S"),
    )
    write_file(run.output / "training.html", page(shown).encode())


def _record(run: Run, ended: str) -> dict[str, Any]:
    outcome = {"ended": ended, "patches": run.progress.patches, "train_time_s": run.progress.time_s, "best": run.best}
    outcome |= {"processes": run.fabric.world_size, "threads": torch.get_num_threads(), "warnings": run.warnings}
    outcome["outputs_sha256"] = {p.name: sha256(p) for p in sorted(run.output.glob("*.safetensors"))}
    return run.record.content(seed=run.seed, **run.told, **outcome)


def state_of(run: Run) -> dict[str, Any]:
    """What a checkpoint holds."""
    return {
        "network": run.network.state_dict(),
        "mean": run.mean.state_dict() if run.mean is not None else {},
        "optimizer": run.optimizer.state_dict(),
        "progress": asdict(run.progress),
        "starts_from": run.told["starts_from"],
        "coarse": run.told["coarse"],
        "seed": run.seed,
        "threads": torch.get_num_threads(),
        "processes": run.fabric.world_size,
        "training_studies": list(run.sampler.ids),
        "inputs_sha256": run.told["inputs_sha256"],
        "warnings": list(run.warnings),
    }


def save_weights(run: Run, name: str) -> None:
    """A model file of the weights that are kept, as they are now."""
    if not run.fabric.is_global_zero:
        return
    weights = {key: tensor.contiguous().cpu().numpy() for key, tensor in run.kept.state_dict().items()}
    card = {f"{part}_studies": ids for part, ids in run.told["studies"].items() if part != "failed"}
    card |= {"patches": run.progress.patches, "seed": run.seed, "cautions": cautions(run.recipe)}
    card |= {
        "validation": plain(run.progress.log[-1]) if run.progress.log else {},
        "starts_from": run.told["starts_from"],
        "coarse": run.told["coarse"],
    }
    save_model(run.output / name, run.recipe, weights, card, run.coarse)


def restore(run: Run) -> None:
    """Take up the last whole checkpoint in the output; what is odd about it becomes a warning.

    Raises:
        UsageError: it is of another seed or other studies.
        InputError, IntegrityError: as `load_checkpoint`.
    """
    state, odd = load_checkpoint(run.output)
    if state["seed"] != run.seed:
        raise UsageError(
            f"the checkpoint is of --seed {state['seed']} and this is {run.seed}; resume with the same command"
        )
    before, now = state["training_studies"], list(run.sampler.ids)
    if before != now:
        different = sorted(set(before) ^ set(now))[:1] or ["their order"]
        raise UsageError(
            f"the training studies are not those of the checkpoint, such as {different[0]}; resume with the same DATA, --labels, "
            "--folds, --fold and --phantoms"
        )
    files = run.told["inputs_sha256"]
    if changed := [i for i, hashes in state["inputs_sha256"].items() if files.get(i) != hashes]:
        raise UsageError(
            f"the files of {len(changed)} studies, such as {changed[0]}, are not those that the training has seen; restore them, "
            "or train anew in another place"
        )
    run.network.load_state_dict(state["network"])
    run.optimizer.load_state_dict(state["optimizer"])
    if run.mean is not None:
        run.mean.load_state_dict(state["mean"])
    run.progress = Progress(**state["progress"])
    run.told |= {part: state[part] for part in ("starts_from", "coarse")}
    for name, now in (("threads", torch.get_num_threads()), ("processes", run.fabric.world_size)):
        if state[name] != now:
            odd.append(
                f"it was begun with {state[name]} {name} and goes on with {now}: the weights will differ in rounding"
            )
    if run.fabric.is_global_zero and (run.output / BEST_EPOCH).exists():
        os.replace(run.output / BEST_EPOCH, run.output / MODEL)
    run.warnings += [*state["warnings"], *odd]


@contextmanager
def tracked(run: Run, mlflow: str | None) -> Iterator[None]:
    """While it is entered, the losses and scores of a run go to TensorBoard, and to MLflow where asked."""
    if not run.fabric.is_global_zero:
        yield
        return
    told = {"settings": plain(asdict(run.settings)), "after_patches": run.progress.patches, "warnings": run.warnings}
    with Tracking(run.output, name=run.recipe.name, mlflow=mlflow, **told) as run.tracking:
        yield
