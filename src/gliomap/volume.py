"""An image that knows where it is in space."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from gliomap.errors import InputError

AFFINE_TOLERANCE = 1e-3
"""How far, in voxels, one grid's axes and origin may be from lying exactly on another's voxels."""

Array = np.ndarray[Any, np.dtype[Any]]


class Box(NamedTuple):
    """Half-open voxel ranges along D, H, W (z, y, x)."""

    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The box as an index into a (D, H, W) array."""
        d, h, w = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return d, h, w

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along D, H, W."""
        d, h, w = (b - a for a, b in zip(self.start, self.stop, strict=True))
        return d, h, w


@dataclass(frozen=True)
class Volume:
    """Channels of one grid: ``array`` (C, D, H, W) with D, H, W = z, y, x, and where its voxels are.

    ``affine`` (4, 4) maps a voxel (x, y, z, 1) to mm in the RAS+ patient space of NIfTI.
    """

    array: Array
    affine: Array

    def __post_init__(self) -> None:
        if self.array.ndim != 4 or self.affine.shape != (4, 4):
            raise ValueError(
                f"a Volume is (C, D, H, W) with a (4, 4) affine, got {self.array.shape}, {self.affine.shape}"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along D, H, W."""
        d, h, w = self.array.shape[1:]
        return d, h, w

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along D, H, W (z, y, x)."""
        x, y, z = (float(v) for v in np.linalg.norm(self.affine[:3, :3], axis=0))
        return z, y, x

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    def crop(self, box: Box) -> "Volume":
        """The part inside ``box``, zero where it reaches outside; the affine moves along."""
        d, h, w = box.start
        moved = self.affine.copy()
        moved[:3, 3] = self.affine[:3, :3] @ [w, h, d] + self.affine[:3, 3]
        inner = [slice(max(a, 0), min(b, n)) for a, b, n in zip(*box, self.shape, strict=True)]
        part = self.array[(slice(None), *inner)]
        if part.shape[1:] == box.shape:
            return Volume(np.ascontiguousarray(part), moved)
        out = np.zeros((len(part), *box.shape), part.dtype)
        place = (slice(p.start - a, p.stop - a) for p, a in zip(inner, box.start, strict=True))
        out[(slice(None), *place)] = part
        return Volume(out, moved)

    def to_ras(self) -> "Volume":
        """The same voxels with x, y, z running right, anterior, superior as nearly as the grid allows."""
        order, flips = _nearest_axes(self.affine)
        array, affine = self.array, np.eye(4)
        size = np.array(self.shape[::-1])
        affine[:3, :3] = self.affine[:3, order] * flips
        start = np.where(np.array(flips) < 0, size[list(order)] - 1, 0)
        affine[:3, 3] = self.affine[:3, 3] + self.affine[:3, order] @ start
        return Volume(_rearranged(array, order, flips), affine)

    def placed_on(self, image: "Volume") -> "Volume":
        """This volume's voxels on ``image``'s grid, zero outside it: the way back from any crop, flip or axis order.

        Raises:
            InputError: the voxels of the two grids do not coincide.
        """
        order, flips, offset = grid_relation(self.affine, image.affine)
        part = _rearranged(self.array, order, flips)
        out = np.zeros((len(self.array), *image.shape), self.array.dtype)
        size = part.shape[:0:-1]
        low = [o if f > 0 else o - (n - 1) for o, f, n in zip(offset, flips, size, strict=True)]
        target, source = [], []
        for start, count, limit in zip(low[::-1], part.shape[1:], image.shape, strict=True):
            target.append(slice(max(start, 0), max(min(start + count, limit), 0)))
            source.append(slice(max(-start, 0), max(min(count, limit - start), 0)))
        out[(slice(None), *target)] = part[(slice(None), *source)]
        return Volume(out, image.affine)

    def with_array(self, array: Array) -> "Volume":
        """Other channels on the same grid; a (D, H, W) array becomes one channel."""
        return replace(self, array=array[None] if array.ndim == 3 else array)


def grid_relation(source: Array, target: Array) -> tuple[list[int], list[int], list[int]]:
    """How voxels of one affine lie on another's: for each target axis x, y, z the source axis, its sign and the offset.

    Raises:
        InputError: the grids are rotated, scaled or shifted by a part of a voxel against each other.
    """
    relation = np.linalg.inv(target) @ source
    rounded = np.round(relation)
    axes = np.abs(rounded[:3, :3])
    fits = np.abs(relation - rounded).max() < AFFINE_TOLERANCE
    if not fits or not ((axes.sum(0) == 1).all() and (axes.sum(1) == 1).all()):
        raise InputError(
            "the two grids do not share their voxels (they differ by a rotation, another voxel size or part of a voxel); "
            "expected a crop, flip or axis permutation of one grid. Resample one of them to the other first"
        )
    order = [int(np.argmax(axes[row])) for row in range(3)]
    flips = [int(rounded[row, order[row]]) for row in range(3)]
    return order, flips, [int(v) for v in rounded[:3, 3]]


def grid_distance_mm(a: Volume, b: Volume) -> float:
    """Largest distance in mm between the same corner of two grids of equal shape; infinite if the shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    d, h, w = a.shape
    corners = np.array([(x, y, z, 1) for x in (0, w - 1) for y in (0, h - 1) for z in (0, d - 1)], float)
    return float(np.linalg.norm((corners @ (a.affine - b.affine).T)[:, :3], axis=1).max())


def bounding_box(mask: Array, margin: int | Sequence[int] = 0) -> Box | None:
    """The smallest box around the True voxels of a (D, H, W) mask, widened by ``margin`` voxels; None if there are none."""
    shadow = np.any(mask, 1)  # (D, W): looking along rows that lie side by side is fastest
    d, w = np.flatnonzero(np.any(shadow, 1)), np.flatnonzero(np.any(shadow, 0))
    if not d.size:
        return None
    h = np.flatnonzero(mask[d[0] : d[-1] + 1, :, w[0] : w[-1] + 1].any(axis=(0, 2)))
    margins = (margin,) * 3 if isinstance(margin, int) else tuple(margin)
    start = [max(int(hit[0]) - m, 0) for hit, m in zip((d, h, w), margins, strict=True)]
    stop = [min(int(hit[-1]) + 1 + m, n) for hit, m, n in zip((d, h, w), margins, mask.shape, strict=True)]
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def _nearest_axes(affine: Array) -> tuple[list[int], list[int]]:
    """For each patient axis R, A, S the voxel axis that runs along it most, and its sign."""
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    order, flips = [0, 0, 0], [1, 1, 1]
    weight = np.abs(cosines)
    for _ in range(3):
        patient, voxel = (int(v) for v in np.unravel_index(np.argmax(weight), (3, 3)))
        order[patient], flips[patient] = voxel, 1 if cosines[patient, voxel] >= 0 else -1
        weight[patient, :] = weight[:, voxel] = -1
    return order, flips


def _rearranged(array: Array, order: Sequence[int], flips: Sequence[int]) -> Array:
    """A (C, D, H, W) array with its x, y, z axes taken in ``order`` and reversed where ``flips`` is -1."""
    axes = [0, *(3 - axis for axis in order[::-1])]
    moved = array.transpose(axes)
    return moved[(slice(None), *(slice(None, None, flip) for flip in flips[::-1]))]
