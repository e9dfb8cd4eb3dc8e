"""Global-fusion attention of paper 000: the formula as printed, and the readings of it that a computer can carry out.

The paper's G(Q, K, V) = softmax(Q K^T / sqrt(d_k)) V (x) V, (x) element-wise, compares every voxel with every other: for one
patch of 128^3 voxels 4.4e12 scores. ``GlobalFusionAttention`` is the formula; its subclasses differ in what attends to what:

- ``ExactAttention``: every voxel to every voxel, as printed; refused where that would never end
- ``PooledAttention`` (our default): every voxel to a coarse grid of averaged keys and values; equals the former where the
  grid is as fine as the volume
- ``AxialAttention``: every voxel to those of its line from inferior to superior, which a matrix product of channels-last
  features h x w x d x f computes and the authors may well have run
- ``WindowAttention``: every voxel to those of its window
- ``ChannelAttention``: every channel to every channel
- ``LinearAttention``: softmax(Q) (softmax(K)^T V), which never compares two voxels

None has parameters. ``key_weights`` says how much each key is attended to in the mean over the queries.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gliomap.errors import InputError

AttentionKind = Literal["kvpool", "exact", "axial", "channel", "linear", "window", "none"]

EXACT_VOXELS = 32_768
"""32^3: 1.1e9 scores, some ten seconds on two CPU cores. 128^3 voxels are 4,096 times as many scores."""
_SCORES_AT_ONCE = 2**25


class GlobalFusionAttention(nn.Module):
    """The global-fusion attention block of figure 1: Q, K and V, each (B, f, D, H, W), to Attn(Q, K, V) (x) V.

    D, H and W must be multiples of ``size_divisor``.
    """

    size_divisor: int = 1

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.attend(query, key, value) * value

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The mean of the values that each query attends to, (B, f, D, H, W)."""
        raise NotImplementedError

    def key_weights(self, query: Tensor, key: Tensor) -> Tensor:
        """How much each key is attended to in the mean over the queries, relative to the most attended key of the sample."""
        raise NotImplementedError


class _TokenAttention(GlobalFusionAttention):
    """softmax(Q K^T / sqrt(f)) V where voxels are tokens of f numbers, in groups that do not see each other."""

    def tokens(self, x: Tensor) -> Tensor:
        """A volume (B, f, D, H, W) as groups of tokens (B, groups, tokens, f): here one group of all voxels."""
        return x.flatten(2).transpose(-2, -1).unsqueeze(1)

    def volume(self, tokens: Tensor, size: torch.Size) -> Tensor:
        """The way back from ``tokens``, for a volume of that size (D, H, W)."""
        return tokens.squeeze(1).transpose(-2, -1).unflatten(2, size)

    def pool(self, x: Tensor) -> Tensor:
        """What of a volume serves as keys and values: here all of it."""
        return x

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        volumes = query, self.pool(key), self.pool(value)
        q, k, v = (self.tokens(x).contiguous() for x in volumes)  # other layouts make torch write every score to memory
        return self.volume(F.scaled_dot_product_attention(q, k, v), query.shape[2:])

    def key_weights(self, query: Tensor, key: Tensor) -> Tensor:
        key = self.pool(key)
        q, k = self.tokens(query), self.tokens(key)
        at_once = max(_SCORES_AT_ONCE // k.shape[:3].numel(), 1)
        total = k.new_zeros(k.shape[:3])
        for part in q.split(at_once, 2):
            total += torch.softmax(part @ k.transpose(-2, -1) / math.sqrt(k.shape[3]), 3).sum(2)
        return _relative(self.volume(total.unsqueeze(3), key.shape[2:]))


class ExactAttention(_TokenAttention):
    """Every voxel attends to every voxel. More than ``EXACT_VOXELS`` are an `InputError` unless ``force``."""

    def __init__(self, *, force: bool = False) -> None:
        super().__init__()
        self.force = force

    def tokens(self, x: Tensor) -> Tensor:
        voxels = x.shape[2:].numel()
        if voxels > EXACT_VOXELS and not self.force:
            raise InputError(
                f"exact attention over {tuple(x.shape[2:])} = {voxels:,} voxels needs {voxels**2:.1e} scores; expected at most "
                f"{EXACT_VOXELS:,} voxels. Choose attention=kvpool, a smaller patch, or force_exact=true and wait"
            )
        return super().tokens(x)


class PooledAttention(_TokenAttention):
    """Every voxel attends to grid^3 tokens: means of keys and values over equal boxes that cover the volume."""

    def __init__(self, grid: int) -> None:
        super().__init__()
        self.size_divisor = grid

    def pool(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool3d(x, self.size_divisor)


class AxialAttention(_TokenAttention):
    """Every voxel attends to the voxels of its line along D."""

    def tokens(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 4, 2, 1).flatten(1, 2)  # (B, H * W, D, f)

    def volume(self, tokens: Tensor, size: torch.Size) -> Tensor:
        return tokens.unflatten(1, size[1:]).permute(0, 4, 3, 1, 2)


class WindowAttention(_TokenAttention):
    """Every voxel attends to the voxels of its cube of ``window``^3; cubes do not overlap."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.size_divisor = window

    def tokens(self, x: Tensor) -> Tensor:
        n = self.size_divisor
        d, h, w = (length // n for length in x.shape[2:])
        cubes = x.reshape(*x.shape[:2], d, n, h, n, w, n).permute(0, 2, 4, 6, 3, 5, 7, 1)
        return cubes.reshape(len(x), d * h * w, n**3, x.shape[1])

    def volume(self, tokens: Tensor, size: torch.Size) -> Tensor:
        n = self.size_divisor
        d, h, w = (length // n for length in size)
        cubes = tokens.reshape(len(tokens), d, h, w, n, n, n, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
        return cubes.reshape(len(tokens), -1, *size)


class ChannelAttention(GlobalFusionAttention):
    """Every channel attends to every channel. A score is the mean product of the two over all voxels.

    The mean, and not the sum over sqrt(voxels) of the letter of the formula, since that would grow with the patch.
    """

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (self._weights(query, key) @ value.flatten(2)).unflatten(2, value.shape[2:])

    def key_weights(self, query: Tensor, key: Tensor) -> Tensor:
        return _relative(self._weights(query, key).sum(1)[:, :, None, None, None])

    @staticmethod
    def _weights(query: Tensor, key: Tensor) -> Tensor:
        q, k = query.flatten(2), key.flatten(2)
        scale = q.shape[2] ** -0.5  # on both, since in half precision their sum over all voxels would overflow
        return torch.softmax((q * scale) @ (k * scale).transpose(-2, -1), 2)  # (B, f, f)


class LinearAttention(GlobalFusionAttention):
    """softmax over channels of Q times (softmax over voxels of K)^T V."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k = torch.softmax(query.flatten(2), 1), torch.softmax(key.flatten(2), 2)
        context = value.flatten(2) @ k.transpose(-2, -1)  # (B, f, f)
        return (context @ q).unflatten(2, value.shape[2:])

    def key_weights(self, query: Tensor, key: Tensor) -> Tensor:
        q, k = torch.softmax(query.flatten(2), 1), torch.softmax(key.flatten(2), 2)
        total = q.sum(2, keepdim=True).transpose(-2, -1) @ k  # (B, 1, voxels)
        return _relative(total.unflatten(2, key.shape[2:]))


def global_fusion_attention(
    kind: AttentionKind, *, grid: int, window: int, force_exact: bool
) -> GlobalFusionAttention | None:
    """The attention of that kind; None for ``none``.

    Raises:
        ValueError: there is no such kind.
    """
    kinds: dict[str, Callable[[], GlobalFusionAttention | None]] = {
        "kvpool": lambda: PooledAttention(grid),
        "exact": lambda: ExactAttention(force=force_exact),
        "axial": AxialAttention,
        "window": lambda: WindowAttention(window),
        "channel": ChannelAttention,
        "linear": LinearAttention,
        "none": lambda: None,
    }
    if kind not in kinds:
        raise ValueError(f"no attention is called {kind!r}; expected one of {', '.join(kinds)}")
    return kinds[kind]()


def _relative(weights: Tensor) -> Tensor:
    """Divided by the largest weight of the sample."""
    return weights / weights.amax((1, 2, 3, 4), keepdim=True)
