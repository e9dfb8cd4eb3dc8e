"""How close are the phantoms to real studies? Volumes, contrasts, texture and threshold difficulty side by side.

Run: ``python benchmarks/phantoms.py --phantoms 20 --size 240 --real ../shared/data/training``.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

from gliomap.data.synthetic import make_phantom

MODALITIES = ("t1", "t1c", "t2", "flair")
# File-name endings of each modality in BraTS 2018-2021 and in BraTS 2023.
SUFFIXES = (("t1", "t1n"), ("t1ce", "t1c"), ("t2", "t2w"), ("flair", "t2f"))
THRESHOLDS = np.arange(-1.0, 6.0, 0.05)
LEVELS = (5, 50, 95)


@dataclass(frozen=True)
class Labelled:
    """Images (4, D, H, W), class map (D, H, W) with 0 background, 1 NCR, 2 ED, 3 ET, and the volume of a voxel."""

    images: np.ndarray
    classes: np.ndarray
    voxel_ml: float


def read_real(folder: Path) -> Labelled:
    """Read one study folder of compressed NIfTI files, mapping enhancing tumour (3 or 4) to class 3."""
    by_ending = {path.name.split(".")[0].replace("-", "_").rsplit("_", 1)[1]: path for path in folder.iterdir()}
    paths = [next(by_ending[name] for name in names if name in by_ending) for names in SUFFIXES]
    images = np.stack([np.asarray(nibabel.load(path).dataobj).T for path in paths])
    label_image = nibabel.load(by_ending["seg"])
    classes = np.asarray(label_image.dataobj).T.astype(np.uint8)
    voxel_ml = float(abs(np.linalg.det(label_image.affine[:3, :3]))) / 1000
    return Labelled(images, np.where(classes == 4, 3, classes).astype(np.uint8), voxel_ml)


def real_studies(root: Path) -> Iterator[Labelled]:
    """Every study two folders below ``root``."""
    for folder in sorted(root.glob("*/*")):
        yield read_real(folder)


def phantom_studies(count: int, size: int, randomise: float, seconds: list[float]) -> Iterator[Labelled]:
    """Phantoms with seeds 0 to ``count`` - 1; appends the seconds that each took to ``seconds``."""
    make_phantom(count, size=size)
    for seed in range(count):
        start = time.perf_counter()
        phantom = make_phantom(seed, size=size, randomise=randomise)
        seconds.append(time.perf_counter() - start)
        yield Labelled(phantom.images, phantom.classes, float(abs(np.linalg.det(phantom.affine[:3, :3]))) / 1000)


def standardise(image: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Z-score within the brain; 0 outside."""
    inside = image[brain].astype(np.float32)
    scores = np.zeros(image.shape, np.float32)
    scores[brain] = (inside - inside.mean()) / inside.std()
    return scores


def texture(scores: np.ndarray, where: np.ndarray) -> dict[str, float]:
    """Quantiles of the local standard deviation (3 voxels wide) and of the gradient magnitude in ``where``."""
    mean = ndimage.uniform_filter(scores, 3)
    deviation = np.sqrt(np.maximum(ndimage.uniform_filter(scores**2, 3) - mean**2, 0))
    gradient = np.sqrt(sum(part**2 for part in np.gradient(scores)))
    row = {}
    for name, values in (("sd3", deviation), ("grad", gradient)):
        row |= {f"{name} p{level}": float(np.percentile(values[where], level)) for level in LEVELS}
    return row


def threshold_dice(scores: np.ndarray, truth: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Dice of ``scores > threshold`` within the brain against ``truth``, for each of ``THRESHOLDS``."""
    bins = np.concatenate([[-np.inf], THRESHOLDS, [np.inf]])
    all_above = np.histogram(scores[brain], bins)[0][::-1].cumsum()[::-1][1:]
    true_above = np.histogram(scores[brain & truth], bins)[0][::-1].cumsum()[::-1][1:]
    return 2 * true_above / np.maximum(all_above + truth.sum(), 1)


def measure(study: Labelled) -> tuple[dict[str, float], np.ndarray, np.ndarray | None]:
    """One row of figures, and the Dice at every threshold of FLAIR for WT and of T1c for ET (None without ET)."""
    images, classes = study.images, study.classes
    brain = images.max(axis=0) > 0
    tumour = classes > 0
    normal = brain & ~ndimage.binary_dilation(tumour, iterations=3)
    inner = ndimage.binary_erosion(normal, iterations=4)
    row = {"ml brain": brain.sum() * study.voxel_ml, "ml WT": tumour.sum() * study.voxel_ml}
    row |= {
        f"ml {name}": (classes == label).sum() * study.voxel_ml for label, name in enumerate(("NCR", "ED", "ET"), 1)
    }
    row["ET/TC"] = row["ml ET"] / max(row["ml ET"] + row["ml NCR"], 1e-9)
    surface = tumour & ~ndimage.binary_erosion(tumour)
    row["WT surface/volume^(2/3)"] = surface.sum() / max(tumour.sum(), 1) ** (2 / 3)
    row["foci > 0.2 ml"] = int((np.bincount(ndimage.label(tumour)[0].ravel())[1:] * study.voxel_ml > 0.2).sum())
    all_scores = [standardise(image, brain) for image in images]
    for modality, image, scores in zip(MODALITIES, images, all_scores, strict=True):
        normal_median = np.median(image[normal])
        for label, name in enumerate(("NCR", "ED", "ET"), 1):
            if (classes == label).sum() > 50:
                row[f"{modality} {name}/brain"] = float(np.median(image[classes == label]) / normal_median)
                row[f"{modality} {name} IQR"] = float(np.subtract(*np.percentile(scores[classes == label], (75, 25))))
        row |= {
            f"{modality} z p{level}": np.percentile(scores[normal], level) for level in (1, 25, 50, 75, 95, 99, 99.9)
        }
        row |= {f"{modality} {key}": value for key, value in texture(scores, inner).items()}
    enhancing = classes == 3
    et_dice = threshold_dice(all_scores[1], enhancing, brain) if enhancing.any() else None
    return row, threshold_dice(all_scores[3], tumour, brain), et_dice


def best_threshold(dice: list[np.ndarray]) -> tuple[float, float, float]:
    """Threshold with the best median Dice over studies, that median, and the median of each study's own best."""
    medians = np.median(dice, axis=0)
    return float(THRESHOLDS[medians.argmax()]), float(medians.max()), float(np.median(np.max(dice, axis=1)))


def summarise(name: str, studies: Iterator[Labelled]) -> dict[str, tuple[float, float, float]]:
    """Measure every study, print the two difficulty figures, and return the 10, 50 and 90 % quantiles of each figure."""
    rows, wt_dice, et_dice = [], [], []
    for study in studies:
        row, wt, et = measure(study)
        rows.append(row)
        wt_dice.append(wt)
        et_dice += [] if et is None else [et]
    for region, modality, dice in (("WT", "FLAIR", wt_dice), ("ET", "T1c", et_dice)):
        threshold, median, own = best_threshold(dice)
        print(
            f"{name}: best global {modality} threshold z > {threshold:.2f}: median {region} Dice {median:.3f}", end=""
        )
        print(f" over {len(dice)} studies (each study's own best: {own:.3f})")
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return {key: tuple(np.percentile([row[key] for row in rows if key in row], (10, 50, 90))) for key in keys}


def print_side_by_side(columns: dict[str, dict[str, tuple[float, float, float]]]) -> None:
    """Print the quantiles of every figure, one line per figure, one column per source."""
    print(f"\n{'10 / 50 / 90 % of studies':28}" + "".join(f"{name:>30}" for name in columns))
    for key in next(iter(columns.values())):
        cells = [quantiles.get(key, (np.nan,) * 3) for quantiles in columns.values()]
        print(f"{key:28}" + "".join(f"{'  '.join(f'{value:8.2f}' for value in cell):>30}" for cell in cells))


def main() -> None:
    """Parse the command line, measure phantoms and real studies, print the table and the seconds per phantom."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phantoms", type=int, default=20, help="how many phantoms to make (0: none)")
    parser.add_argument("--size", type=int, default=240, help="x and y extent of a phantom in voxels")
    parser.add_argument("--randomise", type=float, default=0.0)
    parser.add_argument("--real", type=Path, help="folder with real labelled studies two levels below")
    options = parser.parse_args()
    columns, seconds = {}, []
    sources: dict[str, Callable[[], Iterator[Labelled]]] = {}
    if options.real:
        sources["real"] = lambda: real_studies(options.real)
    if options.phantoms:
        sources["phantoms"] = lambda: phantom_studies(options.phantoms, options.size, options.randomise, seconds)
    for name, studies in sources.items():
        columns[name] = summarise(name, studies())
    print_side_by_side(columns)
    if seconds:
        threads = os.environ.get("OMP_NUM_THREADS", "all")
        print(
            f"\nseconds per phantom at size {options.size} (OMP_NUM_THREADS {threads}): median {np.median(seconds):.2f}"
        )


if __name__ == "__main__":
    main()
