"""How long gliomap, MONAI, DeepMind's surface-distance and medpy take to score three regions of a 240 x 240 x 155 pair.

Run: ``python benchmarks/metrics.py [--rounds 5]``, in an environment with ``benchmarks/requirements.txt``; what is not
installed is left out. In every round each takes its turn, from two class maps to the values of three regions. The values
are checked against each other. The last line is the ratio for the typical pair.
"""

import argparse
import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance
from monai.metrics.utils import get_edge_surface_distance
from scipy import ndimage
from surface_distance import metrics as deepmind

from gliomap.classes import REGIONS
from gliomap.machine import cores
from gliomap.metrics import measure

SHAPE = (155, 240, 240)
CENTRE = (77, 120, 120)
SPACING = (1.0, 1.0, 1.0)
Pair = tuple[np.ndarray, np.ndarray]
Values = dict[tuple[str, str], float]


def radius(centre: tuple[int, int, int], axes: tuple[float, float, float], seed: int, wobble: float) -> np.ndarray:
    """Distance from a centre in units of an ellipsoid's axes, with smooth noise."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(20, 30, 30)), 1.5)
    noise = ndimage.zoom(noise, [n / m for n, m in zip(SHAPE, noise.shape, strict=True)], order=1)
    steps = [
        (grid - c) / a for grid, c, a in zip(np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]], centre, axes, strict=True)
    ]
    return np.sqrt(sum(step**2 for step in steps)) + wobble * noise / noise.std()


def nested(distance: np.ndarray) -> np.ndarray:
    """Necrosis inside enhancement inside oedema."""
    return np.select([distance < 0.33, distance < 0.65, distance < 1], [1, 3, 2], 0).astype(np.uint8)


def typical() -> Pair:
    return nested(radius((80, 110, 140), (28, 28, 28), 0, 0.07)), nested(
        radius((81, 111, 139), (27.5, 27.5, 28), 1, 0.07)
    )


def filling() -> Pair:
    return nested(radius(CENTRE, (69, 86, 69), 0, 0.03)), nested(radius(CENTRE, (70, 87, 68), 1, 0.03))


def specks(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    out = np.zeros(SHAPE, np.uint8)
    for d, h, w in rng.integers((10, 35, 50), (140, 200, 190), (2000, 3)):
        out[d : d + 2, h : h + 2, w : w + 2] = rng.integers(1, 4)
    return out


def shell(inner: float) -> Pair:
    """A ball in the middle of a hollow sphere: of one, everything of the other is about as near."""
    distance = radius(CENTRE, (1, 1, 1), 0, 0)
    return nested(distance / inner), 3 * ((distance > 68) & (distance < 70)).astype(np.uint8)


def islands() -> Pair:
    """Two tumours far apart."""
    return nested(radius((40, 40, 60), (20, 20, 20), 0, 0.07)), nested(radius((110, 190, 190), (22, 22, 22), 1, 0.07))


CASES: dict[str, Callable[[], Pair]] = {
    "a typical tumour": typical,
    "one that fills the brain": filling,
    "2,000 specks": lambda: (specks(0), specks(1)),
    "far apart": islands,
    "a point in a hollow sphere": lambda: shell(1.5),
    "a ball in a hollow sphere": lambda: shell(30),
}


def gliomap_with(*metrics: str) -> Callable[[Pair], Values]:
    return lambda pair: measure(*pair, SPACING, metrics=metrics)


def masks_of(classes: np.ndarray) -> list[np.ndarray]:
    """ET, TC and WT as quickly as numpy makes them."""
    return [classes == 3, (classes == 1) | (classes == 3), classes > 0]


def of_regions(name: str, function: Callable[[np.ndarray, np.ndarray], float], pair: Pair) -> Values:
    """A peer's function of every region that neither mask is without, in which they differ."""
    masks = zip(REGIONS, *map(masks_of, pair), strict=True)
    return {(region, name): function(a, b) for region, a, b in masks if a.any() and b.any()}


def tensors(pair: Pair) -> list[torch.Tensor]:
    return [torch.from_numpy(np.stack(masks_of(classes)))[None].float() for classes in pair]


def monai(pair: Pair) -> Values:
    channels = tensors(pair)
    dice = compute_dice(*channels)[0].tolist()
    hd95 = compute_hausdorff_distance(*channels, include_background=True, percentile=95, spacing=SPACING)[0].tolist()
    return {(r, n): v for n, values in (("dice", dice), ("hd95", hd95)) for r, v in zip(REGIONS, values, strict=True)}


def monai_in_double(pair: Pair) -> Values:
    """MONAI's values with the percentile of its distances in double precision: its own rounds the rank to single."""
    out = monai(pair)
    for region, a, b in zip(REGIONS, *(side[0] for side in tensors(pair)), strict=True):
        _, distances, _ = get_edge_surface_distance(a, b, spacing=SPACING, symmetric=True)
        if a.any() and b.any():
            out[region, "hd95"] = max(float(np.percentile(d.double().numpy(), 95)) for d in distances)
    return out


def deepmind_hd95(a: np.ndarray, b: np.ndarray) -> float:
    return deepmind.compute_robust_hausdorff(deepmind.compute_surface_distances(b, a, SPACING), 95)


def contestants() -> dict[str, Callable[[Pair], Values]]:
    """What is timed, by name."""
    out = {
        "gliomap": gliomap_with("dice", "hd95", "hd100", "sensitivity", "specificity"),
        "gliomap area": gliomap_with("hd95_area_weighted"),
        "gliomap pooled": gliomap_with("dice", "hd95_pooled"),
        "MONAI": monai,
        "DeepMind": lambda pair: of_regions("hd95_area_weighted", deepmind_hd95, pair),
    }
    if importlib.util.find_spec("medpy"):
        from medpy.metric.binary import dc, hd95  # noqa: PLC0415 - only where it is installed

        out["medpy"] = lambda pair: of_regions("dice", dc, pair) | of_regions("hd95_pooled", hd95, pair)
    return out


def compare(name: str, rounds: int) -> float:
    """Print the medians of one case and their ratios; return MONAI's over gliomap's."""
    pair, todo = CASES[name](), contestants()
    seconds: dict[str, list[float]] = {who: [] for who in todo}
    values: dict[str, Values] = {}
    for _ in range(rounds):
        for who, run in todo.items():
            start = time.perf_counter()
            values[who] = run(pair)
            seconds[who].append(time.perf_counter() - start)
    values["MONAI"] = monai_in_double(pair)
    median = {who: statistics.median(times) for who, times in seconds.items()}
    print(f"\n{name}")
    for peer, ours in (
        ("MONAI", "gliomap"),
        ("DeepMind", "gliomap area"),
        ("DeepMind", "gliomap"),
        ("medpy", "gliomap pooled"),
    ):
        if peer in todo:
            print(
                f"  {peer:<9}{median[peer]:>8.3f} s   {ours:<15}{median[ours]:>8.3f} s   ratio "
                f"{median[peer] / median[ours]:>6.1f}   {agreement(values[peer], values[ours])}"
            )
    return median["MONAI"] / median["gliomap"]


def agreement(theirs: Values, ours: Values) -> str:
    """How many values both have, and the largest relative difference.

    Raises:
        SystemExit: it is over 1e-6.
    """
    known = [key for key in theirs if key in ours and np.isfinite(theirs[key])]
    if not known:
        return "another definition"
    worst = max(abs(theirs[key] - ours[key]) / max(abs(theirs[key]), 1) for key in known)
    if worst > 1e-6:
        raise SystemExit(f"values differ by {worst:.2g}: {theirs} and {ours}")
    return f"{len(known)} values differ by {worst:.0e} at most"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{cores()} cores; medians of {options.rounds} rounds; ET, TC and WT of 240 x 240 x 155 voxels of 1 mm")
    ratios = {name: compare(name, options.rounds) for name in options.cases}
    name, ratio = next(iter(ratios.items()))
    print(f"\ngliomap gives Dice and HD95 of {name} {ratio:.1f} times as fast as MONAI")


if __name__ == "__main__":
    main()
