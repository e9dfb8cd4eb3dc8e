"""The lesions of a segmentation one by one, measured as radiologists do: two diameters in one axial slice."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull

from gliomap.classes import region_mask
from gliomap.volume import bounding_box

TOUCHING = np.ones((3, 3, 3), bool)
"""Voxels of one lesion share at least a corner."""

TOUCHING_IN_SLICE = np.stack([np.zeros((3, 3), bool), np.ones((3, 3), bool), np.zeros((3, 3), bool)])
"""Pixels of one axial cross-section share at least a corner; slices are apart."""

MOST_LESIONS = 20


class Diameters(NamedTuple):
    """The largest diameter of a cross-section, and the largest that is perpendicular to it.

    ``centre`` (row, column) is the pixel in the middle of the largest diameter.
    """

    largest_mm: float
    perpendicular_mm: float
    centre: tuple[int, int]

    @property
    def product_mm2(self) -> float:
        """The bidimensional product."""
        return self.largest_mm * self.perpendicular_mm


class Lesion(NamedTuple):
    """One lesion: its volume by region, and the diameters of its axial cross-section whose diameter is largest.

    ``measured`` is the region that was measured; ``centre`` (z, y, x) the voxel in the middle of the largest diameter.
    """

    volumes_ml: dict[str, float]
    measured: str
    diameters: Diameters
    centre: tuple[int, int, int]


def find_lesions(
    classes: NDArray[np.uint8], spacing_mm: tuple[float, float, float], regions: Sequence[str]
) -> tuple[int, list[Lesion]]:
    """Count the lesions of a class map (D, H, W) and measure the largest, up to `MOST_LESIONS`, largest first.

    A lesion is a component of the outermost of ``regions``, which run from the inside to the outside. Measured is its
    tumour core where it has one and ``regions`` tell it, else its enhancing tumour, else the whole of it.
    """
    outer = region_mask(classes, regions[-1]) if regions else np.zeros(classes.shape, bool)
    box = bounding_box(outer)
    if box is None:
        return 0, []
    tissue = np.where(outer[box.slices], classes[box.slices], 0)
    components, count = ndimage.label(tissue > 0, TOUCHING)
    largest = np.argsort(-np.bincount(components.ravel())[1:], kind="stable")[:MOST_LESIONS] + 1
    places = ndimage.find_objects(components)
    found: list[Lesion] = []
    for number in largest:
        place = places[number - 1]
        lesion = np.where(components[place] == number, tissue[place], 0)
        start = [start + side.start for start, side in zip(box.start, place, strict=True)]
        found.append(_measured(lesion, spacing_mm, regions, start))
    return count, found


def _measured(
    lesion: NDArray[np.uint8], spacing_mm: tuple[float, float, float], regions: Sequence[str], start: Sequence[int]
) -> Lesion:
    masks = {region: region_mask(lesion, region) for region in regions}
    voxel_ml = math.prod(spacing_mm) / 1000
    volumes_ml = {region: float(np.count_nonzero(mask)) * voxel_ml for region, mask in masks.items()}
    measured = next(r for r in ("TC", "ET", regions[-1]) if r in masks and masks[r].any())
    index, diameters = largest_cross_section(masks[measured], spacing_mm)
    z, y, x = (at + first for at, first in zip((index, *diameters.centre), start, strict=True))
    return Lesion(volumes_ml, measured, diameters, (z, y, x))


def largest_cross_section(mask: NDArray[np.bool_], spacing_mm: tuple[float, float, float]) -> tuple[int, Diameters]:
    """Find the axial cross-section with the largest diameter in a mask (D, H, W) that is not empty.

    Returns:
        Its slice, and what it measures.
    """
    _, *pixel_mm = spacing_mm
    sections, _ = ndimage.label(mask, TOUCHING_IN_SLICE)
    places = list(enumerate(ndimage.find_objects(sections), start=1))
    bounds_mm = {number: _diagonal_mm(place[1:], pixel_mm) for number, place in places}
    index, best = 0, Diameters(0.0, 0.0, (0, 0))
    for number, (slices, rows, columns) in sorted(places, key=lambda entry: -bounds_mm[entry[0]]):
        if bounds_mm[number] <= best.largest_mm:
            break
        section = sections[slices.start, rows, columns] == number
        measured = diameters_of(section, (pixel_mm[0], pixel_mm[1]))
        if measured.largest_mm > best.largest_mm:
            row, column = measured.centre
            index, best = slices.start, measured._replace(centre=(row + rows.start, column + columns.start))
    return index, best


def _diagonal_mm(sides: Sequence[slice], pixel_mm: Sequence[float]) -> float:
    return math.hypot(*((side.stop - side.start) * mm for side, mm in zip(sides, pixel_mm, strict=True)))


def diameters_of(section: NDArray[np.bool_], pixel_mm: tuple[float, float]) -> Diameters:
    """Measure a cross-section (rows, columns) that is not empty, from edge to edge of its convex outline.

    The outline runs through the middles of the pixels' outer edges, as in PyRadiomics: one pixel of 1 mm measures 1 mm.
    The perpendicular diameter is the longest chord of the outline at a right angle to the largest diameter.
    """
    points = _edge_middles(section)
    corners_mm = points[ConvexHull(points).vertices] * pixel_mm  # counter-clockwise
    between = corners_mm[:, None] - corners_mm[None]
    first, last = np.unravel_index(np.hypot(between[..., 0], between[..., 1]).argmax(), between.shape[:2])
    largest_mm = math.hypot(*between[last, first])
    along = between[last, first] / largest_mm
    rolled = np.roll(corners_mm, -int(first), axis=0)
    position, height = rolled @ along, rolled @ [-along[1], along[0]]
    turn = (int(last) - int(first)) % len(rolled)
    there = np.interp(position, position[: turn + 1], height[: turn + 1])
    back = np.interp(position, np.append(position[turn:], position[0])[::-1], np.append(height[turn:], height[0])[::-1])
    row, column = np.clip(np.rint(corners_mm[[first, last]].mean(axis=0) / pixel_mm), 0, np.subtract(section.shape, 1))
    return Diameters(largest_mm, float(np.abs(there - back).max()), (int(row), int(column)))


def _edge_middles(section: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The outer edges' middles of the first and last pixel of each row and column, (N, 2): all corners are among them."""
    edges: list[np.ndarray] = []
    for axis in (0, 1):
        lines = section if axis == 0 else section.T
        line = np.flatnonzero(lines.any(axis=1))
        first = lines[line].argmax(axis=1) - 0.5
        last = lines.shape[1] - lines[line, ::-1].argmax(axis=1) - 0.5
        ends = np.stack([np.tile(line, 2), np.concatenate([first, last])], axis=1)
        edges.append(ends if axis == 0 else ends[:, ::-1])
    return np.concatenate(edges)
