"""An examination that was read, as what pages about a study show."""

import numpy as np

from gliomap.data.examinations import ReadExamination
from gliomap.report import pictures
from gliomap.report.study import (
    FLAIR_NAMES,
    MODALITY_TITLES,
    StudyReport,
    layers_of,
    modality_index,
    scene_of,
    volumes_of,
)
from gliomap.report.viewer import Layers

NO_IMAGE = "No image"
"""What stands for the images of a label map by itself: a black one."""


def examination_report(title: str, seen: ReadExamination) -> StudyReport:
    """Bring an examination to a page's terms: its volumes are those that its label map tells, none without a label map."""
    volume = seen.images or seen.classes
    if volume is None:
        raise ValueError("an examination without images and without a label map has nothing to show")
    classes = np.zeros(volume.shape, np.uint8) if seen.classes is None else seen.classes.array[0]
    volumes_ml = volumes_of(classes, volume.spacing_mm)
    told = (part for part in seen.parts if part != "RC" or volumes_ml["RC"])
    sizes, spacing_mm = volume.shape[::-1], volume.spacing_mm[::-1]
    shown = ", ".join(MODALITY_TITLES.get(name, name) for name in seen.modalities)
    return StudyReport(
        study=title,
        modalities=seen.modalities or (NO_IMAGE,),
        images=np.zeros((1, *volume.shape), np.uint8) if seen.images is None else seen.images.array,
        classes=classes,
        spacing_mm=volume.spacing_mm,
        volumes_ml={part: volumes_ml[part] for part in told},
        facts={
            "Label values": seen.told_by or "there is no label map",
            "Voxels": f"{', '.join(map(str, sizes))} of {', '.join(f'{mm:.3g}' for mm in spacing_mm)} mm (x, y, z)",
            "Images": shown or "none: the label map alone",
        },
        warnings=seen.warnings,
        affine=volume.affine,
    )


def pane_of(report: StudyReport) -> Layers:
    """A study as one of several panes of the viewer: FLAIR at first, the crosshair in the tumour."""
    scene = scene_of(report)
    centre = pictures.choose_slices(report.classes, scene.box, report.spacing_mm).centre
    return layers_of(scene, modality_index(report.modalities, FLAIR_NAMES), centre, title=report.study)
