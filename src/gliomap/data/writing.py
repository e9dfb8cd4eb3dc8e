"""Studies written to disk in the naming of any supported dataset."""

from typing import Any

import numpy as np

from gliomap.classes import CLASS_TITLES, CONVENTIONS, named_convention
from gliomap.data.images import volume_bytes
from gliomap.data.names import DATASETS
from gliomap.data.study import MODALITIES
from gliomap.files import json_bytes
from gliomap.volume import Volume

LAYOUTS = (*DATASETS, "msd", "nnunet", "loose")
"""Every layout that `study_files` writes and `find_studies` reads."""

_MSD_ORDER = ("flair", "t1", "t1c", "t2")
_MSD_NAMES = {"flair": "FLAIR", "t1": "T1w", "t1c": "t1gd", "t2": "T2w"}


def phantom_id(layout: str, version: int, number: int) -> str:
    """The study id of a phantom: the generator's version and the seed stand in it, and so in every row of scores."""
    if layout in DATASETS:
        return DATASETS[layout].phantom_id.format(version=f"V{version}", number=number)
    return f"PhantomV{version}_{number:05d}"


def study_files(layout: str, study: str, images: Volume, classes: Volume, description: str = "") -> dict[str, bytes]:
    """The files of one study (images (4, D, H, W) in the order t1, t1c, t2, flair) by path relative to the dataset's folder."""
    if layout == "msd":
        return _msd_files(study, images, classes, description)
    if layout == "nnunet":
        folder, convention = "", CONVENTIONS["brats2023"]
        names = {m: f"imagesTr/{study}_{channel:04d}" for channel, m in enumerate(MODALITIES)}
        label = f"labelsTr/{study}"
    elif layout == "loose":
        folder, convention = f"{study}/", CONVENTIONS["brats2021"]
        names, label = {m: m for m in MODALITIES}, "seg"
    else:
        dataset = DATASETS[layout]
        folder, convention = f"{study}/", CONVENTIONS[dataset.convention]
        names = {m: f"{study}{dataset.separator}{dataset.words[m]}" for m in MODALITIES}
        label = f"{study}{dataset.separator}{dataset.label_word}"
    images, classes = (images, classes) if layout == "nnunet" else (as_lps(images), as_lps(classes))
    files = {
        f"{folder}{names[m]}.nii.gz": volume_bytes(images.with_array(images.array[channel]), description)
        for channel, m in enumerate(MODALITIES)
    }
    name = next(n for n, table in CONVENTIONS.items() if table == convention)
    files[f"{folder}{label}.nii.gz"] = _map_bytes(classes, name, description)
    return files


def dataset_json(layout: str, studies: list[str]) -> dict[str, bytes]:
    """The dataset.json that goes with a layout, if it has one."""
    if layout == "msd":
        rows = [{"image": f"./imagesTr/{s}.nii.gz", "label": f"./labelsTr/{s}.nii.gz"} for s in studies]
        labels = {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"}
        modality = {str(i): _MSD_NAMES[m] for i, m in enumerate(_MSD_ORDER)}
        content: dict[str, Any] = {"name": "phantoms", "tensorImageSize": "4D", "modality": modality, "labels": labels,
                                   "numTraining": len(rows), "numTest": 0, "training": rows, "test": []}  # fmt: skip
        return {"dataset.json": json_bytes(content)}
    if layout == "nnunet":
        names = {tissue: title for tissue, title in CLASS_TITLES.items() if tissue in CONVENTIONS["brats2023"].values()}
        labels = {"background": 0} | {names[t]: v for v, t in CONVENTIONS["brats2023"].items()}
        channels = {str(i): m for i, m in enumerate(("T1", "T1c", "T2", "FLAIR"))}
        content = {"channel_names": channels, "labels": labels, "numTraining": len(studies), "file_ending": ".nii.gz"}
        return {"dataset.json": json_bytes(content)}
    return {}


def as_lps(volume: Volume) -> Volume:
    """The same RAS+ voxels stored right to left and anterior to posterior, as most BraTS files are."""
    affine = volume.affine.copy()
    _, h, w = volume.shape
    affine[:3, 3] += affine[:3, 0] * (w - 1) + affine[:3, 1] * (h - 1)
    affine[:3, :2] *= -1
    return Volume(np.ascontiguousarray(volume.array[:, :, ::-1, ::-1]), affine)


def _map_bytes(classes: Volume, convention: str, description: str) -> bytes:
    labels = named_convention(convention, "the layout").encode(classes.array[0])
    return volume_bytes(classes.with_array(labels), description)


def _msd_files(study: str, images: Volume, classes: Volume, description: str) -> dict[str, bytes]:
    stacked = np.stack([images.array[MODALITIES.index(m)] for m in _MSD_ORDER])
    return {
        f"imagesTr/{study}.nii.gz": volume_bytes(images.with_array(stacked), description),
        f"labelsTr/{study}.nii.gz": _map_bytes(classes, "msd", description),
    }
