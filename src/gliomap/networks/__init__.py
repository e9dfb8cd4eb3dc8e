"""NETWORKS: every network by name. One file per paper."""

from collections.abc import Callable

from gliomap.errors import UsageError
from gliomap.networks.attention_resunet import AttentionResUNet
from gliomap.networks.base import Network, Outputs
from gliomap.networks.druwas import DRUwAS
from gliomap.recipe import Recipe

NETWORKS: dict[str, Callable[..., Network]] = {
    "attention_resunet": AttentionResUNet,
    "druwas": DRUwAS,
}


def build_network(recipe: Recipe) -> Network:
    """The untrained network of a recipe.

    Raises:
        UsageError: the recipe names an unknown network or setting.
    """
    spec = recipe.network
    if spec.name not in NETWORKS:
        raise UsageError(f"no network is called {spec.name!r}; expected one of {', '.join(NETWORKS)}")
    try:
        return NETWORKS[spec.name](len(recipe.modalities), len(recipe.target.channels), **spec.settings)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise UsageError(f"network {spec.name} does not take these settings: {error}") from error


__all__ = ["NETWORKS", "Network", "Outputs", "build_network"]
