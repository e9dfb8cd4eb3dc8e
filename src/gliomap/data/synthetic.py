"""Synthetic studies: a deformed brain, a glioma grown in it, and four MR images of both."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage, sparse

from gliomap.data.brains import (
    BRAIN_CONTRAST,
    CONTRAST_SPREAD,
    Brain,
    apply_along,
    build_brain,
    deform,
    draw_contrast,
    draw_texture,
    grid_of_size,
    smooth_noise,
)
from gliomap.data.tumours import TUMOUR_CONTRAST, TUMOUR_SPREAD, Tumour, draw_kind, grow, plan_tumour, push_aside
from gliomap.errors import UsageError

GENERATOR_VERSION = 1
LEAST_SIZE = 24  # 10 mm voxels; below this a brain has no anatomy left
SCALE = (120.0, 1200.0)  # median brain intensity: scanners agree on no unit
GAMMA_DEVIATION = 0.08


@dataclass(frozen=True)
class Acquisition:
    """Ranges of what a scanner does in one modality: slices in mm, in-plane blur in mm, relative noise, texture and bias."""

    thick_share: float
    slice_mm: tuple[float, float]
    blur_mm: tuple[float, float]
    noise: tuple[float, float]
    texture: float
    bias: tuple[float, float] = (0.03, 0.18)
    slice_gain: float = 0.01


ACQUISITIONS = (  # t1, t1c, t2, flair: the first two are often 3-D, the others rarely
    Acquisition(0.4, (2.0, 5.5), (0.7, 1.5), (0.015, 0.05), 0.025),
    Acquisition(0.3, (2.0, 5.5), (0.7, 1.5), (0.015, 0.05), 0.030),
    Acquisition(0.6, (2.0, 5.5), (0.5, 1.0), (0.015, 0.05), 0.065),
    Acquisition(0.6, (2.0, 5.5), (0.6, 1.4), (0.02, 0.07), 0.055, bias=(0.05, 0.28), slice_gain=0.03),
)
BIAS_MM = 70.0  # the coil's field: smooth over a lobe


@dataclass(frozen=True)
class Phantom:
    """A synthetic study: images (4, D, H, W) int16 in the order t1, t1c, t2, flair, and its class map (D, H, W).

    The background of the images is exactly 0 and the brain at least 1. ``affine`` maps voxel (x, y, z, 1) to mm, RAS+.
    ``kind`` says which tumour was grown, one of ``gliomap.data.tumours.KINDS``.
    """

    images: np.ndarray
    classes: np.ndarray
    affine: np.ndarray
    kind: str


def make_phantom(seed: int, *, size: int = 240, randomise: float = 0.0, kind: str | None = None) -> Phantom:
    """Make a synthetic study of a whole head on a grid of ``size`` x ``size`` x 155/240 ``size`` voxels.

    The same seed gives the same bytes in every process, and much the same anatomy at every size. ``randomise`` in [0, 1]
    moves the contrast from realistic to random, and leaves the anatomy and the classes alone. ``kind`` is drawn if None.

    Raises:
        UsageError: the size is below 24, ``randomise`` is outside [0, 1], or there is no such kind.
    """
    if size < LEAST_SIZE:
        raise UsageError(f"a phantom of size {size} has no anatomy left; choose a size of at least {LEAST_SIZE}")
    if not 0 <= randomise <= 1:
        raise UsageError(f"randomise is {randomise}; choose a number from 0 (realistic) to 1 (random contrast)")
    streams = [np.random.default_rng((seed, GENERATOR_VERSION, stream)) for stream in range(5)]
    anatomy, choice, growth, tissue, contrast = streams
    coordinates, linear = deform(anatomy)
    kind = kind or draw_kind(choice)
    plan = plan_tumour(kind, coordinates, growth)
    displaced = push_aside(coordinates, linear, plan, growth)
    brain = build_brain(grid_of_size(size), displaced, tissue)
    tumour = grow(plan, brain, displaced, growth)
    images = np.stack([_whole(brain, image) for image in _images(brain, tumour, randomise, contrast)])
    return Phantom(images, _whole(brain, tumour.classes), brain.grid.affine(), kind)


def _images(brain: Brain, tumour: Tumour, randomise: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Four flat images (N,) int16, at least 1."""
    table = np.array([*BRAIN_CONTRAST.values(), *TUMOUR_CONTRAST.values()])
    spread = np.array([[CONTRAST_SPREAD]] * len(BRAIN_CONTRAST) + [[TUMOUR_SPREAD]] * len(TUMOUR_CONTRAST))
    signals = draw_contrast(table, spread, randomise, rng).astype(np.float32)
    maps = [*(brain.maps * (1 - tumour.maps.sum(axis=0))), *tumour.maps]
    streams = rng.spawn(len(ACQUISITIONS))
    texture = draw_texture(brain, rng)
    images = []
    for column, (how, stream) in enumerate(zip(ACQUISITIONS, streams, strict=True)):
        signal = sum(value * part for value, part in zip(signals[:, column], maps, strict=True))
        signal = signal * (1 + how.texture * texture)
        scale, gamma = np.exp(stream.uniform(*np.log(SCALE))), np.exp(GAMMA_DEVIATION * stream.standard_normal())
        seen = acquire(signal, brain, float(signals[3, column]), how, stream)
        seen = (seen / np.median(seen)) ** gamma * scale
        images.append(np.clip(np.rint(seen), 1, np.iinfo(np.int16).max).astype(np.int16))
    return images


def acquire(
    signal: np.ndarray, brain: Brain, surround: float, how: Acquisition, rng: np.random.Generator
) -> np.ndarray:
    """Scan a flat signal (N,): coil field, blur, slices, Rician noise; returns (N,), roughly in the signal's units.

    ``surround`` is the signal outside the brain, which blur mixes into its edge.
    """
    bias = np.exp(rng.uniform(*how.bias) * brain.spread(smooth_noise(rng, BIAS_MM)))
    thickness_mm = rng.uniform(*how.slice_mm) if rng.random() < how.thick_share else 1.0
    axis = int(rng.choice(3, p=(0.8, 0.1, 0.1)))
    blur_mm, noise, phase = rng.uniform(*how.blur_mm), rng.uniform(*how.noise), rng.random()
    volume = np.full(brain.inside.shape, surround, np.float32)
    volume[brain.inside] = signal * bias
    volume = _blur(volume, blur_mm / 2.355 / brain.grid.spacing_mm, (0, 1, 2))
    positions_mm = brain.grid.positions_mm(brain.box)[axis]
    thick = thickness_mm > 1.2 * brain.grid.spacing_mm
    average, spread = _slice_operators(positions_mm, thickness_mm, phase)
    if thick:
        gains = np.exp(how.slice_gain * rng.standard_normal(average.shape[0], dtype=np.float32))
        volume = apply_along(average * gains[:, None], volume, axis)
    deviation = np.float32(noise * np.median(signal))
    real, imaginary = (rng.standard_normal(volume.shape, dtype=np.float32) * deviation for _ in range(2))
    volume = np.hypot(volume + real, imaginary)
    if thick:
        volume = apply_along(spread, volume, axis)
    return _blur(volume, 0.45, [other for other in range(3) if other != axis or not thick])[brain.inside]


def _blur(volume: np.ndarray, deviation_voxels: float, axes: Sequence[int]) -> np.ndarray:
    """Gaussian blur along some axes; none where it would be finer than the voxels."""
    for axis in axes if deviation_voxels > 0.3 else ():
        volume = ndimage.gaussian_filter1d(volume, deviation_voxels, axis, truncate=2.5)
    return volume


def _slice_operators(
    positions_mm: np.ndarray, thickness_mm: float, phase: float
) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Matrices that average voxels into slices (slices, voxels), and that interpolate them back (voxels, slices)."""
    count = int(np.ceil((positions_mm[-1] - positions_mm[0]) / thickness_mm)) + 2
    centres_mm = positions_mm[0] + (np.arange(count) - phase) * thickness_mm
    away = np.abs(centres_mm[:, None] - positions_mm) / thickness_mm
    profile = np.clip(0.75 - away, 0.02 * (away < 1.2), 0.5)
    profile[~profile.any(axis=1), 0] = 1
    profile /= profile.sum(axis=1, keepdims=True)
    tent = np.clip(1 - away, 0, None).T
    tent /= tent.sum(axis=1, keepdims=True)
    return sparse.csr_array(profile.astype(np.float32)), sparse.csr_array(tent.astype(np.float32))


def _whole(brain: Brain, flat: np.ndarray) -> np.ndarray:
    """Put the brain's values (N,) into a whole grid (D, H, W) of zeros."""
    volume = np.zeros(brain.grid.shape, flat.dtype)
    volume[brain.box][brain.inside] = flat
    return volume
