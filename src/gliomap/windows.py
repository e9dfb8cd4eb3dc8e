"""How a volume goes through a network: turned, padded to a size that it takes, in windows."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from gliomap.recipe import Size, View

Array = np.ndarray[Any, np.dtype[Any]]
Place = tuple[slice, ...]
WINDOW_SIGMA = 0.125
"""Width of a window's gaussian weight, relative to the window."""

_FLIPS: dict[str, tuple[int, ...]] = {
    "flip_left_right": (3,),
    "flip_front_back": (2,),
    "flip_top_bottom": (1,),
    "flip_left_right_front_back": (2, 3),
    "flip_left_right_top_bottom": (1, 3),
    "flip_front_back_top_bottom": (1, 2),
    "flip_all": (1, 2, 3),
}
_QUARTERS: dict[str, int] = {"rotate_90": 1, "rotate_180": 2, "rotate_270": 3}


def padded_size(size: tuple[int, ...], divisors: Size) -> Size:
    """The size as the next multiples of the divisors."""
    d, h, w = (-(-n // divisor) * divisor for n, divisor in zip(size, divisors, strict=True))
    return d, h, w


def at_least(size: tuple[int, ...], window: Size) -> Size:
    """The size, but no axis shorter than a window's."""
    d, h, w = (max(n, least) for n, least in zip(size, window, strict=True))
    return d, h, w


def pad_to(images: Array, size: Size) -> Array:
    """Zeros around (C, D, H, W) up to ``size``, the images in the middle; the images themselves if they are of that size."""
    if images.shape[1:] == size:
        return images
    out = np.zeros((len(images), *size), images.dtype)
    out[(slice(None), *centre_slices(size, images.shape[1:]))] = images
    return out


def centre_slices(outer: tuple[int, ...], inner: tuple[int, ...]) -> tuple[slice, ...]:
    """Where `pad_to` puts the images."""
    return tuple(slice((o - i) // 2, (o - i) // 2 + i) for o, i in zip(outer, inner, strict=True))


def window_starts(size: tuple[int, ...], window: Size, overlap: float) -> list[tuple[int, ...]]:
    """First voxels of the windows that cover ``size``, each a step of (1 - overlap) windows on, the last one flush."""
    axes = []
    for n, w in zip(size, window, strict=True):
        step = max(int(w * (1 - overlap)), 1)
        axes.append([min(i * step, n - w) for i in range(-(-(n - w) // step) + 1)])
    return list(product(*axes))


def gaussian_weight(window: Size) -> Array:
    """A window's weight (D, H, W): a gaussian about its centre, nowhere below 0.001, as MONAI's."""
    axes = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (WINDOW_SIGMA * n)) ** 2) for n in window]
    weight = np.einsum("i,j,k->ijk", *axes).astype(np.float32)
    return np.maximum(weight, np.float32(1e-3))


def in_batches(items: list[Place], size: int) -> Iterator[list[Place]]:
    """The items a few at a time."""
    for first in range(0, len(items), size):
        yield items[first : first + size]


def turn(images: Array, view: View) -> Array:
    """(C, D, H, W) as a view shows it."""
    if view.startswith("rotate"):
        return np.rot90(images, _QUARTERS[view], axes=(2, 3))
    return images if view == "identity" else np.flip(images, _FLIPS[view])


def turn_back(images: Array, view: View) -> Array:
    """What `turn` gave, as it was."""
    return np.rot90(images, -_QUARTERS[view], axes=(2, 3)) if view.startswith("rotate") else turn(images, view)
