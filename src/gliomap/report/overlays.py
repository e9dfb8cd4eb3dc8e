"""One slice of a study with the outlines of several label maps over it, each beside the others."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gliomap.report import pictures
from gliomap.report.study import MODALITY_TITLES

Array = np.ndarray[Any, np.dtype[Any]]


class Picture(NamedTuple):
    """A picture with its size in pixels, and what stands under it."""

    uri: str
    title: str
    alt: str
    width: int
    height: int
    detail: str = ""


def overlays(
    study: str,
    images: Mapping[str, Array],
    maps: Mapping[str, Array],
    regions: Sequence[str],
    pixel_mm: tuple[float, float],
    longest_edge_px: int,
) -> list[list[Picture]]:
    """For each image (H, W) its slice as it is, and with the outlines of regions of each class map (H, W), by name.

    All are cropped to what is not background in any of them. ``pixel_mm`` is the size of a pixel along H, W.
    """
    volumes = [plane[None] for plane in (*images.values(), *maps.values())]
    spacing_mm = (1.0, *pixel_mm)
    box = pictures.brain_box(volumes, spacing_mm)
    shown_mm = max(pictures.longest_side_mm(box, spacing_mm), 1e-6) / longest_edge_px

    def drawn(plane: Array, *, labels: bool) -> Array:
        shown = pictures.slice_of(plane[None][box], "axial", 0)
        return pictures.resized(shown, pixel_mm, shown_mm, labels=labels)

    found = []
    for name, image in images.items():
        title = MODALITY_TITLES.get(name.lower(), name)
        grey = drawn(pictures.windowed(image, pictures.intensity_window(image)), labels=False)
        row = [_picture(pictures.grey_picture(grey), title, f"{study}, {title}, without outlines")]
        for what, classes in maps.items():
            outlined = pictures.outline_picture(grey, drawn(classes.astype(np.uint8), labels=True), regions)
            row.append(_picture(outlined, f"{title}, {what}", f"{study}, {title}, outlines of {what}"))
        found.append(row)
    return found


def _picture(pixels: Array, title: str, alt: str) -> Picture:
    return Picture(pictures.data_uri(pixels), title, alt, pixels.shape[1], pixels.shape[0])
