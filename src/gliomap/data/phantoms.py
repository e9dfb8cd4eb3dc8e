"""Phantoms as studies to train on: nothing is written, each is grown when it is read."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from gliomap.classes import Convention, named_convention
from gliomap.data.cache import entry_key, sources_sha256
from gliomap.data.checks import check_images
from gliomap.data.study import MODALITIES, ImageFile, Study
from gliomap.data.synthetic import GENERATOR_VERSION, Phantom, make_phantom
from gliomap.data.writing import as_lps, phantom_id
from gliomap.errors import InputError, UsageError
from gliomap.volume import Volume

STUDIES_PER_SEED = 10_000
FIRST_NUMBER = 10**12
"""Where the numbers of training phantoms begin: a folder of `gliomap phantom` has them from --seed 100,000,000 on only, so
that what was written for a test is not trained on."""

GROWN_BY = (
    "gliomap.data.synthetic",
    "gliomap.data.brains",
    "gliomap.data.tumours",
    "gliomap.data.phantoms",
    "gliomap.data.writing",
)
"""The modules whose text decides what a phantom looks like."""

_CONVENTION = named_convention("brats2021", "the phantom")


@dataclass(frozen=True)
class PhantomStudy(Study):
    """A study without files, which walks like any other: its images and its truth are grown when they are read.

    They are what `gliomap phantom` would have written for ``number``, and what would be read from there. ``label`` names no
    file; it says that there is a truth.
    """

    number: int = 0
    size: int = 240
    randomise: float = 0.0

    def read(
        self,
        modalities: Sequence[str] = MODALITIES,
        needs_one_of: Collection[str] = (),  # noqa: ARG002 - it lacks none
        *,
        skull_on_anyway: bool = False,
    ) -> tuple[Volume, list[str]]:
        """The modalities in that order, as `Study.read` gives them.

        Raises:
            InputError: there is no such modality.
        """
        unknown = [m for m in modalities if m not in MODALITIES]
        if unknown:
            raise InputError(f"a phantom has no modality {', '.join(unknown)}; it has {', '.join(MODALITIES)}")
        grown = _grown(self.number, self.size, self.randomise)
        images = grown.images[[MODALITIES.index(m) for m in modalities]].astype(np.float32)
        volume = _as_read(images, grown.affine)
        return volume, check_images(volume, modalities, skull_on_anyway=skull_on_anyway)

    def read_classes(self, brain: Volume | None = None) -> tuple[Volume, Convention, list[str]]:  # noqa: ARG002 - as Study
        """The class map (1, D, H, W) that was grown, and the convention it would be written in; nothing about it is odd."""
        grown = _grown(self.number, self.size, self.randomise)
        return _as_read(grown.classes[None], grown.affine), _CONVENTION, []

    def content_sha256(self) -> str:
        """The SHA-256 of all that it follows from: generator, its source text and template, number, size and contrast."""
        return entry_key({"number": self.number, "size": self.size, "randomise": self.randomise} | _generator())


def phantom_studies(count: int, seed: int = 0, size: int = 240, randomise: float = 0.0) -> list[Study]:
    """Phantoms of ``size`` x ``size`` x 155/240 ``size`` voxels to train on: study ``i`` of seed ``s`` is always the same.

    They are numbered as `gliomap phantom` does, from ``FIRST_NUMBER`` on.

    Raises:
        UsageError: there are too many.
    """
    if not 0 <= count <= STUDIES_PER_SEED:
        raise UsageError(f"cannot train on {count} phantoms; expected at most {STUDIES_PER_SEED}")
    first = FIRST_NUMBER + seed * STUDIES_PER_SEED
    ids = {number: phantom_id("phantom", GENERATOR_VERSION, number) for number in range(first, first + count)}
    return [
        PhantomStudy(name, {}, ImageFile(Path(name)), _CONVENTION, "phantom", "phantom", "", number, size, randomise)
        for number, name in ids.items()
    ]


@lru_cache(maxsize=1)
def _generator() -> dict[str, Any]:
    """What every phantom follows from; nilearn has the template."""
    versions = {name: version(name) for name in ("numpy", "scipy", "nilearn")}
    return {"generator": GENERATOR_VERSION, "sources": sources_sha256(GROWN_BY), **versions}


@lru_cache(maxsize=1)  # images and truth are read one after the other
def _grown(number: int, size: int, randomise: float) -> Phantom:
    return make_phantom(number, size=size, randomise=randomise)


def _as_read(array: np.ndarray, affine: np.ndarray) -> Volume:
    """The voxels on the grid that comes back from a file, whose affine has 32 bits."""
    stored = as_lps(Volume(array, affine))
    return Volume(stored.array, stored.affine.astype(np.float32).astype(np.float64)).to_ras()
