"""NETWORKS: every network by name. One file per paper."""

from collections.abc import Callable

from gliomap.errors import UsageError
from gliomap.networks.aspp_attention_unet import ASPPAttentionUNet, unet2d
from gliomap.networks.attention_resunet import AttentionResUNet
from gliomap.networks.backbones import DynUNet, SegResNet
from gliomap.networks.base import Network, Outputs, as_slices
from gliomap.networks.baselines import UNETR, AttentionUNet, SwinUNETR, UNet3d, VNet
from gliomap.networks.cga_unet import CGAUNet
from gliomap.networks.druwas import DRUwAS
from gliomap.networks.dual_fusion import DualFusion, EarlyFusion, LateFusion
from gliomap.recipe import Recipe

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
    try:
        return NETWORKS[spec.name](len(recipe.modalities), len(recipe.target.channels), **spec.settings)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise UsageError(f"network {spec.name} does not take these settings: {error}") from error


__all__ = ["NETWORKS", "Network", "Outputs", "as_slices", "build_network"]
