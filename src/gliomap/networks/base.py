"""What every network has in common: images in, logits out, and what training and explaining may ask for."""

import ctypes
import sys
from collections.abc import Iterable
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gliomap.errors import InputError

_LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


class Outputs(NamedTuple):
    """What training needs of one forward pass.

    ``logits``: (B, K, *S), finest first; more than one under deep supervision. ``attention_logits`` (B, 4, *s): the raw
    class maps of a supervised attention module, for background, NCR, ED, ET. ``prototypes`` (B, 4, C): what that module
    found typical of each class. Both None where a network has no such module.
    """

    logits: tuple[Tensor, ...]
    attention_logits: Tensor | None = None
    prototypes: Tensor | None = None


class Network(nn.Module):
    """Images (B, C, *S) to logits (B, K, *S).

    ``spatial_dims`` 2 or 3; every size in S must be a multiple of ``size_divisor``, and where the coarsest level has
    ``instance_norm`` not all of them ``size_divisor`` itself, since one voxel has no deviation to normalise by.
    """

    spatial_dims: ClassVar[int] = 3
    instance_norm: ClassVar[bool] = False
    size_divisor: int
    in_channels: int
    frozen: tuple[str, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        """The finest logits (B, K, *S)."""
        return self.supervised(x).logits[0]

    def supervised(self, x: Tensor) -> Outputs:
        """Everything a loss may need, for images (B, C, *S)."""
        raise NotImplementedError

    def attention(self, x: Tensor) -> dict[str, Tensor]:
        """The named attention maps for images (B, C, *S): (B, 1 or C, *s), s the level's own size, or 1 for channel weights.

        Empty for a network without attention.
        """
        self.check_input(x)
        return {}

    def updated_features(self, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Features before and after each module that updates them, for images (B, C, *S): (B, C', *s) both, by its name.

        Empty for a network without such a module.
        """
        self.check_input(x)
        return {}

    @property
    def divisors(self) -> tuple[int, int, int]:
        """What D, H and W of a volume must be multiples of; a 2-D network sees axial slices, so any D will do."""
        return (self.size_divisor if self.spatial_dims == 3 else 1, self.size_divisor, self.size_divisor)

    def freeze(self, names: Iterable[str]) -> None:
        """Take whole submodules out of training: their parameters get no gradient, and they stay in evaluation mode.

        Raises:
            ValueError: there is no such submodule.
        """
        self.frozen = tuple(names)
        for name in self.frozen:
            try:
                self.get_submodule(name).requires_grad_(False)
            except AttributeError as error:
                raise ValueError(f"the network has no part {name!r} to freeze") from error
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Training mode, but for what is frozen."""
        super().train(mode)
        for name in self.frozen:
            nn.Module.train(self.get_submodule(name), False)  # not .eval(), which would come back here for the whole
        return self

    def check_input(self, x: Tensor) -> None:
        """Refuse images that the network cannot take.

        Raises:
            InputError: wrong number of axes or channels, a size that is no multiple of ``size_divisor``, or too small a one.
        """
        if x.ndim != self.spatial_dims + 2 or x.shape[1] != self.in_channels:
            axes = ("H, W", "D, H, W")[self.spatial_dims - 2]
            raise InputError(f"got images of shape {tuple(x.shape)}; expected (B, {self.in_channels}, {axes})")
        size = tuple(x.shape[2:])
        legal = tuple(-(-n // self.size_divisor) * self.size_divisor for n in size)
        if size != legal:
            raise InputError(
                f"got images of size {size}; every size must be a multiple of {self.size_divisor}: the next legal one is {legal}"
            )
        if self.instance_norm and all(n == self.size_divisor for n in size):
            raise InputError(
                f"got images of size {size}, of which the coarsest level has one voxel and cannot be normalised; "
                f"expected at least one axis of {2 * self.size_divisor}"
            )


def as_slices(x: Tensor) -> Tensor:
    """Volumes (B, C, D, H, W), or class maps (B, D, H, W), as a batch of axial slices (B * D, C, H, W) or (B * D, H, W)."""
    return x.movedim(-3, 1).flatten(0, 1)


def run(module: nn.Module, x: Tensor, *, recompute: bool) -> Tensor:
    """``module(x)``; with ``recompute`` its activations are not kept for the backward pass but computed again there.

    That costs a second forward pass and gives the same gradients. Not for modules with BatchNorm, which would count every
    batch twice.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(module, x, use_reentrant=False)
    return module(x)


def fast_layout(images: Tensor) -> Tensor:
    """Images (B, C, *S) laid out channels last, which a CPU convolves about twice as fast."""
    return images.contiguous(memory_format=_LAYOUTS[images.ndim - 2])


def channels_last(network: Network) -> Network:
    """The network with its weights laid out as `fast_layout` lays out images."""
    return network.to(memory_format=_LAYOUTS[network.spatial_dims])  # pyright: ignore[reportCallIssue] - not in torch's stubs


def keep_heap() -> None:
    """Have this process keep the memory of tensors that are gone for those to come, where the C library is Linux's glibc.

    Left to itself that library gives what is over 32 MB back to the system at once, and each step of a training on a CPU
    gets its activations anew, page by page: a quarter of its time. Kept, the heap
    is larger by the gaps between those that stay, up to twice as large.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, -1)
