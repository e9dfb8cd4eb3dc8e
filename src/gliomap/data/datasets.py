"""Finding studies in folders as people have them: the BraTS years, Medical Segmentation Decathlon, nnU-Net, loose files."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from gliomap.classes import Convention, named_convention, parse_convention
from gliomap.data.images import image_stem
from gliomap.data.names import DATASETS, dataset_name, loose_name
from gliomap.data.records import gliomap_outputs, json_studies
from gliomap.data.study import MODALITIES, ImageFile, Study
from gliomap.errors import InputError


def find_studies(path: Path, labels: Convention | None = None, *, outputs: bool = False) -> list[Study]:
    """All studies in a folder, of any supported layout, also mixed, in the order of their ids.

    What a run of `gliomap segment` wrote is left out, so that it is never taken for a truth; with ``outputs`` it is found
    too, as studies with a label map only. The convention of each study's label values comes from ``labels``, else from its
    dataset.json, else from its layout.

    Raises:
        InputError: the folder cannot be read or holds no study.
    """
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise InputError(f"{path} {what}; expected a study's folder or a folder of studies")
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    records: list[Path] = []
    files, errors = _files_below(path)
    for file in files:
        if image_stem(file) is not None and not file.name.startswith("."):
            by_folder[file.parent].append(file)
        elif file.name in ("run.json", "record.json"):
            records.append(file)
    studies = [_unreadable_folder(path, error) for error in errors]
    for record in records:
        found, taken = gliomap_outputs(record)
        own = {file for file in taken if file in by_folder.get(file.parent, ())}
        studies += [study for study in found if outputs and study.label and study.label.path in own]
        for file in own:  # which the record of a run and that of a study both may have
            by_folder[file.parent].remove(file)
    for folder, inside in by_folder.items():
        studies += _studies_in_folder(path, folder, inside)
    if not studies:
        raise InputError(
            f"{path} holds no study gliomap recognises; expected files named by modality, such as t1.nii.gz, flair.nii.gz"
        )
    if labels is not None:
        studies = [replace(s, convention=labels) for s in studies]
    return sorted(_merged(_told_apart(path, studies)), key=lambda s: s.id)


def _files_below(path: Path) -> tuple[list[Path], list[OSError]]:
    """Every file below a folder, linked folders included, each real folder once, and which folders cannot be read."""
    seen: set[str] = set()
    files: list[Path] = []
    errors: list[OSError] = []
    for folder, inner, names in os.walk(path, onerror=errors.append, followlinks=True):
        inner.sort()
        real = os.path.realpath(folder)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        files += [Path(folder, name) for name in names]
    return sorted(files), errors


def _unreadable_folder(root: Path, error: OSError) -> Study:
    message = f"cannot read the folder {error.filename}: {error.strerror or error}"
    if Path(error.filename) == root:
        raise InputError(message) from error
    return Study(os.path.relpath(error.filename, root), {}, layout="unreadable folder", problem=message)


def study_from_files(files: Mapping[str, Path], label: Path | None = None, labels: Convention | None = None) -> Study:
    """A study whose files are given one by one; names of a dataset say its id and convention as they do in a folder."""
    images = {m: ImageFile(files[m]) for m in MODALITIES if m in files}
    shown = ImageFile(label) if label else None
    named = {found[:2] for f in files.values() if (found := dataset_name(image_stem(f) or ""))}
    if len(named) == 1:
        ((layout, study),) = named
        convention = named_convention(DATASETS[layout].convention, f"the {layout} naming")
        return Study(study, images, shown, labels or convention, layout)
    return Study(next(iter(files.values())).resolve().parent.name, images, shown, labels, "files")


def count_layouts(studies: Iterable[Study]) -> dict[str, int]:
    """How many studies were found per layout and convention, for printing."""
    counts: dict[str, int] = defaultdict(int)
    for study in studies:
        values = f"labels {study.convention}" if study.convention else "labels read by their values"
        counts[f"{study.layout}, {values}"] += 1
    return dict(counts)


def _studies_in_folder(root: Path, folder: Path, files: list[Path]) -> list[Study]:
    record = _governing_json(folder)
    if record is not None:
        try:
            return json_studies(record, folder, files)
        except InputError as error:
            name = os.path.relpath(folder, root)
            return [Study(name, {}, layout="unreadable dataset.json", problem=str(error))]
    stratum = "" if root in (folder, folder.parent) else folder.parent.name
    named: dict[tuple[str, str], dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    loose: list[tuple[str, str, Path]] = []
    for file in files:
        found = dataset_name(image_stem(file) or "")
        if found:
            layout, study, modality = found
            named[layout, study][modality].append(file)
        elif loose_found := loose_name(image_stem(file) or ""):
            loose.append((*loose_found, file))
    studies = [
        _study(study, slots, layout, stratum, named_convention(DATASETS[layout].convention, f"the {layout} naming"))
        for (layout, study), slots in named.items()
    ]
    return studies + _loose_studies(folder, loose, stratum)


def _loose_studies(folder: Path, loose: list[tuple[str, str, Path]], stratum: str) -> list[Study]:
    several = len({slot for slot, _, _ in loose}) < len(loose) and len({rest for _, rest, _ in loose}) > 1
    groups: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    name = os.path.basename(os.path.abspath(folder))  # the folder may be "."
    for slot, rest, file in loose:
        groups[(rest or name) if several else name][slot].append(file)
    return [_study(study, slots, "loose", stratum, None) for study, slots in groups.items()]


def _study(
    study: str, slots: Mapping[str, list[Path]], layout: str, stratum: str, convention: Convention | None
) -> Study:
    twice = {slot: files for slot, files in slots.items() if len(files) > 1}
    problem = "; ".join(
        f"{len(files)} files could be its {slot}: {', '.join(f.name for f in files)}" for slot, files in twice.items()
    )
    images = {m: ImageFile(slots[m][0]) for m in MODALITIES if m in slots}
    label = ImageFile(slots["seg"][0]) if "seg" in slots else None
    advice = ". Keep one of them, or give the files one by one (--t1 --t1c --t2 --flair)"
    return Study(study, images, label, convention, layout, stratum, problem + advice if problem else "")


def _told_apart(root: Path, studies: list[Study]) -> list[Study]:
    """Loose studies whose folders have one name (sub-01/anat, sub-02/anat) get their whole path below ``root`` as id."""

    def folder(study: Study) -> Path | None:
        return next((f.path.parent for f in study.images.values() if study.layout == "loose"), None)

    alike = Counter(s.id for s in studies if folder(s) is not None)
    return [
        replace(s, id="_".join(place.relative_to(root).parts) or s.id)
        if alike[s.id] > 1 and (place := folder(s))
        else s
        for s in studies
    ]


def _merged(studies: list[Study]) -> list[Study]:
    """Studies of one id found in several folders as one, where nothing is there twice (labels kept apart from images)."""
    by_id: dict[str, Study] = {}
    for study in studies:
        other = by_id.get(study.id)
        if other is None:
            by_id[study.id] = study
        elif not (set(study.images) & set(other.images)) and not (study.label and other.label):
            by_id[study.id] = replace(
                other, images={**other.images, **study.images}, label=other.label or study.label,
                convention=other.convention or study.convention, problem=other.problem or study.problem,
            )  # fmt: skip
        else:
            where = sorted({str(f.path.parent) for s in (other, study) for f in [*s.images.values(), s.label] if f})
            by_id[study.id] = replace(
                other, problem=f"study {study.id} is there twice: {', '.join(where)}. Keep one of them"
            )
    return list(by_id.values())


def _governing_json(folder: Path) -> Path | None:
    for parent in (folder, folder.parent):
        candidate = parent / "dataset.json"
        if candidate.is_file() and (parent == folder or re.fullmatch(r"(images|labels)(Tr|Ts)", folder.name)):
            return candidate
    return None


def parse_labels(text: str | None) -> Convention | None:
    """The convention given with ``--labels``, if one was given; raises UsageError for one that does not exist."""
    return None if text is None else parse_convention(text, "--labels")


def labelled_studies(data: Path, labels: str | None) -> list[Study]:
    """The studies of a folder to train on: those with a label map, read as ``--labels`` says, or with a problem to report.

    Raises:
        UsageError: there is no such convention.
        InputError: the folder cannot be read, or none of its studies has a label map.
    """
    studies = [s for s in find_studies(data, parse_labels(labels)) if s.label or s.problem]
    if not studies:
        raise InputError(f"{data} has no study with a label map; training needs labelled studies")
    return studies
