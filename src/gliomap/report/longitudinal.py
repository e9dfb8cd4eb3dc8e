"""The page of `gliomap report`: one patient's examinations over time, side by side, with what changed in ml and per cent."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gliomap import __version__
from gliomap.classes import CLASS_NAMES, CLASS_TITLES, RC, REGIONS
from gliomap.report import pictures
from gliomap.report.changes import Change, changes_of
from gliomap.report.examination import NO_IMAGE
from gliomap.report.lesion_table import Lesion
from gliomap.report.study import template, volume_text
from gliomap.report.viewer import Layers, viewer_of
from gliomap.report.volume_chart import HEIGHT, WIDTH, TimeAxis, VolumeChart, volume_chart

PART_TITLES = {"ET": "Enhancing tumour", "TC": "Tumour core", "WT": "Whole tumour"} | {
    name: CLASS_TITLES[number].capitalize() for number, name in CLASS_NAMES.items() if name != "ET"
}
"""The regions, then the classes that are none."""

EDGE_PX = 300
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class TimePoint:
    """One examination of the patient.

    Attributes:
        title: The name of its folder or file; any text.
        when: When it was, as the options say it; empty where they do not.
        volumes_ml: By region or class; what its label map does not tell is not in it.
        lesion_count: How many lesions there are.
        lesions: The largest of them.
        layers: What is shown of it; without images a class map alone.
        spacing_mm: Voxel size (z, y, x).
        size: Voxels (x, y, z) of the whole grid.
        facts: How it came about, printed as a column of a table.
    """

    title: str
    when: str
    volumes_ml: dict[str, float]
    lesion_count: int
    lesions: list[Lesion]
    layers: Layers
    spacing_mm: tuple[float, float, float]
    size: tuple[int, int, int]
    facts: dict[str, str]

    @property
    def label(self) -> str:
        """What it is called in few words: when it was, else its title."""
        return self.when or self.title


@dataclass(frozen=True)
class LongitudinalReport:
    """A patient's time points, two or more, where they lie on the time axis, and what is odd about them."""

    title: str
    points: tuple[TimePoint, ...]
    time: TimeAxis
    warnings: tuple[str, ...] = ()


class PartOverTime(NamedTuple):
    """A region's or class's changes, one per time point, with their chart, a sentence, and its colour's name."""

    name: str
    title: str
    changes: list[Change]
    chart: VolumeChart
    sentence: str


class Still(NamedTuple):
    """A picture of one time point, with its size in pixels."""

    uri: str
    detail: str
    alt: str
    width: int
    height: int


def longitudinal_page(report: LongitudinalReport) -> str:
    """Return the page as HTML text, with its pictures and the viewer's volumes inside."""
    page = template("longitudinal.html.j2")
    page.environment.filters |= {"signed": signed}
    one_grid = on_one_grid(report.points)
    layers = [point.layers for point in report.points]
    seen = set().union(*(np.unique(one.classes).tolist() for one in layers))
    return page.render(
        report=report,
        viewer=viewer_of(with_an_image(in_one_box(layers) if one_grid else layers)),
        parts=parts_over_time(report),
        rows=still_rows(report),
        chart_size=(WIDTH, HEIGHT),
        legend=[CLASS_NAMES[number] for number in pictures.CLASS_COLOURS if number in seen],
        one_grid=one_grid,
        version=__version__,
    )


def in_one_box(layers: Sequence[Layers]) -> list[Layers]:
    """Widen boxes of one grid to the box about all of them: the viewer moves the crosshairs of equal boxes together.

    They begin where the largest tumour is.
    """
    crosshair = max(layers, key=lambda one: np.count_nonzero(one.classes)).crosshair
    starts = np.array([one.start for one in layers])
    stops = starts + [one.classes.shape for one in layers]
    low, high = starts.min(axis=0), stops.max(axis=0)
    found = []
    for one, start, stop in zip(layers, starts, stops, strict=True):
        widths = np.stack([start - low, high - stop], axis=1)
        affine = one.affine.copy()
        affine[:, 3] = affine @ [*(low - start)[::-1], 1]
        found.append(
            one._replace(
                images=[np.pad(image, widths) for image in one.images],
                classes=np.pad(one.classes, widths),
                affine=affine,
                start=(int(low[0]), int(low[1]), int(low[2])),
                crosshair=crosshair,
            )
        )
    return found


def with_an_image(layers: Sequence[Layers]) -> list[Layers]:
    """Call the black image of label maps by themselves what others begin with, so that the viewer begins with that."""
    name = next((one.modalities[one.shown] for one in layers if one.modalities != (NO_IMAGE,)), NO_IMAGE)
    return [one._replace(modalities=(name,)) if one.modalities == (NO_IMAGE,) else one for one in layers]


def parts_over_time(report: LongitudinalReport) -> list[PartOverTime]:
    """Every region and class that a time point tells; a resection cavity only where there is one."""
    found: list[PartOverTime] = []
    for name, title in PART_TITLES.items():
        volumes_ml = [point.volumes_ml.get(name) for point in report.points]
        if all(ml is None for ml in volumes_ml) or (name == CLASS_NAMES[RC] and not any(volumes_ml)):
            continue
        changes = changes_of(volumes_ml)
        chart = volume_chart(volumes_ml, report.time)
        found.append(PartOverTime(name, title, changes, chart, change_sentence(report, title, changes)))
    return found


def change_sentence(report: LongitudinalReport, title: str, changes: Sequence[Change]) -> str:
    """Say in words from what to what a volume went; measured, not judged."""
    first, last = changes[0], changes[-1]
    if first.volume_ml is None or last.volume_ml is None or last.since_first is None:
        return f"{title} is not told at the first or the last time point."
    ends = [
        f"{volume_text(c.volume_ml or 0)} ml at {p.label}"
        for c, p in ((first, report.points[0]), (last, report.points[-1]))
    ]
    ml, percent = last.since_first
    share = "" if percent is None else f" ({signed(percent, 1)} %)"
    return f"{title}: from {ends[0]} to {ends[1]}, {signed(ml, 2)} ml{share}."


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, + or a true minus; what rounds to 0 has none."""
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else f"{'+' if value > 0 else MINUS}{text}"


def on_one_grid(points: Sequence[TimePoint]) -> bool:
    """Whether all time points have the same grid, so that a voxel of one is at the same place in mm in all."""
    return all(point.size == points[0].size and np.allclose(whole_affine(point), whole_affine(points[0]), atol=1e-3)
               for point in points)  # fmt: skip


def whole_affine(point: TimePoint) -> NDArray[np.float64]:
    """The affine of the whole grid, (4, 4); that of the layers is of the box which is shown."""
    z, y, x = point.layers.start
    affine = np.array(point.layers.affine, float)
    affine[:, 3] = affine @ [-x, -y, -z, 1]
    return affine


def still_rows(report: LongitudinalReport) -> list[tuple[str, list[Still]]]:
    """A row of pictures for each modality that is shown, one per time point, all of one scale and size.

    Each shows the axial slice with most tumour.
    """
    every = dict.fromkeys(name for point in report.points for name in point.layers.modalities)
    names = [name for name in every if name != NO_IMAGE] or [NO_IMAGE]
    shapes = [(point.layers.classes.shape, point.spacing_mm) for point in report.points]
    field_mm = tuple(max(shape[axis] * spacing_mm[axis] for shape, spacing_mm in shapes) for axis in (1, 2))
    scale_mm = max(field_mm) / EDGE_PX
    size = (round(field_mm[0] / scale_mm), round(field_mm[1] / scale_mm))
    return [(name, [still(point, name, scale_mm, size) for point in report.points]) for name in names]


def still(point: TimePoint, modality: str, scale_mm: float, size: tuple[int, int]) -> Still:
    """Show a modality's slice with most tumour, black where there is no such image, amid a picture of a size (rows, columns)."""
    layers, pixel_mm = point.layers, point.spacing_mm[1:]
    index = most_tumour(layers.classes)
    black = modality == NO_IMAGE or modality not in layers.modalities
    grey = layers.classes * np.uint8(0) if black else layers.images[layers.modalities.index(modality)]
    parts = [pictures.slice_of(volume, "axial", index) for volume in (grey, layers.classes)]
    picture = pictures.class_picture(
        pictures.resized(parts[0], pixel_mm, scale_mm), pictures.resized(parts[1], pixel_mm, scale_mm, labels=True)
    )
    picture = pictures.lettered(padded(picture, size), "axial", scale_mm)
    detail = f"axial slice {layers.start[0] + index + 1} of {point.size[2]}"
    shown = "without an image" if black else modality
    return Still(
        pictures.data_uri(picture), detail, f"{point.label}, {shown}, {detail}, with the segmentation", *size[::-1]
    )


def padded(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Put a picture (rows, columns, 3) in the middle of a black one of at least its size."""
    before = [max(0, whole - part) // 2 for whole, part in zip(size, picture.shape, strict=False)]
    after = [max(0, whole - part - edge) for whole, part, edge in zip(size, picture.shape, before, strict=False)]
    framed = np.pad(picture, (*zip(before, after, strict=True), (0, 0)))
    return framed[: size[0], : size[1]]


def most_tumour(classes: NDArray[np.uint8]) -> int:
    """The axial slice of a class map (D, H, W) with most of a tumour, else of a cavity, else the middle one."""
    for tissues in (REGIONS["WT"], (RC,)):
        area = np.isin(classes, tissues).sum(axis=(1, 2))
        if area.any():
            return int(area.argmax())
    return classes.shape[0] // 2
