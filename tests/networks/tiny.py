"""Settings that make each network tiny: a few thousand parameters, run in milliseconds."""

from typing import Any

BACKBONES: dict[str, Any] = {
    "dynunet": {"filters": (4, 4, 4)},
    "segresnet": {"init_filters": 8, "blocks_down": (1, 1), "blocks_up": (1,)},
}

TINY: dict[str, dict[str, Any]] = {
    "aspp_attention_unet": {"base": 4, "depth": 2, "aspp_blocks": 2, "aspp_width": 4, "spp_width": 4},
    "attention_resunet": {"base": 4},
    "attention_unet": {"filters": (4, 4, 4)},
    "cga_unet": {"base": 2, "groups": 2, "blocks": (1, 1, 1, 1)},
    "druwas": {"base": 8, "depth": 2},
    "dual_fusion": {**BACKBONES, "width": 4, "grid": 2},
    "dynunet": {"filters": (4, 4, 4)},
    "early_fusion": {**BACKBONES, "width": 4},
    "late_fusion": BACKBONES,
    "segresnet": {"init_filters": 8, "blocks_down": (1, 1), "blocks_up": (1,)},
    "swin_unetr": {"feature_size": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "window_size": 2},
    "unet2d": {"base": 4, "depth": 2},
    "unet3d": {"filters": (4, 4, 4, 4, 4)},
    "unetr": {"patch_size": (16, 16, 32), "feature_size": 4, "hidden_size": 12, "mlp_size": 12, "num_heads": 1},
    "vnet": {},
}
