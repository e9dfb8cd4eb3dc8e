"""Trainings that others begin with: finding a finished one, and putting its weights where they belong."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gliomap.checkpoint import has_checkpoint
from gliomap.data.prepared import inputs_sha256
from gliomap.data.study import Study
from gliomap.errors import InputError, UsageError
from gliomap.files import read_json, sha256
from gliomap.model_file import load_model
from gliomap.networks import Network
from gliomap.recipe import Recipe, Start
from gliomap.recipes import find_recipe

MODEL, COARSE, STARTS = "model.safetensors", "coarse.safetensors", "starts_from"
ENOUGH, STOPPED_EARLY, NOTHING, OUT_OF_TIME = (
    "budget reached",
    "stopped early",
    "nothing to train",
    "time limit reached",
)
GIVEN = "given as a model file"
FINISHED = (ENOUGH, STOPPED_EARLY, NOTHING)
"""How a training comes to its end; OUT_OF_TIME is none."""


def finished_training(
    folders: Iterable[Path],
    recipe: Recipe,
    seed: int,
    labels: str | None,
    split: Sequence[Sequence[Study]],
    *,
    cut_too: bool = False,
) -> Path | None:
    """The first of the folders with a training of this recipe and seed on these very files, read alike, that has finished.

    ``split`` begins with the studies that train and those that validate. It, and all that it began with, came to its end;
    ``cut_too``: or to that of its time.
    """
    ends = (*FINISHED, OUT_OF_TIME) if cut_too else FINISHED
    for folder in folders:
        run = _record(folder)
        try:
            same = find_recipe(str(folder / "recipe.json")) == recipe
        except (InputError, UsageError):  # no training, or somebody else's
            continue
        if not same or any(how not in ends for how in all_ends(run)):
            continue
        asked = run.get("options", {})
        alike = run.get("seed") == seed and asked.get("labels") == labels and asked.get("begin_with") is None
        if alike and _same_files(run, *split[:2]) and _model_is_whole(folder, run):
            return folder
    return None


def all_ends(run: Mapping[str, Any]) -> list[str | None]:
    """How the training of a record ended, and all that it needed before it."""
    before = [*run.get("starts_from", {}).values(), *run.get("coarse", {}).values()]
    return [run.get("ended"), *(one.get("ended") for one in before)]


def begun(output: Path) -> bool:
    """Whether a folder holds a training that can be continued, or one that this one starts from."""
    return has_checkpoint(output) or any(
        has_checkpoint(place) for place in (output / STARTS).rglob("*") if place.is_dir()
    )


def own_place(output: Path, before: Recipe) -> Path:
    """Where a training whose output that is trains a recipe that comes before it."""
    return output / STARTS / before.name


def places_beside(output: Path) -> list[Path]:
    """Where other trainings may lie: the folders beside an output, and what those started from."""
    return [*sorted(output.parent.glob("*")), *sorted(output.parent.glob(f"*/{STARTS}/*"))]


def training_time_s(folder: Path) -> float:
    """How long the training in a folder, and what it started from there, has taken so far; 0 if there is none."""
    inner = sum(training_time_s(part) for part in (folder / STARTS).glob("*"))
    return float(_record(folder).get("train_time_s", 0.0)) + inner


def begin_with(network: Network, starts: Iterable[tuple[Start, Path]]) -> dict[str, dict[str, str]]:
    """Put the weights of the trainings in these folders into the parts of a network that they begin.

    Returns, by recipe, the ``content_sha256`` of each model and how its training ``ended``.

    Raises:
        InputError, IntegrityError: as `load_model`.
        UsageError: the weights do not fit.
    """
    began: dict[str, dict[str, str]] = {}
    for start, folder in starts:
        model = load_model(folder / MODEL)
        weights = {name: torch.from_numpy(array) for name, array in model.members[0].items()}
        try:
            network.get_submodule(start.into).load_state_dict(weights)
        except (AttributeError, RuntimeError) as error:
            place = f"part {start.into!r}" if start.into else "network"
            raise UsageError(
                f"the weights of {start.recipe.name} do not fit the {place} of this recipe: {str(error).splitlines()[0]}"
            ) from error
        ended = str(_record(folder).get("ended", "unknown"))
        began[start.recipe.name] = {"content_sha256": model.content_sha256, "ended": ended}
    return began


def begin_with_model(
    network: Network, path: Path, validation: Iterable[str]
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Begin a network with the weights of a model file that it has, by name and shape; also one with another activation.

    Returns what `begin_with` does, and what to warn of: weights that are not in the file or do not fit, and studies that
    are to validate and have trained that model.

    Raises:
        InputError, IntegrityError: as `load_model`.
        UsageError: nothing fits, or it is an ensemble.
    """
    model = load_model(path)
    if len(model.prefixes) > 1:
        raise UsageError(
            f"{path} is an ensemble of {len(model.prefixes)} networks; begin with the model of one of them"
        )
    (weights,), own = model.members, network.state_dict()
    fitting = {name: torch.from_numpy(a) for name, a in weights.items() if name in own and own[name].shape == a.shape}
    other = [name for name in own if name not in fitting]
    if not any(own[name].is_floating_point() for name in fitting):
        raise UsageError(f"no weights of {path} fit the network of this recipe; begin with a model of the same network")
    network.load_state_dict(fitting, strict=False)
    odd = (
        [f"{len(other)} of {len(own)} weights are new, for {path} has none that fit: {', '.join(other[:5])}"]
        if other
        else []
    )
    seen = sorted(set(validation) & set(model.card.get("training_studies", ())))
    if seen:
        odd.append(f"{len(seen)} validation studies have trained {path}, such as {seen[0]}: their scores flatter")
    return {model.name: {"content_sha256": model.content_sha256, "ended": GIVEN}}, odd


def _record(folder: Path) -> dict[str, Any]:
    try:
        run = read_json(folder / "run.json")
    except InputError:
        return {}
    known = {"studies", "inputs_sha256", "outputs_sha256"}
    return run if isinstance(run, dict) and run.get("verb") == "train" and known <= run.keys() else {}


def _same_files(run: dict[str, Any], training: Sequence[Study], validation: Sequence[Study]) -> bool:
    """Whether a run used these studies, all that could be read, and their files are what they were."""
    used = run["studies"]
    wanted = [[s.id for s in part if s.id not in used["failed"]] for part in (training, validation)]
    if wanted != [used["training"], used["validation"]]:
        return False
    left_out = used["failed"]
    return all(
        run["inputs_sha256"].get(s.id) == inputs_sha256(s) for s in (*training, *validation) if s.id not in left_out
    )


def _model_is_whole(folder: Path, run: dict[str, Any]) -> bool:
    path = folder / MODEL
    return path.is_file() and sha256(path) == run["outputs_sha256"].get(MODEL)
