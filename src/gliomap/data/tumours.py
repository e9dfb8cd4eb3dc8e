"""A glioma grown in a synthetic brain: where it starts, how it pushes the brain aside, and what it turns into.

The core is a union of noisy ellipsoids; its outer shell enhances, unevenly. Oedema is the set of points that a front starting at
the core reaches first, when it runs fast along white matter, slowly in grey matter, and hardly at all through fluid and falx.
Both are thresholded so that the volumes are those of real studies (``benchmarks/phantoms.py`` prints them).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType

import numpy as np
from scipy import ndimage, sparse
from scipy.special import expit

from gliomap.classes import ED, ET, NCR
from gliomap.data.brains import (
    CONTROL_SPACING_MM,
    Brain,
    control_fractions,
    control_positions_mm,
    load_template,
    lookup,
    smooth_noise,
    transform,
)
from gliomap.errors import UsageError

TUMOUR_CONTRAST = {  # signal in t1, t1c, t2, flair, on the scale of BRAIN_CONTRAST
    "oedema": (0.78, 0.76, 1.50, 2.10),
    "pale oedema": (0.80, 0.80, 1.45, 1.22),  # infiltration that T2 shows better than FLAIR
    "solid core": (0.82, 0.76, 1.40, 1.90),
    "fluid core": (0.62, 0.60, 1.75, 1.40),
    "enhancing": (0.92, 2.05, 1.20, 1.82),
}
TUMOUR_SPREAD = 0.12  # relative, per tissue and modality: tumours differ more than brains
MM3_PER_ML = 1000.0
FRONT_COST = (3.0, 1.0, 14.0, 18.0)  # per mm in grey, white, sulcal CSF, ventricle: oedema follows the white matter
AIR_COST = 6.0  # outside the brain; between grey and CSF, so that a tumour at the surface keeps its shape
PALE_SHARE = (0.1, 1.3)  # logit of the pale part of the oedema: mean and deviation over studies
FALX_COST = 14.0
OEDEMA_STRENGTH = (0.28, 0.9)  # of a study, before it varies from place to place; raters also mark what hardly shows
FRONT_RANGE_MM = 50.0  # farther from the core there is no oedema
SUPRATENTORIAL = (62, 38, 85)  # template voxels: above the tentorium, or (temporal lobes) above 38 and in front of 85


@dataclass(frozen=True)
class Kind:
    """How often a kind of tumour is seen and how it is drawn; a volume is (median in ml, relative spread, least, most)."""

    frequency: float
    core_ml: tuple[float, float, float, float] = (28.0, 0.75, 3.0, 110.0)
    oedema_ml: tuple[float, float, float, float] = (58.0, 0.6, 15.0, 150.0)
    enhancing: tuple[float, float] = (2.0, 1.5)
    depth_mm: tuple[float, float] = (11.0, 35.0)
    foci: tuple[int, int] = (1, 1)


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "typical": Kind(0.64),
        "no_enhancement": Kind(0.08, core_ml=(40.0, 0.5, 8.0, 100.0), oedema_ml=(30.0, 0.6, 5.0, 90.0)),
        "tiny": Kind(0.06, core_ml=(0.7, 0.4, 0.4, 1.4), oedema_ml=(1.6, 0.4, 0.8, 2.8), depth_mm=(8.0, 35.0)),
        "multifocal": Kind(0.08, core_ml=(18.0, 0.5, 6.0, 60.0), foci=(2, 3)),
        "edge": Kind(0.14, core_ml=(22.0, 0.6, 6.0, 90.0), depth_mm=(3.0, 7.0)),
    }
)


@dataclass(frozen=True)
class Plan:
    """What will be grown: foci (F, 3) in mm from the grid's lower corner, z y x, and their radii (F,) in mm."""

    kind: str
    foci_mm: np.ndarray
    radii_mm: np.ndarray
    core_ml: float
    oedema_ml: float
    enhancing_share: float


@dataclass(frozen=True)
class Tumour:
    """Flat classes (N,) uint8 of the brain's voxels, and soft maps (5, N) in the order of ``TUMOUR_CONTRAST``."""

    classes: np.ndarray
    maps: np.ndarray


def draw_kind(rng: np.random.Generator) -> str:
    """One of ``KINDS``, as often as it is seen."""
    frequencies = np.array([kind.frequency for kind in KINDS.values()])
    return str(rng.choice(list(KINDS), p=frequencies / frequencies.sum()))


def plan_tumour(kind: str, coordinates: np.ndarray, rng: np.random.Generator) -> Plan:
    """Choose volumes and starting points in the anatomy of ``coordinates`` (3, D, H, W; control grid).

    Raises:
        UsageError: there is no such kind.
    """
    if kind not in KINDS:
        raise UsageError(f"there is no kind of tumour named {kind!r}; choose one of {', '.join(KINDS)}")
    rules = KINDS[kind]
    core_ml, oedema_ml = (
        float(np.clip(median * np.exp(spread * rng.standard_normal()), least, most))
        for median, spread, least, most in (rules.core_ml, rules.oedema_ml)
    )
    share = float(rng.beta(*rules.enhancing)) if kind != "no_enhancement" else 0.0
    count = int(rng.integers(rules.foci[0], rules.foci[1] + 1))
    parts = rng.dirichlet(np.full(count, 6.0)) if count > 1 else np.ones(1)
    radii_mm = np.cbrt(core_ml * parts * MM3_PER_ML * 3 / (4 * np.pi))
    foci_mm = _choose_foci(coordinates, rules.depth_mm, radii_mm, rng)
    return Plan(kind, foci_mm, radii_mm[: len(foci_mm)], core_ml, oedema_ml, max(share, 0.03) if share else 0.0)


def _choose_foci(
    coordinates: np.ndarray, depth_range_mm: tuple[float, float], radii_mm: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Starting points (F, 3) in mm: supratentorial, mostly white matter, apart from each other."""
    template = load_template()
    fractions = control_fractions(coordinates)
    depth_mm = lookup(template.depth_mm, coordinates)
    high, temporal, front = SUPRATENTORIAL
    allowed = (coordinates[0] > high) | ((coordinates[0] > temporal) & (coordinates[1] > front))
    allowed &= np.abs(coordinates[2] - template.midline) > np.where(coordinates[0] > high, 8, 22)
    allowed &= (depth_mm >= depth_range_mm[0]) & (depth_mm <= depth_range_mm[1])
    allowed &= fractions[..., 2:].sum(axis=-1) < 0.2
    weights = allowed * (0.05 + fractions[..., 1])
    positions_mm = control_positions_mm()
    foci: list[np.ndarray] = []
    for radius_mm in radii_mm:
        cumulative = np.cumsum(weights.ravel(), dtype=np.float64)
        index = np.unravel_index(np.searchsorted(cumulative, rng.random() * cumulative[-1]), weights.shape)
        foci.append(positions_mm[(slice(None), *index)])
        away_mm = np.sqrt(((positions_mm - foci[-1].reshape(3, 1, 1, 1)) ** 2).sum(axis=0))
        near = (away_mm > 2.2 * (radius_mm + radii_mm.max()) + 9) & (away_mm < 90)
        weights = weights * near
    return np.stack(foci)


def push_aside(coordinates: np.ndarray, linear: np.ndarray, plan: Plan, rng: np.random.Generator) -> np.ndarray:
    """Mass effect: template coordinates (3, D, H, W) after the tumour has moved the brain around it outwards.

    The skull does not give way: the movement fades towards the brain's surface.
    """
    depth_mm = lookup(load_template().depth_mm, coordinates).astype(np.float32)
    fade = np.clip((depth_mm - 2) / 15, 0, 1)
    positions_mm = control_positions_mm()
    inwards_mm = np.zeros_like(coordinates)
    swelling = (1 + 0.2 * plan.oedema_ml / plan.core_ml) ** (1 / 3)
    for focus_mm, radius_mm in zip(plan.foci_mm, plan.radii_mm, strict=True):
        offset_mm = positions_mm - focus_mm.reshape(3, 1, 1, 1)
        distance_mm = np.sqrt((offset_mm**2).sum(axis=0)) + 1e-3
        grown_mm = radius_mm * swelling * rng.uniform(0.45, 0.85)
        origin_mm = np.cbrt(np.maximum(distance_mm**3 - grown_mm**3, 0))
        inwards_mm += offset_mm * ((origin_mm / distance_mm - 1) * fade * np.exp(-distance_mm / 90))
    return coordinates + transform(linear, inwards_mm)


def grow(plan: Plan, brain: Brain, coordinates: np.ndarray, rng: np.random.Generator) -> Tumour:
    """Grow the planned tumour in the brain whose displaced template coordinates (3, D, H, W) are given."""
    voxel_ml = brain.grid.spacing_mm**3 / MM3_PER_ML
    fluid = brain.maps[3:5].sum(axis=0) + brain.maps[7]
    shape = _core_shape(plan, coordinates, rng)
    radius = brain.spread(shape) + 1.2 * fluid + 0.06 * brain.spread(smooth_noise(rng, 6.0))
    edge = _level(radius, plan.core_ml / voxel_ml)
    core = _large_pieces(radius <= edge, brain)
    arrival_mm = brain.spread(_front(shape <= edge, coordinates, plan, rng))
    arrival_mm += 4.0 * brain.maps[[0, 2]].sum(axis=0) + 12 * fluid + 1.2 * brain.spread(smooth_noise(rng, 7.0))
    arrival_mm[core] = np.inf
    front_mm = _level(arrival_mm, plan.oedema_ml / voxel_ml)
    oedema = _large_pieces((arrival_mm <= front_mm) | core, brain) & ~core
    patchy = rng.uniform(0.3, 1.5)  # from a ring to scattered islands
    patches = 0.15 * brain.spread(smooth_noise(rng, 5.0)) + 0.15 * brain.spread(smooth_noise(rng, 12.0))
    rim = radius / edge + patchy * patches
    rim_level = _level(-rim[core], plan.enhancing_share * core.sum())
    classes = np.zeros(core.size, np.uint8)
    classes[oedema] = ED
    classes[core] = np.where(-rim[core] <= rim_level, ET, NCR) if plan.enhancing_share else NCR
    core_soft = expit((edge - radius) * (plan.radii_mm.mean() / 0.8))
    oedema_soft = expit((front_mm - np.where(core, front_mm - 9, arrival_mm)) / rng.uniform(0.8, 2.5)) * (1 - core_soft)
    enhancing = expit((rim + rim_level) / 0.06) if plan.enhancing_share else np.zeros_like(rim)
    return Tumour(classes, _mix(brain, core_soft, oedema_soft, enhancing, rng))


def _core_shape(plan: Plan, coordinates: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Field (D, H, W) on the control grid that is about 1 at the core's surface and 0 in the middle of a focus."""
    positions_mm = control_positions_mm()
    off_midline = coordinates[2] - load_template().midline
    shape = np.full(positions_mm.shape[1:], 99.0, np.float32)
    for focus_mm, radius_mm in zip(plan.foci_mm, plan.radii_mm, strict=True):
        node = tuple(np.rint(focus_mm / CONTROL_SPACING_MM + 1).astype(int))
        beyond_falx = (off_midline * np.sign(off_midline[node]) < 1.5) * np.float32(0.8)
        lobes = [(np.zeros(3), 1.0)]
        for _ in range(int(rng.integers(1, 5))):
            direction = rng.standard_normal(3)
            lobes.append((direction / np.linalg.norm(direction) * rng.uniform(0.6, 1.0), rng.uniform(0.4, 0.7)))
        for shift, size in lobes:
            stretch = np.exp(0.18 * rng.standard_normal(3)) * radius_mm * size
            offset = (positions_mm - (focus_mm + shift * radius_mm).reshape(3, 1, 1, 1)) / stretch.reshape(3, 1, 1, 1)
            shape = np.minimum(shape, np.sqrt((offset**2).sum(axis=0)) + beyond_falx)
    feature_mm = float(np.clip(plan.radii_mm.mean(), 6, 12))
    return (shape * np.exp(0.22 * smooth_noise(rng, feature_mm))).astype(np.float32)


def _front(core: np.ndarray, coordinates: np.ndarray, plan: Plan, rng: np.random.Generator) -> np.ndarray:
    """Arrival (D, H, W), in mm of white matter, of a front that starts at the ``core`` nodes of the control grid."""
    template = load_template()
    fractions = control_fractions(coordinates)
    cost = fractions @ np.array(FRONT_COST, np.float32) + AIR_COST * (fractions.sum(axis=-1) < 0.5)
    falx = (np.abs(coordinates[2] - template.midline) < 2.5) & (fractions[..., 1] < 0.6)
    cost = np.maximum(cost, FALX_COST * falx) * np.exp(0.5 * smooth_noise(rng, 18.0))
    reach = (plan.radii_mm.max() * 1.6 + FRONT_RANGE_MM) / CONTROL_SPACING_MM
    nodes = plan.foci_mm / CONTROL_SPACING_MM + 1
    low = np.maximum(np.floor(nodes.min(axis=0) - reach), 0).astype(int)
    high = np.minimum(np.ceil(nodes.max(axis=0) + reach), cost.shape).astype(int)
    crop = tuple(slice(start, stop) for start, stop in zip(low, high, strict=True))
    started = core[crop].copy()
    middle = np.rint(nodes).astype(int) - low
    started[tuple(middle.T)] = True
    arrival = np.full(cost.shape, FRONT_RANGE_MM, np.float32)
    arrival[crop] = _shortest(cost[crop], started)
    return arrival


def _shortest(cost: np.ndarray, started: np.ndarray) -> np.ndarray:
    """Cheapest path (D, H, W) over the 26 neighbours from any ``started`` node; at most ``FRONT_RANGE_MM``."""
    index = np.arange(cost.size, dtype=np.int32).reshape(cost.shape)
    rows, columns, weights = [], [], []
    for step in [step for step in product((-1, 0, 1), repeat=3) if step > (0, 0, 0)]:
        here = tuple(slice(max(0, -part), min(0, -part) or None) for part in step)
        there = tuple(slice(max(0, part), min(0, part) or None) for part in step)
        rows.append(index[here].ravel())
        columns.append(index[there].ravel())
        length_mm = CONTROL_SPACING_MM * np.sqrt(sum(part**2 for part in step))
        weights.append((cost[here] + cost[there]).ravel() * (length_mm / 2))
    edges = (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns)))
    graph = sparse.csr_array(edges, shape=(cost.size, cost.size))
    arrival = sparse.csgraph.dijkstra(
        graph, directed=False, indices=np.flatnonzero(started), min_only=True, limit=FRONT_RANGE_MM
    )
    return np.minimum(arrival, FRONT_RANGE_MM).reshape(cost.shape).astype(np.float32)


def _level(values: np.ndarray, count: float) -> float:
    """The value that about ``count`` (at least one) of the values do not exceed."""
    position = int(np.clip(round(count), 1, values.size)) - 1
    return float(np.partition(values, position)[position])


def _large_pieces(mask: np.ndarray, brain: Brain) -> np.ndarray:
    """The pieces of a flat mask (N,) that hold at least 4 % of it."""
    volume = np.zeros(brain.inside.shape, bool)
    volume[brain.inside] = mask
    parts = ndimage.label(volume, np.ones((3, 3, 3)))[0][brain.inside]
    sizes = np.bincount(parts)
    return mask & (sizes[parts] >= 0.04 * mask.sum())


def _mix(
    brain: Brain, core: np.ndarray, oedema: np.ndarray, enhancing: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Soft maps (5, N) of ``TUMOUR_CONTRAST``, each of uneven strength as it is in real studies."""
    strength = np.clip(rng.uniform(*OEDEMA_STRENGTH) + 0.25 * brain.spread(smooth_noise(rng, 10.0)), 0.1, 1)
    pale = expit(2.5 * brain.spread(smooth_noise(rng, 14.0)) + rng.normal(*PALE_SHARE))
    uptake = np.clip(rng.uniform(0.55, 0.9) + 0.25 * brain.spread(smooth_noise(rng, 6.0)), 0.1, 1) * enhancing
    fluid = expit(2.5 * brain.spread(smooth_noise(rng, 9.0)) + rng.normal(0, 2.0)) * (1 - uptake)
    solid = core * (1 - uptake - fluid) * (0.4 + 0.6 * strength)
    outside = oedema * strength
    return np.stack([outside * (1 - pale), outside * pale, solid, core * fluid, core * uptake]).astype(np.float32)
