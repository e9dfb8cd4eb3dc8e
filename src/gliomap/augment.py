"""Augmentation: every sample's draw is a pure function of (seed, sample index); applying it is a pure function of the draw.

All spatial changes of a sample are composed into one interpolation, blur and low resolution into one matrix per axis.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gliomap.recipe import Augmentation

Array = np.ndarray[Any, np.dtype[Any]]
Size = tuple[int, int, int]
"""D, H, W."""

SLAB_VOXELS = 2**16
"""What a CPU interpolates at a time: so few that the values between stay in its cache, which takes a third of the time."""
_SLICES = 3
"""An axis this many times shorter than the longest is a stack of slices; nnU-Net's threshold."""


@dataclass(frozen=True)
class Intensity:
    """What happens to one modality of a sample, in this order; the defaults change nothing.

    ``resolution`` is the share of the voxels left along each axis, ``inverted_gamma`` and ``gamma`` are exponents,
    ``contrast`` and ``scale`` factors. Where ``kept`` is False the modality is 0.
    """

    blur_voxels: float = 0.0
    resolution: float = 1.0
    inverted_gamma: float = 1.0
    gamma: float = 1.0
    contrast: float = 1.0
    scale: float = 1.0
    shift: float = 0.0
    noise: float = 0.0
    kept: bool = True


@dataclass(frozen=True)
class Draw:
    """What happens to one sample.

    ``matrix`` (3, 3) takes output to input positions about the centre, in voxels (x, y, z). ``displacement`` (3, d, h, w)
    are control points in voxels (x, y, z), added to output positions before the matrix, or None. ``noise_seed`` starts the
    noise of all modalities.
    """

    matrix: Array
    displacement: Array | None
    intensities: tuple[Intensity, ...]
    keep_moments: bool
    noise_seed: int


def draw(settings: Augmentation, channels: int, size: Size, rng: np.random.Generator) -> Draw:
    """One sample's augmentation, for patches of ``size`` (D, H, W) with that many modalities."""
    applied = {name: rng.random() < share for name, share in vars(settings.shares).items()}
    matrix, displacement = _draw_movement(settings, size, applied, rng)
    intensities = _draw_intensities(settings, channels, applied, rng)
    return Draw(matrix, displacement, intensities, settings.gamma_keeps_moments, int(rng.integers(2**62)))


def _draw_movement(
    settings: Augmentation, size: Size, applied: dict[str, bool], rng: np.random.Generator
) -> tuple[Array, Array | None]:
    moved = np.array(_moved_axes(size)[::-1], float)  # x, y, z
    angles = np.deg2rad(rng.uniform(-1, 1, 3) * settings.rotation_degrees)
    turns = rng.integers(4, size=3)
    flips = np.where(rng.random(3) < 0.5, -1.0, 1.0)
    zoom = (1 + rng.uniform(-1, 1) * settings.scale) ** moved
    matrix = np.eye(3)
    if applied["rotation"]:
        both = moved[[1, 2, 0]] * moved[[2, 0, 1]]  # an axis turns the other two
        matrix = matrix @ _rotation(angles * both)
    if settings.rotate_90 and applied["rotate_90"]:
        matrix = matrix @ _quarter_turns(turns, size)
    if applied["scale"]:
        matrix = matrix / zoom
    if settings.flips and applied["flips"]:
        matrix = matrix * flips
    if not settings.elastic_voxels or not applied["elastic"]:
        return matrix.astype(np.float32), None
    points = [max(round((n - 1) / settings.elastic_spacing) + 1, 2) for n in size]
    displacement = rng.normal(0, settings.elastic_voxels, (3, *points)) * moved[:, None, None, None]
    return matrix.astype(np.float32), displacement.astype(np.float32)


def _draw_intensities(
    settings: Augmentation, channels: int, applied: dict[str, bool], rng: np.random.Generator
) -> tuple[Intensity, ...]:
    noise = rng.uniform(0, settings.noise)
    dropped = rng.random(channels) < settings.modality_dropout
    dropped[rng.integers(channels)] &= not dropped.all()
    found = []
    for channel in range(channels):
        blurred, lowered = rng.random(2) < settings.shares.modality
        values = {
            "blur_voxels": rng.uniform(*settings.blur_voxels),
            "resolution": rng.uniform(*settings.low_resolution),
            "inverted_gamma": rng.uniform(*settings.inverted_gamma),
            "gamma": rng.uniform(*settings.gamma),
            "contrast": rng.uniform(*settings.contrast),
            "scale": 1 + rng.uniform(-1, 1) * settings.intensity_scale,
            "shift": rng.uniform(-1, 1) * settings.intensity_shift,
            "noise": noise,
        }
        happens = applied | {
            "blur_voxels": applied["blur"] and blurred,
            "resolution": applied["low_resolution"] and lowered,
            "scale": applied["intensity_scale"],
            "shift": applied["intensity_shift"],
        }
        found.append(Intensity(**{n: v for n, v in values.items() if happens[n]}, kept=not dropped[channel]))
    return tuple(found)


def apply(images: Tensor, classes: Tensor, draws: list[Draw]) -> tuple[Tensor, Tensor]:
    """Augment a batch: images (B, C, D, H, W) float32 with background 0, classes (B, D, H, W) uint8.

    Images are interpolated linearly and classes by the nearest voxel, at the same positions; outside the patch is 0. Flips
    and quarter turns alone are exact. Intensities change only where the image is not background. The given batch is left
    as it is, and returned where nothing happens to it.
    """
    if all(_stays(one) and set(one.intensities) <= {Intensity()} for one in draws):
        return images, classes
    out, labels = torch.empty_like(images, memory_format=torch.contiguous_format), torch.empty_like(classes)
    with torch.no_grad():
        for number, one in enumerate(draws):
            if _is_exact(one):
                out[number] = _turned(images[number], one.matrix)
                labels[number] = _turned(classes[None, number], one.matrix)[0]
            else:
                _interpolate(images[number], classes[number], one, (out[number], labels[number]))
            noise = np.random.SFC64(one.noise_seed)
            for image, intensity in zip(out[number], one.intensities, strict=True):
                _change(image, intensity, keep_moments=one.keep_moments, noise=noise)
    return out, labels


def smoothing_matrix(n: int, blur_voxels: float, resolution: float) -> Array:
    """The matrix (n, n) that blurs n voxels and then brings them to a lower resolution and back.

    A Gaussian, normalised over the voxels there are; then the nearest voxel to the centre of each of ``resolution`` times n
    cells, then linear interpolation between those centres.
    """
    places = np.arange(n)
    out = np.eye(n)
    if blur_voxels:
        out = np.exp(-0.5 * ((places - places[:, None]) / blur_voxels) ** 2)
        out /= out.sum(1, keepdims=True)
    cells = max(round(n * resolution), 1)
    if cells < n:
        chosen = ((np.arange(cells) + 0.5) * n / cells).astype(int)
        position = np.clip((places + 0.5) * cells / n - 0.5, 0, cells - 1)
        out = np.maximum(1 - np.abs(position[:, None] - np.arange(cells)), 0) @ out[chosen]
    return out


def _change(image: Tensor, wanted: Intensity, *, keep_moments: bool, noise: np.random.SFC64) -> None:
    """Change one modality (D, H, W) in place."""
    if wanted == Intensity():
        return
    if not wanted.kept:
        image.zero_()
        return
    brain = (image != 0).to(image.dtype)
    if wanted.blur_voxels or wanted.resolution < 1:
        _smooth(image, wanted.blur_voxels, wanted.resolution)
    if wanted.inverted_gamma != 1:
        _raise(image.mul_(brain).neg_(), wanted.inverted_gamma, brain, keep_moments=keep_moments)
        image.neg_()
    if wanted.gamma != 1:
        _raise(image.mul_(brain), wanted.gamma, brain, keep_moments=keep_moments)
    if wanted.contrast != 1:
        low, high = image.mul_(brain).aminmax()
        mean, _ = _moments(image, brain)
        image.mul_(wanted.contrast).add_(mean * (1 - wanted.contrast)).clamp_(low, high)
    image.mul_(wanted.scale).add_(wanted.shift)
    if wanted.noise:
        image.add_(_noise(image, noise), alpha=wanted.noise)
    image.mul_(brain)


def _raise(image: Tensor, exponent: float, brain: Tensor, *, keep_moments: bool) -> None:
    """Gamma on the modality's own range, 0 of the background included, in place."""
    low, high = image.aminmax()
    span = (high - low).clamp(min=1e-6)
    before, width = _moments(image, brain) if keep_moments else (0.0, 1.0)
    image.sub_(low).div_(span).log_().mul_(exponent).exp_().mul_(span).add_(low)  # a power takes over twice as long
    if keep_moments:
        now, spread = _moments(image.mul_(brain), brain)
        image.sub_(now).mul_(width / spread.clamp(min=1e-6)).add_(before)


def _moments(image: Tensor, brain: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the brain of an image that is 0 elsewhere."""
    voxels = brain.sum().clamp(min=1)
    mean = image.sum() / voxels
    return mean, (image.square().sum() / voxels - mean**2).clamp(min=0).sqrt()


def _noise(image: Tensor, generator: np.random.SFC64) -> Tensor:
    """Normal noise like an image: quantiles chosen by 16 random bits, which are the same wherever the image is."""
    words = generator.random_raw(-(-image.numel() // 4))
    chosen = torch.from_numpy(words.view(np.int16)[: image.numel()]).to(image.device).int().add_(2**15)
    return _quantiles().to(image).index_select(0, chosen).view(image.shape)


@cache
def _quantiles() -> Tensor:
    """The middles of 65,536 equally likely parts of the standard normal distribution."""
    return torch.special.ndtri((torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16).float()


def _smooth(image: Tensor, blur_voxels: float, resolution: float) -> None:
    size = _size(image)
    along_d, along_h, along_w = (
        torch.from_numpy(smoothing_matrix(n, blur_voxels, resolution) if moved else np.eye(n)).to(image)
        for n, moved in zip(size, _moved_axes(size), strict=True)
    )
    smooth = along_h @ (image @ along_w.T)
    image.copy_((along_d @ smooth.flatten(1)).view(size))


def _interpolate(image: Tensor, classes: Tensor, draw: Draw, out: tuple[Tensor, Tensor]) -> None:
    """Fill ``out`` with the image (C, D, H, W) and the classes (D, H, W) read at the positions of a draw.

    Beyond the first and last voxel of an axis values fade to 0 within one voxel, as if a border of zeros were there.
    """
    size = _size(image)
    strides = [0 if n == 1 else math.prod(size[axis + 1 :]) for axis, n in enumerate(size)]
    steps = [z + y + x for z in (0, strides[0]) for y in (0, strides[1]) for x in (0, strides[2])]
    tables, labels = image.reshape(len(image), -1), classes.reshape(-1)
    for slab, read in _slabs(draw, size, image.device):
        fades = [((n + 1) / 2 - (p - (n - 1) / 2).abs_()).clamp_(0, 1) for p, n in zip(read, size, strict=True)]
        positions = [p.clamp_(0, n - 1) for p, n in zip(read, size, strict=True)]
        nearest = labels.index_select(0, _index([(p + 0.5).int() for p in positions], strides))
        inside = torch.minimum(torch.minimum(fades[0], fades[1]), fades[2]) >= 0.5
        torch.mul(nearest.view(inside.shape), inside, out=out[1][slab])
        corners = [p.int().clamp_(max=max(n - 2, 0)) for p, n in zip(positions, size, strict=True)]
        z, y, x = ((p - corner).view(-1) for p, corner in zip(positions, corners, strict=True))
        first, fade = _index(corners, strides), (fades[0] * fades[1] * fades[2]).view(-1)
        for table, target in zip(tables, out[0], strict=True):
            values = [table[step:].index_select(0, first) for step in steps]
            rows = [torch.lerp(a, b, x) for a, b in zip(values[::2], values[1::2], strict=True)]
            plane = torch.lerp(torch.lerp(rows[0], rows[1], y), torch.lerp(rows[2], rows[3], y), z)
            torch.mul(plane, fade, out=target[slab].view(-1))


def _index(places: list[Tensor], strides: list[int]) -> Tensor:
    z, y, x = (place.view(-1) for place in places)
    return (z * strides[0]).add_(y, alpha=strides[1]).add_(x)


def _slabs(draw: Draw, size: Size, device: torch.device) -> Iterator[tuple[slice, list[Tensor]]]:
    """For some output slices after the other, where their voxels are read: z, y, x."""
    matrix = draw.matrix[::-1, ::-1]  # z, y, x
    offsets = [torch.arange(n, device=device) - (n - 1) / 2 for n in size]
    moved = None
    if draw.displacement is not None:  # moved by the matrix before it is interpolated: there are fewer control points
        control = torch.from_numpy(np.einsum("ij,jdhw->idhw", matrix, draw.displacement[::-1])).to(device)
        moved = F.interpolate(control[None], size=size, mode="trilinear", align_corners=True)[0]
    thick = max(SLAB_VOXELS // (size[1] * size[2]), 1) if device.type == "cpu" else size[0]
    for start in range(0, size[0], thick):
        slab = slice(start, start + thick)
        z, y, x = offsets[0][slab, None, None], offsets[1][:, None], offsets[2]
        positions = []
        for axis, (row, n) in enumerate(zip(matrix.tolist(), size, strict=True)):
            position = row[0] * z + (row[1] * y + (row[2] * x + (n - 1) / 2))
            positions.append(position if moved is None else position.add_(moved[axis, slab]))
        yield slab, positions


def _is_exact(draw: Draw) -> bool:
    """Whether every voxel is read at the place of another: at most flips and quarter turns."""
    return draw.displacement is None and bool(np.isin(draw.matrix, (-1, 0, 1)).all())


def _stays(draw: Draw) -> bool:
    return draw.displacement is None and np.array_equal(draw.matrix, np.eye(3))


def _turned(image: Tensor, matrix: Array) -> Tensor:
    """An image (C, D, H, W) read at positions that are others' places."""
    signed = matrix[::-1, ::-1]  # z, y, x
    source = np.abs(signed).argmax(0)
    flipped = [1 + axis for axis in range(3) if signed[source[axis], axis] < 0]
    turned = image.permute(0, *(1 + source).tolist())
    return turned.flip(flipped) if flipped else turned


def _moved_axes(size: Size) -> list[bool]:
    """Which axes are long enough to be read at other places than their own."""
    return [_SLICES * n >= max(size) for n in size]


def _quarter_turns(turns: Array, size: Size) -> Array:
    """So many quarter turns about x, y and z, each where the two axes that it swaps are equally long."""
    d, h, w = size
    equal = np.array([d == h, d == w, h == w])
    return np.rint(_rotation(turns * equal * np.pi / 2))


def _rotation(angles: Array) -> Array:
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _size(image: Tensor) -> Size:
    d, h, w = image.shape[-3:]
    return d, h, w
