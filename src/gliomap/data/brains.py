"""A randomly deformed brain with soft tissue maps, and the contrast of its tissues in four MR images.

The anatomy is the MNI152 (ICBM 2009a, symmetric) template that nilearn ships. Everything smooth (deformation, bias
field, growth of a tumour) lives on one coarse control grid, fixed in mm whatever the voxel size, and is interpolated with
cubic B-splines; so the same random numbers give the same anatomy at every size. No step uses BLAS, whose rounding depends on
the number of threads.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import nibabel
import numpy as np
import scipy
from scipy import ndimage, sparse

from gliomap.data.cache import Entry, entry_key, find_cache, load, sources_sha256, store
from gliomap.errors import InputError
from gliomap.files import sha256

FIELD_OF_VIEW_MM = (155.0, 240.0, 240.0)  # BraTS grid, z y x
CONTROL_SPACING_MM = 3.0  # a third of a gyrus: fine enough for tumour growth, coarse enough to be nearly free
CONTROL_SHAPE = tuple(int(np.ceil(extent / CONTROL_SPACING_MM)) + 4 for extent in FIELD_OF_VIEW_MM)
SPLINE_NOISE_GAIN = 0.479**-1.5  # cubic B-splines shrink the variance of white nodes by 0.479 per axis
TEMPLATE_MARGIN = 3  # empty voxels around the template, so that sampling never needs a border rule
SHARPENING = 2.2  # the template is a mean of 152 brains; this exponent gives its tissue edges back some of one brain's
CORTEX_MM, CORTEX_DEPTH_MM = 3.3, 28.0  # thickness of the cortex, and how deep below the surface it goes

BRAIN_ML = (1447.0, 0.10, 1180.0, 1640.0)  # median, relative spread, least, most: as the real studies
MAX_HEIGHT_MM = 145.0  # leaves air above and below in a field of view of 155 mm
WARPS = ((45.0, 4.0), (20.0, 1.5))  # node spacing and standard deviation in mm: lobes, gyri
CAP_REACH_MM = (1.5, 9.0)  # periventricular hyperintensity: from a lining to the confluent kind of old age
VENTRICLE_GROWTH_MM = (-1.0, 3.5)  # displacement of the ventricle's wall


BRAIN_CONTRAST = {  # signal in t1, t1c, t2, flair, white matter in T1 being 1
    "grey": (0.80, 0.85, 0.69, 0.99),
    "white": (1.00, 0.97, 0.52, 0.86),
    "deep grey": (0.89, 0.90, 0.58, 0.90),
    "sulcal CSF": (0.42, 0.48, 1.60, 0.36),
    "ventricle": (0.34, 0.38, 1.75, 0.26),
    "vessel": (0.85, 2.80, 0.60, 1.30),  # with dura and choroid plexus: as bright after contrast as a tumour
    "hyperintensity": (0.84, 0.86, 1.00, 1.70),  # around the ventricles and in spots
    "flow": (0.46, 0.50, 1.30, 1.35),  # CSF that FLAIR fails to suppress
}
CONTRAST_SPREAD = 0.05  # relative, per tissue and modality
CONTRAST_EXPONENT = (0.75, 1.15)  # how far apart a protocol puts the tissues


@dataclass(frozen=True)
class Template:
    """Tissue fractions (D, H, W) packed as four bytes (grey, white, sulcal CSF, ventricular CSF), and distances in mm."""

    packed: np.ndarray
    depth_mm: np.ndarray
    ventricle_distance_mm: np.ndarray
    midline: float


@dataclass(frozen=True)
class Grid:
    """Voxels of the final images: shape (D, H, W), isotropic spacing, index 0 at the inferior posterior left."""

    shape: tuple[int, int, int]
    spacing_mm: float

    def affine(self) -> np.ndarray:
        """Voxel (x, y, z, 1) to mm, RAS+, with the origin in the middle of the grid."""
        affine = np.diag([self.spacing_mm] * 3 + [1.0])
        affine[:3, 3] = [-(count - 1) / 2 * self.spacing_mm for count in reversed(self.shape)]
        return affine

    def positions_mm(self, box: Sequence[slice]) -> list[np.ndarray]:
        """Distances of the voxel centres in ``box`` from the lower corner of the grid, one array per axis."""
        return [(np.arange(part.start, part.stop) + 0.5) * self.spacing_mm for part in box]


@dataclass(frozen=True)
class Brain:
    """Soft maps (8, N) of the N brain voxels (``inside``: (D, H, W) of ``box``), in the order of ``BRAIN_CONTRAST``."""

    grid: Grid
    box: tuple[slice, ...]
    inside: np.ndarray
    maps: np.ndarray

    def spread(self, control: np.ndarray) -> np.ndarray:
        """Interpolate a control grid field (D, H, W) at the N brain voxels."""
        return upsample(control, self.grid.positions_mm(self.box), CONTROL_SPACING_MM)[self.inside]


def grid_of_size(size: int) -> Grid:
    """The grid of 240 x 240 x 155 mm with ``size`` voxels in x and in y."""
    return Grid((round(155 / 240 * size), size, size), 240 / size)


@lru_cache(maxsize=1)
def load_template() -> Template:
    """The MNI152 tissue maps of the installed nilearn, without importing nilearn, prepared.

    That takes seconds, so what came of it is kept in the cache.

    Raises:
        InputError: nilearn is not installed.
        UsageError: as `find_cache`.
    """
    spec = find_spec("nilearn")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "the MNI152 templates come with nilearn, which is not installed: pip install 'nilearn>=0.14,<0.15'"
        )
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    names = [f"mni_icbm152_{tissue}_tal_nlin_sym_09a_converted.nii.gz" for tissue in ("gm", "wm", "t1")]
    paths = [folder / name for name in names]
    versions = {"numpy": np.__version__, "scipy": scipy.__version__}
    cache = find_cache("templates")
    key = entry_key({"files": [*map(sha256, paths)], "program": sources_sha256((__name__,)), **versions})
    if entry := load(cache, key):
        depth_mm, distance_mm = (entry.arrays[name] for name in ("depth_mm", "ventricle_distance_mm"))
        return Template(entry.arrays["packed"].view(np.uint32), depth_mm, distance_mm, entry.about["midline"])
    found = _prepare_template(paths)
    arrays = {"depth_mm": found.depth_mm, "ventricle_distance_mm": found.ventricle_distance_mm}
    store(cache, key, Entry({"packed": found.packed.view(np.uint8), **arrays}, {"midline": found.midline}))
    return found


def _prepare_template(paths: Sequence[Path]) -> Template:
    """What the files of grey matter, white matter and T1 say."""
    files = [nibabel.Nifti1Image.from_filename(path) for path in paths]
    grey, white, t1 = (np.asarray(file.dataobj).T for file in files)
    box = ndimage.find_objects((t1 > 0).astype(np.uint8))[0]
    grey, white, mask = (np.pad(volume[box], TEMPLATE_MARGIN) for volume in (grey, white, (t1 > 0).astype(np.uint8)))
    depth_mm = ndimage.distance_transform_edt(mask)
    fluid = np.maximum(255 - grey.astype(np.float32) - white, 0) * mask
    powers = np.stack([grey * mask, white * mask, fluid]) ** np.float32(SHARPENING)
    fractions = powers / np.maximum(powers.sum(axis=0), 1)
    sulci = _sulci(fractions, depth_mm)
    fractions += np.stack([-sulci, 0 * sulci, sulci])
    ventricle = _ventricles(fractions, depth_mm)
    channels = np.stack([*fractions[:2], fractions[2] * (1 - ventricle), fractions[2] * ventricle], axis=-1)
    packed = np.ascontiguousarray(np.round(channels * 255).astype(np.uint8)).view(np.uint32)[..., 0]
    distance_mm = ndimage.distance_transform_edt(~((ventricle > 0.5) & (fractions[2] > 0.5)))
    midline = -float(np.asarray(files[0].affine)[0, 3]) - box[2].start + TEMPLATE_MARGIN
    depth_mm, distance_mm = (np.minimum(volume, 255).astype(np.uint8) for volume in (depth_mm, distance_mm))
    return Template(packed, depth_mm, distance_mm, midline)


def _sulci(fractions: np.ndarray, depth_mm: np.ndarray) -> np.ndarray:
    """What of the grey matter (D, H, W) is sulcal CSF in one brain: averaging 152 of them closed the sulci.

    Cortex is about 3 mm thick, so what is farther from white matter than that lies between two gyri.
    """
    thickness_mm = ndimage.distance_transform_edt(fractions[1] < 0.5)
    height, forward, _ = np.ogrid[tuple(slice(count) for count in depth_mm.shape)]
    cerebrum = (forward > 80) | (height > 52 + 0.4 * (forward - 15))  # the cerebellum's folia are too fine for this
    beyond = (
        np.clip((thickness_mm - CORTEX_MM) / 1.5, 0, 1) * np.clip((CORTEX_DEPTH_MM - depth_mm) / 6, 0, 1) * cerebrum
    )
    return fractions[0] * ndimage.gaussian_filter(beyond, 0.5).astype(np.float32) * 0.75


def _ventricles(fractions: np.ndarray, depth_mm: np.ndarray) -> np.ndarray:
    """Soft (D, H, W) mask of the ventricles: deep CSF with white matter above it, in pieces larger than a sulcus."""
    covered = np.maximum.accumulate(fractions[1][::-1], axis=0)[::-1] > 0.5
    parts, count = ndimage.label((fractions[2] > 0.5) & (depth_mm > 26) & covered)
    sizes_mm3 = ndimage.sum_labels(np.ones_like(parts), parts, np.arange(count + 1))
    core = np.isin(parts, np.flatnonzero(sizes_mm3 > 300)) & (parts > 0)
    near = ndimage.binary_dilation(core, iterations=3) & covered
    return np.minimum(ndimage.gaussian_filter(near.astype(np.float32), 0.7), 1)


def spline_operator(positions_mm: np.ndarray, node_spacing_mm: float, node_count: int) -> sparse.csr_array:
    """Matrix (positions, nodes) of cubic B-spline weights; node i lies at (i - 1) times the spacing."""
    where = positions_mm / node_spacing_mm + 1
    first = np.floor(where).astype(int)
    t = where - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3], axis=1) / 6
    columns = np.clip(first[:, None] + np.arange(-1, 3), 0, node_count - 1)
    rows = np.repeat(np.arange(len(where)), 4)
    return sparse.csr_array(
        (weights.astype(np.float32).ravel(), (rows, columns.ravel())), shape=(len(where), node_count)
    )


def apply_along(operator: sparse.csr_array, volume: np.ndarray, axis: int) -> np.ndarray:
    """Multiply one axis of a volume (D, H, W) by a sparse matrix."""
    moved = np.ascontiguousarray(np.moveaxis(volume, axis, 0))
    result = operator @ moved.reshape(moved.shape[0], -1)
    return np.moveaxis(result.reshape(-1, *moved.shape[1:]), 0, axis)


def upsample(nodes: np.ndarray, positions_mm: Sequence[np.ndarray], node_spacing_mm: float) -> np.ndarray:
    """Cubic B-spline field (D, H, W) with the given nodes at the positions of each axis."""
    field = nodes.astype(np.float32, copy=False)
    for axis in (2, 1, 0):
        field = apply_along(spline_operator(positions_mm[axis], node_spacing_mm, nodes.shape[axis]), field, axis)
    return field


def smooth_noise(
    rng: np.random.Generator, feature_mm: float, positions_mm: Sequence[np.ndarray] | None = None
) -> np.ndarray:
    """Gaussian noise (D, H, W) of unit variance, smooth over ``feature_mm``; on the control grid if not told where."""
    shape = [int(np.ceil((extent + CONTROL_SPACING_MM) / feature_mm)) + 5 for extent in FIELD_OF_VIEW_MM]
    nodes = rng.standard_normal(shape, dtype=np.float32) * np.float32(SPLINE_NOISE_GAIN)
    if positions_mm is None:
        positions_mm = [np.arange(count) * CONTROL_SPACING_MM for count in CONTROL_SHAPE]
    return upsample(nodes, positions_mm, feature_mm)


def control_positions_mm() -> np.ndarray:
    """Positions (3, D, H, W) of the control nodes from the lower corner of the grid, z y x."""
    axes = [(np.arange(count, dtype=np.float32) - 1) * CONTROL_SPACING_MM for count in CONTROL_SHAPE]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def _random_linear(rng: np.random.Generator) -> np.ndarray:
    """Matrix (3, 3) from mm around the brain's centre to template voxels: size, proportions, rotation, shear, flip."""
    median_ml, spread, least_ml, most_ml = BRAIN_ML
    volume_ml = np.clip(median_ml * np.exp(spread * rng.standard_normal()), least_ml, most_ml)
    template_ml = (load_template().packed > 0).sum() / 1000
    scale = (volume_ml / template_ml) ** (1 / 3) * np.exp(0.025 * rng.standard_normal(3))
    height_mm = load_template().packed.shape[0] - 2 * TEMPLATE_MARGIN
    scale[0] = min(scale[0], MAX_HEIGHT_MM / height_mm)
    scale *= (volume_ml / template_ml / scale.prod()) ** np.array([0, 0.5, 0.5])
    pitch, roll, yaw = np.radians((5.0, 3.0, 3.0)) * rng.standard_normal(3)
    rotation = np.eye(3)
    for angle, (first, second) in ((pitch, (0, 1)), (roll, (0, 2)), (yaw, (1, 2))):
        turn = np.eye(3)
        turn[[first, second], [first, second]] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        rotation = rotation @ turn
    shear = np.eye(3) + 0.02 * np.triu(rng.standard_normal((3, 3)), 1)
    flip = np.diag([1.0, 1.0, rng.choice([-1.0, 1.0])])
    return flip @ np.diag(1 / scale) @ shear @ rotation


def lookup(volume: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """Nearest values of a template volume at template coordinates (3, ...)."""
    limits = np.array(volume.shape).reshape(3, *[1] * (coordinates.ndim - 1)) - 1
    nearest = np.clip(np.rint(coordinates).astype(np.int32), 0, limits)
    return volume[tuple(nearest)]


def control_fractions(coordinates: np.ndarray) -> np.ndarray:
    """Tissue fractions (D, H, W, 4) in [0, 1] on the control grid, of the nearest template voxel."""
    packed = lookup(load_template().packed, coordinates)
    return np.ascontiguousarray(packed)[..., None].view(np.uint8).astype(np.float32) / 255


def deform(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Template coordinates (3, D, H, W) of the control grid, and the linear part (3, 3) of that map."""
    template = load_template()
    linear = _random_linear(rng)
    warp_mm = np.zeros((3, *CONTROL_SHAPE), np.float32)
    for spacing_mm, deviation_mm in WARPS:
        warp_mm += deviation_mm * np.stack([smooth_noise(rng, spacing_mm) for _ in range(3)])
    positions = control_positions_mm() - np.array(FIELD_OF_VIEW_MM, np.float32).reshape(3, 1, 1, 1) / 2
    middle = np.array(template.packed.shape, np.float32).reshape(3, 1, 1, 1) / 2
    middle[2] = template.midline
    coordinates = transform(linear, positions) + warp_mm + middle
    where = np.argwhere(lookup(template.packed, coordinates) > 0)
    centre_mm = ((where.min(axis=0) + where.max(axis=0)) / 2 - 1) * CONTROL_SPACING_MM
    positions += (centre_mm - np.array(FIELD_OF_VIEW_MM) / 2).reshape(3, 1, 1, 1).astype(np.float32)
    coordinates = transform(linear, positions) + warp_mm + middle  # now in the middle of the field of view
    distance_mm = ndimage.gaussian_filter(lookup(template.ventricle_distance_mm, coordinates).astype(np.float32), 1.5)
    slope = np.stack(np.gradient(distance_mm, CONTROL_SPACING_MM))
    inwards_mm = -rng.uniform(*VENTRICLE_GROWTH_MM) * slope * np.exp(-distance_mm / 12)
    return coordinates + transform(linear, inwards_mm), linear


def transform(matrix: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Multiply vectors (3, ...) by a matrix (3, 3)."""
    return np.stack([sum(float(row[axis]) * vectors[axis] for axis in range(3)) for row in matrix]).astype(np.float32)


def build_brain(grid: Grid, coordinates: np.ndarray, rng: np.random.Generator) -> Brain:
    """Soft tissue maps at the grid's resolution of the anatomy that ``coordinates`` (3, D, H, W; control grid) describe."""
    template = load_template()
    within = lookup(template.packed, coordinates) > 0
    where = ndimage.find_objects(within.astype(np.uint8))[0]
    box = tuple(
        slice(
            max(1, int((part.start - 3) * CONTROL_SPACING_MM / grid.spacing_mm)),
            min(count - 1, int((part.stop + 2) * CONTROL_SPACING_MM / grid.spacing_mm) + 1),
        )
        for part, count in zip(where, grid.shape, strict=True)
    )
    positions_mm = grid.positions_mm(box)
    inside = upsample(within, positions_mm, CONTROL_SPACING_MM) > 0.05
    at_voxels = np.stack([upsample(axis, positions_mm, CONTROL_SPACING_MM)[inside] for axis in coordinates])
    fractions = _interpolate(template.packed, at_voxels)
    openness = np.exp(rng.normal(-0.3, 0.35) + 0.4 * smooth_noise(rng, 40.0))
    edge = 0.45 + 0.12 * np.clip(smooth_noise(rng, 12.0), -2, 2)  # skull stripping leaves an uneven edge
    kept = fractions.sum(axis=0) > upsample(edge, positions_mm, CONTROL_SPACING_MM)[inside]
    inside[inside] = kept
    fractions, at_voxels = fractions[:, kept], at_voxels[:, kept]
    brain = Brain(grid, box, inside, np.zeros((0, fractions.shape[1]), np.float32))
    fractions[2] *= brain.spread(openness)
    fractions /= fractions.sum(axis=0)
    return replace(brain, maps=_tissue_maps(brain, fractions, coordinates, at_voxels[2] - template.midline, rng))


def _interpolate(packed: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """Trilinear fractions (4, N) in [0, 1] of a packed template at coordinates (3, N)."""
    limits = np.array(packed.shape, np.float32).reshape(3, 1) - 1.001
    clipped = np.clip(coordinates, 0, limits)
    low = clipped.astype(np.int32)
    part = clipped - low
    strides = (packed.shape[1] * packed.shape[2], packed.shape[2], 1)
    flat = packed.ravel()
    start = low[0] * strides[0] + low[1] * strides[1] + low[2]
    total = np.zeros((start.size, 4), np.float32)
    for corner in product((0, 1), repeat=3):
        weight = np.prod([part[axis] if up else 1 - part[axis] for axis, up in enumerate(corner)], axis=0)
        offset = sum(stride for stride, up in zip(strides, corner, strict=True) if up)
        total += flat[start + offset].view(np.uint8).reshape(-1, 4) * weight[:, None]
    return np.ascontiguousarray(total.T) / 255


def _tissue_maps(
    brain: Brain, fractions: np.ndarray, coordinates: np.ndarray, off_midline: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Split four fractions (4, N) into the maps (8, N) of ``BRAIN_CONTRAST``: what confuses a threshold is added here."""
    template = load_template()
    depth_mm = brain.spread(lookup(template.depth_mm, coordinates))
    distance_mm = brain.spread(lookup(template.ventricle_distance_mm, coordinates))
    grey, white, sulcal, ventricle = fractions
    deep = grey * np.clip((depth_mm - 34) / 6, 0, 1)
    vessel = _vessels(brain, sulcal + 0.3 * grey, depth_mm, rng)
    sinus = np.exp(-((off_midline / 2.5) ** 2)) * np.exp(-((depth_mm / 4) ** 2)) * np.clip(sulcal * 2, 0, 1)
    dura = (depth_mm < 1.5) * np.clip(brain.spread(smooth_noise(rng, 15.0)) - rng.uniform(0.2, 1.5), 0, 0.7)
    choroid = ventricle * np.clip(brain.spread(smooth_noise(rng, 7.0)) * 2 - 2, 0, 1)
    vessel = np.clip(np.maximum.reduce([vessel, sinus * rng.uniform(0.4, 1), dura, choroid]), 0, 1)
    reach_mm = np.exp(rng.uniform(*np.log(CAP_REACH_MM)))
    caps = np.exp(-distance_mm / reach_mm) * np.clip(0.6 + 0.7 * brain.spread(smooth_noise(rng, 12.0)), 0, 1)
    spots = np.clip(brain.spread(smooth_noise(rng, 5.0)) * 2 - rng.uniform(3.4, 6.0), 0, 0.7) * (depth_mm > 8)
    hyperintensity = white * np.clip(caps * rng.uniform(0.4, 1.2) + spots, 0, 0.95)
    flow = ventricle * np.clip(brain.spread(smooth_noise(rng, 14.0)) - rng.uniform(0.4, 1.8), 0, 0.9)
    brightening = sulcal * np.clip(brain.spread(smooth_noise(rng, 22.0)) - rng.uniform(-0.2, 1.3), 0, 0.9)
    maps = np.stack([grey - deep, white - hyperintensity, deep, sulcal - brightening, ventricle - flow])
    return np.concatenate(
        [maps * (1 - vessel), [vessel], np.stack([hyperintensity, flow + brightening]) * (1 - vessel)]
    )


def _vessels(brain: Brain, room: np.ndarray, depth_mm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Tubes (N) along the curves on which two smooth noise fields vanish, kept where there is ``room`` for them."""
    positions_mm = brain.grid.positions_mm(brain.box)
    first, second = (smooth_noise(rng, 9.0, positions_mm)[brain.inside] for _ in range(2))
    width = 0.16 * max(1.0, brain.grid.spacing_mm / 1.6)  # noise units; the fields change by about 0.16 per mm
    tubes = np.exp(-(first**2 + second**2) / (2 * width**2)) * min(1.0, 1.6 / brain.grid.spacing_mm)
    return tubes * np.clip(room * 1.5 * (0.5 + np.exp(-depth_mm / 15)), 0, 1)


def draw_contrast(table: np.ndarray, spread: np.ndarray, randomise: float, rng: np.random.Generator) -> np.ndarray:
    """Signals (K, 4) of one study around those of ``table`` (K, 4), whose second row is white matter;
    ``spread`` (K, 1) is relative.

    ``randomise`` moves from a scanner's variation (0) to any signal for any tissue (1), as SynthSeg (Billot 2023) trains on.
    """
    exponent = rng.uniform(*CONTRAST_EXPONENT, size=4)
    jitter = np.exp(spread * rng.standard_normal(table.shape))
    realistic = table[1] * (table / table[1]) ** exponent * jitter
    return (1 - randomise) * realistic + randomise * rng.uniform(0.15, 1.6, table.shape)


def draw_texture(brain: Brain, rng: np.random.Generator) -> np.ndarray:
    """Correlated texture (N,) of about unit variance: a voxel's scale, some mm, and, in the cortex, regions."""
    fine = ndimage.gaussian_filter(
        rng.standard_normal(brain.inside.shape, dtype=np.float32), 0.9 / brain.grid.spacing_mm, truncate=3
    )[brain.inside]
    regions = brain.maps[0] * brain.spread(smooth_noise(rng, 25.0))
    return 0.6 * fine / fine.std() + 0.6 * brain.spread(smooth_noise(rng, 5.0)) + 1.6 * regions
