"""A study: the files of one examination, read as Volumes and refused where they would give a wrong answer."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gliomap.classes import Convention, convention_from_values, refuse_ambiguous
from gliomap.data.checks import anatomical_hint, check_images, check_whole_numbers, implausible_convention
from gliomap.data.images import read_image, read_images
from gliomap.errors import InputError
from gliomap.volume import Box, Volume, bounding_box, grid_distance_mm

MODALITIES = ("t1", "t1c", "t2", "flair")
GRID_TOLERANCE_MM = 0.1
"""Largest distance between the same corner of two modalities' grids that counts as one grid."""


class ImageFile(NamedTuple):
    """One image: a file, or one channel of a 4-D file."""

    path: Path
    channel: int | None = None

    def read(self) -> Volume:
        """The image as a Volume (1, D, H, W) in the file's orientation; raises InputError as `read_image` does."""
        return read_image(self.path, self.channel)


@dataclass(frozen=True)
class Study:
    """The files of one examination.

    ``convention`` is what its label values mean, where something other than the values says so. ``layout`` is the naming
    it was found in and ``stratum`` the folder above it. ``problem`` is why it cannot be read, found while looking for it.
    """

    id: str
    images: dict[str, ImageFile]
    label: ImageFile | None = None
    convention: Convention | None = None
    layout: str = "loose"
    stratum: str = ""
    problem: str = field(default="", repr=False)

    @property
    def patient(self) -> str:
        """Who was examined, as far as the id tells: the subject of a BIDS-like one, else the id without what is not the patient's.

        That is the time point of BraTS 2023 and later, and the year of BraTS 2017 to 2019, which name patients alike but for it
        and for TCIA's sites, which only 2018 and 2019 number (TCIA_105_1 of 2017 is their TCIA08_105_1).
        """
        if subject := re.match(r"sub-[0-9A-Za-z]+", self.id):
            return subject[0]
        if of_year := re.fullmatch(r"brats1[789]_(.+)", self.id, re.IGNORECASE):
            return re.sub(r"^TCIA\d+_", "TCIA_", of_year[1])
        return re.sub(r"(?<=^BraTS-)(.+-\d+)-\d{3}$", r"\1", self.id)

    def read(
        self,
        modalities: Sequence[str] = MODALITIES,
        needs_one_of: Collection[str] = (),
        *,
        skull_on_anyway: bool = False,
    ) -> tuple[Volume, list[str]]:
        """The modalities in that order as one float32 Volume (C, D, H, W) in RAS+, and what is odd about them.

        With ``needs_one_of`` a study that has one of these may lack others, whose images are zero.

        Raises:
            InputError: a modality is missing or unreadable, the grids differ, or the voxels would give a wrong answer
                (see `check_images`).
        """
        if self.problem:
            raise InputError(self.problem)
        there = [m for m in modalities if m in self.images]
        missing = [m for m in modalities if m not in self.images]
        if missing and not set(there) & set(needs_one_of):
            needed = f"{' or '.join(needs_one_of)} at least" if needs_one_of else ", ".join(modalities)
            raise InputError(
                f"the modality {', '.join(missing)} is missing: the model needs {needed} and this study has "
                f"{', '.join(self.images) or 'none'}. Check the file names or give the files one by one (--t1 --t1c --t2 --flair)"
            )
        volumes = [v.to_ras() for v in read_images([self.images[m] for m in there])]
        for name, volume in zip(there[1:], volumes[1:], strict=True):
            _same_grid(there[0], volumes[0], name, volume)
        found = Volume(np.stack([v.array[0] for v in volumes]).astype(np.float32), volumes[0].affine)
        odd = check_images(found, there, skull_on_anyway=skull_on_anyway)
        if not missing:
            return found, odd
        array = np.zeros((len(modalities), *found.shape), np.float32)
        array[[m in self.images for m in modalities]] = found.array
        return found.with_array(array), [*odd, f"{', '.join(missing)} is missing: the segmentation is less reliable"]

    def read_classes(self, brain: Volume | None = None) -> tuple[Volume, Convention, list[str]]:
        """The label file as a class map Volume (1, D, H, W) uint8 in RAS+, its convention, and what is odd about it.

        ``brain`` (1, D, H, W), True in the brain, is what the anatomical hint is taken from; without it everything outside
        the tumour counts as brain.

        Raises:
            InputError: there is no label, it is unreadable or on another grid than ``brain``, or its values are outside
                the convention or could mean several things.
        """
        if self.problem or self.label is None:
            raise InputError(self.problem or f"study {self.id} has no label map; expected one beside its images")
        labels = self.label.read().to_ras()
        check_whole_numbers(labels.array, self.label.path)
        if brain is not None:
            _same_grid("the images", brain, "the label map", labels)
        values = np.ascontiguousarray(labels.array[0], np.uint8)
        box = (bounding_box(values, margin=1) or Box((0, 0, 0), (1, 1, 1))).slices  # most of a grid is background
        inside = np.ones(values[box].shape, bool) if brain is None else brain.array[0][box].astype(bool)
        convention = self.convention or convention_from_values(values[box])
        if convention is None:
            raise refuse_ambiguous(values[box], anatomical_hint(values[box], inside))
        classes = np.zeros_like(values)
        classes[box] = convention.decode(values[box])
        odd = implausible_convention(classes[box], inside, convention)
        if convention.doubt:
            odd.append(convention.doubt)
        return labels.with_array(classes), convention, odd


def _same_grid(first: str, a: Volume, second: str, b: Volume) -> None:
    distance = grid_distance_mm(a, b)
    if distance > GRID_TOLERANCE_MM:
        detail = (
            f"shapes {a.shape[::-1]} and {b.shape[::-1]} (x, y, z)"
            if a.shape != b.shape
            else f"{distance:.1f} mm apart"
        )
        raise InputError(
            f"{first} and {second} are on different grids ({detail}); expected co-registered images with one shape and affine "
            f"(within {GRID_TOLERANCE_MM} mm). Register and resample them to one of them first, for example with BrainLes, ANTs "
            "or 3D Slicer"
        )
