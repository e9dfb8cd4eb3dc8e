"""CGA U-Net: a residual U-Net whose features are drawn towards the prototype of the class that a supervised map gives them.

Paper 002 ("Category Guided Attention Network for Brain Tumor Segmentation in MRI"):

- encoder and decoder blocks (table 1) -> ``ResidualBlock``; DeUp (table 1) -> ``Up``
- attention convolution path (equation 6, table 1) -> ``attention_path``
- prototypes and intra-class update (equations 7 and 8, figures 2c and 3a) -> ``SupervisedAttention``
- the whole (figure 1, table 1) -> ``CGAUNet``
- the two modules it is compared with (figures 2a and 2b) -> ``non_local``

Departures, all but the last taken from the released code (facts only), which alone gives the paper's 4.77 M and 151.12 G:
GroupNorm of 8 groups where table 1 prints BN; 1x1x1 convolutions in DeUp where it prints 3x3x3; masks are hard, so that the
attention path learns from its own loss only; the prototypes are added to the features. The code's dropout is on when testing
too (``always_dropout``); here it is off.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gliomap.networks.base import Network, Outputs, run
from gliomap.networks.non_local import ContextPrior, SelfAttention

Attention = Literal["none", "sam", "sam_without_path", "self_attention", "context_prior"]
Downsampling = Literal[8, 4, 2]
Mask = Literal["hard", "soft"]
Update = Literal["all", "none", "NCR", "ED", "ET"]

CLASSES = ("background", "NCR", "ED", "ET")
_LEVELS = {8: 3, 4: 2, 2: 1}
_EPSILON = 1e-5


class ResidualBlock(nn.Module):
    """Twice GroupNorm, ReLU, 3x3x3 convolution, and the identity around both."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(groups, channels),
            nn.ReLU(inplace=True),
            nn.Conv3d(channels, channels, 3, padding=1),
            nn.GroupNorm(groups, channels),
            nn.ReLU(inplace=True),
            nn.Conv3d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Up(nn.Module):
    """DeUp: half the channels, twice the size, joined with the skip and brought back to the skip's width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.narrow = nn.Conv3d(2 * channels, channels, 1)
        self.enlarge = nn.ConvTranspose3d(channels, channels, 2, stride=2)
        self.join = nn.Conv3d(2 * channels, channels, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.enlarge(self.narrow(x))  # (B, C, 2D, 2H, 2W)
        return self.join(torch.cat([skip, x], 1))


def attention_path(in_channels: int, width: int, downsampling: Downsampling) -> nn.Sequential:
    """Three 3x3x3 convolutions from the images to raw maps of the four classes, with nothing between them.

    For 8 they are table 1's. For 4 and 2 the paper prints only costs; the widths and strides that come nearest are built.
    """
    inner, strides = {8: (width, (2, 2, 2)), 4: (2 * width, (2, 2, 1)), 2: (width, (2, 1, 1))}[downsampling]
    widths = (in_channels, inner, inner, len(CLASSES))
    return nn.Sequential(
        *(nn.Conv3d(widths[k], widths[k + 1], 3, stride=stride, padding=1) for k, stride in enumerate(strides))
    )


class SupervisedAttention(nn.Module):
    """The mean feature of the voxels of each class, its prototype, added to those voxels.

    Takes the images and features X (B, C, D, H, W); gives features of the same shape, the raw class maps A (B, 4, D, H, W) and
    the prototypes (B, 4, C), zero for a class without a voxel.

    Args:
        class_maps: what makes A, of the images or, with ``from_features``, of X.
        mask: ``hard`` gives each voxel to its likeliest class, and no gradient reaches A; ``soft`` is the softmax of A.
        update: the classes whose prototypes are added.
    """

    def __init__(self, class_maps: nn.Module, mask: Mask, update: Update, *, from_features: bool = False) -> None:
        super().__init__()
        self.class_maps = class_maps
        self.mask = mask
        self.update = update
        self.from_features = from_features

    def forward(self, images: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        class_maps = self.class_maps(x if self.from_features else images)  # (B, 4, D, H, W)
        if self.mask == "soft":
            masks = torch.softmax(class_maps, 1)
        else:
            masks = torch.zeros_like(class_maps).scatter_(1, class_maps.argmax(1, keepdim=True), 1)
        masks = masks.flatten(2)  # (B, 4, N)
        # Shares first: in half precision the sum of the features could overflow before it is divided.
        shares = masks / (masks.sum(2, keepdim=True) + _EPSILON)
        prototypes = shares @ x.flatten(2).transpose(-2, -1)  # (B, 4, C)
        if self.update == "none":
            return x, class_maps, prototypes
        first = CLASSES.index(self.update) if self.update in CLASSES else 0
        which = slice(first, first + 1) if self.update in CLASSES else slice(None)
        return x + (prototypes[:, which].transpose(-2, -1) @ masks[:, which]).reshape(x.shape), class_maps, prototypes


class _Attended(NamedTuple):
    """Features before and after the attention, its maps by name, and what a loss may ask of it (see `Outputs`)."""

    before: Tensor
    features: Tensor
    maps: dict[str, Tensor]
    class_maps: Tensor | None = None
    prototypes: Tensor | None = None


class CGAUNet(Network):
    """The network of paper 002.

    Args:
        in_channels: modalities.
        out_channels: logits; 4 for background, NCR, ED, ET.
        base: width of the first level, a multiple of ``groups``; each of the three levels below doubles it.
        blocks: residual blocks of each level of the encoder; the decoder has one.
        groups: of every GroupNorm.
        dropout: share of the first convolution's channels that training leaves out.
        always_dropout: leave them out when segmenting too, as the released code does; the result is then a matter of chance.
        attention: the ``sam``; ``sam_without_path``, whose class maps are one 1x1x1 convolution of the features; one of the
            two modules of `non_local`; or ``none``, the paper's baseline.
        downsampling: of the map that the SAM works on: 8 (the bottleneck), 4 or 2. What it gives takes the map's place on
            the skip and for the next level.
        mask, update: see `SupervisedAttention`.
        recompute: trade time for memory in the residual blocks, see `base.run`: a third less of it for a fifth more to compute.
    """

    size_divisor = 8

    def __init__(  # noqa: PLR0913 - every size of the network is a named argument
        self,
        in_channels: int = 4,
        out_channels: int = 4,
        *,
        base: int = 16,
        blocks: Sequence[int] = (1, 2, 2, 4),
        groups: int = 8,
        dropout: float = 0.2,
        always_dropout: bool = False,
        attention: Attention = "sam",
        downsampling: Downsampling = 8,
        mask: Mask = "hard",
        update: Update = "all",
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if len(blocks) != 4:
            raise ValueError(f"blocks has {len(blocks)} levels; expected 4")
        _check_attention(attention, downsampling, mask, update)
        self.in_channels = in_channels
        self.dropout, self.always_dropout, self.recompute = dropout, always_dropout, recompute
        widths = [base * 2**level for level in range(4)]
        self.first = nn.Conv3d(in_channels, base, 3, padding=1)
        self.encoder = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width, groups) for _ in range(count)))
            for width, count in zip(widths, blocks, strict=True)
        )
        self.down = nn.ModuleList(nn.Conv3d(width, 2 * width, 3, stride=2, padding=1) for width in widths[:-1])
        self.up = nn.ModuleList(Up(width) for width in widths[:-1])
        self.decoder = nn.ModuleList(ResidualBlock(width, groups) for width in widths[:-1])
        self.head = nn.Conv3d(base, out_channels, 1)
        self.attention_kind = attention
        self.attended_level = _LEVELS[downsampling]
        self.attend: nn.Module | None = None
        width = widths[self.attended_level]
        if attention == "sam":
            self.attend = SupervisedAttention(attention_path(in_channels, base, downsampling), mask, update)
        elif attention == "sam_without_path":
            self.attend = SupervisedAttention(nn.Conv3d(width, len(CLASSES), 1), mask, update, from_features=True)
        elif attention == "self_attention":
            self.attend = SelfAttention(width)
        elif attention == "context_prior":
            self.attend = ContextPrior(width)

    def supervised(self, x: Tensor) -> Outputs:
        """Logits (B, K, D, H, W) of images (B, C, D, H, W), and of a SAM the class maps and prototypes; see `Outputs`."""
        logits, attended = self._run(x)
        return Outputs((logits,), attended.class_maps, attended.prototypes)

    def attention(self, x: Tensor) -> dict[str, Tensor]:
        """What the attention looks at, each (B, 1, D, H, W) / downsampling.

        SAM_background, SAM_NCR, SAM_ED and SAM_ET are the raw class maps, cut to [0, 1]: their loss makes them estimates of
        the class's probability. With soft masks they are those masks. Of the modules of `non_local`, how much of each voxel
        goes into the others.
        """
        return self._run(x)[1].maps

    def updated_features(self, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """X and X' of the attention (figure 6), each (B, C', D, H, W) / downsampling, by its kind; empty without one."""
        attended = self._run(x)[1]
        return {} if self.attend is None else {self.attention_kind: (attended.before, attended.features)}

    def _run(self, images: Tensor) -> tuple[Tensor, _Attended]:
        self.check_input(images)
        x = F.dropout3d(self.first(images), self.dropout, self.training or self.always_dropout)  # (B, base, D, H, W)
        attended = _Attended(x, x, {})
        skips: list[Tensor] = []
        for level, stage in enumerate(self.encoder):
            x = run(stage, x, recompute=self.recompute)
            if level == self.attended_level:
                attended = self._attended(images, x)
                x = attended.features
            if level < len(self.down):
                skips.append(x)
                x = self.down[level](x)  # (B, C_k, D / 2^k, H / 2^k, W / 2^k)
        for level in reversed(range(len(skips))):
            x = self.up[level](x, skips[level])
            x = run(self.decoder[level], x, recompute=self.recompute)
        return self.head(x), attended

    def _attended(self, images: Tensor, x: Tensor) -> _Attended:
        if self.attend is None:
            return _Attended(x, x, {})
        if isinstance(self.attend, SupervisedAttention):
            after, class_maps, prototypes = self.attend(images, x)
            seen = torch.softmax(class_maps, 1) if self.attend.mask == "soft" else class_maps.clamp(0, 1)
            shown = seen.split(1, 1)  # (B, 1, D, H, W) each
            maps = {f"SAM_{name}": one for name, one in zip(CLASSES, shown, strict=True)}
            return _Attended(x, after, maps, class_maps, prototypes)
        after, received = self.attend(x)
        return _Attended(x, after, {self.attention_kind: received})


def _check_attention(attention: Attention, downsampling: Downsampling, mask: Mask, update: Update) -> None:
    chosen = {"attention": attention, "downsampling": downsampling, "mask": mask, "update": update}
    allowed = dict(zip(chosen, (Attention, Downsampling, Mask, Update), strict=True))
    for name, value in chosen.items():
        if value not in get_args(allowed[name]):
            raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(str, get_args(allowed[name])))}")
    if attention not in {"sam", "sam_without_path"} and (downsampling, mask, update) != (8, "hard", "all"):
        raise ValueError(f"attention is {attention!r}; downsampling, mask and update are settings of the SAM alone")
