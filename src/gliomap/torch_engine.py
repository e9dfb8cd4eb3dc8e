"""Networks run by PyTorch, on a CPU or a GPU."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gliomap.errors import IntegrityError, UsageError
from gliomap.model_file import Model
from gliomap.networks import Network, as_slices, build_network, channels_last, fast_layout
from gliomap.networks.counting import count_forward
from gliomap.recipe import Recipe, Size, recipe_from_json, recipe_json

Array = np.ndarray[Any, np.dtype[Any]]

SLICES_PER_BATCH = 8
"""Slices of a volume that a 2-D network sees at once; more are no faster on a CPU and need more memory."""


def torch_engine(network: Network, device: torch.device | str = "cpu") -> Callable[[Array], Array]:
    """What runs a network as it is now, in evaluation mode, on a device; a 2-D network slice by slice. See `Engine.run`."""

    def run(images: Array) -> Array:
        was_training = network.training
        network.eval()
        try:
            with torch.inference_mode():
                return _run(network, torch.from_numpy(np.ascontiguousarray(images)).to(device)).float().cpu().numpy()
        finally:
            network.train(was_training)

    return run


def _run(network: Network, batch: Tensor) -> Tensor:
    if network.spatial_dims == 3:
        return network(fast_layout(batch))
    slices = as_slices(batch).split(SLICES_PER_BATCH)  # (8, C, H, W) each
    logits = torch.cat([network(fast_layout(part)) for part in slices])
    return logits.unflatten(0, (batch.shape[0], -1)).movedim(1, 2)  # (B, K, D, H, W)


def only_size(network: Network) -> Size | None:
    """The one size D, H, W that a network takes, of those that take no other."""
    return getattr(network, "patch_size", None)


def bytes_per_voxel(recipe: Recipe) -> float:
    """The memory that a forward pass of the recipe's network takes for each voxel of the images, beyond the weights."""
    return _bytes_per_voxel(recipe_json(recipe))


@lru_cache(maxsize=64)
def _bytes_per_voxel(recipe_text: str) -> float:
    recipe = recipe_from_json(recipe_text)
    with torch.device("meta"):
        network = build_network(recipe)
    size = only_size(network) or tuple(2 * n for n in network.divisors)
    shown = size[-network.spatial_dims :]
    return count_forward(network, shown).memory_bytes / math.prod(shown)


def load_networks(model: Model, device: torch.device | str = "cpu") -> tuple[Network, ...]:
    """The networks of a model file with their weights, in float32: one, or those of an ensemble.

    Raises:
        IntegrityError: the weights do not fit the network that the recipe names.
    """
    return tuple(_loaded(model, weights, device) for weights in model.members)


def _loaded(model: Model, weights: dict[str, Array], device: torch.device | str) -> Network:
    network = build_network(model.recipe)
    state = {name: torch.from_numpy(array) for name, array in weights.items()}
    state = {name: t.float() if t.is_floating_point() else t for name, t in state.items()}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise IntegrityError(
            f"the weights of model {model.name} do not fit its recipe: {str(error).splitlines()[0]}"
        ) from error
    return channels_last(network).to(device).eval()


def find_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU; other names as torch knows them.

    Raises:
        UsageError: torch knows no such device, or this machine has no CUDA.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"no device is called {name!r}; expected auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("torch finds no CUDA device on this machine; choose --device cpu, or install torch with CUDA")
    return device
