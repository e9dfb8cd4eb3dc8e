"""NETWORKS: every network by name. One file per paper."""

import inspect
from collections.abc import Callable
from typing import Any

from gliomap.errors import UsageError
from gliomap.networks.aspp_attention_unet import ASPPAttentionUNet, unet2d
from gliomap.networks.attention_resunet import AttentionResUNet
from gliomap.networks.backbones import DynUNet, SegResNet
from gliomap.networks.base import Network, Outputs, as_slices, channels_last, fast_layout, keep_heap
from gliomap.networks.baselines import UNETR, AttentionUNet, SwinUNETR, UNet3d, VNet
from gliomap.networks.cga_unet import CGAUNet
from gliomap.networks.druwas import DRUwAS
from gliomap.networks.dual_fusion import DualFusion, EarlyFusion, LateFusion
from gliomap.recipe import Recipe, setting_problems

NETWORKS: dict[str, Callable[..., Network]] = {
    "aspp_attention_unet": ASPPAttentionUNet,
    "attention_resunet": AttentionResUNet,
    "attention_unet": AttentionUNet,
    "cga_unet": CGAUNet,
    "druwas": DRUwAS,
    "dual_fusion": DualFusion,
    "dynunet": DynUNet,
    "early_fusion": EarlyFusion,
    "late_fusion": LateFusion,
    "segresnet": SegResNet,
    "swin_unetr": SwinUNETR,
    "unet2d": unet2d,
    "unet3d": UNet3d,
    "unetr": UNETR,
    "vnet": VNet,
}


def build_network(recipe: Recipe) -> Network:
    """The untrained network of a recipe.

    Raises:
        UsageError: the recipe names an unknown network or setting.
    """
    spec = recipe.network
    if spec.name not in NETWORKS:
        raise UsageError(f"no network is called {spec.name!r}; expected one of {', '.join(NETWORKS)}")
    network = NETWORKS[spec.name]
    known = {p.name: p.annotation for p in inspect.signature(network).parameters.values() if p.kind == p.KEYWORD_ONLY}
    problems = setting_problems(spec.settings, known) or _impossible_sizes(spec.settings)
    if problems:
        raise UsageError(f"network {spec.name} does not take these settings: {'; '.join(problems)}")
    try:
        return network(len(recipe.modalities), len(recipe.target.channels), **spec.settings)
    except (TypeError, ValueError, RuntimeError, LookupError, ArithmeticError) as error:
        raise UsageError(f"network {spec.name} does not take these settings: {error}") from error


def _impossible_sizes(settings: dict[str, Any]) -> list[str]:
    """Whole numbers among a network's settings are sizes and counts, others are shares."""
    found = []
    for name, value in settings.items():
        if isinstance(value, dict):
            found += _impossible_sizes(value)
        values = value if isinstance(value, list) else [value]
        if any(isinstance(n, int) and not isinstance(n, bool) and n < 1 for n in values):
            found.append(f"{name} is {value}; expected 1 or more")
        if any(isinstance(n, float) and not 0 <= n < 1 for n in values):
            found.append(f"{name} is {value}; expected at least 0 and less than 1")
    return found


__all__ = ["NETWORKS", "Network", "Outputs", "as_slices", "build_network", "channels_last", "fast_layout", "keep_heap"]
