"""What a file's name says: which dataset and study it is from, and which modality it holds."""

import re
from collections.abc import Mapping
from dataclasses import dataclass


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


def dataset_name(stem: str) -> tuple[str, str, str] | None:
    """The dataset, the study and the modality (or ``seg``) in a file name without suffix, if a dataset names files so."""
    for name, dataset in DATASETS.items():
        study, separator, word = stem.rpartition(dataset.separator)
        if separator and re.fullmatch(dataset.pattern, study, re.IGNORECASE):
            slots = {w: m for m, w in dataset.words.items()} | {dataset.label_word: "seg"}
            if word.lower() in slots:
                return name, study, slots[word.lower()]
    return None


def loose_name(stem: str) -> tuple[str, str] | None:
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
