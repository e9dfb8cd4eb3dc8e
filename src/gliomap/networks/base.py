"""What every network has in common: images in, logits out, and what training and explaining may ask for."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from gliomap.errors import InputError


@dataclass(frozen=True)
class Outputs:
    """What training needs of one forward pass. ``logits``: (B, K, *S), finest first; more than one under deep supervision."""

    logits: tuple[Tensor, ...]


class Network(nn.Module):
    """Images (B, C, *S) to logits (B, K, *S).

    ``spatial_dims`` 2 or 3; every size in S must be a multiple of ``size_divisor``.
    """

    spatial_dims: ClassVar[int] = 3
    size_divisor: int
    in_channels: int

    def forward(self, x: Tensor) -> Tensor:
        """The finest logits (B, K, *S)."""
        return self.supervised(x).logits[0]

    def supervised(self, x: Tensor) -> Outputs:
        """Everything a loss may need, for images (B, C, *S)."""
        raise NotImplementedError

    def attention(self, x: Tensor) -> dict[str, Tensor]:
        """The named attention maps for images (B, C, *S): (B, 1 or C, *s), s the level's own size, or 1 for channel weights."""
        raise NotImplementedError

    def check_input(self, x: Tensor) -> None:
        """Refuse images that the network cannot take.

        Raises:
            InputError: wrong number of axes or channels, or a size that is no multiple of ``size_divisor``.
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
