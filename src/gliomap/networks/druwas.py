"""3D-DRUwAS: a residual U-Net with attention gates on the skips and spatial attention on what the decoder joins.

Paper 001 ("3D Dual Residual U-Net with Attention Gate and Spatial Attention Mechanisms (3D-DRUwAS) for Brain Tumor
Segmentation"):

- residual block (figure 1 of the method) -> ``ResidualBlock``; without shortcut -> ``DoubleConv`` (the ablation's "D-Unet")
- spatial attention block (figure 2) -> ``SpatialAttention``
- attention gate (figure 4) -> ``AttentionGate``
- the whole (figure 3) -> ``DRUwAS``

What the paper leaves open was taken from a public successor of the same group (facts only): four levels of width 8 to 64
above a bottleneck of 128, GroupNorm of 8 groups, convolutions without bias, two blocks per level in the decoder too, spatial
attention on the concatenation. The paper's rule for the shortcut is garbled; the standard one is built: identity where
the width stays, 1x1x1 convolution and GroupNorm where it changes.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from gliomap.networks.base import Network, Outputs, run

Activation = Literal["relu", "silu", "leaky_relu", "gelu"]

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,  # the paper's Swish
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
}
_GROUPS = 8


def _two_convolutions(in_channels: int, out_channels: int, activation: Activation) -> list[nn.Module]:
    """Convolution, GroupNorm, activation, convolution, GroupNorm: what both kinds of block have in common."""
    return [
        nn.Conv3d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.GroupNorm(_GROUPS, out_channels),
        _ACTIVATIONS[activation](),
        nn.Conv3d(out_channels, out_channels, 3, padding=1, bias=False),
        nn.GroupNorm(_GROUPS, out_channels),
    ]


class DoubleConv(nn.Module):
    """Twice 3x3x3 convolution, GroupNorm, activation."""

    def __init__(self, in_channels: int, out_channels: int, activation: Activation) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_two_convolutions(in_channels, out_channels, activation), _ACTIVATIONS[activation]()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ResidualBlock(nn.Module):
    """Twice 3x3x3 convolution and GroupNorm with a shortcut around both; activations after the first and after the sum."""

    def __init__(self, in_channels: int, out_channels: int, activation: Activation) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_two_convolutions(in_channels, out_channels, activation))
        self.shortcut = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Sequential(nn.Conv3d(in_channels, out_channels, 1, bias=False), nn.GroupNorm(_GROUPS, out_channels))
        )
        self.activation = _ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.layers(x) + self.shortcut(x))


class AttentionGate(nn.Module):
    """Where the skip x matters given the decoder's map g: psi = sigmoid(GN(conv1(act(GN(W_x x) + GN(W_g g)))).

    (B, 1, D, H, W).
    """

    def __init__(self, channels: int, activation: Activation) -> None:
        super().__init__()
        inner = channels // 2
        self.from_skip = nn.Sequential(nn.Conv3d(channels, inner, 1), nn.GroupNorm(inner, inner))
        self.from_decoder = nn.Sequential(nn.Conv3d(channels, inner, 1), nn.GroupNorm(inner, inner))
        self.psi = nn.Sequential(_ACTIVATIONS[activation](), nn.Conv3d(inner, 1, 1), nn.GroupNorm(1, 1), nn.Sigmoid())

    def forward(self, skip: Tensor, decoder: Tensor) -> Tensor:
        return self.psi(self.from_skip(skip) + self.from_decoder(decoder))


class SpatialAttention(nn.Module):
    """One sigmoid weight per voxel from a 1x1x1 convolution over the channels; (B, 1, D, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv(x))


class DRUwAS(Network):
    """The network of paper 001.

    Args:
        in_channels: modalities.
        out_channels: logits; 3 for the regions.
        base: width of the first level; each level doubles it.
        depth: levels above the bottleneck.
        residual: residual blocks; without, plain double convolutions.
        blocks_per_level: two in the paper's network, one in the ablation's baseline.
        decoder_blocks: the same for the decoder alone; None as many as the encoder. The paper does not say.
        attention_gate: gates on the skips.
        spatial_attention: spatial attention on the concatenation of skip and decoder.
        activation: ReLU in the first stage of training, SiLU (Swish) in the second.
        recompute: activations of encoder and decoder levels are computed again for the backward pass instead of being kept.
    """

    def __init__(  # noqa: PLR0913 - every size of the network is a named argument
        self,
        in_channels: int = 4,
        out_channels: int = 3,
        *,
        base: int = 8,
        depth: int = 4,
        residual: bool = True,
        blocks_per_level: int = 2,
        decoder_blocks: int | None = None,
        attention_gate: bool = True,
        spatial_attention: bool = True,
        activation: Activation = "relu",
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise ValueError(f"no activation is called {activation!r}; expected one of {', '.join(_ACTIVATIONS)}")
        self.in_channels = in_channels
        self.size_divisor = 2**depth
        block = ResidualBlock if residual else DoubleConv

        self.recompute = recompute

        def level(i: int, o: int, count: int = blocks_per_level) -> nn.Sequential:
            return nn.Sequential(*(block(i if n == 0 else o, o, activation) for n in range(count)))

        widths = [base * 2**k for k in range(depth + 1)]
        self.encoder = nn.ModuleList(level(i, o) for i, o in zip([in_channels, *widths], widths[:-1], strict=False))
        self.pool = nn.MaxPool3d(2)
        self.bottleneck = level(widths[-2], widths[-1])
        self.up = nn.ModuleList(nn.ConvTranspose3d(2 * width, width, 2, stride=2) for width in widths[:-1])
        self.gates = nn.ModuleList(AttentionGate(w, activation) for w in widths[:-1] if attention_gate)
        self.spatial = nn.ModuleList(SpatialAttention(2 * w) for w in widths[:-1] if spatial_attention)
        after = blocks_per_level if decoder_blocks is None else decoder_blocks
        self.decoder = nn.ModuleList(level(2 * width, width, after) for width in widths[:-1])
        self.head = nn.Conv3d(base, out_channels, 1)

    def supervised(self, x: Tensor) -> Outputs:
        """Logits (B, K, D, H, W) of images (B, C, D, H, W); see `Network.supervised`."""
        return Outputs((self._run(x)[0],))

    def attention(self, x: Tensor) -> dict[str, Tensor]:
        """AG_k, the gate's psi, and SA_k, the spatial attention, of each level k from the finest: (B, 1, D, H, W) / 2^(k-1)."""
        return self._run(x)[1]

    def _run(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.check_input(x)
        skips: list[Tensor] = []
        maps: dict[str, Tensor] = {}
        for stage in self.encoder:
            skips.append(run(stage, x, recompute=self.recompute))
            x = self.pool(skips[-1])  # (B, C_k, D / 2^k, H / 2^k, W / 2^k)
        x = self.bottleneck(x)
        for level in reversed(range(len(skips))):
            x, skip = self.up[level](x), skips[level]
            if len(self.gates):
                maps[f"AG_{level + 1}"] = self.gates[level](skip, x)
                skip = skip * maps[f"AG_{level + 1}"]
            x = torch.cat([x, skip], 1)  # (B, 2 C_k, ...)
            if len(self.spatial):
                maps[f"SA_{level + 1}"] = self.spatial[level](x)
                x = x * maps[f"SA_{level + 1}"]
            x = run(self.decoder[level], x, recompute=self.recompute)
        return self.head(x), maps
