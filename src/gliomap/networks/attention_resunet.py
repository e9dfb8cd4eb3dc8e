"""Attention-ResNetUNet: a residual U-Net with channel gates on the encoder maps and multi-scale fusion in the decoder.

Paper 004 ("Attention-ResNetUNet for 3D brain tumor segmentation"), which has no figures; section 3.1 is the source:

- residual block (eq. in 3.1, "Encoder") -> ``ResidualBlock``
- channel-wise attention gate A_k (3.1, "Attention Module") -> ``FreeGate``; ``SEGate`` and ``CBAMGate`` are what the
  paper's parameter and FLOP table would need, since its formula has no parameters
- multi-scale module M_k with dilations 1, 2, 4 (3.1, "Decoder") -> ``MultiScaleFusion``
- the whole -> ``AttentionResUNet``; base width 12 gives the paper's sizes within 3 %

Departures: a 1x1x1 projection where a block changes width (the identity cannot); four output channels, background first,
since a softmax over three tumour classes would call every healthy voxel tumour; the fusion's branches have half the
level's width, the only choice that fits the paper's table. The gated map is used for the skip and for the next stage.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from gliomap.networks.base import Network, Outputs

GateKind = Literal["none", "free", "se", "cbam"]


class ResidualBlock(nn.Module):
    """h + ReLU(W2 * ReLU(BN(W1 * h + b1)) + b2), the ReLU on the branch as printed; ``post_activation`` puts it after the sum."""

    def __init__(self, in_channels: int, out_channels: int, *, post_activation: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.norm = nn.BatchNorm3d(out_channels)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv3d(in_channels, out_channels, 1)
        self.activation = nn.ReLU()
        self.post_activation = post_activation

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv2(self.activation(self.norm(self.conv1(x))))
        if self.post_activation:
            return self.activation(self.shortcut(x) + branch)
        return self.shortcut(x) + self.activation(branch)


class FreeGate(nn.Module):
    """A = sigmoid(mean over the voxels of each channel): (B, C, 1, 1, 1), without parameters, as the formula stands."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x.mean((2, 3, 4), keepdim=True))


class SEGate(nn.Module):
    """Squeeze-and-excitation: the channel means through a two-layer perceptron of ``hidden`` units; (B, C, 1, 1, 1)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv3d(channels, hidden, 1)
        self.excite = nn.Conv3d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3, 4), keepdim=True)
        return torch.sigmoid(self.excite(torch.relu(self.squeeze(mean))))


class CBAMGate(nn.Module):
    """A squeeze-and-excitation gate times a spatial one (7x7x7 over the channels' mean and maximum); (B, C, D, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channel = SEGate(channels, 4 * channels)
        self.spatial = nn.Conv3d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.channel(x)  # (B, C, 1, 1, 1)
        gated = x * weight
        summary = torch.cat([gated.mean(1, keepdim=True), gated.amax(1, keepdim=True)], 1)  # (B, 2, D, H, W)
        return weight * torch.sigmoid(self.spatial(summary))


class MultiScaleFusion(nn.Module):
    """Three parallel 3x3x3 convolutions of dilation 1, 2, 4, concatenated and fused by a 1x1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, branch_channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(in_channels, branch_channels, 3, padding=rate, dilation=rate),
                nn.BatchNorm3d(branch_channels),
                nn.ReLU(),
            )
            for rate in (1, 2, 4)
        )
        self.fuse = nn.Sequential(
            nn.Conv3d(3 * branch_channels, out_channels, 1), nn.BatchNorm3d(out_channels), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(torch.cat([branch(x) for branch in self.branches], 1))


class AttentionResUNet(Network):
    """The network of paper 004.

    Args:
        in_channels: modalities.
        out_channels: logits; 4 for background, NCR, ED, ET.
        base: width of the first level; each of the four levels doubles it. 12 fits the paper's sizes.
        gate: attention on the encoder maps; ``free`` is the paper's formula.
        se_reduction: channels per hidden unit of the ``se`` gate.
        fusion: multi-scale fusion in the decoder; without it one residual block per level.
        post_activation: see `ResidualBlock`.
    """

    size_divisor = 16

    def __init__(  # noqa: PLR0913 - every size of the network is a named argument
        self,
        in_channels: int = 4,
        out_channels: int = 4,
        *,
        base: int = 12,
        gate: GateKind = "free",
        se_reduction: int = 4,
        fusion: bool = True,
        post_activation: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        widths = [base, 2 * base, 4 * base, 8 * base]

        def block(i: int, o: int) -> ResidualBlock:
            return ResidualBlock(i, o, post_activation=post_activation)

        inputs = [in_channels, *widths[:-1]]
        self.encoder = nn.ModuleList(
            nn.Sequential(block(i, o), block(o, o)) for i, o in zip(inputs, widths, strict=True)
        )
        self.gates = nn.ModuleList(_gate(gate, width, se_reduction) for width in widths)
        self.pool = nn.MaxPool3d(2)
        self.bottleneck = nn.Sequential(block(widths[-1], widths[-1]), block(widths[-1], widths[-1]))
        below = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(nn.ConvTranspose3d(i, o, 2, stride=2) for i, o in zip(below, widths, strict=True))
        self.decoder = nn.ModuleList(
            MultiScaleFusion(2 * width, width, width // 2) if fusion else block(2 * width, width) for width in widths
        )
        self.head = nn.Conv3d(base, out_channels, 1)

    def supervised(self, x: Tensor) -> Outputs:
        """Logits (B, K, D, H, W) of images (B, C, D, H, W); see `Network.supervised`."""
        skips, _, x = self._encode(x)
        for level in reversed(range(len(skips))):
            x = self.decoder[level](torch.cat([skips[level], self.up[level](x)], 1))
        return Outputs((self.head(x),))

    def attention(self, x: Tensor) -> dict[str, Tensor]:
        """The gate A_k of each encoder stage: (B, C_k, 1, 1, 1), or (B, C_k, D, H, W) with ``cbam``; empty without gates."""
        return {f"A_{level + 1}": weight for level, weight in enumerate(self._encode(x)[1])}

    def _encode(self, x: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        self.check_input(x)
        skips, weights = [], []
        for stage, gate in zip(self.encoder, self.gates, strict=True):
            x = stage(x)
            if not isinstance(gate, nn.Identity):
                weights.append(gate(x))
                x = weights[-1] * x
            skips.append(x)
            x = self.pool(x)  # (B, C_k, D / 2^k, H / 2^k, W / 2^k)
        return skips, weights, self.bottleneck(x)


def _gate(kind: GateKind, channels: int, se_reduction: int) -> nn.Module:
    match kind:
        case "none":
            return nn.Identity()
        case "free":
            return FreeGate()
        case "se":
            return SEGate(channels, max(channels // se_reduction, 1))
        case "cbam":
            return CBAMGate(channels)
    raise ValueError(f"no gate is called {kind!r}; expected none, free, se or cbam")
