"""The page that `gliomap segment` writes beside the label map: one HTML file that opens offline."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Template
from numpy.typing import NDArray

from gliomap.classes import CLASS_NAMES, CLASS_TITLES, REGIONS, region_mask
from gliomap.report import pictures
from gliomap.report.lesion_table import find_lesions
from gliomap.report.pictures import Box, Plane
from gliomap.report.templating import pages
from gliomap.report.viewer import Layers, ScalarMap, viewer_of

FLAIR_NAMES = ("flair", "t2f", "t2-flair")
ENHANCED_NAMES = ("t1c", "t1ce", "t1gd", "t1-ce")
MODALITY_TITLES = {"t1": "T1", "t1c": "T1c", "t1ce": "T1ce", "t2": "T2", "flair": "FLAIR"}
LONGEST_EDGE_PX = 440
STRIP_EDGE_PX = 220
CODE_LIKE = re.compile(r"\S{16,}")


@dataclass(frozen=True)
class StudyReport:
    """What one segmented study's page shows.

    Arrays are RAS+: D = z inferior to superior, H = y posterior to anterior, W = x left to right.

    Attributes:
        study: The id; any text.
        modalities: One name per channel of `images`.
        images: (C, D, H, W); 0 is background.
        classes: (D, H, W); 0 background, 1 NCR, 2 ED, 3 ET, 4 RC.
        spacing_mm: Voxel size (z, y, x).
        volumes_ml: Volume by region or class: ET, TC, WT, NCR, ED, RC; empty where there is no label map.
        facts: How the segmentation came about, printed as a table of two columns.
        warnings: Printed before everything else.
        truth: (D, H, W) class map of the reference, if there is one.
        scores: Rows with region, metric, value, unit and definition.
        affine: (4, 4), from a voxel (x, y, z, 1) to mm; without it mm count from the first voxel.
        uncertainty: Maps (D, H, W) in [0, 1] by name, if there are any.
        card: What is known about the model, as its file has it.
    """

    study: str
    modalities: tuple[str, ...]
    images: np.ndarray
    classes: np.ndarray
    spacing_mm: tuple[float, float, float]
    volumes_ml: dict[str, float]
    facts: dict[str, str]
    warnings: tuple[str, ...] = ()
    truth: np.ndarray | None = None
    scores: tuple[dict[str, str], ...] = ()
    affine: np.ndarray | None = None
    uncertainty: Mapping[str, np.ndarray] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)

    @property
    def regions(self) -> tuple[str, ...]:
        """The regions that the segmentation tells, from the inside to the outside."""
        return tuple(region for region in REGIONS if region in self.volumes_ml)


class Figure(NamedTuple):
    """One picture of the page, with its size in pixels."""

    uri: str
    title: str
    detail: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class Cut:
    """One slice through the study."""

    plane: Plane
    index: int


class Scene(NamedTuple):
    """What everything on a page shares: the box that is shown with its longest side, and its grey volumes and their windows."""

    report: StudyReport
    box: Box
    longest_side_mm: float
    grey: list[NDArray[np.uint8]]
    windows: tuple[tuple[float, float], ...]


def study_page(report: StudyReport) -> str:
    """Return the page as HTML text, with its pictures and volumes inside.

    Raises:
        ValueError: The arrays do not have one shape, or there is not one modality name per image.
    """
    return _page_and_files(report, None)[0]


def served_study(report: StudyReport, address: str) -> tuple[str, dict[str, bytes]]:
    """Return the page as HTML text, and the volumes that it fetches, in full, by address relative to it, below ``address``.

    Raises:
        ValueError: As `study_page`.
    """
    return _page_and_files(report, address)


def _page_and_files(report: StudyReport, address: str | None) -> tuple[str, dict[str, bytes]]:
    check_shapes(report)
    scene = scene_of(report)
    maps = [report.classes] if report.truth is None else [report.classes, report.truth]
    choice = pictures.choose_slices(report.classes, scene.box, report.spacing_mm)
    flair = modality_index(report.modalities, FLAIR_NAMES)
    enhanced = modality_index(report.modalities, ENHANCED_NAMES)
    largest = Cut("axial", choice.whole_tumour)
    channels = range(len(report.modalities))
    lesion_count, lesions = find_lesions(report.classes, report.spacing_mm, report.regions)
    viewer = viewer_of([layers_of(scene, flair, choice.centre, uncertainty_maps(report))], address=address)
    page = template("study.html.j2").render(
        report=report,
        found=bool(region_mask(report.classes, "WT").any()),
        viewer=viewer,
        lesion_count=lesion_count,
        lesions=lesions,
        largest=place(scene, largest),
        key_figure=class_figure(scene, enhanced, Cut("axial", choice.tumour_core)),
        plain_figures=[plain_figure(scene, channel, largest) for channel in channels],
        class_figures=[class_figure(scene, channel, largest) for channel in channels if report.classes.any()],
        plane_rows=[plane_figures(scene, channel, choice.centre) for channel in dict.fromkeys((flair, enhanced))],
        strip=[class_figure(scene, flair, Cut("axial", index), STRIP_EDGE_PX) for index in choice.strip],
        truth_rows=[] if report.truth is None else truth_rows(scene, report.truth, flair, enhanced),
        reference_ml={} if report.truth is None else volumes_of(report.truth, report.spacing_mm),
        legend=[CLASS_NAMES[c] for c in pictures.CLASS_COLOURS if any((classes == c).any() for classes in maps)],
    )
    return page, viewer.files


def scene_of(report: StudyReport) -> Scene:
    """Find the box of a study that is shown, and make its images grey there."""
    maps = [report.classes] if report.truth is None else [report.classes, report.truth]
    box = pictures.brain_box([*report.images, *maps], report.spacing_mm)
    windows = tuple(pictures.intensity_window(image[box]) for image in report.images)
    grey = [pictures.windowed(image[box], window) for image, window in zip(report.images, windows, strict=True)]
    return Scene(report, box, pictures.longest_side_mm(box, report.spacing_mm), grey, windows)


def uncertainty_maps(report: StudyReport) -> tuple[ScalarMap, ...]:
    """Return a study's maps of uncertainty as the viewer shows them."""
    return tuple(ScalarMap(f"Uncertainty: {name}", doubt, (0.0, 1.0)) for name, doubt in report.uncertainty.items())


def layers_of(
    scene: Scene, shown: int, centre: tuple[int, int, int], maps: Sequence[ScalarMap] = (), title: str = ""
) -> Layers:
    """Return what the viewer shows: a modality at first, the crosshair at a voxel (z, y, x), and maps on the study's grid."""
    report, box = scene.report, scene.box
    z, y, x = (side.start for side in box)
    affine = np.diag([*reversed(report.spacing_mm), 1.0]) if report.affine is None else report.affine.astype(float)
    moved = affine.copy()
    moved[:, 3] = affine @ [x, y, z, 1]
    return Layers(
        title=title,
        modalities=tuple(modality_title(scene, channel) for channel in range(len(report.modalities))),
        images=scene.grey,
        windows=scene.windows,
        classes=report.classes[box],
        truth=None if report.truth is None else report.truth[box],
        maps=tuple(each._replace(values=each.values[box]) for each in maps),
        regions=report.regions,
        affine=moved,
        start=(z, y, x),
        shown=shown,
        crosshair=centre,
    )


def template(name: str) -> Template:
    """Return the template of a page that shows studies or has a viewer; every value that it prints is escaped."""
    environment = pages()
    environment.filters |= {"hexadecimal": pictures.hexadecimal, "ml": volume_text}
    environment.tests["code"] = CODE_LIKE.fullmatch
    environment.globals |= {
        "class_colours": {name: pictures.CLASS_COLOURS[number] for number, name in CLASS_NAMES.items()},
        "class_titles": {name: CLASS_TITLES[number].capitalize() for number, name in CLASS_NAMES.items()},
        "region_parts": {region: [CLASS_NAMES[number] for number in numbers] for region, numbers in REGIONS.items()},
        "difference_colours": pictures.DIFFERENCE_COLOURS,
        "map_gradient": ", ".join(f"#{stop}" for stop in pictures.MAP_STOPS.split()),
    }
    return environment.get_template(name)


def check_shapes(report: StudyReport) -> None:
    """Raise ValueError where the report's arrays do not fit together."""
    shape = report.images.shape[1:]
    if report.images.ndim != 4 or len(report.modalities) != report.images.shape[0] or not report.modalities:
        raise ValueError(f"images are {report.images.shape}; expected one (D, H, W) for each of {report.modalities}")
    for name, volume in {"classes": report.classes, "truth": report.truth, **report.uncertainty}.items():
        if volume is not None and volume.shape != shape:
            raise ValueError(f"{name} is {volume.shape}; expected the grid of the images, {shape}")


def modality_index(modalities: tuple[str, ...], names: tuple[str, ...]) -> int:
    """Return the first modality with one of these names, or 0 where there is none."""
    return next((index for index, modality in enumerate(modalities) if modality.lower() in names), 0)


def volume_text(volume_ml: float) -> str:
    """Return a volume in ml to two decimals."""
    if not math.isfinite(volume_ml):
        return "not known"
    return "< 0.01" if 0 < volume_ml < 0.01 else f"{volume_ml:.2f}"


def volumes_of(classes: np.ndarray, spacing_mm: tuple[float, float, float]) -> dict[str, float]:
    """Return the volume in ml of every region and class of a class map (D, H, W)."""
    voxel_ml = math.prod(spacing_mm) / 1000
    voxels = np.bincount(classes.ravel(), minlength=1 + max(CLASS_NAMES))
    by_class = {name: float(voxels[number]) * voxel_ml for number, name in CLASS_NAMES.items()}
    regions = {region: float(voxels[list(numbers)].sum()) * voxel_ml for region, numbers in REGIONS.items()}
    return by_class | regions


def place(scene: Scene, cut: Cut) -> str:
    """Say which slice a cut is, counted from 1."""
    return f"{cut.plane} slice {cut.index + 1} of {scene.report.classes.shape[pictures.AXES[cut.plane]]}"


def displayed(scene: Scene, volume: np.ndarray, cut: Cut) -> np.ndarray:
    """Return a slice of a volume (D, H, W), cropped to the box and turned as it is displayed (rows, columns)."""
    start = scene.box[pictures.AXES[cut.plane]].start
    return pictures.slice_of(volume[scene.box], cut.plane, cut.index - start)


def scaled(scene: Scene, pixels: np.ndarray, cut: Cut, edge_px: int, *, labels: bool) -> NDArray[np.uint8]:
    """Bring a displayed slice (rows, columns) to the page's scale, whatever the spacing."""
    row_mm, column_mm = (mm for axis, mm in enumerate(scene.report.spacing_mm) if axis != pictures.AXES[cut.plane])
    return pictures.resized(pixels, (row_mm, column_mm), scene.longest_side_mm / edge_px, labels=labels)


def grey_slice(scene: Scene, channel: int, cut: Cut, edge_px: int = LONGEST_EDGE_PX) -> NDArray[np.uint8]:
    """Return one modality's slice in grey (rows, columns)."""
    start = scene.box[pictures.AXES[cut.plane]].start
    grey = pictures.slice_of(scene.grey[channel], cut.plane, cut.index - start)
    return scaled(scene, grey, cut, edge_px, labels=False)


def class_slice(scene: Scene, classes: np.ndarray, cut: Cut, edge_px: int = LONGEST_EDGE_PX) -> NDArray[np.uint8]:
    """Return a class map's slice (rows, columns)."""
    return scaled(scene, displayed(scene, classes, cut).astype(np.uint8), cut, edge_px, labels=True)


def finished(
    scene: Scene, picture: NDArray[np.uint8], cut: Cut, title: str, shown: str, edge_px: int = LONGEST_EDGE_PX
) -> Figure:
    """Letter and encode a picture (rows, columns, 3) and caption it."""
    height, width = picture.shape[:2]
    uri = pictures.data_uri(pictures.lettered(picture, cut.plane, scene.longest_side_mm / edge_px))
    return Figure(uri, title, place(scene, cut), f"{title}, {place(scene, cut)}, {shown}", width, height)


def modality_title(scene: Scene, channel: int) -> str:
    """Return a modality's name as the field writes it."""
    name = scene.report.modalities[channel]
    return MODALITY_TITLES.get(name.lower(), name)


def plain_figure(scene: Scene, channel: int, cut: Cut) -> Figure:
    """Show one modality as it is."""
    picture = pictures.grey_picture(grey_slice(scene, channel, cut))
    return finished(scene, picture, cut, modality_title(scene, channel), "without overlay")


def class_figure(scene: Scene, channel: int, cut: Cut, edge_px: int = LONGEST_EDGE_PX) -> Figure:
    """Show one modality with the segmentation over it."""
    classes = class_slice(scene, scene.report.classes, cut, edge_px)
    picture = pictures.class_picture(grey_slice(scene, channel, cut, edge_px), classes)
    return finished(scene, picture, cut, modality_title(scene, channel), "with the segmentation", edge_px)


def plane_figures(scene: Scene, channel: int, centre: tuple[int, int, int]) -> list[Figure]:
    """Show one modality with the segmentation in the three planes through a voxel (z, y, x)."""
    return [class_figure(scene, channel, Cut(plane, centre[axis])) for plane, axis in pictures.AXES.items()]


def truth_rows(scene: Scene, truth: np.ndarray, flair: int, enhanced: int) -> list[list[Figure]]:
    """Compare with the reference on the slice with most tumour in either, and on the one that differs most."""
    predicted = scene.report.classes
    masks = ((predicted > 0) | (truth > 0), predicted != truth)
    largest = dict.fromkeys(int(np.count_nonzero(mask, axis=(1, 2)).argmax()) for mask in masks if mask.any())
    indices = list(largest) or [pictures.middle_index(scene.box[0])]
    return [truth_figures(scene, truth, (flair, enhanced), Cut("axial", index)) for index in indices]


def truth_figures(scene: Scene, truth: np.ndarray, channels: tuple[int, int], cut: Cut) -> list[Figure]:
    """Show reference, segmentation and, for each region, where they differ; channels for WT and for TC and ET."""
    flair, enhanced = (grey_slice(scene, channel, cut) for channel in channels)
    reference, predicted = (class_slice(scene, classes, cut) for classes in (truth, scene.report.classes))
    base = f"drawn on {modality_title(scene, channels[0])}"
    figures = [
        finished(scene, pictures.class_picture(flair, classes), cut, title, base)
        for title, classes in (("Reference", reference), ("Segmentation", predicted))
    ]
    for region in REGIONS:
        masks = (region_mask(classes, region) for classes in (reference, predicted))
        picture = pictures.difference_picture(flair if region == "WT" else enhanced, *masks)
        figures.append(finished(scene, picture, cut, f"{region} differences", "segmentation against the reference"))
    return figures
