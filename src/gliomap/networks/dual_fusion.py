"""Dual-fusion attention: what two trained networks see last, fused by convolutions, global attention and local attention.

Paper 000 ("3D Dual-Fusion Attention Network for Brain Tumor Segmentation"), figure 1 and section 2:

- early-fusion attention block -> ``EarlyFusionAttention``
- global-fusion attention block and its equation -> ``GlobalFusionAttention`` and its kinds, in ``fusion_attention``
- local attention block -> ``LocalAttention``
- the network -> ``DualFusion``; the two fusions of table 2 that it is compared with -> ``EarlyFusion``, ``LateFusion``

The two networks are MONAI's DynUNet and SegResNet, as in table 1; their last feature map is what enters their final 1x1x1
convolution, at full resolution. What the paper leaves open: 32 common channels; instance normalisation and LeakyReLU within
the early-fusion block; Q from DynUNet and K from SegResNet; biases everywhere; a 1x1x1 convolution that makes the logits.
Departures: the attention, whose literal form no computer can carry out on a patch (see ``fusion_attention``); one sigmoid
per region where the paper writes "one of four classes", since the regions overlap.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gliomap.networks.backbones import DynUNet, SegResNet
from gliomap.networks.base import Network, Outputs, run
from gliomap.networks.fusion_attention import AttentionKind, global_fusion_attention


class EarlyFusionAttention(nn.Module):
    """The last feature maps of both networks to query Q, key K and value V = (E + Q + K) / 3, each (B, width, D, H, W).

    E is a residual block of 3x3x3, 1x1x1 and 3x3x3 convolutions on Q and K joined. ``separable`` splits each of its 3x3x3
    convolutions into one per channel and a 1x1x1 convolution, as the block's model Xception does.
    """

    def __init__(self, channels: tuple[int, int], width: int, *, separable: bool, recompute: bool) -> None:
        super().__init__()
        self.query = nn.Conv3d(channels[0], width, 1)
        self.key = nn.Conv3d(channels[1], width, 1)
        self.joint = ResidualBlock(2 * width, width, separable=separable)
        self.recompute = recompute

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key = self.query(first), self.key(second)
        joint = run(self.joint, torch.cat([query, key], 1), recompute=self.recompute)
        return query, key, (joint + query + key) / 3


class ResidualBlock(nn.Module):
    """3x3x3, 1x1x1 and 3x3x3 convolutions, each with instance normalisation, around them a 1x1x1 shortcut."""

    def __init__(self, in_channels: int, out_channels: int, *, separable: bool) -> None:
        super().__init__()

        def normalised(convolution: nn.Module) -> nn.Sequential:
            return nn.Sequential(convolution, nn.InstanceNorm3d(out_channels, affine=True))

        self.layers = nn.Sequential(
            normalised(_convolution(in_channels, out_channels, separable=separable)),
            nn.LeakyReLU(0.01),
            normalised(nn.Conv3d(out_channels, out_channels, 1)),
            nn.LeakyReLU(0.01),
            normalised(_convolution(out_channels, out_channels, separable=separable)),
        )
        self.shortcut = nn.Conv3d(in_channels, out_channels, 1)
        self.activation = nn.LeakyReLU(0.01)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.layers(x) + self.shortcut(x))


def _convolution(in_channels: int, out_channels: int, *, separable: bool) -> nn.Module:
    if not separable:
        return nn.Conv3d(in_channels, out_channels, 3, padding=1)
    return nn.Sequential(
        nn.Conv3d(in_channels, in_channels, 3, padding=1, groups=in_channels), nn.Conv3d(in_channels, out_channels, 1)
    )


class LocalAttention(nn.Module):
    """1x1x1, 3x3x3 and 1x1x1 convolutions with GELU between them, added to what comes in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(width, width, 1),
            nn.GELU(),
            nn.Conv3d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv3d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class TwoBackbones(Network):
    """What all fusions share: ``dynunet`` and ``segresnet``, each with the settings that differ from its defaults."""

    instance_norm = True

    def __init__(
        self, in_channels: int, out_channels: int, dynunet: dict[str, Any] | None, segresnet: dict[str, Any] | None
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.dynunet = DynUNet(in_channels, out_channels, **(dynunet or {}))
        self.segresnet = SegResNet(in_channels, out_channels, **(segresnet or {}))
        self.size_divisor = math.lcm(self.dynunet.size_divisor, self.segresnet.size_divisor)

    @property
    def feature_channels(self) -> tuple[int, int]:
        """Widths of the two last feature maps."""
        return self.dynunet.feature_channels, self.segresnet.feature_channels

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The last feature map of each, (B, its feature_channels, D, H, W)."""
        self.check_input(x)
        return self.dynunet.features(x), self.segresnet.features(x)

    def _idle_output_layers(self) -> None:
        """Take out of training what is there only so that the weights of trained backbones fit."""
        for layer in (*self.dynunet.output_layers, *self.segresnet.output_layers):
            layer.requires_grad_(False)


class LateFusion(TwoBackbones):
    """The logit of the mean of both networks' probabilities (table 2, late fusion). No parameters of its own.

    Args:
        in_channels: modalities.
        out_channels: logits.
        dynunet: settings of `DynUNet`.
        segresnet: settings of `SegResNet`.
        kind: what makes probabilities of logits, as the recipe's target says.
    """

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 3,
        *,
        dynunet: dict[str, Any] | None = None,
        segresnet: dict[str, Any] | None = None,
        kind: Literal["sigmoid", "softmax"] = "sigmoid",
    ) -> None:
        super().__init__(in_channels, out_channels, dynunet, segresnet)
        if kind not in ("sigmoid", "softmax"):
            raise ValueError(f"got kind {kind!r}; expected sigmoid or softmax")
        self.kind = kind

    def supervised(self, x: Tensor) -> Outputs:
        """Logits (B, K, D, H, W) of images (B, C, D, H, W); see `Network.supervised`."""
        self.check_input(x)
        a, b = self.dynunet(x), self.segresnet(x)
        if self.kind == "softmax":
            return Outputs((torch.logaddexp(F.log_softmax(a, 1), F.log_softmax(b, 1)) - math.log(2),))
        present = torch.logaddexp(F.logsigmoid(a), F.logsigmoid(b))  # log(2 p), log(2 (1 - p)) of the mean p
        absent = torch.logaddexp(F.logsigmoid(-a), F.logsigmoid(-b))
        return Outputs((present - absent,))


class EarlyFusion(TwoBackbones):
    """Both last feature maps joined, and two 1x1x1 convolutions with ReLU between (table 2, early fusion).

    Args:
        in_channels: modalities.
        out_channels: logits.
        dynunet: settings of `DynUNet`.
        segresnet: settings of `SegResNet`.
        width: channels between the two convolutions.
    """

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 3,
        *,
        dynunet: dict[str, Any] | None = None,
        segresnet: dict[str, Any] | None = None,
        width: int = 32,
    ) -> None:
        super().__init__(in_channels, out_channels, dynunet, segresnet)
        self._idle_output_layers()
        self.head = nn.Sequential(
            nn.Conv3d(sum(self.feature_channels), width, 1), nn.ReLU(), nn.Conv3d(width, out_channels, 1)
        )

    def supervised(self, x: Tensor) -> Outputs:
        """Logits (B, K, D, H, W) of images (B, C, D, H, W); see `Network.supervised`."""
        return Outputs((self.head(torch.cat(self.features(x), 1)),))


class DualFusion(TwoBackbones):
    """The network of paper 000.

    Args:
        in_channels: modalities.
        out_channels: logits; 3 for the regions.
        dynunet: settings of `DynUNet`.
        segresnet: settings of `SegResNet`.
        width: f, the common channels of Q, K and V.
        attention: the kind of global-fusion attention; ``none`` passes V on.
        grid: keys and values along each axis with ``kvpool``.
        window: edge of the windows, in voxels, with ``window``.
        local: local attention.
        force_exact: let ``exact`` run on any number of voxels.
        separable: see `EarlyFusionAttention`.
        recompute: activations of the convolutional blocks are computed again for the backward pass instead of being kept.
    """

    def __init__(  # noqa: PLR0913 - every size of the network is a named argument
        self,
        in_channels: int = 4,
        out_channels: int = 3,
        *,
        dynunet: dict[str, Any] | None = None,
        segresnet: dict[str, Any] | None = None,
        width: int = 32,
        attention: AttentionKind = "kvpool",
        grid: int = 8,
        window: int = 8,
        local: bool = True,
        force_exact: bool = False,
        separable: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, dynunet, segresnet)
        self._idle_output_layers()
        self.early = EarlyFusionAttention(self.feature_channels, width, separable=separable, recompute=recompute)
        self.global_attention = global_fusion_attention(attention, grid=grid, window=window, force_exact=force_exact)
        self.local_attention = LocalAttention(width) if local else nn.Identity()
        self.head = nn.Conv3d(width, out_channels, 1)
        self.recompute = recompute
        if self.global_attention is not None:
            self.size_divisor = math.lcm(self.size_divisor, self.global_attention.size_divisor)

    def supervised(self, x: Tensor) -> Outputs:
        """Logits (B, K, D, H, W) of images (B, C, D, H, W); see `Network.supervised`."""
        query, key, fused = self.early(*self.features(x))  # (B, width, D, H, W) each
        if self.global_attention is not None:
            fused = self.global_attention(query, key, fused)
        fused = run(self.local_attention, fused, recompute=self.recompute)
        return Outputs((self.head(fused),))

    def attention(self, x: Tensor) -> dict[str, Tensor]:
        """key_weight: how much each key is attended to, relative to the most attended one; empty without global attention.

        (B, 1, grid, grid, grid) with ``kvpool``, (B, width, 1, 1, 1) with ``channel``, else (B, 1, D, H, W).
        """
        if self.global_attention is None:
            return super().attention(x)
        first, second = self.features(x)
        return {"key_weight": self.global_attention.key_weights(self.early.query(first), self.early.key(second))}
