"""The studies of a comparison that are worth looking at: where models differ most, and where all are worst and best."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gliomap.classes import REGIONS, region_mask
from gliomap.data.study import GRID_TOLERANCE_MM, Study
from gliomap.errors import InputError
from gliomap.report.overlays import Array, Picture, overlays
from gliomap.report.scored_files import scored_files
from gliomap.report.scores import Scores
from gliomap.report.wording import higher_is_better, metric_title, number, region_title
from gliomap.rows import metric
from gliomap.scoring import Task
from gliomap.volume import Volume, grid_distance_mm

DIFFERENT, WORST, BEST = "the models differ most", "all models together are worst", "all models together are best"
WANTED = {DIFFERENT: 2, WORST: 2, BEST: 1}
"""How many studies are shown of each kind; a study that is of several is shown once, as the first of them."""

LONGEST_EDGE_PX = 200
MARGIN_MM, SIDE_MM = 12.0, 90.0
"""How much is shown around the outlines, and at least in all: enough to see where in the brain they are."""


class Extreme(NamedTuple):
    """A study and why it is shown, the slice, and a picture without outlines, of the reference and of each model."""

    study: str
    why: str
    place: str
    pictures: list[Picture]


def extremes(scores: Scores, tables: Sequence[Path]) -> tuple[list[Extreme], list[str]]:
    """The pictures of the studies that tell most, as far as their files are there, and why others have none.

    One study at a time is in memory: its reference and label maps, and one image.
    """
    chosen = choose(scores)
    files, reasons = scored_files(tables, list(chosen))
    found = []
    for study, why in chosen.items():
        if study not in files or not files[study].label_maps:
            continue
        try:
            found.append(_extreme(files[study], why, scores))
        except (InputError, OSError) as error:
            reasons.append(f"{study}: {error}")
    return found, reasons


def choose(scores: Scores) -> dict[str, str]:
    """Which studies to show, with why: by the first metric, in the mean over its regions.

    Differences are between the best and the worst model of a study. Studies in which a model has no value are left out.
    """
    name = scores.metrics[0]
    table = np.stack([scores.values[region, name] for region in scores.regions(name)])
    known = ~np.isnan(table)
    means = np.where(known, table, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    goodness = means if higher_is_better(name) else -means
    complete = np.flatnonzero(known.any(axis=0).all(axis=-1))
    keys: dict[str, Callable[[int], float]] = {
        DIFFERENT: lambda n: -float(np.ptp(goodness[n])),
        WORST: lambda n: float(goodness[n].mean()),
        BEST: lambda n: -float(goodness[n].mean()),
    }
    chosen: dict[str, str] = {}
    for why, count in WANTED.items():
        left = [n for n in complete.tolist() if scores.studies[n] not in chosen]
        left = [n for n in left if why != DIFFERENT or np.ptp(goodness[n]) > 0]
        chosen |= {scores.studies[n]: why for n in sorted(left, key=keys[why])[:count]}
    return chosen


def _extreme(task: Task, why: str, scores: Scores) -> Extreme:
    truth = task.truth.read_classes()[0]
    label_maps = task.label_maps or {}
    maps = {model: label_maps[model].read_classes()[0].array[0] for model in scores.models if model in label_maps}
    z = most_different(truth.array[0], list(maps.values()), why)
    plane, modality = _background(task.truth, truth, z)
    shown = {"the reference": truth.array[0, z]} | {model: one[z] for model, one in maps.items()}
    part = surroundings(np.any(list(shown.values()), axis=0), truth.spacing_mm[1:])
    shown = {name: classes[part] for name, classes in shown.items()}
    (row,) = overlays(
        task.truth.id, {modality: plane[part]}, shown, tuple(REGIONS), truth.spacing_mm[1:], LONGEST_EDGE_PX
    )
    reference = row[1]._replace(title="Reference")
    models = [
        picture._replace(title=model, detail=_scores_text(scores, task.truth.id, model))
        for picture, model in zip(row[2:], maps, strict=True)
    ]
    place = f"axial slice {z + 1} of {truth.shape[0]}"
    return Extreme(task.truth.id, why, place, [*row[: 1 if modality else 0], reference, *models])


def most_different(truth: Array, maps: Sequence[Array], why: str) -> int:
    """The axial slice of class maps (D, H, W) with most voxels that not all models, or models and reference, agree on.

    Where there is no such voxel, the one with most true tumour.
    """
    first, *others = maps if why == DIFFERENT and len(maps) > 1 else [truth, *maps]
    differs = np.zeros(truth.shape, bool)
    for one in others:
        differs |= one != first
    counted = differs if differs.any() else region_mask(truth, "WT")
    return int(np.count_nonzero(counted, axis=(1, 2)).argmax())


def surroundings(mask: Array, pixel_mm: tuple[float, float]) -> tuple[slice, slice]:
    """The square about a mask (H, W), `MARGIN_MM` wider on every side and of `SIDE_MM` at least, as far as its grid goes.

    All of the grid where the mask is empty.
    """
    places = [np.flatnonzero(mask.any(axis=1 - axis)) for axis in (0, 1)]
    if not mask.any():
        return slice(None), slice(None)
    extents_mm = [(place[-1] - place[0] + 1) * mm for place, mm in zip(places, pixel_mm, strict=True)]
    side_mm = max(*(extent + 2 * MARGIN_MM for extent in extents_mm), SIDE_MM)
    found = []
    for place, mm, size in zip(places, pixel_mm, mask.shape, strict=True):
        count = min(round(side_mm / mm), size)
        start = round((place[0] + place[-1] + 1 - count) / 2)
        start = min(max(start, 0), size - count)
        found.append(slice(start, start + count))
    return found[0], found[1]


def _background(study: Study, truth: Volume, z: int) -> tuple[Array, str]:
    """The slice of FLAIR, or of another image on the grid of the truth; black and without a name where there is none."""
    images = {name: study.images[name] for name in ("flair", *study.images) if name in study.images}
    for name, file in images.items():
        image = file.read().to_ras()
        if grid_distance_mm(image, truth) <= GRID_TOLERANCE_MM:
            return np.asarray(image.array[0, z], np.float32), name
    return np.zeros(truth.shape[1:], np.float32), ""


def _scores_text(scores: Scores, study: str, model: str) -> str:
    """The scores that the study was chosen by."""
    name, place = scores.metrics[0], (scores.studies.index(study), scores.models.index(model))
    values: Mapping[str, float] = {region: scores.values[region, name][place] for region in scores.regions(name)}
    unit = metric(name).unit
    each = ", ".join(f"{region_title(region)} {number(value, unit)}" for region, value in values.items())
    return f"{metric_title(name)} {each}" + ("" if unit == "1" else f" {unit}")
