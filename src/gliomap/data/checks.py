"""What is looked at in a study's voxels before anything is computed from them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from gliomap.classes import CLASS_NAMES, ED, RC, Convention
from gliomap.errors import InputError
from gliomap.volume import Volume

MAX_BRAIN_ML = 2300.0
"""Largest plausible volume of a skull-stripped brain. Adult brains with their CSF fill 1,000 to 2,000 ml; a head, or a
field of view whose background is noise, fills 3,000 ml and more."""
MIN_BRAIN_ML = 50.0
SAME_IMAGE_CORRELATION = 0.999
"""Two modalities of one brain reach 0.9; one image and its copy rounded to 7 bits 0.9995."""
MIN_SHARE_OF_BRAIN = 0.9

Array = np.ndarray[Any, np.dtype[Any]]


def check_images(volume: Volume, modalities: Sequence[str], *, skull_on_anyway: bool = False) -> list[str]:
    """Refuse images (C, D, H, W) that would give a wrong answer; return warnings about what is merely odd.

    Raises:
        InputError: NaN or infinity, a constant modality, one image given as two modalities, or a skull that is still on.
    """
    for name, image in zip(modalities, volume.array, strict=True):
        if not np.isfinite(image).all():
            count = int((~np.isfinite(image)).sum())
            raise InputError(
                f"{name} has {count} voxels that are NaN or infinite; expected finite intensities. Repair the image"
            )
        if image.min() == image.max():
            what = "all zero" if not image.any() else f"constant ({image.flat[0]:g})"
            raise InputError(f"{name} is {what}; expected an image of a brain. Is it the right file?")
    foreground = volume.array != 0
    _refuse_same_image(volume.array, foreground, modalities)
    warnings = _check_extent(volume, foreground, skull_on_anyway=skull_on_anyway)
    brain = foreground.any(0)
    for name, mask in zip(modalities, foreground, strict=True):
        share = mask.sum() / brain.sum()
        if share < MIN_SHARE_OF_BRAIN:
            warnings.append(f"{name} has signal in only {share:.0%} of the voxels where another modality has it")
    return warnings


def check_whole_numbers(labels: Array, path: Path) -> None:
    """Refuse a label map with values that are no labels.

    Raises:
        InputError: a value is not finite, negative, above 255 or not whole.
    """
    if labels.dtype.kind == "f" and not (np.isfinite(labels).all() and (labels == np.round(labels)).all()):
        raise InputError(
            f"{path} has values that are not whole numbers; expected a label map. Is it a probability map?"
        )
    if labels.min() < 0 or labels.max() > 255:
        raise InputError(f"{path} has values from {labels.min():g} to {labels.max():g}; expected labels from 0 to 255")


def skull_measure_ml(volume: Volume) -> float:
    """The volume in ml that is not zero in the modality with the largest foreground."""
    return max(float(np.count_nonzero(image)) for image in volume.array) * volume.voxel_ml


def contact_with_brain(labels: Array, brain: Array) -> dict[int, float]:
    """For each label the share of its outer faces that lie against brain without a label, in [0, 1].

    ``labels`` (D, H, W), ``brain`` (D, H, W) True in the brain. Oedema has the largest share, necrosis the smallest.
    """
    values = [int(v) for v in np.unique(labels).tolist() if v]
    normal = brain & (labels == 0)
    shares = {}
    for value in values:
        mask = labels == value
        outer = touching = 0
        for axis in range(3):
            for a, b in ((slice(None, -1), slice(1, None)), (slice(1, None), slice(None, -1))):
                here = mask[(slice(None),) * axis + (a,)]
                there = (slice(None),) * axis + (b,)
                outer += int((here & ~mask[there]).sum())
                touching += int((here & normal[there]).sum())
        shares[value] = touching / outer if outer else 0.0
    return shares


def anatomical_hint(labels: Array, brain: Array) -> str:
    """A sentence on which label looks like oedema and which like necrosis; printed for a person, never obeyed."""
    shares = contact_with_brain(labels, brain)
    if len(shares) < 2:
        return ""
    ordered = sorted(shares, key=lambda v: -shares[v])
    text = ", ".join(f"{value} {shares[value]:.0%}" for value in ordered)
    return (
        f"Hint from the anatomy (share of each label's surface that touches normal brain: {text}): "
        f"{ordered[0]} looks like oedema, {ordered[-1]} like necrosis."
    )


def implausible_convention(classes: Array, brain: Array, convention: Convention) -> list[str]:
    """A warning if the anatomy contradicts a convention: where another class touches normal brain more than oedema does."""
    shares = {tissue: share for tissue, share in contact_with_brain(classes, brain).items() if tissue != RC}
    most = max(shares, key=lambda tissue: shares[tissue], default=ED)
    if ED not in shares or most == ED:
        return []
    text = ", ".join(f"{CLASS_NAMES[tissue]} {share:.0%}" for tissue, share in shares.items())
    return [
        f"the label convention {convention}, taken from {convention.evidence}, looks implausible: what it calls "
        f"{CLASS_NAMES[most]} touches normal brain more than what it calls ED ({text}). "
        "If the values mean something else, say so with --labels"
    ]


def _refuse_same_image(array: Array, foreground: Array, modalities: Sequence[str]) -> None:
    inside = ndimage.binary_erosion(foreground.all(0)) if foreground.all(0).sum() > 5000 else foreground.any(0)
    samples = array[:, inside][:, :: max(int(inside.sum()) // 200_000, 1)].astype(np.float64)
    samples -= samples.mean(1, keepdims=True)
    norms = np.linalg.norm(samples, axis=1)
    for first in range(len(array)):
        for second in range(first + 1, len(array)):
            scale = norms[first] * norms[second]
            if scale and samples[first] @ samples[second] / scale > SAME_IMAGE_CORRELATION:
                raise InputError(
                    f"{modalities[first]} and {modalities[second]} are the same image; expected one image per modality. "
                    "Give the right file for each"
                )


def _check_extent(volume: Volume, foreground: Array, *, skull_on_anyway: bool) -> list[str]:
    measure_ml = skull_measure_ml(volume)
    if measure_ml < MIN_BRAIN_ML:
        return [f"only {measure_ml:.1f} ml of the images are not background: this is hardly a brain"]
    if measure_ml <= MAX_BRAIN_ML:
        return []
    background = 1 - foreground.any(0).mean()
    message = (
        f"the skull looks still on: {measure_ml:.0f} ml are not background (a skull-stripped brain has 1,000 to 2,000 ml; "
        f"{background:.0%} of the grid is background)"
    )
    if skull_on_anyway:
        return [f"{message}; continued because of --skull-on-anyway"]
    raise InputError(
        f"{message}. gliomap's models know skull-stripped images only: strip the skull first (HD-BET or SynthStrip), "
        "or continue with --skull-on-anyway"
    )
