"""Augmentation: every sample's draw is a pure function of (seed, sample index); applying it is a pure function of the draw.

All spatial changes of a sample are composed into one interpolation.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gliomap.recipe import Augmentation

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Draw:
    """What happens to one sample.

    ``matrix`` (3, 3) takes output to input positions about the centre, in voxels (x, y, z). ``displacement``
    (3, d, h, w) are control points in voxels (x, y, z), or None. ``scale``, ``shift``, ``gamma`` have one value per
    modality. ``noise_seed`` starts the noise.
    """

    matrix: Array
    displacement: Array | None
    scale: Array
    shift: Array
    gamma: Array
    noise: float
    noise_seed: int


def draw(settings: Augmentation, channels: int, size: tuple[int, int, int], rng: np.random.Generator) -> Draw:
    """One sample's augmentation, for patches of ``size`` (D, H, W) with that many modalities."""
    angles = np.deg2rad(rng.uniform(-1, 1, 3) * settings.rotation_degrees)
    flips = np.where(rng.random(3) < 0.5, -1.0, 1.0) if settings.flips else np.ones(3)
    zoom = 1 + rng.uniform(-1, 1) * settings.scale
    matrix = _rotation(angles) @ np.diag(flips / zoom)
    displacement = None
    if settings.elastic_voxels:
        points = tuple(max(round((n - 1) / settings.elastic_spacing) + 1, 2) for n in size)
        displacement = rng.normal(0, settings.elastic_voxels, (3, *points)).astype(np.float32)
    return Draw(
        matrix=matrix.astype(np.float32),
        displacement=displacement,
        scale=1 + rng.uniform(-1, 1, channels) * settings.intensity_scale,
        shift=rng.uniform(-1, 1, channels) * settings.intensity_shift,
        gamma=rng.uniform(*settings.gamma, channels),
        noise=rng.uniform(0, settings.noise),
        noise_seed=int(rng.integers(2**62)),
    )


def apply(images: Tensor, classes: Tensor, draws: list[Draw]) -> tuple[Tensor, Tensor]:
    """Augment a batch: images (B, C, D, H, W) float32 with background 0, classes (B, D, H, W) uint8.

    Images are interpolated linearly and classes by the nearest voxel, through one grid. Intensities change only where
    the image is not background.
    """
    if any(not _is_identity(d) for d in draws):
        grid = torch.stack([sampling_grid(d, _size(images)) for d in draws]).to(images.device)
        images = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
        labels = F.grid_sample(classes[:, None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=True)
        classes = labels[:, 0].to(torch.uint8)
    return torch.stack([_intensities(x, d) for x, d in zip(images, draws, strict=True)]), classes


def sampling_grid(draw: Draw, size: tuple[int, int, int]) -> Tensor:
    """Where each output voxel of a patch (D, H, W) is read, as torch's grid_sample wants it: (D, H, W, 3) in [-1, 1]."""
    half = torch.tensor([(n - 1) / 2 for n in size[::-1]])  # x, y, z
    axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in size]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    positions = torch.stack([x, y, z], -1)  # (D, H, W, 3)
    if draw.displacement is not None:
        control = torch.from_numpy(draw.displacement)[None]
        smooth = F.interpolate(control, size=size, mode="trilinear", align_corners=True)[0]
        positions = positions + smooth.movedim(0, -1)
    return positions @ torch.from_numpy(draw.matrix).T / half.clamp(min=0.5)


def _intensities(image: Tensor, draw: Draw) -> Tensor:
    """Gamma on each modality's own range, then scale, shift and noise, on the voxels that are not background (C, D, H, W)."""
    inside = image != 0
    out = image
    if (draw.gamma != 1).any():
        low = image.amin((1, 2, 3), keepdim=True)
        span = (image.amax((1, 2, 3), keepdim=True) - low).clamp(min=1e-6)
        out = ((image - low) / span) ** _column(draw.gamma, image) * span + low
    out = out * _column(draw.scale, image) + _column(draw.shift, image)
    if draw.noise:
        generator = torch.Generator().manual_seed(draw.noise_seed)
        out = out + draw.noise * torch.randn(image.shape, generator=generator).to(image.device)
    return torch.where(inside, out, 0.0)


def _column(values: Array, image: Tensor) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(image.device)[:, None, None, None]


def _is_identity(draw: Draw) -> bool:
    return draw.displacement is None and bool(np.array_equal(draw.matrix, np.eye(3)))


def _size(images: Tensor) -> tuple[int, int, int]:
    d, h, w = images.shape[2:]
    return d, h, w


def _rotation(angles: Array) -> Array:
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x
