"""Trainings that others begin with: finding a finished one, and putting its weights where they belong."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from gliomap.data.study import Study
from gliomap.errors import InputError, UsageError
from gliomap.files import read_json
from gliomap.model_file import load_model
from gliomap.networks import Network
from gliomap.recipe import Recipe, Start
from gliomap.recipes import find_recipe

ENOUGH, STOPPED_EARLY, NOTHING = "budget reached", "stopped early", "nothing to train"
"""How a training comes to its end; only one that did is taken over."""


def finished_training(
    folders: Iterable[Path], recipe: Recipe, seed: int, training: Sequence[Study], validation: Sequence[Study]
) -> Path | None:
    """The first of the folders that holds a finished training of this recipe, seed and these studies."""
    for folder in folders:
        try:
            run, written = read_json(folder / "run.json"), find_recipe(str(folder / "recipe.json"))
        except (InputError, UsageError):  # no training, or somebody else's
            continue
        if not isinstance(run, dict) or run.get("ended") not in (ENOUGH, STOPPED_EARLY, NOTHING) or written != recipe:
            continue
        used = run["studies"]
        wanted = [[s.id for s in part if s.id not in used["failed"]] for part in (training, validation)]
        if run["seed"] == seed and wanted == [used["training"], used["validation"]]:
            return folder
    return None


def begin_with(network: Network, starts: Iterable[tuple[Start, Path]]) -> dict[str, str]:
    """Put the weights of trained models into the parts of a network that they begin; returns their hashes by recipe.

    Raises:
        InputError, IntegrityError: as `load_model`.
        UsageError: the weights do not fit.
    """
    hashes: dict[str, str] = {}
    for start, path in starts:
        model = load_model(path)
        weights = {name: torch.from_numpy(array) for name, array in model.weights.items()}
        try:
            network.get_submodule(start.into).load_state_dict(weights)
        except (AttributeError, RuntimeError) as error:
            place = f"part {start.into!r}" if start.into else "network"
            raise UsageError(
                f"the weights of {start.recipe.name} do not fit the {place} of this recipe: {str(error).splitlines()[0]}"
            ) from error
        hashes[start.recipe.name] = model.content_sha256
    return hashes
