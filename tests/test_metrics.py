import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics import compute_dice, compute_hausdorff_distance
from scipy import ndimage

from gliomap.classes import REGIONS, region_mask
from gliomap.metrics import (
    dice,
    hausdorff,
    hausdorff_of_all_voxels,
    measure,
    sensitivity,
    specificity,
    surface_points_mm,
)

SPACING = (3.0, 0.8, 1.25)
SMALL = (4, 5, 4)
masks = hnp.arrays(bool, SMALL)


def blob(seed, shape=(14, 18, 16), share=0.2):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return noise > np.quantile(noise, 1 - share)


def brute_surface(mask):
    """A voxel of the mask with one of its six neighbours outside the mask or outside the grid."""
    found = []
    for place in np.argwhere(mask):
        for step in np.vstack([np.eye(3, dtype=int), -np.eye(3, dtype=int)]):
            beside = place + step
            if (beside < 0).any() or (beside >= mask.shape).any() or not mask[tuple(beside)]:
                found.append(place)
                break
    return np.array(found, float).reshape(-1, 3)


def brute_hausdorff(a, b, spacing, percentile):
    a, b = (brute_surface(m) * np.array(spacing) for m in (a, b))
    if not len(a) or not len(b):
        return math.nan
    distance = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    return max(np.percentile(distance.min(1), percentile), np.percentile(distance.min(0), percentile))


def equal(a, b):
    return (math.isnan(a) and math.isnan(b)) or a == pytest.approx(b)


@settings(max_examples=60, deadline=None)
@given(masks, masks)
def test_counts_are_those_of_brute_force(a, b):
    pairs = list(zip(a.ravel().tolist(), b.ravel().tolist(), strict=True))
    tp, fp, fn, tn = (pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False)))
    assert equal(dice(a, b), 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else math.nan)
    assert equal(sensitivity(a, b), tp / (tp + fn) if tp + fn else math.nan)
    assert equal(specificity(a, b), tn / (tn + fp) if tn + fp else math.nan)
    assert equal(specificity(a, b, outside=10), (tn + 10) / (tn + 10 + fp))


@settings(max_examples=40, deadline=None)
@given(masks, masks, st.sampled_from([95.0, 100.0, 50.0]))
def test_hausdorff_is_that_of_brute_force_up_to_the_border(a, b, percentile):
    assert equal(hausdorff(a, b, SPACING, percentile), brute_hausdorff(a, b, SPACING, percentile))


@settings(max_examples=40, deadline=None)
@given(masks, masks)
def test_dice_and_hausdorff_are_symmetric(a, b):
    assert equal(dice(a, b), dice(b, a))
    assert equal(hausdorff(a, b, SPACING), hausdorff(b, a, SPACING))
    assert equal(dice(a, a), 1.0 if a.any() else math.nan)
    assert equal(hausdorff(a, a, SPACING), 0.0 if a.any() else math.nan)


@pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges:FutureWarning")  # MONAI's own call
@pytest.mark.parametrize("seed", range(6))
def test_dice_and_hausdorff_are_monais(seed):
    a, b = blob(seed), blob(seed + 50, share=0.1)
    assert a[0].any() or a[-1].any() or a[:, 0].any()  # blobs touch the border, where MONAI counts a surface too
    tensors = [torch.from_numpy(m)[None, None].float() for m in (a, b)]
    assert dice(a, b) == pytest.approx(compute_dice(*tensors).item(), rel=1e-5)
    for percentile in (95, 100):
        theirs = compute_hausdorff_distance(*tensors, include_background=True, percentile=percentile, spacing=SPACING)
        assert hausdorff(a, b, SPACING, percentile) == pytest.approx(theirs.item(), rel=1e-5)


def test_the_larger_of_the_two_directions_counts():
    a = np.zeros((3, 3, 30), bool)
    a[1, 1, 2] = True
    b = a.copy()
    b[1, 1, 20:29] = True  # everything of a is in b, but not the other way round
    assert hausdorff(a, b, (1.0, 1.0, 1.0), 100) == 26
    assert hausdorff(b, a, (1.0, 1.0, 1.0), 100) == 26


def test_empty_masks():
    empty, some = np.zeros(SMALL, bool), np.ones(SMALL, bool)
    assert math.isnan(dice(empty, empty))
    assert math.isnan(hausdorff(empty, empty, SPACING))
    assert math.isnan(sensitivity(some, empty))
    assert math.isnan(specificity(some, some))
    assert dice(empty, some) == dice(some, empty) == 0
    assert math.isnan(hausdorff(empty, some, SPACING))
    assert math.isnan(hausdorff(some, empty, SPACING))
    assert sensitivity(empty, some) == 0
    assert specificity(empty, empty) == 1


def test_single_voxels_are_as_far_apart_as_their_centres():
    a, b = np.zeros(SMALL, bool), np.zeros(SMALL, bool)
    a[0, 0, 0] = b[3, 4, 3] = True
    assert hausdorff(a, b, SPACING) == pytest.approx(math.dist((0, 0, 0), (9.0, 3.2, 3.75)))
    assert dice(a, b) == 0
    assert surface_points_mm(b, SPACING).tolist() == [[9.0, 3.2, 3.75]]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("steps", [1, 3])
def test_moving_a_box_gives_the_distance_it_moved(axis, steps):
    a = np.zeros((14, 14, 14), bool)
    a[3:9, 3:9, 3:9] = True
    b = np.roll(a, steps, axis)
    assert hausdorff(a, b, SPACING) == pytest.approx(steps * SPACING[axis])
    assert hausdorff(a, b, SPACING, 100) == pytest.approx(steps * SPACING[axis])


def test_surface_of_a_solid_box_is_its_shell():
    mask = np.zeros((7, 7, 7), bool)
    mask[1:6, 1:6, 1:6] = True
    assert len(surface_points_mm(mask, (1.0, 1.0, 1.0))) == 5**3 - 3**3
    assert len(surface_points_mm(np.ones((5, 5, 5), bool), (1.0, 1.0, 1.0))) == 5**3 - 3**3


def class_maps(seed):
    rng = np.random.default_rng(seed)
    maps = []
    for shift in (0, 1):
        classes = np.zeros((16, 15, 14), np.uint8)
        where = np.roll(blob(seed, (16, 15, 14), 0.1), shift, 1)
        classes[where] = rng.integers(1, 5, where.sum())
        maps.append(classes)
    return maps


@pytest.mark.parametrize("seed", range(3))
def test_measure_is_the_single_metrics_on_the_whole_grid(seed):
    prediction, truth = class_maps(seed)
    found = measure(prediction, truth, SPACING)
    for region in REGIONS:
        a, b = region_mask(prediction, region), region_mask(truth, region)
        assert equal(found[region, "dice"], dice(a, b))
        assert equal(found[region, "hd95"], hausdorff(a, b, SPACING))
        assert equal(found[region, "sensitivity"], sensitivity(a, b))
        assert equal(found[region, "specificity"], specificity(a, b))
        assert found[region, "volume"] == pytest.approx(a.sum() * 3.0 / 1000)
        assert found[region, "volume_truth"] == pytest.approx(b.sum() * 3.0 / 1000)


def test_measure_of_nothing_and_of_one_region():
    empty, edema = np.zeros((5, 5, 5), np.uint8), np.zeros((5, 5, 5), np.uint8)
    edema[2, 2, 2] = 2
    nothing = measure(empty, empty, SPACING)
    assert math.isnan(nothing["WT", "dice"])
    assert nothing["WT", "specificity"] == 1
    assert nothing["WT", "volume"] == 0
    found = measure(edema, empty, SPACING)
    assert found["WT", "dice"] == 0
    assert found["WT", "specificity"] == pytest.approx(124 / 125)
    assert math.isnan(found["ET", "dice"])


@settings(max_examples=40, deadline=None)
@given(masks, masks)
def test_hausdorff_of_all_voxels_is_brute_force(a, b):
    points = [np.argwhere(m) * np.array(SPACING) for m in (a, b)]
    found = hausdorff_of_all_voxels(a, b, SPACING)
    if not a.any() or not b.any():
        assert math.isnan(found)
        return
    distances = np.linalg.norm(points[0][:, None] - points[1][None], axis=2)
    assert found == pytest.approx(np.percentile(np.concatenate([distances.min(1), distances.min(0)]), 95))


def test_hausdorff_of_all_voxels_flatters():
    a = np.zeros((20, 20, 20), bool)
    a[4:16, 4:16, 4:16] = True
    b = a.copy()
    b[15:18, 4:16, 4:16] = True
    assert hausdorff_of_all_voxels(a, b, (1, 1, 1)) < hausdorff(a, b, (1, 1, 1))


def test_only_the_regions_asked_for_are_measured():
    classes = np.zeros((4, 4, 4), np.uint8)
    classes[1, 1, 1] = 2
    found = measure(classes, classes, (1, 1, 1), ("WT",), all_voxels=True)
    assert {region for region, _ in found} == {"WT"}
    assert found["WT", "hd95_all_voxels"] == 0
    assert ("WT", "hd95_all_voxels") not in measure(classes, classes, (1, 1, 1))
