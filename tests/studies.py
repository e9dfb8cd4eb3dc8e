"""Small studies made of an ellipsoid with a nested tumour, for the tests that need files."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np

from gliomap.classes import ED, ET, NCR
from gliomap.data.study import MODALITIES, ImageFile, Study
from gliomap.data.writing import study_files
from gliomap.files import json_bytes, write_files
from gliomap.volume import Volume

SPACING_MM = 6.0
SHAPE = (24, 32, 32)


def small_affine(spacing_mm=SPACING_MM):
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = (-96.0, -100.0, -70.0)
    return affine


def brain_mask():
    """An ellipsoid of about 1,300 ml, (D, H, W)."""
    d, h, w = (np.arange(n) - (n - 1) / 2 for n in SHAPE)
    semiaxes = (60.0 / SPACING_MM, 75.0 / SPACING_MM, 69.0 / SPACING_MM)
    return ((d[:, None, None] / semiaxes[0]) ** 2 + (h[:, None] / semiaxes[1]) ** 2 + (w / semiaxes[2]) ** 2) <= 1.0


def nested_tumour():
    """Necrosis inside enhancing tumour inside oedema, off centre, as a class map (D, H, W)."""
    d, h, w = (np.arange(n) - c for n, c in zip(SHAPE, (13, 14, 20), strict=True))
    radius = np.sqrt(d[:, None, None] ** 2.0 + h[:, None] ** 2.0 + w**2.0)
    return np.select([radius < 1.5, radius < 2.5, radius < 4.5], [NCR, ET, ED], 0).astype(np.uint8)


def brain_images(seed=0):
    """Four different noisy modalities (4, D, H, W) int16, zero outside the brain."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(60, 400, (len(MODALITIES), *SHAPE))
    return (noise * brain_mask()).astype(np.int16)


def small_study(seed=0):
    """Images and class map of one study as Volumes in RAS+."""
    affine = small_affine()
    return Volume(brain_images(seed), affine), Volume(nested_tumour()[None], affine)


def write_study(folder: Path, layout: str, study: str, seed=0):
    """One study in a layout below ``folder``; returns its images and class map."""
    images, classes = small_study(seed)
    files = study_files(layout, study, images, classes)
    write_files({folder / name: content for name, content in files.items()})
    return images, classes


def save(path: Path, array, affine=None, dtype=None):
    """An array (D, H, W) or (C, D, H, W) as an image file; the suffix says which."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.asarray(array) if dtype is None else np.asarray(array, dtype)
    image = nib.Nifti1Image(array.T, small_affine() if affine is None else affine)
    nib.save(image, path)
    return path


def loose_study(folder: Path, images=None, labels=None, affine=None, label_affine=None):
    """A Study of loose files made of the arrays (4, D, H, W) and (D, H, W), with no convention."""
    images = brain_images() if images is None else images
    files = {m: ImageFile(save(folder / f"{m}.nii", images[i], affine)) for i, m in enumerate(MODALITIES)}
    label = None
    if labels is not None:
        label = ImageFile(save(folder / "seg.nii", labels, affine if label_affine is None else label_affine))
    return Study(folder.name, files, label)


MSD_JSON = {
    "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
    "labels": {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
}


def touch(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")


def msd_dataset(folder, content=None):
    images, classes = write_study(folder, "msd", "BRATS_001")
    (folder / "dataset.json").write_bytes(json_bytes(MSD_JSON if content is None else content))
    return images, classes


def small_pairs(folder, count, models=("a", "b"), repeat=None):
    """``count`` studies with truth.nii.gz and pred_MODEL.nii.gz, 60 x 60 x 60 voxels in BraTS 2021's values; returns their ids.

    ``repeat``: only so many are made, and the others are copies of them.
    """
    ids = []
    for number in range(count):
        ids.append(f"case_{number}")
        place, source = folder / ids[-1], number if repeat is None else number % repeat
        place.mkdir(parents=True)
        for shift, name in enumerate(("truth", *(f"pred_{m}" for m in models))):
            path, original = place / f"{name}.nii.gz", folder / f"case_{source}" / f"{name}.nii.gz"
            if source < number:
                path.write_bytes(original.read_bytes())
            else:
                save(path, _ball(6 + number % 10, shift), small_affine(1.0))
    return ids


def _ball(radius, shift):
    """ET about NCR in ED, in a grid of 60 x 60 x 60, in the values of BraTS 2021."""
    d, h, w = (np.arange(60) - c for c in (30, 29, 28 + shift))
    distance = np.sqrt(d[:, None, None] ** 2.0 + h[:, None] ** 2.0 + w**2.0)
    return np.select([distance < radius / 3, distance < radius / 2, distance < radius], [1, 4, 2], 0).astype(np.uint8)


class DeadlyStudy(Study):
    """A study whose reading kills the process, as the kernel does when memory is short."""

    def read_classes(self, *_):
        """Never comes back."""
        os._exit(1)
