"""Training samples: studies prepared once and kept in memory, patches that are a pure function of (seed, sample index)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gliomap.classes import RC
from gliomap.data.study import Study
from gliomap.preprocess import brain_box, brain_mask, prepare, resample_classes
from gliomap.recipe import Recipe, Training
from gliomap.volume import Volume

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class PreparedStudy:
    """One study as training reads it: ``images`` (C, D, H, W) float16, ``classes`` (D, H, W) uint8.

    ``tumour`` has, for each class present, up to 5,000 of its voxels (N, 3).
    """

    id: str
    images: Array
    classes: Array
    tumour: tuple[Array, ...]


def prepare_study(study: Study, recipe: Recipe) -> tuple[PreparedStudy, list[str]]:
    """Read and prepare one labelled study; returns it and the warnings of its checks.

    Raises:
        InputError: the study or its label cannot be used.
    """
    volume, warnings = study.read(recipe.modalities)
    brain = Volume(brain_mask(volume)[None], volume.affine)
    labels, _, odd = study.read_classes(brain)
    images = prepare(volume, recipe.preprocessing)
    box = brain_box(volume)
    classes = labels.array[0][box.slices]
    if recipe.preprocessing.spacing_mm is not None:
        z, y, x = (coarse / fine for coarse, fine in zip(images.spacing_mm, volume.spacing_mm, strict=True))
        classes = resample_classes(classes, images.shape, (z, y, x))
    if (classes == RC).any():
        odd = [*odd, "its resection cavity trains as background"]
    tumour = tuple(_some(np.argwhere(classes == value)) for value in np.unique(classes[classes != 0]))
    return PreparedStudy(study.id, images.array.astype(np.float16), classes, tumour), warnings + odd


@dataclass(frozen=True)
class PatchSampler:
    """Patches of prepared studies. Every pass over the studies is a new permutation of them."""

    studies: Sequence[PreparedStudy]
    training: Training
    seed: int

    def sample(self, index: int) -> tuple[Array, Array, str, np.random.Generator]:
        """Sample number ``index``: images (C, D, H, W) float32, classes (D, H, W), the study's id, and its generator."""
        turn, place = divmod(index, len(self.studies))
        order = np.random.default_rng([self.seed, 1, turn]).permutation(len(self.studies))
        study = self.studies[int(order[place])]
        rng = np.random.default_rng([self.seed, 2, index])
        start = patch_start(study, self.training, rng)
        images = cut(study.images, start, self.training.patch_size).astype(np.float32)
        return images, cut(study.classes[None], start, self.training.patch_size)[0], study.id, rng

    def batch(self, first: int, count: int) -> tuple[Array, Array, list[str], list[np.random.Generator]]:
        """Samples ``first`` to ``first + count`` stacked: (B, C, D, H, W), (B, D, H, W), ids and generators."""
        images, classes, ids, generators = zip(*(self.sample(first + i) for i in range(count)), strict=True)
        return np.stack(images), np.stack(classes), list(ids), list(generators)


def patch_start(study: PreparedStudy, training: Training, rng: np.random.Generator) -> tuple[int, int, int]:
    """The first voxel of a patch: about a tumour voxel for ``foreground_share`` of the draws, else anywhere."""
    shape, size = study.classes.shape, training.patch_size
    if study.tumour and rng.random() < training.foreground_share:
        points = study.tumour[int(rng.integers(len(study.tumour)))]
        centre = points[int(rng.integers(len(points)))]
        wanted = [int(c) - s // 2 for c, s in zip(centre, size, strict=True)]
    else:
        wanted = [int(rng.integers(min(n - s, 0), max(n - s, 0) + 1)) for n, s in zip(shape, size, strict=True)]
    d, h, w = (min(max(a, min(n - s, 0)), max(n - s, 0)) for a, n, s in zip(wanted, shape, size, strict=True))
    return d, h, w


def cut(array: Array, start: Sequence[int], size: Sequence[int]) -> Array:
    """The window of (C, D, H, W) that begins at ``start``, zero where it reaches outside."""
    out = np.zeros((len(array), *size), array.dtype)
    source, target = [], []
    for first, length, n in zip(start, size, array.shape[1:], strict=True):
        low, high = min(max(first, 0), n), min(max(first + length, 0), n)
        source.append(slice(low, high))
        target.append(slice(low - first, high - first) if high > low else slice(0))
    out[(slice(None), *target)] = array[(slice(None), *source)]
    return out


def _some(points: Array, limit: int = 5000) -> Array:
    return points[:: -(-len(points) // limit)] if len(points) else points
