"""The networks of the field that gliomap compares with, each a MONAI network behind gliomap's contract.

``UNet3d`` (Cicek 2016), ``VNet`` (Milletari 2016), ``AttentionUNet`` (Oktay 2018), ``UNETR`` and ``SwinUNETR`` (Hatamizadeh
2022); ``DynUNet`` and ``SegResNet`` are in ``backbones``. The layers are MONAI's own, and so are the names of the weights
below ``network.``. Nothing is added but the checked input size and the attention gates by name.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gliomap.errors import InputError
from gliomap.networks.base import Network, Outputs


class Baseline(Network):
    """The network of that name in MONAI, built with ``settings``, from images to logits of the same size."""

    def __init__(
        self, name: str, in_channels: int, out_channels: int, *, size_divisor: int, **settings: object
    ) -> None:
        from monai.networks import nets  # noqa: PLC0415 - takes over a second, and most runs build none of these

        super().__init__()
        self.network: Any = getattr(nets, name)(
            spatial_dims=3, in_channels=in_channels, out_channels=out_channels, **settings
        )
        self.in_channels = in_channels
        self.size_divisor = size_divisor

    def supervised(self, x: Tensor) -> Outputs:
        """Logits (B, K, D, H, W) of images (B, C, D, H, W); see `Network.supervised`."""
        self.check_input(x)
        return Outputs((self.network(x),))


class UNet3d(Baseline):
    """The 3-D U-Net: two convolutions per level, maximum pooling, transposed convolutions; instance normalisation.

    Args:
        in_channels: modalities.
        out_channels: logits.
        filters: width of each of the five levels, finest first.
        dropout: share of channels dropped in training.
    """

    instance_norm = True

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 3,
        *,
        filters: Sequence[int] = (32, 64, 128, 256, 512),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            "BasicUNet",
            in_channels,
            out_channels,
            size_divisor=16,
            features=(*filters, filters[0]),
            dropout=dropout,
        )


class VNet(Baseline):
    """V-Net: 5x5x5 convolutions with residuals, five levels of width 16 to 256; 16 must be a multiple of ``in_channels``."""

    def __init__(self, in_channels: int = 4, out_channels: int = 3) -> None:
        super().__init__("VNet", in_channels, out_channels, size_divisor=16)


class AttentionUNet(Baseline):
    """Attention U-Net: gates on the skips that see the decoder's map of the same size.

    Args:
        in_channels: modalities.
        out_channels: logits.
        filters: width of each level, finest first.
        dropout: share of channels dropped in training.
    """

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 3,
        *,
        filters: Sequence[int] = (32, 64, 128, 256, 512),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            "AttentionUnet",
            in_channels,
            out_channels,
            size_divisor=2 ** (len(filters) - 1),
            channels=tuple(filters),
            strides=(2,) * (len(filters) - 1),
            dropout=dropout,
        )

    def attention(self, x: Tensor) -> dict[str, Tensor]:
        """AG_k, the psi of each gate, from the finest: (B, 1, D, H, W) / 2^(k-1)."""
        self.check_input(x)
        found: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: tuple[Tensor, ...], psi: Tensor) -> None:
            found.append(psi)

        gates = [module for name, module in self.network.named_modules() if name.endswith("attention.psi")]
        hooks = [gate.register_forward_hook(keep) for gate in gates]
        try:
            self.network(x)
        finally:
            for hook in hooks:
                hook.remove()
        return {f"AG_{level}": psi for level, psi in enumerate(reversed(found), 1)}  # the coarsest gate runs first


class UNETR(Baseline):
    """UNETR: a vision transformer on patches of 16^3 voxels as the encoder. It takes images of exactly ``patch_size``.

    Args:
        in_channels: modalities.
        out_channels: logits.
        patch_size: D, H, W of every image, multiples of 16; each place has a learnt embedding.
        feature_size: width of the convolutional decoder's finest level.
        hidden_size: width of the transformer.
        mlp_size: width between the two layers of its perceptrons.
        num_heads: of its attention.
    """

    def __init__(  # noqa: PLR0913 - every size of the network is a named argument
        self,
        in_channels: int = 4,
        out_channels: int = 3,
        *,
        patch_size: Sequence[int] = (128, 128, 128),
        feature_size: int = 16,
        hidden_size: int = 768,
        mlp_size: int = 3072,
        num_heads: int = 12,
    ) -> None:
        size = tuple(patch_size)
        if len(size) != 3 or any(n % 16 for n in size):
            raise ValueError(f"got patch_size {size}; expected three multiples of 16")
        super().__init__(
            "UNETR",
            in_channels,
            out_channels,
            size_divisor=16,
            img_size=size,
            feature_size=feature_size,
            hidden_size=hidden_size,
            mlp_dim=mlp_size,
            num_heads=num_heads,
        )
        for block in self.network.vit.blocks:  # MONAI builds a second attention in each, which UNETR never asks for
            block.norm_cross_attn, block.cross_attn = nn.Identity(), nn.Identity()
        self.patch_size = size

    def check_input(self, x: Tensor) -> None:
        """Refuse images of any size but ``patch_size``; see `Network.check_input`."""
        if x.ndim == 5 and tuple(x.shape[2:]) != self.patch_size:
            raise InputError(
                f"got images of size {tuple(x.shape[2:])}; this network was built for {self.patch_size} and takes no other: "
                "set inference.window to that size"
            )
        super().check_input(x)


class SwinUNETR(Baseline):
    """Swin UNETR: a transformer with shifted windows as the encoder, in the sizes of its BraTS 2021 entry.

    Args:
        in_channels: modalities.
        out_channels: logits.
        feature_size: width of the first stage, a multiple of 12; each stage doubles it.
        depths: transformer blocks of each stage.
        num_heads: attention heads of each stage.
        window_size: edge of the windows, in tokens.
        recompute: activations of the transformer are computed again for the backward pass instead of being kept.
    """

    instance_norm = True

    def __init__(  # noqa: PLR0913 - every size of the network is a named argument
        self,
        in_channels: int = 4,
        out_channels: int = 3,
        *,
        feature_size: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        recompute: bool = False,
    ) -> None:
        with torch.device("cpu"):  # MONAI reads numbers from a tensor while it builds, and the meta device has none
            super().__init__(
                "SwinUNETR",
                in_channels,
                out_channels,
                size_divisor=32,
                feature_size=feature_size,
                depths=tuple(depths),
                num_heads=tuple(num_heads),
                window_size=window_size,
                use_checkpoint=recompute,
            )
        self.to(torch.get_default_device())
