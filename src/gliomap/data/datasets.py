"""Finding studies in folders as people have them: the BraTS years, Medical Segmentation Decathlon, nnU-Net, loose files."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gliomap.classes import CLASS_NAMES, ED, ET, NCR, RC, Convention, name_of, named_convention, parse_convention
from gliomap.data.images import image_stem
from gliomap.data.study import MODALITIES, ImageFile, Study
from gliomap.errors import InputError
from gliomap.files import read_json


@dataclass(frozen=True)
class Dataset:
    """How one dataset names its files: ``{id}{separator}{word}``, and the label convention that goes with the names."""

    pattern: str
    separator: str
    words: Mapping[str, str]
    label_word: str
    convention: str
    phantom_id: str


_OLD_WORDS = {"t1": "t1", "t1c": "t1ce", "t2": "t2", "flair": "flair"}
_NEW_WORDS = {"t1": "t1n", "t1c": "t1c", "t2": "t2w", "flair": "t2f"}

DATASETS: dict[str, Dataset] = {
    "brats2018": Dataset(r"brats1[78]_.+", "_", _OLD_WORDS, "seg", "brats2021", "Brats18_Phantom{version}_{number}_1"),
    "brats2019": Dataset(r"brats19_.+", "_", _OLD_WORDS, "seg", "brats2021", "BraTS19_Phantom{version}_{number}_1"),
    "brats2020": Dataset(r"brats20_.+", "_", _OLD_WORDS, "seg", "brats2021", "BraTS20_Phantom{version}_{number:03d}"),
    "brats2021": Dataset(
        r"brats2021_.+", "_", _OLD_WORDS, "seg", "brats2021", "BraTS2021_Phantom{version}_{number:05d}"
    ),
    "brats2023": Dataset(
        r"brats-(?!ped)\w+-\d+-0\d\d", "-", _NEW_WORDS, "seg", "brats2023", "BraTS-Phantom{version}-{number:05d}-000"
    ),
    "brats2024": Dataset(
        r"brats-(?!ped)\w+-\d+-1\d\d", "-", _NEW_WORDS, "seg", "brats2024", "BraTS-Phantom{version}-{number:05d}-100"
    ),
}
"""Namings that say which dataset a study is from. In 2024 the post-treatment time points count from 100. The paediatric
studies (PED) are named alike in years whose labels differ, so that their names say nothing about their labels."""

_FLAIR = {"flair", "t2f", "t2flair", "fla"}
_T1C = {"t1c", "t1ce", "t1gd", "t1wgd", "t1wce", "t1post", "t1contrast", "t1km", "t1ca"}
_CONTRAST = {"gd", "ce", "c", "post", "contrast", "postcontrast", "postgd", "gad", "gado", "enhanced", "km"}
_NO_CONTRAST = {"pre", "precontrast", "native", "plain", "no", "non", "noncontrast", "without", "unenhanced"}
_T1 = {"t1", "t1n", "t1w", "t1pre", "t1native"}
_T2 = {"t2", "t2w", "t2tse"}
_LABEL = {"seg", "segmentation", "label", "labels", "mask", "truth", "gt", "groundtruth", "annotation"}
_NOT_A_LABEL = {"brain", "brainmask", "bet"}

_TISSUE_WORDS: tuple[tuple[str, int], ...] = (
    (r"resection|cavity|\brc\b", RC),
    (r"oedema|edema|\bed\b|snfh|flair|peritumou?ral|invaded", ED),
    (r"necro|non.*enhanc|unenhanc|\bncr\b|\bnet\b|\bnetc\b", NCR),
    (r"enhanc|\bet\b|active", ET),
)


def find_studies(path: Path, labels: Convention | None = None) -> list[Study]:
    """All studies in a folder, of any supported layout, also mixed, in the order of their ids.

    The convention of each study's label values comes from ``labels``, else from its dataset.json, else from its layout.

    Raises:
        InputError: the folder cannot be read or holds no study.
    """
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise InputError(
            f"{path} {what}; expected a study's folder or a folder of studies (or files: --t1 --t1c --t2 --flair)"
        )
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    records: list[Path] = []
    files, errors = _files_below(path)
    for file in files:
        if image_stem(file) is not None and not file.name.startswith("."):
            by_folder[file.parent].append(file)
        elif file.name == "run.json":
            records.append(file)
    studies = [_unreadable_folder(path, error) for error in errors]
    for record in records:
        found, taken = _gliomap_outputs(record)
        studies += found
        for file in taken & {f for files in by_folder.values() for f in files}:
            by_folder[file.parent].remove(file)
    for folder, inside in by_folder.items():
        studies += _studies_in_folder(path, folder, inside)
    if not studies:
        raise InputError(
            f"{path} holds no study gliomap recognises; expected files named by modality, such as t1.nii.gz, flair.nii.gz"
        )
    if labels is not None:
        studies = [replace(s, convention=labels) for s in studies]
    return sorted(_merged(studies), key=lambda s: s.id)


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
    named = {found[:2] for f in files.values() if (found := _dataset_name(image_stem(f) or ""))}
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
        return _json_studies(record, folder, files)
    stratum = "" if root in (folder, folder.parent) else folder.parent.name
    named: dict[tuple[str, str], dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    loose: list[tuple[str, str, Path]] = []
    for file in files:
        found = _dataset_name(image_stem(file) or "")
        if found:
            layout, study, modality = found
            named[layout, study][modality].append(file)
        elif loose_found := _loose_name(image_stem(file) or ""):
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
        groups[rest if several else name][slot].append(file)
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


def _dataset_name(stem: str) -> tuple[str, str, str] | None:
    for name, dataset in DATASETS.items():
        study, separator, word = stem.rpartition(dataset.separator)
        if separator and re.fullmatch(dataset.pattern, study, re.IGNORECASE):
            slots = {w: m for m, w in dataset.words.items()} | {dataset.label_word: "seg"}
            if word.lower() in slots:
                return name, study, slots[word.lower()]
    return None


def _loose_name(stem: str) -> tuple[str, str] | None:
    """The modality a file's words name, and what is left of the name without them."""
    words = [w for w in re.split(r"[^0-9A-Za-z]+", stem) if w]
    lower = {w.lower() for w in words}
    if lower & _LABEL:
        slot, used = "seg", _LABEL
        if lower & _NOT_A_LABEL:
            return None
    elif lower & _FLAIR:
        slot, used = "flair", _FLAIR | _T2
    elif lower & _T1C or (lower & _T1 and lower & _CONTRAST and not lower & _NO_CONTRAST):
        slot, used = "t1c", _T1C | _T1 | _CONTRAST
    elif lower & _T2:
        slot, used = "t2", _T2
    elif lower & _T1:
        slot, used = "t1", _T1 | (_NO_CONTRAST | _CONTRAST if lower & _NO_CONTRAST else set())
    else:
        return None
    return slot, "_".join(w for w in words if w.lower() not in used)


def _merged(studies: list[Study]) -> list[Study]:
    """Studies of one id found in several folders as one, where nothing is there twice (labels kept apart from images)."""
    by_id: dict[str, Study] = {}
    for study in studies:
        other = by_id.get(study.id)
        if other is None:
            by_id[study.id] = study
        elif not _clash(study, other):
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


def _clash(a: Study, b: Study) -> bool:
    """Whether two studies of one id cannot be parts of one: a folder's name alone does not say that images belong together."""
    named_by_folder = any(f.path.parent.name == s.id for s in (a, b) for f in s.images.values() if s.layout == "loose")
    images = set(a.images) & set(b.images) or (a.images and b.images and named_by_folder)
    return bool(images or (a.label and b.label))


def _governing_json(folder: Path) -> Path | None:
    for parent in (folder, folder.parent):
        candidate = parent / "dataset.json"
        if candidate.is_file() and (parent == folder or re.fullmatch(r"(images|labels)(Tr|Ts)", folder.name)):
            return candidate
    return None


def _json_studies(record: Path, folder: Path, files: list[Path]) -> list[Study]:
    content = read_json(record)
    channels = (content.get("channel_names") or content.get("modality")) if isinstance(content, dict) else None
    if not isinstance(channels, dict) or not all(str(number).isdigit() for number in channels):
        raise InputError(
            f'{record} does not say what its channels are; expected "channel_names" (nnU-Net) or "modality" (Decathlon), '
            'such as {"0": "T1", "1": "T1c", "2": "T2", "3": "FLAIR"}'
        )
    order = {int(number): _channel_modality(str(name), record) for number, name in channels.items()}
    convention = convention_from_json(content.get("labels") or {}, record)
    nnunet = "channel_names" in content
    groups: dict[str, dict[str, ImageFile]] = defaultdict(dict)
    labels: list[Study] = []
    layout = "msd"
    for file in files:
        stem = image_stem(file) or ""
        numbered = re.fullmatch(r"(.+)_(\d{4})", stem)
        if folder.name.startswith("labels") or (nnunet and not numbered and folder == record.parent):
            # nnU-Net copies the dataset.json to its predictions
            labels.append(Study(stem, {}, ImageFile(file), convention, "nnunet" if nnunet else "msd", folder.name))
        elif numbered and (nnunet or int(numbered[2]) in order):
            layout = "nnunet"
            groups[numbered[1]][order.get(int(numbered[2]), "")] = ImageFile(file)
        else:
            groups[stem] = {modality: ImageFile(file, channel) for channel, modality in order.items()}
    return labels + [
        Study(study, {m: images[m] for m in MODALITIES if m in images}, None, convention, layout)
        for study, images in groups.items()
    ]


def _channel_modality(name: str, record: Path) -> str:
    found = _loose_name(name)
    if found is None or found[0] == "seg":
        raise InputError(f"{record} calls a channel {name!r}; expected T1, T1c (T1Gd, T1CE), T2 or FLAIR")
    return found[0]


def convention_from_json(labels: Mapping[str, Any], record: Path) -> Convention | None:
    """The label convention that a dataset.json spells out: value to name, name to value, or nnU-Net's nested regions.

    Raises:
        InputError: a label's name says nothing about which tissue it is.
    """
    if not labels:
        return None
    try:
        if any(isinstance(v, list) for v in labels.values()):
            pairs = _region_values(labels, record)
        else:
            flipped = {str(k): int(v) if isinstance(v, int) or str(v).isdigit() else v for k, v in labels.items()}
            named = {int(k): str(v) for k, v in flipped.items() if k.isdigit()} or {
                int(v): k for k, v in flipped.items()
            }
            pairs = {value: _tissue(name, record) for value, name in named.items() if value}
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f'{record} has labels that cannot be read: {labels}; expected whole numbers and names, such as {{"edema": 1}}'
        ) from error
    if len(set(pairs.values())) != len(pairs):
        raise InputError(
            f"{record} gives one tissue two label values: {dict(labels)}; say what they mean with --labels 1=ET,..."
        )
    return Convention(name_of(pairs) or "custom", tuple(sorted(pairs.items())), f"{record.name}")


def _region_values(labels: Mapping[str, Any], record: Path) -> dict[int, int]:
    """nnU-Net's region labels (whole tumour, tumour core, enhancing tumour as lists of values) as value -> class."""
    sets = sorted((set(v if isinstance(v, list) else [v]) for n, v in labels.items() if n != "background"), key=len)
    if len(sets) != 3 or not (sets[0] < sets[1] < sets[2] and [len(s) for s in sets] == [1, 2, 3]):
        raise InputError(
            f"{record} has regions {dict(labels)}; expected whole tumour, tumour core and enhancing tumour, nested"
        )
    (et,), (ncr,), (ed,) = sets[0], sets[1] - sets[0], sets[2] - sets[1]
    return {int(ncr): NCR, int(ed): ED, int(et): ET}


def _tissue(name: str, record: Path) -> int:
    for pattern, tissue in _TISSUE_WORDS:
        if re.search(pattern, name.lower().replace("_", " ")):
            return tissue
    raise InputError(
        f"{record} calls a label {name!r}; expected a name of {', '.join(CLASS_NAMES.values())}, or say it with --labels"
    )


def _gliomap_outputs(record: Path) -> tuple[list[Study], set[Path]]:
    """The label maps that a run of `gliomap segment` left, with the convention it recorded, and the files they are."""
    content = read_json(record)
    if not isinstance(content, dict) or content.get("verb") != "segment":
        return [], set()
    studies, taken = [], set()
    for row in content.get("studies", []):
        label = record.parent / row.get("segmentation", "")
        if row.get("status") == "done" and label.is_file():
            convention = parse_convention(",".join(f"{v}={n}" for v, n in row["labels"].items()), "run.json")
            studies.append(Study(row["study"], {}, ImageFile(label), convention, "gliomap"))
            taken.add(label)
    return studies, taken


def parse_labels(text: str | None) -> Convention | None:
    """The convention given with ``--labels``, if one was given; raises UsageError for one that does not exist."""
    return None if text is None else parse_convention(text, "--labels")
