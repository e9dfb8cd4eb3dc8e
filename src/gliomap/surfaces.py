"""Surfaces of masks, and how far one is from the other in mm."""

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

Array = np.ndarray[Any, np.dtype[Any]]
Spacing = tuple[float, float, float]

_LOOKS_PER_VOXEL = 10  # a tree looks at ten targets (7 ns each) while a transform does one voxel
_LOOKS_NOT_WORTH_AN_ESTIMATE = 1_000_000
_REACH = 3  # how many of the smallest spacing are looked around before a tree is built
_POINTS_WORTH_A_LOOK_AROUND = 500
_POINTS_PER_THREAD = 1000  # with fewer, starting a thread costs more than it saves


class Distances(NamedTuple):
    """From each point of the prediction, and of the truth, to the nearest of the other in mm; and each one's weight."""

    there: Array
    back: Array
    weight_there: Array
    weight_back: Array


def surface_distances(prediction: Array, truth: Array, spacing_mm: Spacing, threads: int = -1) -> Distances | None:
    """Between the centres of surface voxels (weight 1) of two boolean masks (D, H, W); None if one is empty.

    A surface voxel has one of its 6 neighbours outside the mask or outside the grid.
    """
    a, b = surface_voxels(prediction), surface_voxels(truth)
    return _unweighted(_directed(a, b, b, spacing_mm, threads), _directed(b, a, a, spacing_mm, threads))


def voxel_distances(prediction: Array, truth: Array, spacing_mm: Spacing, threads: int = -1) -> Distances | None:
    """Between the centres of all voxels (weight 1) of two boolean masks (D, H, W); None if one is empty.

    Outside a mask the nearest of its voxels is one of its surface, so only those are searched.
    """
    there = _directed(prediction, surface_voxels(truth), truth, spacing_mm, threads)
    back = _directed(truth, surface_voxels(prediction), prediction, spacing_mm, threads)
    return _unweighted(there, back)


def element_distances(prediction: Array, truth: Array, spacing_mm: Spacing, threads: int = -1) -> Distances | None:
    """Between the surface elements, weighted by their area in mm2, of two boolean masks (D, H, W); None if one is empty.

    As DeepMind's surface-distance: an element is a corner where voxels meet that is neither inside nor outside.
    """
    codes = [neighbour_codes(mask) for mask in (prediction, truth)]
    a, b = ((code != 0) & (code != 255) for code in codes)
    there, back = _directed(a, b, b, spacing_mm, threads), _directed(b, a, a, spacing_mm, threads)
    if not there.size or not back.size:
        return None
    areas = element_areas_mm2(spacing_mm)
    return Distances(there, back, areas[codes[0][a]], areas[codes[1][b]])


def surface_voxels(mask: Array) -> Array:
    """The voxels of a boolean mask (D, H, W) with one of their 6 neighbours outside it or outside the grid."""
    padded = np.pad(mask, 1)
    flat = padded.ravel()
    inner = flat.copy()
    for step in (1, padded.shape[2], padded.shape[1] * padded.shape[2]):
        inner[step:] &= flat[:-step]
        inner[:-step] &= flat[step:]
    return mask & ~inner.reshape(padded.shape)[1:-1, 1:-1, 1:-1]


def neighbour_codes(mask: Array) -> Array:
    """Which of the 8 voxels around each corner are in a boolean mask (D, H, W): bits 4 d + 2 h + w, (D + 1, H + 1, W + 1)."""
    codes = np.pad(mask, 1).view(np.uint8)
    codes = codes[:, :, :-1] | codes[:, :, 1:] << 1
    codes = codes[:, :-1] | codes[:, 1:] << 2
    return codes[:-1] | codes[1:] << 4


@cache
def element_areas_mm2(spacing_mm: Spacing) -> Array:
    """The area (256,) that marching cubes with vertices at the middles of edges gives each of `neighbour_codes`."""
    codes, normals = _element_normals()
    faces = np.prod(spacing_mm) / np.asarray(spacing_mm)
    return np.bincount(codes, np.linalg.norm(normals * faces, axis=1), 256)


@cache
def _element_normals() -> tuple[Array, Array]:
    """The plane pieces of every code's surface: codes (N,) and normals (N, 3), as long as a piece's area in unit cubes.

    Where more than half of the 8 corners are inside, it is the outside ones that are cut off. Corners that touch along no
    edge are cut off one by one: this settles the codes for which the surface is ambiguous.
    """
    pieces = []
    for code in range(1, 255):
        corners = np.unpackbits(np.uint8(code), bitorder="little").reshape(2, 2, 2)
        labels, count = ndimage.label(corners if corners.sum() <= 4 else 1 - corners)
        pieces += [(code, normal) for part in range(count) for normal in _cut_off(labels == part + 1)]
    codes, normals = zip(*pieces, strict=True)
    return np.array(codes), np.array(normals)


def _cut_off(corners: Array) -> list[Array]:
    """Normals of what cuts 1 to 4 connected corners (2, 2, 2) off a unit cube half-way along the edges."""
    everywhere, count = np.ones(3), corners.sum()
    low = np.array([corners.take(0, axis).sum() for axis in range(3)])
    flat = (low == 0) | (low == count)  # the axes along which all of them lie in one face
    halved = 2 * low == count
    if count == 1:  # a triangle
        return [everywhere / 8]
    if flat.any():
        if count == 2:  # a rectangle that slants round their edge
            return [flat / 2]
        if count == 3:  # a triangle opposite their face, and a slanting quadrilateral
            return [flat / 2, everywhere * 3 / 8]
        return [flat * 1.0]  # a square
    if not halved.any():  # one and its three neighbours: a hexagon
        return [everywhere * 3 / 4]
    ends = np.eye(3)[~halved]  # a chain along all three axes: a trapezoid, and a triangle at each end
    return [everywhere / 2, *((everywhere - end) / 4 for end in ends)]


def _unweighted(there: Array, back: Array) -> Distances | None:
    return Distances(there, back, np.ones(there.shape), np.ones(back.shape)) if there.size and back.size else None


def _directed(points: Array, targets: Array, shared: Array, spacing_mm: Spacing, threads: int) -> Array:
    """From each of the True ``points`` of a grid to the nearest of ``targets`` in mm; 0 where the grid is ``shared``.

    Without targets there are no distances.
    """
    point_places, target_places = np.flatnonzero(points), np.flatnonzero(targets)
    if not target_places.size:
        return np.empty(0)
    out = np.zeros(point_places.shape)
    left = np.flatnonzero(~shared.ravel()[point_places])
    far, near = (np.stack(np.unravel_index(p, points.shape), 1) for p in (point_places[left], target_places))
    if len(left) > _POINTS_WORTH_A_LOOK_AROUND:
        out[left] = _look_around(far, targets, spacing_mm)
        far, left = far[np.isinf(out[left])], left[np.isinf(out[left])]
    if left.size:
        steps = (far - _nearest(far, near, points.shape, spacing_mm, threads)) * np.asarray(spacing_mm)
        out[left] = np.sqrt((steps**2).sum(1))
    return out


def _look_around(points: Array, targets: Array, spacing_mm: Spacing) -> Array:
    """From each of ``points`` (N, 3) to the nearest True voxel of ``targets`` in mm; infinite beyond `_rings`."""
    padded = np.pad(targets, _REACH)
    inside, strides = padded.ravel(), np.array(padded.strides)
    places = (points + _REACH) @ strides
    out, left = np.full(len(points), np.inf), np.arange(len(points))
    for distance, steps in _rings(spacing_mm):
        here, hit = places[left], np.zeros(left.shape, bool)
        for step in steps @ strides:
            hit |= inside[here + step]
        out[left[hit]] = distance
        left = left[~hit]
    return out


@cache
def _rings(spacing_mm: Spacing) -> list[tuple[float, Array]]:
    """Distances in mm, from near to far, with the steps (N, 3) to all voxels that are so far away."""
    steps = np.argwhere(np.ones((2 * _REACH + 1,) * 3)) - _REACH
    distances = np.sqrt(((steps * np.asarray(spacing_mm)) ** 2).sum(1))
    known = np.unique(distances[(distances > 0) & (distances <= _REACH * min(spacing_mm))])
    return [(float(distance), steps[distances == distance]) for distance in known]


def _nearest(points: Array, targets: Array, shape: tuple[int, ...], spacing_mm: Spacing, threads: int) -> Array:
    """The nearest of ``targets`` (M, 3) of each of ``points`` (N, 3), voxels of a grid of that shape.

    By a tree, or by a transform of the whole grid where that is faster: where the tree would look at too many targets, which
    are those nearly as near as the nearest. The tree is neither balanced nor compact: it is built twice as fast so, and
    searched six times as fast where many are nearly as near.
    """
    spacing, most_looks = np.asarray(spacing_mm), _LOOKS_PER_VOXEL * math.prod(shape)
    tree = KDTree(targets * spacing, leafsize=32, compact_nodes=False, balanced_tree=False)
    if len(points) * len(targets) > most_looks + _LOOKS_NOT_WORTH_AN_ESTIMATE:
        sample = points[:: len(points) // 32 + 1] * spacing
        reach = tree.query(sample)[0] + 4 * np.cbrt(spacing.prod())
        if len(points) * np.mean(tree.query_ball_point(sample, reach, return_length=True)) > most_looks:
            return _nearest_by_transform(points, targets, shape, spacing_mm)
    workers = threads if len(points) > _POINTS_PER_THREAD else 1
    return targets[tree.query(points * spacing, workers=workers)[1]]


def _nearest_by_transform(points: Array, targets: Array, shape: tuple[int, ...], spacing_mm: Spacing) -> Array:
    free = np.ones(shape, bool)
    free[tuple(targets.T)] = False
    nearest = ndimage.distance_transform_edt(free, spacing_mm, return_distances=False, return_indices=True)
    return nearest[:, *points.T].T
