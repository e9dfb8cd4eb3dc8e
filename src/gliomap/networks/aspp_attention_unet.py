"""ASPP Attention U-Net: a 2-D U-Net with gates on the skips and atrous spatial pyramid pooling, repeated, at the bottleneck.

Paper 003 ("Hybridization of Attention UNet with Repeated Atrous Spatial Pyramid Pooling for Improved Brain Tumor
Segmentation"):

- ASPP block (figure 1, "ASPP Block", and eq. 3) -> ``ASPP``
- attention gate (figure 2, eq. 1 and 2) -> ``AttentionGate``
- the network (figure 1) -> ``ASPPAttentionUNet``
- the baselines of table 1 -> the same network without context, with ``SPP`` in its place, and without gates (`unet2d`)

The paper prints no sizes. Built are the standard ones: widths 64 to 1024, double convolutions with BatchNorm, branches of
width 256 in ASPP (DeepLab's). Three decisions of ours, each a setting:

- Rates 1, 2, 4. DeepLab's 6, 12, 18 mean little on the 15 x 15 bottleneck of a 240 x 240 slice: at rate 18 eight of nine
  taps always lie outside, which leaves a 1x1 convolution.
- "Repeated" is read as in series.
- SPP is only named in the paper; pooled to 1, 2, 3 and 6 bins, as its namesakes are.

ASPP has no weights in [0, 1]; ``attention`` shows of it, beside the gates, what share of its features each branch makes.
"""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gliomap.networks.base import Network, Outputs

Context = Literal["none", "spp", "aspp"]
Arrangement = Literal["series", "parallel", "residual"]
UpKind = Literal["nearest", "transposed"]


class PooledBatchNorm(nn.BatchNorm2d):
    """BatchNorm of a pooled map, which normalises with its running statistics where a batch holds one value per channel.

    That happens to a batch of a single image pooled to 1 x 1, such as the last one of a training: one value has no spread
    to be normalised by. Its statistics are then neither used nor remembered.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name for it
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


def _convolution(in_channels: int, out_channels: int, kernel: int, rate: int = 1) -> nn.Sequential:
    """Convolution that keeps the size, BatchNorm, ReLU; without bias, as in DeepLab."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=rate * (kernel // 2), dilation=rate, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def _pooled(in_channels: int, out_channels: int, bins: int) -> nn.Sequential:
    """The mean over ``bins`` x ``bins`` parts of the map, 1x1 convolution, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(bins),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        PooledBatchNorm(out_channels),
        nn.ReLU(),
    )


class DoubleConv(nn.Sequential):
    """Twice 3x3 convolution, BatchNorm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )


class AttentionGate(nn.Module):
    """Where the skip x matters given the decoder's map g: alpha = sigmoid(psi(ReLU(W_x x + W_g g))), eq. 1 and 2; (B, 1, H, W).

    W_x, W_g and psi are 1x1 convolutions with BatchNorm.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.from_skip = nn.Sequential(nn.Conv2d(channels, inner, 1), nn.BatchNorm2d(inner))
        self.from_decoder = nn.Sequential(nn.Conv2d(channels, inner, 1), nn.BatchNorm2d(inner))
        self.psi = nn.Sequential(nn.ReLU(), nn.Conv2d(inner, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())

    def forward(self, skip: Tensor, decoder: Tensor) -> Tensor:
        return self.psi(self.from_skip(skip) + self.from_decoder(decoder))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1x1 convolution, one 3x3 convolution per rate and the global mean, side by side.

    They are concatenated and fused to the input's channels by a 1x1 convolution.
    """

    def __init__(self, channels: int, width: int, rates: Sequence[int]) -> None:
        super().__init__()
        self.point = _convolution(channels, width, 1)
        self.atrous = nn.ModuleList(_convolution(channels, width, 3, rate) for rate in rates)
        self.mean = _pooled(channels, width, 1)
        self.fuse = _convolution((len(rates) + 2) * width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(torch.cat(self.branches(x), 1))

    def branches(self, x: Tensor) -> list[Tensor]:
        """What each branch makes of x, (B, width, H, W): the 1x1 convolution, each rate, the mean (constant over the map)."""
        mean = self.mean(x).expand(-1, -1, *x.shape[2:])
        return [self.point(x), *(branch(x) for branch in self.atrous), mean]

    def shares(self, x: Tensor) -> Tensor:
        """The share of the mean activation at each place that each branch makes: (B, branches, H, W), their sum 1 or 0."""
        strengths = torch.stack([branch.mean(1) for branch in self.branches(x)], 1)
        return strengths / strengths.sum(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)


class SPP(nn.Module):
    """Spatial pyramid pooling: means over grids of ``bins``, each back at full size, fused with the input to its channels."""

    def __init__(self, channels: int, width: int, bins: Sequence[int]) -> None:
        super().__init__()
        self.grids = nn.ModuleList(_pooled(channels, width, n) for n in bins)
        self.fuse = _convolution(channels + len(bins) * width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        grids = [F.interpolate(grid(x), x.shape[2:], mode="bilinear") for grid in self.grids]  # (B, width, H, W) each
        return self.fuse(torch.cat([x, *grids], 1))


class RepeatedASPP(nn.Module):
    """ASPP blocks in ``series``, in ``parallel`` (their mean), or in series each adding to its input (``residual``)."""

    def __init__(
        self, channels: int, *, blocks: int, width: int, rates: Sequence[int], arrangement: Arrangement
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ASPP(channels, width, rates) for _ in range(blocks))
        self.arrangement = arrangement

    def forward(self, x: Tensor) -> Tensor:
        if self.arrangement == "parallel":
            return torch.stack([block(x) for block in self.blocks]).mean(0)
        for block in self.blocks:
            x = x + block(x) if self.arrangement == "residual" else block(x)
        return x


class ASPPAttentionUNet(Network):
    """The network of paper 003; without ``gates`` and ``context`` the U-Net it is compared with.

    Args:
        in_channels: modalities; the paper trains one network for each.
        out_channels: logits; 1 for the whole tumour.
        base: width of the first level; each level doubles it.
        depth: levels above the bottleneck.
        gates: attention gates on the skips.
        context: what widens the view at the bottleneck.
        aspp_blocks: how many ASPP blocks.
        aspp_width: width of each branch of an ASPP block.
        rates: dilations of an ASPP block, one branch each.
        arrangement: of the ASPP blocks, see `RepeatedASPP`.
        spp_width: width of each grid of SPP.
        spp_bins: bins along each axis of SPP's grids.
        up: nearest neighbour and a 3x3 convolution, or a transposed 2x2 convolution.
    """

    spatial_dims = 2

    def __init__(  # noqa: PLR0913 - every size of the network is a named argument
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        *,
        base: int = 64,
        depth: int = 4,
        gates: bool = True,
        context: Context = "aspp",
        aspp_blocks: int = 3,
        aspp_width: int = 256,
        rates: Sequence[int] = (1, 2, 4),
        arrangement: Arrangement = "series",
        spp_width: int = 256,
        spp_bins: Sequence[int] = (1, 2, 3, 6),
        up: UpKind = "nearest",
    ) -> None:
        super().__init__()
        _check_names(context, arrangement, up)
        if aspp_blocks < 1:
            raise ValueError(f"there cannot be {aspp_blocks} ASPP blocks; for none of them say context='none'")
        self.in_channels = in_channels
        self.rates = tuple(rates)
        self.size_divisor = 2**depth
        widths = [base * 2**k for k in range(depth + 1)]
        inputs = [in_channels, *widths]
        self.encoder = nn.ModuleList(DoubleConv(i, o) for i, o in zip(inputs[:depth], widths[:depth], strict=True))
        self.pool = nn.MaxPool2d(2)
        self.bottleneck = DoubleConv(inputs[depth], widths[depth])
        self.context: nn.Module = nn.Identity()
        if context == "spp":
            self.context = SPP(widths[-1], spp_width, spp_bins)
        elif context == "aspp":
            self.context = RepeatedASPP(
                widths[-1], blocks=aspp_blocks, width=aspp_width, rates=rates, arrangement=arrangement
            )
        self.up = nn.ModuleList(_up(width, up) for width in widths[:-1])
        self.gates = nn.ModuleList(AttentionGate(width) for width in widths[:-1] if gates)
        self.decoder = nn.ModuleList(DoubleConv(2 * width, width) for width in widths[:-1])
        self.head = nn.Conv2d(base, out_channels, 1)

    def supervised(self, x: Tensor) -> Outputs:
        """Logits (B, K, H, W) of axial slices (B, C, H, W); see `Network.supervised`."""
        return Outputs((self._run(x)[0],))

    def attention(self, x: Tensor) -> dict[str, Tensor]:
        """AG_k, the gate's alpha, of each level k from the finest: (B, 1, H, W) / 2^(k-1); none without gates.

        Of ASPP how much of its features each branch makes, the mean over the blocks, (B, 1, H, W) / 2^depth: ASPP_1x1,
        ASPP_r of each rate r, ASPP_mean. They add up to 1 (or to 0 where all branches are silent).
        """
        shares: list[Tensor] = []

        def keep(block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            shares.append(cast(ASPP, block).shares(inputs[0]))

        hooks = [m.register_forward_pre_hook(keep) for m in self.context.modules() if isinstance(m, ASPP)]
        try:
            maps = self._run(x)[1]
        finally:
            for hook in hooks:
                hook.remove()
        if shares:
            names = ("ASPP_1x1", *(f"ASPP_{rate}" for rate in self.rates), "ASPP_mean")
            maps |= dict(zip(names, torch.stack(shares).mean(0).split(1, 1), strict=True))
        return maps

    def _run(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.check_input(x)
        skips: list[Tensor] = []
        maps: dict[str, Tensor] = {}
        for stage in self.encoder:
            skips.append(stage(x))
            x = self.pool(skips[-1])  # (B, C_k, H / 2^k, W / 2^k)
        x = self.context(self.bottleneck(x))
        for level in reversed(range(len(skips))):
            x, skip = self.up[level](x), skips[level]  # (B, C_k, ...) both
            if len(self.gates):
                maps[f"AG_{level + 1}"] = self.gates[level](skip, x)
                skip = skip * maps[f"AG_{level + 1}"]
            x = self.decoder[level](torch.cat([skip, x], 1))
        return self.head(x), maps


def unet2d(
    in_channels: int = 1, out_channels: int = 1, *, base: int = 64, depth: int = 4, up: UpKind = "nearest"
) -> ASPPAttentionUNet:
    """The plain 2-D U-Net that paper 003 compares with (table 1, "UNet"): no gates, no context."""
    return ASPPAttentionUNet(in_channels, out_channels, base=base, depth=depth, gates=False, context="none", up=up)


def _up(channels: int, kind: UpKind) -> nn.Module:
    """Twice the size and half the channels, to ``channels``."""
    if kind == "transposed":
        return nn.ConvTranspose2d(2 * channels, channels, 2, stride=2)
    return nn.Sequential(
        nn.Upsample(scale_factor=2),
        nn.Conv2d(2 * channels, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


def _check_names(context: Context, arrangement: Arrangement, up: UpKind) -> None:
    for what, value, known in (
        ("context", context, ("none", "spp", "aspp")),
        ("arrangement", arrangement, ("series", "parallel", "residual")),
        ("way up", up, ("nearest", "transposed")),
    ):
        if value not in known:
            raise ValueError(f"no {what} is called {value!r}; expected one of {', '.join(known)}")
