"""What there is to look at of an examination: its label map, and its images as far as they are still the same."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gliomap.classes import PARTS, REGIONS, Convention, named_convention
from gliomap.data.datasets import find_studies
from gliomap.data.images import image_stem
from gliomap.data.names import DATASETS, dataset_name
from gliomap.data.records import gliomap_outputs, json_studies
from gliomap.data.study import MODALITIES, ImageFile, Study
from gliomap.errors import InputError
from gliomap.files import read_json, sha256
from gliomap.preprocess import brain_mask
from gliomap.volume import Volume

RECORDS = ("run.json", "record.json")


@dataclass(frozen=True)
class Examination:
    """A study to look at, whose label map may be a segmentation.

    ``digests`` are the SHA-256 that its images must have, by modality, where they are recorded. ``regions`` are those that the
    network told that made the label map; None where nothing says so.
    """

    study: Study
    digests: Mapping[str, str] = field(default_factory=dict)
    regions: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ReadExamination:
    """An examination's voxels in RAS+, all on one grid.

    Attributes:
        images: (C, D, H, W), one channel per modality; None where there are none to show.
        modalities: Their names.
        classes: The class map (1, D, H, W); None where there is no label map.
        parts: The regions and classes that the label map can tell, of ET, TC, WT, NCR, ED, RC.
        told_by: What its label values mean, and why we think so.
        warnings: What is odd about it.
    """

    images: Volume | None
    modalities: tuple[str, ...]
    classes: Volume | None
    parts: tuple[str, ...]
    told_by: str
    warnings: tuple[str, ...]


def find_examinations(path: Path, labels: Convention | None = None) -> list[Examination]:
    """What a path holds: one or more outputs of `gliomap segment`, studies of any supported layout, or a label map by itself.

    ``labels`` says what label values mean, but for those that gliomap wrote: their record says it.

    Raises:
        InputError: there is nothing of the kind.
    """
    if not path.is_dir():
        return [_label_map(path, labels)]
    own = [found for name in RECORDS for found in _recorded(path / name)]
    if own:
        return own
    return [_with_record(study) for study in find_studies(path, labels, outputs=True)]


def read_examination(examination: Examination, modalities: tuple[str, ...] = MODALITIES) -> ReadExamination:
    """Read the label map, and those of some modalities that are there.

    Images that cannot be used are a warning where there is a label map to show without them.

    Raises:
        InputError: the label map cannot be used, or there is none and the images cannot.
    """
    study, warnings = _with_images(examination, modalities)
    images, odd = None, []
    if study.images:
        try:
            images, odd = study.read(tuple(study.images), skull_on_anyway=True)
        except InputError as error:
            if study.label is None or study.problem:
                raise
            warnings.append(f"shown without images: {error}")
    if study.label is None and images is None:
        raise InputError(study.problem or f"{study.id} has neither images nor a label map to show")
    names = tuple(study.images) if images else ()
    if study.label is None:
        return ReadExamination(images, names, None, (), "", (*warnings, *odd))
    brain = None if images is None else Volume(brain_mask(images)[None], images.affine)
    classes, convention, doubts = study.read_classes(brain)
    parts = _parts(convention, examination.regions)
    told_by = f"{convention}, from {convention.evidence}"
    if examination.regions is not None:
        doubts = []  # a record knows what it wrote, however odd the tumour
    return ReadExamination(images, names, classes, parts, told_by, (*warnings, *odd, *doubts))


def _label_map(path: Path, labels: Convention | None) -> Examination:
    """A label map by itself, whose values mean what a record, its name or a dataset.json beside it says."""
    stem = image_stem(path)
    if not path.is_file() or stem is None:
        what = "is no image that gliomap reads" if path.is_file() else "does not exist"
        raise InputError(
            f"{path} {what}; expected a study's folder, an output of gliomap segment, or a label map .nii.gz"
        )
    for name in RECORDS:
        for own in _recorded(path.parent / name):
            if own.study.label and own.study.label.path.samefile(path):
                return own
    named = dataset_name(stem)
    convention = labels
    if labels is None and named:
        convention = named_convention(DATASETS[named[0]].convention, f"the {named[0]} naming")
    elif labels is None and (path.parent / "dataset.json").is_file():  # nnU-Net copies it to its predictions
        convention = json_studies(path.parent / "dataset.json", path.parent, [path])[0].convention
    return Examination(Study(named[1] if named else stem, {}, ImageFile(path), convention, "label map"))


def _with_record(study: Study) -> Examination:
    """A study that was found, with what the record beside it says, if gliomap made its label map."""
    if study.layout == "gliomap" and study.label:
        for name in RECORDS:
            for own in _recorded(study.label.path.parent / name):
                if own.study.id == study.id:
                    return own
    return Examination(study)


def _recorded(record: Path) -> list[Examination]:
    """What the record of a run of `gliomap segment`, or of one of its studies, says is there."""
    found = gliomap_outputs(record)[0]
    if not found:
        return []
    content = read_json(record)
    rows = {row["study"]: row.get("inputs", {}) for row in content["studies"]}
    regions = tuple(content.get("model", {}).get("regions", REGIONS))
    return [_own(study, rows[study.id], regions) for study in found]


def _own(study: Study, inputs: Mapping[str, Mapping[str, Any]], regions: tuple[str, ...]) -> Examination:
    known = {name: inputs[name] for name in MODALITIES if name in inputs}
    images = {name: ImageFile(Path(file["path"]), file.get("channel")) for name, file in known.items()}
    return Examination(replace(study, images=images), {n: file["sha256"] for n, file in known.items()}, regions)


def _with_images(examination: Examination, modalities: tuple[str, ...]) -> tuple[Study, list[str]]:
    """The study with those images alone that are asked for, there, and what they were; and what is said of the others."""
    kept: dict[str, ImageFile] = {}
    warnings: list[str] = []
    for name, file in examination.study.images.items():
        if name not in modalities:
            continue
        recorded = examination.digests.get(name)
        if recorded is None or (file.path.is_file() and sha256(file.path) == recorded):
            kept[name] = file
        elif file.path.is_file():
            warnings.append(f"{name} is not shown: {file.path} has changed since it was segmented")
        else:
            warnings.append(f"{name} is not shown: {file.path} is no longer there")
    return replace(examination.study, images=kept), warnings


def _parts(convention: Convention, regions: tuple[str, ...] | None) -> tuple[str, ...]:
    """What a label map tells: what its values have a tissue of, and the network that made it told."""
    known = set(PARTS if regions is None or set(REGIONS) <= set(regions) else regions)
    return tuple(part for part, tissues in PARTS.items() if part in known and convention.classes & set(tissues))
