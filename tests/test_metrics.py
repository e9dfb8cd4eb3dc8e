import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gliomap import metrics as module
from gliomap.classes import PARTS, REGIONS, region_mask
from gliomap.errors import UsageError
from gliomap.metrics import dice, hausdorff, hausdorff_area_weighted, measure, score, surface_dice
from gliomap.rows import DEFAULT_METRICS, METRICS
from gliomap.surfaces import element_areas_mm2

SPACING = (3.0, 0.8, 1.25)
CUBE = (1.0, 1.0, 1.0)
SMALL = (4, 5, 4)
masks = hnp.arrays(bool, SMALL)
class_maps = hnp.arrays(np.uint8, SMALL, elements=st.integers(0, 4))
NOT_OF_MASKS = {name for name in METRICS if name.startswith(("lesion", "ece", "brier", "confidence"))}
OF_CLASSES = ["mean_iou_of_classes", "mean_iou_of_classes_and_background"]
OF_MASKS = [
    *(name for name in METRICS if name not in {*NOT_OF_MASKS, *OF_CLASSES}),
    "nsd_1mm",
    "nsd_2.5mm",
    "nsd_1mm_area_weighted",
]


def equal(a, b):
    return (math.isnan(a) and math.isnan(b)) or a == pytest.approx(b, rel=1e-12)


def ratio(part, whole):
    return part / whole if whole else math.nan


def brute_counts(a, b):
    pairs = list(zip(a.ravel().tolist(), b.ravel().tolist(), strict=True))
    return (pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False)))


@settings(max_examples=80, deadline=None)
@given(masks, masks)
def test_what_is_counted_is_what_brute_force_counts(a, b):
    tp, fp, fn, tn = brute_counts(a, b)
    expected = {
        "dice": ratio(2 * tp, 2 * tp + fp + fn),
        "iou": ratio(tp, tp + fp + fn),
        "sensitivity": ratio(tp, tp + fn),
        "specificity": ratio(tn, tn + fp),
        "precision": ratio(tp, tp + fp),
        "accuracy": (tp + tn) / 80,
        "volume": (tp + fp) * 3.0 / 1000,
        "volume_truth": (tp + fn) * 3.0 / 1000,
        "volume_error": (fp - fn) * 3.0 / 1000,
        "volume_error_absolute": abs(fp - fn) * 3.0 / 1000,
        "volume_error_relative": ratio(fp - fn, tp + fn),
        "mean_iou_with_background": (
            (tp / (tp + fp + fn) if tp + fp + fn else 1) + (tn / (tn + fp + fn) if tn + fp + fn else 1)
        )
        / 2,
    }
    for name, value in expected.items():
        assert equal(score(a, b, SPACING, name), value), name
    assert equal(dice(a, b), expected["dice"])


@settings(max_examples=80, deadline=None)
@given(hnp.arrays(bool, (5, 2, 3)), hnp.arrays(bool, (5, 2, 3)))
def test_means_over_slices_are_over_axial_ones(a, b):
    for name, key, empty in (
        ("mean_dice_of_slices", "dice", 1.0),
        ("mean_iou_of_slices", "iou", 1.0),
        ("mean_iou_of_slices_empty_0", "iou", 0.0),
    ):
        values = [score(x, y, SPACING, key) for x, y in zip(a, b, strict=True)]
        assert equal(score(a, b, SPACING, name), float(np.mean([empty if math.isnan(v) else v for v in values])))


@settings(max_examples=60, deadline=None)
@given(masks, masks)
def test_all_but_rates_and_errors_are_symmetric_and_perfect_of_a_mask_and_itself(a, b):
    one_sided = {"sensitivity", "specificity", "precision"}
    for name in OF_MASKS:
        if name not in one_sided and not name.startswith("volume"):
            assert equal(score(a, b, SPACING, name), score(b, a, SPACING, name)), name
        perfect = score(a, a, SPACING, name)
        if METRICS.get(name, METRICS["dice"]).better == "lower" and a.any():
            assert perfect == 0, name
        elif METRICS.get(name, METRICS["dice"]).better == "higher" and not name.endswith("empty_0"):
            assert perfect == 1 or (math.isnan(perfect) and (not a.any() or a.all())), name


def test_both_masks_empty():
    empty = np.zeros(SMALL, bool)
    found = {name: score(empty, empty, SPACING, name) for name in OF_MASKS}
    ones = {"specificity", "accuracy", "mean_iou_with_background", "mean_dice_of_slices", "mean_iou_of_slices"}
    zeros = {"volume", "volume_truth", "volume_error", "volume_error_absolute", "mean_iou_of_slices_empty_0"}
    assert {name for name, value in found.items() if value == 1} == ones
    assert {name for name, value in found.items() if value == 0} == zeros
    assert all(math.isnan(value) for name, value in found.items() if name not in ones | zeros)


@pytest.mark.parametrize("missed", [True, False])
def test_one_mask_empty(missed):
    empty, some = np.zeros(SMALL, bool), np.zeros(SMALL, bool)
    some[1, 2, 1:3] = True
    found = {name: score(*((empty, some) if missed else (some, empty)), SPACING, name) for name in OF_MASKS}
    zeros = {"dice", "iou", "mean_iou_of_slices_empty_0", "nsd_1mm", "nsd_2.5mm", "nsd_1mm_area_weighted"}
    zeros |= {"sensitivity", "volume"} if missed else {"precision", "volume_truth"}
    undefined = {name for name in OF_MASKS if name.startswith(("hd", "assd"))}
    undefined |= {"precision"} if missed else {"sensitivity", "volume_error_relative"}
    assert {name for name, value in found.items() if value == 0} == zeros
    assert {name for name, value in found.items() if math.isnan(value)} == undefined
    assert found["volume_error"] == pytest.approx(-0.006 if missed else 0.006)
    assert found["mean_iou_of_slices"] == 0.75
    assert math.isnan(hausdorff(empty, some, SPACING))
    assert math.isnan(hausdorff_area_weighted(some, empty, SPACING))
    assert surface_dice(empty, some, SPACING, 1.0) == 0
    assert math.isnan(surface_dice(empty, empty, SPACING, 1.0))


def test_a_truth_that_fills_the_grid_has_no_specificity():
    full = np.ones(SMALL, bool)
    assert math.isnan(score(full, full, SPACING, "specificity"))
    assert score(full, full, SPACING, "mean_iou_with_background") == 1


def test_single_voxels_are_as_far_apart_as_their_centres():
    a, b = np.zeros(SMALL, bool), np.zeros(SMALL, bool)
    a[0, 0, 0] = b[3, 4, 3] = True
    distance = math.dist((0, 0, 0), (9.0, 3.2, 3.75))
    for name in ("hd95", "hd100", "hd95_pooled", "hd95_all_voxels", "hd95_area_weighted", "assd"):
        assert score(a, b, SPACING, name) == pytest.approx(distance)
    assert dice(a, b) == 0


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("steps", [1, 3])
def test_moving_a_box_gives_the_distance_it_moved(axis, steps):
    a = np.zeros((14, 14, 14), bool)
    a[3:9, 3:9, 3:9] = True
    b = np.roll(a, steps, axis)
    for function in (hausdorff, hausdorff_area_weighted):
        assert function(a, b, SPACING) == pytest.approx(steps * SPACING[axis])
        assert function(a, b, SPACING, 100) == pytest.approx(steps * SPACING[axis])
    assert surface_dice(a, b, SPACING, steps * SPACING[axis] + 1e-9) == 1
    assert surface_dice(a, b, SPACING, steps * SPACING[axis] - 1e-9) < 1


def lines():
    """One voxel, and it with ten more of one line, 1 to 10 mm from it: there 0, back 0 to 10."""
    a, b = np.zeros((3, 3, 14), bool), np.zeros((3, 3, 14), bool)
    a[1, 1, 1] = b[1, 1, 1:12] = True
    return a, b


def test_each_distance_by_hand():
    a, b = lines()
    expected = {
        "hd95": 9.5,
        "hd100": 10.0,
        "hd95_pooled": 9.45,
        "hd95_all_voxels": 9.45,
        "assd": 55 / 12,
        "nsd_3mm": 5 / 12,
    }
    for name, value in expected.items():
        assert score(a, b, CUBE, name) == pytest.approx(value), name
        assert score(b, a, CUBE, name) == pytest.approx(value), name
    assert hausdorff(a, b, CUBE, 50) == 5


def test_weighted_distances_by_hand():
    """The elements of the longer line are 12 rows of 4 corners: triangles at both ends, and rectangles between them."""
    a, b = lines()
    areas = [math.sqrt(3) / 2, *[4 * math.sqrt(0.5)] * 10, math.sqrt(3) / 2]
    away = [0, *range(11)]
    assert sum(areas) == pytest.approx(sum(element_areas_mm2(CUBE)[module_codes(b)]))
    beyond = np.cumsum(areas) / sum(areas)
    assert hausdorff_area_weighted(a, b, CUBE) == away[int(np.argmax(beyond >= 0.95))] == 9
    assert hausdorff_area_weighted(a, b, CUBE, 60) == away[int(np.argmax(beyond >= 0.6))] == 6
    near = sum(area for area, d in zip(areas, away, strict=True) if d <= 3) + 8 * math.sqrt(3) / 8
    total = sum(areas) + 8 * math.sqrt(3) / 8
    assert score(a, b, CUBE, "nsd_3mm_area_weighted") == pytest.approx(near / total)


def module_codes(mask):
    wide = np.pad(mask, 1)
    return [
        sum(2 ** (4 * d + 2 * h + w) for d, h, w in np.argwhere(wide[i : i + 2, j : j + 2, k : k + 2]))
        for i, j, k in np.ndindex(*(n + 1 for n in mask.shape))
    ]


def test_all_voxels_flatter():
    a = np.zeros((20, 20, 20), bool)
    a[4:16, 4:16, 4:16] = True
    b = a.copy()
    b[15:18, 4:16, 4:16] = True
    assert score(a, b, CUBE, "hd95_all_voxels") < score(a, b, CUBE, "hd95")


@settings(max_examples=40, deadline=None)
@given(class_maps, class_maps)
def test_measure_is_the_single_metrics_of_every_part_on_the_whole_grid(prediction, truth):
    grid = np.zeros((2, 9, 8, 7), np.uint8)
    grid[:, 3:7, 1:6, 2:6] = prediction, truth
    found = measure(*grid, SPACING, tuple(PARTS), OF_MASKS)
    assert list(found) == [(region, name) for region in PARTS for name in OF_MASKS]
    for (region, name), value in found.items():
        a, b = (region_mask(classes, region) for classes in grid)
        assert equal(value, score(a, b, SPACING, name)), (region, name)


@settings(max_examples=40, deadline=None)
@given(class_maps, class_maps)
def test_mean_iou_of_classes_counts_a_resection_cavity_as_background(prediction, truth):
    grid = np.zeros((2, 6, 7, 6), np.uint8)
    grid[:, 1:5, 1:6, 1:5] = prediction, truth
    found = measure(*grid, SPACING, ("WT",), OF_CLASSES)
    grid[grid == 4] = 0
    values = []
    for c in range(4):
        a, b = (classes == c for classes in grid)
        values.append((a & b).sum() / (a | b).sum() if (a | b).any() else 1.0)
    assert found["", "mean_iou_of_classes"] == pytest.approx(np.mean(values[1:]))
    assert found["", "mean_iou_of_classes_and_background"] == pytest.approx(np.mean(values))


def test_volumes_are_always_there_and_regionless_metrics_come_once_at_the_end():
    classes = np.zeros((4, 4, 4), np.uint8)
    classes[1, 1, 1] = 2
    found = measure(classes, classes, CUBE, ("WT", "ET"), ("iou", "mean_iou_of_classes", "volume", "dice"))
    per_region = ("iou", "volume", "dice", "volume_truth")
    assert list(found) == [(r, m) for r in ("WT", "ET") for m in per_region] + [("", "mean_iou_of_classes")]
    assert list(measure(classes, classes, CUBE)) == [(r, m) for r in REGIONS for m in DEFAULT_METRICS]


def test_measure_of_nothing_and_of_one_class():
    empty, edema = np.zeros((5, 5, 5), np.uint8), np.zeros((5, 5, 5), np.uint8)
    edema[2, 2, 2] = 2
    nothing = measure(empty, empty, SPACING, metrics=("dice", "specificity", *OF_CLASSES, "mean_dice_of_slices"))
    assert math.isnan(nothing["WT", "dice"])
    assert nothing["WT", "specificity"] == nothing["WT", "mean_dice_of_slices"] == 1
    assert nothing["WT", "volume"] == 0
    assert [nothing["", name] for name in OF_CLASSES] == [1, 1]
    found = measure(edema, empty, SPACING)
    assert found["WT", "dice"] == 0
    assert found["WT", "specificity"] == pytest.approx(124 / 125)
    assert math.isnan(found["ET", "dice"])


def test_only_what_is_asked_for_is_computed(monkeypatch):
    calls = []
    for name in ("surface_distances", "element_distances", "voxel_distances"):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, real=real, name=name: calls.append(name) or real(*args))
    classes = np.zeros((4, 4, 4), np.uint8)
    classes[1, 1, 1] = 3
    measure(classes, classes, CUBE, ("WT",), ("dice", "sensitivity", "mean_iou_of_slices", *OF_CLASSES))
    assert calls == []
    measure(classes, classes, CUBE, ("WT",), ("hd95", "hd100", "hd95_pooled", "assd", "nsd_1mm"))
    assert calls == ["surface_distances"]
    measure(classes, classes, CUBE, ("WT",), ("hd95_area_weighted", "nsd_1mm_area_weighted", "hd95_all_voxels"))
    assert calls[1:] == ["element_distances", "voxel_distances"]


def test_threads_are_those_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(module, "surface_distances", lambda *args: asked.append(args[-1]))
    classes = np.zeros((4, 4, 4), np.uint8)
    measure(classes, classes, CUBE, ("WT",), ("hd95",), threads=3)
    score(classes > 0, classes > 0, CUBE, "hd95", threads=2)
    hausdorff(classes > 0, classes > 0, CUBE, threads=4)
    surface_dice(classes > 0, classes > 0, CUBE, 1.0, threads=5)
    assert asked == [3, 2, 4, 5]


@pytest.mark.parametrize("name", [*sorted(NOT_OF_MASKS), *OF_CLASSES])
def test_what_needs_more_than_two_masks_is_refused(name):
    with pytest.raises(UsageError, match=f"{name} is no metric of two masks; expected some of dice, iou"):
        score(np.ones(SMALL, bool), np.ones(SMALL, bool), CUBE, name)
    if name not in OF_CLASSES:
        with pytest.raises(UsageError, match="is no metric of two masks"):
            measure(np.zeros(SMALL, np.uint8), np.zeros(SMALL, np.uint8), CUBE, metrics=(name,))


def test_an_unknown_metric_is_refused_with_what_is_near():
    with pytest.raises(UsageError, match="no metric is called 'hd59'; near it are hd95"):
        measure(np.zeros(SMALL, np.uint8), np.zeros(SMALL, np.uint8), CUBE, metrics=("hd59",))
