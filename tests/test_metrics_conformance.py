"""Every metric against MONAI, DeepMind's surface-distance and the definitions of medpy; each known difference by name."""

import csv
import functools
import math
import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_confusion_matrix_metric,
    compute_dice,
    compute_hausdorff_distance,
    compute_iou,
    compute_surface_dice,
    get_confusion_matrix,
)
from monai.metrics.utils import get_edge_surface_distance
from scipy import ndimage
from surface_distance import metrics as deepmind

from gliomap.classes import ED, ET, NCR, REGIONS, named_convention, region_mask
from gliomap.metrics import hausdorff, hausdorff_area_weighted, measure, score
from gliomap.surfaces import voxel_distances
from gliomap.volume import bounding_box

pytestmark = [
    pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges:FutureWarning"),  # MONAI's own call
    pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning:surface_distance"),
    pytest.mark.filterwarnings("ignore:the (prediction|ground truth) of class:UserWarning"),
]
REAL_DATA = Path(os.environ.get("GLIOMAP_REAL_DATA") or Path(__file__).parents[2] / "shared" / "data")
CUBE = (1.0, 1.0, 1.0)
GRIDS = [
    ((9, 9, 9), CUBE),
    ((6, 12, 10), (5.0, 0.9375, 0.9375)),
    ((14, 5, 8), (0.8, 3.0, 1.25)),
    ((1, 11, 13), (2.0, 0.7, 0.7)),
    ((10, 10, 11), (1.2, 1.2, 1.2)),
]
MONAI_RATES = {
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "precision": "precision",
    "accuracy": "accuracy",
}
ASKED = (
    *("dice", "iou", "hd95", "hd100", "hd95_pooled", "hd95_area_weighted", "hd95_all_voxels", "assd"),
    *("nsd_1mm", "nsd_2.5mm", "nsd_1mm_area_weighted", "nsd_2.5mm_area_weighted", *MONAI_RATES),
)


def real(name):
    folder = REAL_DATA / "predictions" / name
    if not folder.is_dir():
        pytest.skip(f"the real predictions {name} are not there; say where with GLIOMAP_REAL_DATA")
    return folder


@functools.cache
def case(seed):
    """A pair of masks on one of the grids: blobs up to the border, noise, one voxel, full or empty."""
    rng = np.random.default_rng(seed)
    shape, spacing = GRIDS[seed % len(GRIDS)]
    masks = [one_mask(rng, shape, (seed // 5 + which * (seed // 50)) % 8) for which in (0, 1)]
    if seed % 3 == 0 and masks[0].any():
        masks[1] = np.roll(masks[0], rng.integers(0, 3, 3), (0, 1, 2)) ^ (rng.random(shape) < 0.02)
    return (*masks, spacing)


def one_mask(rng, shape, kind):
    if kind == 0:
        return rng.random(shape) < 0.2
    if kind == 1:
        out = np.zeros(shape, bool)
        out[tuple(rng.integers(0, shape))] = True
        return out
    if kind == 2:
        return np.full(shape, rng.random() < 0.5)
    noise = ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
    return noise > np.quantile(noise, rng.uniform(0.5, 0.95))


@functools.cache
def ours(seed):
    """All metrics as `measure` gives them: the masks lie as one class in a larger grid, or fill it."""
    a, b, spacing = case(seed)
    found = measure(2 * a.astype(np.uint8), 2 * b.astype(np.uint8), spacing, ("WT",), ASKED)
    return {name: value for (_, name), value in found.items()}


def tensors(a, b):
    return [torch.from_numpy(np.array(mask))[None, None].float() for mask in (a, b)]


def close(found, expected):
    return found == pytest.approx(expected, rel=1e-6, abs=1e-6, nan_ok=True)


def monai_distances(a, b, spacing):
    _, distances, _ = get_edge_surface_distance(*(t[0, 0] for t in tensors(a, b)), spacing=spacing, symmetric=True)
    return [d.double().numpy() for d in distances]


def deepmind_distances(a, b, spacing):
    return deepmind.compute_surface_distances(b, a, spacing)


def brute_distances(a, b, spacing):
    """From each voxel of one mask to the nearest of the other, by all pairs."""
    a, b = (np.argwhere(mask) * np.array(spacing) for mask in (a, b))
    distances = np.linalg.norm(a[:, None] - b[None], axis=2)
    return distances.min(1), distances.min(0)


def surface(mask):
    return mask & ~ndimage.binary_erosion(mask)


def both_full(seed):
    return all(mask.any() for mask in case(seed)[:2])


def test_the_cases_have_every_kind_of_pair():
    full = [seed for seed in range(200) if both_full(seed)]
    empty = [sum(mask.any() for mask in case(seed)[:2]) for seed in range(200) if seed not in full]
    assert len(full) > 150
    assert empty.count(0) > 0
    assert empty.count(1) > 5
    assert sum(mask.sum() == 1 for seed in range(200) for mask in case(seed)[:2]) > 20
    assert sum(mask[0].any() and mask[:, -1].any() for seed in full for mask in case(seed)[:2]) > 100


@pytest.mark.parametrize("seed", range(200))
def test_overlap_and_rates_are_monais(seed):
    a, b, _ = case(seed)
    pair = tensors(a, b)
    if b.any() or not a.any():
        assert close(ours(seed)["dice"], compute_dice(*pair).item())
        assert close(ours(seed)["iou"], compute_iou(*pair).item())
    counts = get_confusion_matrix(*pair)
    for name, theirs in MONAI_RATES.items():
        assert close(ours(seed)[name], compute_confusion_matrix_metric(theirs, counts).item()), name


@pytest.mark.parametrize("seed", range(200))
def test_surface_distances_are_monais(seed):
    a, b, spacing = case(seed)
    pair, found = tensors(a, b), ours(seed)
    for name, percentile in (("hd95", 95), ("hd100", 100)):
        theirs = compute_hausdorff_distance(*pair, include_background=True, percentile=percentile, spacing=spacing)
        assert found[name] == pytest.approx(theirs.item(), rel=1e-4, nan_ok=True)
    if not both_full(seed):
        return
    distances = monai_distances(a, b, spacing)
    assert close(found["hd95"], max(np.percentile(d, 95) for d in distances))
    assert close(found["hd100"], max(d.max() for d in distances))
    theirs = compute_average_surface_distance(*pair, include_background=True, symmetric=True, spacing=spacing)
    assert close(found["assd"], theirs.item())


@pytest.mark.parametrize("seed", range(200))
def test_surface_dice_is_monais(seed):
    a, b, spacing = case(seed)
    for tolerance in (1.0, 2.5):
        theirs = compute_surface_dice(*tensors(a, b), [tolerance], include_background=True, spacing=spacing)
        assert close(ours(seed)[f"nsd_{tolerance:g}mm"], theirs.item())


@pytest.mark.parametrize("seed", [seed for seed in range(200) if both_full(seed)])
def test_area_weighted_distances_are_deepminds(seed):
    a, b, spacing = case(seed)
    distances, found = deepmind_distances(a, b, spacing), ours(seed)
    assert close(found["hd95_area_weighted"], deepmind.compute_robust_hausdorff(distances, 95))
    for percentile in (50, 100):
        theirs = deepmind.compute_robust_hausdorff(distances, percentile)
        assert close(hausdorff_area_weighted(a, b, spacing, percentile), theirs)
    for tolerance in (1.0, 2.5):
        theirs = deepmind.compute_surface_dice_at_tolerance(distances, tolerance)
        assert close(found[f"nsd_{tolerance:g}mm_area_weighted"], theirs)


@pytest.mark.parametrize("seed", [seed for seed in range(200) if both_full(seed)])
def test_distances_are_those_of_brute_force(seed):
    a, b, spacing = case(seed)
    found = ours(seed)
    there, back = brute_distances(surface(a), surface(b), spacing)
    assert close(found["hd95"], max(np.percentile(there, 95), np.percentile(back, 95)))
    assert close(found["hd95_pooled"], np.percentile(np.concatenate([there, back]), 95))
    assert close(found["assd"], np.concatenate([there, back]).mean())
    assert close(found["hd95_all_voxels"], np.percentile(np.concatenate(brute_distances(a, b, spacing)), 95))


def plate():
    """A voxel, and a plate of 40 beside it: nearly all of the distances are of one direction."""
    a, b = np.zeros((3, 8, 12), bool), np.zeros((3, 8, 12), bool)
    a[1, 1, 1], b[1, 1:6, 2:10] = True, True
    return a, b


def test_difference_medpy_pools_both_directions():
    a, b = plate()
    there, back = brute_distances(surface(a), surface(b), CUBE)
    pooled = np.percentile(np.hstack((there, back)), 95)
    assert close(score(a, b, CUBE, "hd95_pooled"), pooled)
    assert hausdorff(a, b, CUBE) > pooled


def test_difference_deepmind_weighs_by_area_and_measures_between_corners():
    a, b = plate()
    theirs = deepmind.compute_robust_hausdorff(deepmind_distances(a, b, CUBE), 95)
    assert hausdorff_area_weighted(a, b, CUBE) == theirs
    assert abs(hausdorff(a, b, CUBE) - theirs) > 0.1


def test_difference_deepmind_takes_a_distance_that_occurs_and_does_not_interpolate():
    a, b = np.zeros((1, 1, 14), bool), np.zeros((1, 1, 14), bool)
    a[0, 0, 1] = b[0, 0, 1:12] = True
    assert hausdorff(a, b, CUBE) == 9.5
    assert hausdorff_area_weighted(a, b, CUBE) == 9
    assert deepmind.compute_robust_hausdorff(deepmind_distances(a, b, CUBE), 95) == 9


def test_difference_of_all_voxels_the_inside_counts_as_0():
    a = np.zeros((20, 20, 20), bool)
    a[4:16, 4:16, 4:16] = True
    b = a.copy()
    b[16:19, 4:16, 4:16] = True
    assert hausdorff(a, b, CUBE) == 3
    assert score(a, b, CUBE, "hd95_all_voxels") == 2


def test_difference_monai_gives_no_dice_where_the_truth_is_empty():
    some, empty = np.ones((3, 3, 3), bool), np.zeros((3, 3, 3), bool)
    assert math.isnan(compute_dice(*tensors(some, empty)).item())
    assert math.isnan(compute_iou(*tensors(some, empty)).item())
    assert score(some, empty, CUBE, "dice") == score(some, empty, CUBE, "iou") == 0


def test_difference_monai_gives_an_infinite_mean_distance_where_one_mask_is_empty():
    some, empty = np.ones((3, 3, 3), bool), np.zeros((3, 3, 3), bool)
    theirs = compute_average_surface_distance(*tensors(some, empty), include_background=True, symmetric=True)
    assert math.isinf(theirs.item())
    assert math.isnan(score(some, empty, CUBE, "assd"))


def test_difference_monai_rounds_the_rank_of_a_percentile_to_single_precision():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 30, 100, 100)) < 0.01
    exact = max(np.percentile(d, 95) for d in monai_distances(a, b, CUBE))
    theirs = compute_hausdorff_distance(*tensors(a, b), include_background=True, percentile=95).item()
    assert close(hausdorff(a, b, CUBE), exact)
    assert theirs == pytest.approx(exact, abs=1e-3)


@pytest.mark.parametrize(
    ("study", "network"),
    [("BraTS20_Training_001", "baseline_attention"), ("BraTS20_Training_012", "waveloss_no_attention")],
)
def test_real_pairs_are_scored_as_monai_and_deepmind_score_them(study, network):
    folder = real("BraTS20_attention_vs_none") / study
    maps = [np.asarray(nib.load(folder / f"{name}.nii.gz").dataobj).T for name in ("truth", f"pred_{network}")]
    truth, prediction = (named_convention("brats2021", "").decode(labels) for labels in maps)
    found = measure(prediction, truth, CUBE, metrics=("dice", "hd95", "hd95_area_weighted", "nsd_1mm_area_weighted"))
    box = bounding_box(prediction | truth, margin=1).slices  # what is outside costs the others time only
    for region in REGIONS:
        a, b = region_mask(prediction[box], region), region_mask(truth[box], region)
        assert close(found[region, "dice"], compute_dice(*tensors(a, b)).item())
        assert close(found[region, "hd95"], max(np.percentile(d, 95) for d in monai_distances(a, b, CUBE)))
        distances = deepmind_distances(a, b, CUBE)
        assert close(found[region, "hd95_area_weighted"], deepmind.compute_robust_hausdorff(distances, 95))
        theirs = deepmind.compute_surface_dice_at_tolerance(distances, 1.0)
        assert close(found[region, "nsd_1mm_area_weighted"], theirs)


AUDIT_REGIONS = {"ENH": "ET", "NEC": "NCR", "EDE": "ED"}
AUDIT_CLASSES = np.array([0, ET, NCR, ED], np.uint8)
AUDIT_COLUMNS = {
    "DICE": "dice",
    "JACC": "iou",
    "ACCU": "accuracy",
    "PREC": "precision",
    "SENS": "sensitivity",
    "SPEC": "specificity",
}


@functools.cache
def audit_rows():
    """AUDIT's row, our scores, and the masks cropped to what is in either, of every region that there are label maps for."""
    folder, out = real("AUDIT"), []
    for path in sorted(folder.glob("*_pred__*.nii.gz")):
        data, study, model = re.fullmatch(r"(.+)__(.+)_pred__(.+)\.nii\.gz", path.name).groups()
        files = path, folder / f"{data}__{study}_seg.nii.gz"
        maps = [AUDIT_CLASSES[np.asarray(nib.load(f).dataobj).T.astype(np.uint8)] for f in files]
        found = measure(*maps, CUBE, tuple(AUDIT_REGIONS.values()), tuple(AUDIT_COLUMNS.values()))
        box = bounding_box(maps[0] | maps[1]).slices
        with (folder / f"extracted_information_{data}.csv").open() as stream:
            rows = [r for r in csv.DictReader(stream) if (r["ID"], r["model"]) == (study, model)]
        assert len(rows) == 3
        for row in rows:
            region = AUDIT_REGIONS[row["region"]]
            masks = [region_mask(classes[box], region) for classes in maps]
            out.append((row, {name: value for (r, name), value in found.items() if r == region}, masks))
    return out


def number(text):
    return float(text) if text else math.nan


def test_audit_tables_are_reproduced_to_the_last_digit_but_for_rates_without_a_common_voxel():
    assert len(audit_rows()) == 66
    for row, found, (prediction, truth) in audit_rows():
        for column, name in AUDIT_COLUMNS.items():
            if column not in ("PREC", "SENS") or (prediction & truth).any():
                assert found[name] == pytest.approx(number(row[column]), rel=1e-15, nan_ok=True), (row["ID"], column)
        assert prediction.sum() == (number(row["SIZE"]) if row["SIZE"] else 0)


def test_difference_audit_leaves_precision_and_sensitivity_out_where_no_voxel_is_common():
    apart = [(row, found) for row, found, (a, b) in audit_rows() if not (a & b).any()]
    assert {row["PREC"] for row, _ in apart} == {row["SENS"] for row, _ in apart} == {""}
    assert sum(found["sensitivity"] == 0 for _, found in apart) == 3
    assert sum(found["precision"] == 0 for _, found in apart) >= 2


def test_difference_audit_hausdorff_is_the_largest_distance_of_all_voxels_from_the_prediction_to_the_truth_only():
    smaller = 0
    for row, _, (prediction, truth) in audit_rows():
        distances = voxel_distances(prediction, truth, CUBE)
        assert (math.nan if distances is None else distances.there.max()) == pytest.approx(
            number(row["HAUS"]), nan_ok=True
        )
        smaller += distances is not None and distances.back.max() > distances.there.max()
    assert smaller == 9
