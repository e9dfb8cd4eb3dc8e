"""Training samples: studies prepared once and kept in memory, patches that are a pure function of (seed, sample index)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gliomap.classes import RC
from gliomap.data.study import Study
from gliomap.errors import InputError, reason
from gliomap.files import sha256
from gliomap.preprocess import brain_mask, prepare, resample_classes, study_box, voxel_ratio
from gliomap.progress import progress_bar
from gliomap.recipe import Recipe, Training
from gliomap.volume import Volume

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class PreparedStudy:
    """One study as training reads it: ``images`` (C, D, H, W) float16, ``classes`` (D, H, W) uint8.

    ``tumour`` has, for each class present, up to 5,000 of its voxels (N, 3). ``middle`` is the index along D of the middle
    of the study's own grid, before any crop.
    """

    id: str
    images: Array
    classes: Array
    tumour: tuple[Array, ...]
    middle: int


def prepare_study(study: Study, recipe: Recipe) -> tuple[PreparedStudy, list[str]]:
    """Read and prepare one labelled study; returns it and the warnings of its checks.

    Raises:
        InputError: the study or its label cannot be used.
    """
    volume, warnings = study.read(recipe.modalities)
    brain = Volume(brain_mask(volume)[None], volume.affine)
    labels, _, odd = study.read_classes(brain)
    box = study_box(volume, recipe.preprocessing, labels)
    ratio = voxel_ratio(volume, recipe.preprocessing)
    images = prepare(volume.crop(box), recipe, ratio)
    classes = labels.crop(box).array[0]
    middle = (volume.shape[0] - 1) // 2 - box.start[0]
    if ratio is not None:
        classes = resample_classes(classes, images.shape, ratio)
        middle = round((middle + 0.5) / ratio[0] - 0.5)
    if (classes == RC).any():
        odd = [*odd, "its resection cavity trains as background"]
    tumour = tuple(_some(np.argwhere(classes == value)) for value in np.unique(classes[classes != 0]))
    return PreparedStudy(study.id, images.array.astype(np.float16), classes, tumour, middle), warnings + odd


@dataclass(frozen=True)
class PreparedStudies:
    """What a training uses: studies in memory, validation studies that can be read, and what is known of the rest.

    ``failed``: why a study is left out. ``inputs_sha256``: the hashes of the files, by study and modality.
    """

    training: list[PreparedStudy]
    validation: list[Study]
    failed: dict[str, str]
    warnings: list[str]
    inputs_sha256: dict[str, dict[str, str]]


def prepare_studies(
    training: Sequence[Study], validation: Sequence[Study], recipe: Recipe, *, quiet: bool = False
) -> PreparedStudies:
    """Read all studies of a training before hours are spent on it; those that cannot be used are left out.

    Raises:
        InputError: none of the training studies can be used.
    """
    found = PreparedStudies([], [], {}, [], {})
    with progress_bar("reading studies", len(training) + len(validation), quiet=quiet) as bar:
        for number, study in enumerate([*training, *validation]):
            try:
                ready, odd = prepare_study(study, recipe)
                found.warnings.extend(f"{study.id}: {text}" for text in odd)
                if number < len(training):
                    found.training.append(ready)
                else:
                    found.validation.append(study)
                files = {**study.images, "seg": study.label}
                found.inputs_sha256[study.id] = {m: sha256(f.path) for m, f in files.items() if f}
            except Exception as error:  # one bad study never ends a training
                found.failed[study.id] = reason(error)
            bar.advance()
    if not found.training:
        first = next(iter(found.failed.values()), "none was given")
        raise InputError(f"none of the {len(training)} training studies can be used; the first: {first}")
    return found


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
    """The first voxel of a patch: about a tumour voxel for ``foreground_share`` of the draws, else where the recipe says."""
    shape, size = study.classes.shape, training.patch_size
    if study.tumour and rng.random() < training.foreground_share:
        points = study.tumour[int(rng.integers(len(study.tumour)))]
        centre = points[int(rng.integers(len(points)))]
        wanted = [int(c) - s // 2 for c, s in zip(centre, size, strict=True)]
    else:
        wanted = [int(rng.integers(min(n - s, 0), max(n - s, 0) + 1)) for n, s in zip(shape, size, strict=True)]
        if training.patch_place == "middle":
            wanted[0] = study.middle - size[0] // 2
        elif training.patch_place == "largest_tumour":
            wanted[0] = int((study.classes > 0).sum((1, 2)).argmax()) - size[0] // 2
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
