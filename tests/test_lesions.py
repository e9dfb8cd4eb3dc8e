import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import surface_distance
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from gliomap.classes import region_mask
from gliomap.lesions import LESION_RULES, lesion_scores, measure_lesions
from gliomap.rows import METRICS, metric, score_rows

pytestmark = pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning:surface_distance")

OF_2023, OF_2025 = LESION_RULES["brats2023"], LESION_RULES["brats2025"]
MM = (1.0, 1.0, 1.0)
NAN = math.nan
EVERY_STEP = [s for s in itertools.product((-1, 0, 1), repeat=3) if any(s)]
GROWING_STEPS = [s for s in EVERY_STEP if sum(map(abs, s)) < 3]


def bars(*spans, side=4, length=40):
    """Mask (length, 12, 12) with a bar of ``side`` x ``side`` voxels along z for each (from, to)."""
    mask = np.zeros((length, 12, 12), bool)
    for start, stop in spans:
        mask[start:stop, 4 : 4 + side, 4 : 4 + side] = True
    return mask


def found(prediction, truth, rules, spacing_mm=MM):
    """What `lesion_scores` gives, as a tuple: the means as the rules have them, lesions, missed, false."""
    return tuple(lesion_scores(prediction, truth, spacing_mm, rules).values())


def same(a, b):
    return a == pytest.approx(b, abs=1e-9, nan_ok=True)


# An independent reference: sets of voxels, plain loops, every possible assignment.


def pieces(voxels):
    """The connected pieces of a set of voxels, corners included."""
    left, out = set(voxels), []
    while left:
        edge, piece = [left.pop()], set()
        while edge:
            voxel = edge.pop()
            piece.add(voxel)
            for step in EVERY_STEP:
                beside = tuple(v + s for v, s in zip(voxel, step, strict=True))
                if beside in left:
                    left.remove(beside)
                    edge.append(beside)
        out.append(piece)
    return out


def grown(voxels, times, shape):
    out = set(voxels)
    for _ in range(times):
        out |= {tuple(v + s for v, s in zip(voxel, step, strict=True)) for voxel in out for step in GROWING_STEPS}
        out = {v for v in out if all(0 <= i < n for i, n in zip(v, shape, strict=True))}
    return out


def dice_of(a, b):
    return 2 * len(a & b) / (len(a) + len(b))


def surface(voxels):
    sides = [s for s in EVERY_STEP if sum(map(abs, s)) == 1]
    return [v for v in voxels if any(tuple(i + j for i, j in zip(v, s, strict=True)) not in voxels for s in sides)]


def distances(a, b, spacing_mm):
    a, b = (np.array(surface(x)) * spacing_mm for x in (a, b))
    apart = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    return apart.min(1), apart.min(0)


def hd95_of_deepmind(a, b, shape, spacing_mm):
    masks = []
    for voxels in (a, b):
        masks.append(np.zeros(shape, bool))
        masks[-1][tuple(np.array(list(voxels)).T)] = True
    return surface_distance.compute_robust_hausdorff(surface_distance.compute_surface_distances(*masks, spacing_mm), 95)


def reference_2023(prediction, truth, spacing_mm, dilation, ignored_mm3):
    components = pieces(map(tuple, np.argwhere(prediction).tolist()))
    true = set(map(tuple, np.argwhere(truth).tolist()))
    dices, distances_mm, matched, missed = [], [], set(), 0
    for territory in pieces(grown(true, dilation, truth.shape)):
        lesion = true & territory
        touching = [n for n, component in enumerate(components) if component & territory]
        matched |= set(touching)
        if len(lesion) * np.prod(spacing_mm) <= ignored_mm3:
            continue
        union = set().union(*(components[n] for n in touching))
        missed += not touching
        dices.append(dice_of(union, lesion))
        distances_mm.append(hd95_of_deepmind(union, lesion, truth.shape, spacing_mm) if union else 374)
    false = len(components) - len(matched)
    if not dices and not false:
        return 1, 0, 0, 0, 0
    counting = len(dices) + false
    return sum(dices) / counting, (sum(distances_mm) + 374 * false) / counting, len(dices), missed, false


def assignments(rows, columns):
    """All ways to give each of some rows a column of its own."""
    if not rows:
        yield []
        return
    yield from assignments(rows[1:], columns)
    for c in columns:
        yield from ([(rows[0], c), *rest] for rest in assignments(rows[1:], [x for x in columns if x != c]))


def reference_2025(prediction, truth, spacing_mm):
    lesions, components = (pieces(map(tuple, np.argwhere(mask).tolist())) for mask in (truth, prediction))
    table = [[dice_of(lesion, component) for component in components] for lesion in lesions]
    rows, columns = range(len(lesions)), range(len(components))
    best = max(assignments(list(rows), list(columns)), key=lambda pairs: sum(table[r][c] for r, c in pairs))
    best = [(r, c) for r, c in best if table[r][c]]
    counts = (len(lesions), len(lesions) - len(best), len(components) - len(best))
    if not best:
        return (0, 373, 0, *counts) if lesions or components else (NAN, NAN, NAN, 0, 0, 0)
    apart = [distances(components[c], lesions[r], spacing_mm) for r, c in best]
    return (
        np.mean([table[r][c] for r, c in best]),
        np.mean([np.percentile(np.concatenate(both), 95) for both in apart]),
        np.mean([((there <= 1).mean() + (back <= 1).mean()) / 2 for there, back in apart]),
        *counts,
    )


def islands(rng, shape, how_many):
    mask = np.zeros(shape, bool)
    for _ in range(how_many):
        size = rng.integers(1, 5, 3)
        start = [rng.integers(0, n - s + 1) for n, s in zip(shape, size, strict=True)]
        mask[tuple(slice(a, a + s) for a, s in zip(start, size, strict=True))] = True
    return mask & (rng.random(shape) < 0.93)


@pytest.mark.parametrize("seed", range(30))
def test_random_masks_score_as_the_reference_says(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(9, 22, 3))
    spacing_mm = [MM, (2.5, 0.75, 1.0), (0.5, 1.0, 1.5)][seed % 3]
    truth, prediction = islands(rng, shape, seed % 5), islands(rng, shape, (seed + 2) % 4)
    if seed % 2:
        prediction |= np.roll(truth, (1, 0, 1), (0, 1, 2))
    for dilation, ignored_mm3 in ((3, 50), (1, 50), (1, 2), (0, 0), (2, 10)):
        rules = replace(OF_2023, dilation=dilation, ignored_mm3=ignored_mm3)
        expected = reference_2023(prediction, truth, spacing_mm, dilation, ignored_mm3)
        assert same(found(prediction, truth, rules, spacing_mm), expected)


@pytest.mark.parametrize("seed", range(30))
def test_random_masks_score_one_to_one_as_the_reference_says(seed):
    rng = np.random.default_rng(100 + seed)
    shape = tuple(int(n) for n in rng.integers(9, 16, 3))
    spacing_mm = [MM, (2.5, 0.75, 1.0), (0.5, 1.0, 1.5)][seed % 3]
    truth, prediction = (ndimage.label(islands(rng, shape, n), np.ones((3, 3, 3)))[0] for n in (seed % 6, 4))
    truth, prediction = ((x > 0) & (x < 6) for x in (truth, prediction))  # every assignment of more takes too long
    assert same(found(prediction, truth, OF_2025, spacing_mm), reference_2025(prediction, truth, spacing_mm))


# Drawn by hand, with the answers written out: 2023 has Dice, HD95, lesions, missed, false; 2025 has NSD after HD95.

A, B, C = (2, 6), (16, 20), (30, 34)  # 64 voxels each, 10 apart
HAND_DRAWN = {
    "perfect": (bars(A, B), bars(A, B), (1, 0, 2, 0, 0), (1, 0, 1, 2, 0, 0)),
    "missed lesion": (bars(A), bars(A, B), (1 / 2, 374 / 2, 2, 1, 0), (1, 0, 1, 2, 1, 0)),
    "false positive": (bars(A, B), bars(A), (1 / 2, 374 / 2, 1, 0, 1), (1, 0, 1, 1, 0, 1)),
    "one found, one missed, one false": (bars(A, C), bars(A, B), (1 / 3, 748 / 3, 2, 1, 1), (1, 0, 1, 2, 1, 1)),
    "nothing found": (bars(), bars(A, B), (0, 374, 2, 2, 0), (0, 373, 0, 2, 2, 0)),
    "nothing there": (bars(A, B), bars(), (0, 374, 0, 0, 2), (0, 373, 0, 0, 0, 2)),
    "all in the wrong place": (bars(B), bars(A), (0, 374, 1, 1, 1), (0, 373, 0, 1, 1, 1)),
    "both empty": (bars(), bars(), (1, 0, 0, 0, 0), (NAN, NAN, NAN, 0, 0, 0)),
    "shifted by one voxel": (bars((3, 7)), bars(A), (3 / 4, 1, 1, 0, 0), (3 / 4, 1, 1, 1, 0, 0)),
    # 64 and 80 of 160 voxels. 2023 takes both together. 2025 takes the larger, and of the 128 surface voxels of the truth
    # and 68 of the piece: 16 are 5 mm away, 12 each 4, 3, 2 and 1 mm, and 4 of the piece's 1 mm.
    "split in two": (
        bars((4, 8), (9, 14)),
        bars((4, 14)),
        (2 * 144 / 304, 1, 1, 0, 0),
        (2 * 80 / 240, 5, (76 / 128 + 1) / 2, 1, 0, 1),
    ),
    "two near lesions predicted as one": (
        bars((4, 14)),
        bars((4, 8), (9, 14)),
        (2 * 144 / 304, 1, 1, 0, 0),  # so near that they are one
        (2 * 80 / 240, 5, (76 / 128 + 1) / 2, 2, 1, 0),
    ),
    # 7 voxels apart they are two in 2023, too, and the same component is the match of each: farthest are the 16 surface
    # voxels 11 mm away, 12 each 10, 9, 8 ... mm.
    "two far lesions predicted as one": (
        bars((2, 17)),
        bars((2, 6), (13, 17)),
        (2 * 64 / 304, 11, 2, 0, 0),
        (2 * 64 / 304, 11, NAN, 2, 1, 0),
    ),
    "the example of docs/lesions.md": (
        bars((2, 6), (7, 12), length=60) | bars((50, 51), side=1, length=60),
        bars((2, 12), (24, 28), length=60) | bars((38, 40), side=2, length=60),
        (288 / 304 / 3, (1 + 374 + 374) / 3, 2, 1, 1),
        (2 / 3, 5, (76 / 128 + 1) / 2, 3, 2, 2),
    ),
    "tiny lesion missed": (bars(A), bars(A) | bars(B, side=2), (1, 0, 1, 0, 0), (1, 0, 1, 2, 1, 0)),
    "tiny lesion only, found": (bars(B, side=2), bars(B, side=2), (1, 0, 0, 0, 0), (1, 0, 1, 1, 0, 0)),
    "tiny lesion only, missed": (bars(), bars(B, side=2), (1, 0, 0, 0, 0), (0, 373, 0, 1, 1, 0)),
    "tiny false positive": (bars(A) | bars(B, side=2), bars(A), (1 / 2, 187, 1, 0, 1), (1, 0, 1, 1, 0, 1)),
}


@pytest.mark.parametrize("name", HAND_DRAWN)
def test_hand_drawn_case(name):
    prediction, truth, of_2023, of_2025 = HAND_DRAWN[name]
    assert same(found(prediction, truth, OF_2023), of_2023)
    ours = found(prediction, truth, OF_2025)
    assert all(
        same(a, b) for n, (a, b) in enumerate(zip(ours, of_2025, strict=True)) if n != 2 or name[:7] != "two far"
    )


def test_what_touches_a_tiny_lesion_only_is_no_false_positive_in_2023():
    tiny, beside = bars(B, side=2), bars((16, 24), side=4)
    assert same(found(beside, tiny, OF_2023), (1, 0, 0, 0, 0))
    assert same(found(beside | bars(A), tiny | bars(A), OF_2023), (1, 0, 1, 0, 0))
    assert same(found(beside, bars(), OF_2023), (0, 374, 0, 0, 1))


@pytest.mark.parametrize(("spacing_mm", "at_most"), [(MM, 50), ((2.0, 1.0, 1.0), 25), ((0.5, 0.5, 0.5), 400)])
def test_a_lesion_of_50_mm3_is_ignored_and_one_voxel_more_counts(spacing_mm, at_most):
    for voxels, counts in ((at_most - 1, 0), (at_most, 0), (at_most + 1, 1)):
        truth = np.zeros((10, 10, 10), bool)
        truth.ravel()[:voxels] = True
        assert found(truth, truth, OF_2023, spacing_mm)[2] == counts
        assert found(truth, truth, OF_2025, spacing_mm)[3] == 1


@pytest.mark.parametrize(("gap", "lesions"), [(1, 1), (6, 1), (7, 2)])
def test_lesions_up_to_6_voxels_apart_are_one_in_2023(gap, lesions):
    truth = bars((4, 8), (8 + gap, 12 + gap))
    assert found(truth, truth, OF_2023)[2] == lesions
    assert found(truth, truth, OF_2025)[3] == 2


@pytest.mark.parametrize(
    ("offset", "matches"),
    [
        ((3, 0, 0), True),
        ((4, 0, 0), False),
        ((3, 3, 0), True),
        ((2, 2, 2), True),
        ((3, 3, 1), False),
        ((3, 2, 1), True),
    ],
)
def test_a_voxel_in_the_halo_of_three_dilations_matches_with_dice_0(offset, matches):
    truth, prediction = np.zeros((24, 12, 12), bool), np.zeros((24, 12, 12), bool)
    truth[2:8, 2:6, 2:6] = True
    prediction[7 + offset[0], 5 + offset[1], 5 + offset[2]] = True
    score, hd95_mm, *counts = found(prediction, truth, OF_2023)
    assert (score, counts) == (0, [1, 0, 0] if matches else [1, 1, 1])
    assert hd95_mm == 374 if not matches else 0 < hd95_mm < 15
    assert same(found(prediction, truth, OF_2025), (0, 373, 0, 1, 1, 1))


def test_a_shared_corner_makes_one_lesion_and_one_false_positive():
    corner = np.zeros((20, 20, 20), bool)
    corner[2:6, 2:6, 2:6] = corner[6:10, 6:10, 6:10] = True
    assert same(found(corner, corner, OF_2025), (1, 0, 1, 1, 0, 0))
    empty = np.zeros_like(corner)
    assert found(corner, empty, OF_2025)[-1] == found(corner, empty, OF_2023)[-1] == 1
    apart = replace(OF_2023, dilation=0, ignored_mm3=0)
    assert found(corner, corner, apart)[2] == 1


def test_matches_have_the_largest_sum_of_dice_not_the_largest_first():
    truth, prediction = bars((4, 14), (15, 27)), bars((0, 8), (9, 19))
    best, greedy = (2 * 4 / 18 + 2 * 4 / 22) / 2, 2 * 5 / 20
    assert greedy > max(2 * 4 / 18, 2 * 4 / 22)
    assert found(prediction, truth, OF_2025)[0] == pytest.approx(best)
    assert found(prediction, truth, OF_2025)[3:] == (2, 0, 0)


def test_matches_have_the_largest_sum_of_dice_not_the_largest_number():
    truth, prediction = bars((10, 20), (21, 23)), bars((8, 11), (12, 22))
    assert found(prediction, truth, OF_2025)[0] == pytest.approx(2 * 8 / 20)
    assert found(prediction, truth, OF_2025)[3:] == (2, 1, 1)


def test_a_match_is_the_one_with_the_larger_dice_not_with_more_voxels_in_common():
    prediction, truth = bars((10, 14), (15, 39)), bars((10, 20))
    assert found(prediction, truth, OF_2025)[0] == pytest.approx(2 * 4 / 14)


def test_distances_are_in_mm_and_dilations_in_voxels():
    shifted, spacing_mm = bars((3, 7)), (3.0, 1.0, 1.0)
    assert same(found(shifted, bars(A), OF_2023, spacing_mm)[1], 3)
    assert same(found(shifted, bars(A), OF_2025, spacing_mm)[1], 3)
    assert found(shifted, bars(A), OF_2025, spacing_mm)[2] < found(shifted, bars(A), OF_2025)[2] == 1
    apart = bars((4, 8), (14, 18))  # 6 voxels, 18 mm
    assert found(apart, apart, OF_2023, spacing_mm)[2] == 1


def test_hd95_is_area_weighted_in_2023_and_pooled_in_2025():
    prediction, truth = bars((4, 10)), bars((4, 10))
    prediction[6, 8:12, 6], truth[5, 5, 8:11] = True, True
    voxels = [set(map(tuple, np.argwhere(mask).tolist())) for mask in (prediction, truth)]
    there, back = distances(*voxels, MM)
    pooled, larger = np.percentile(np.r_[there, back], 95), max(np.percentile(there, 95), np.percentile(back, 95))
    weighted = hd95_of_deepmind(*voxels, truth.shape, MM)
    assert len({round(x, 6) for x in (pooled, larger, weighted)}) == 3
    assert same(found(prediction, truth, OF_2023)[1], weighted)
    assert same(found(prediction, truth, OF_2025)[1], pooled)


def test_nsd_of_2025_is_the_mean_of_both_directions():
    prediction, truth = bars((2, 4)), bars((2, 30))
    there, back = distances(*(set(map(tuple, np.argwhere(mask).tolist())) for mask in (prediction, truth)), MM)
    both = np.concatenate([there, back])
    assert same(found(prediction, truth, OF_2025)[2], ((there <= 1).mean() + (back <= 1).mean()) / 2)
    assert found(prediction, truth, OF_2025)[2] > (both <= 1).mean() + 0.1


def test_scores_do_not_depend_on_what_lies_around():
    rng = np.random.default_rng(5)
    truth = islands(rng, (40, 14, 13), 9)
    prediction = np.roll(truth, 1, 0) | islands(rng, truth.shape, 2)
    wide = [np.pad(mask, 9) for mask in (prediction, truth)]
    low = replace(OF_2023, ignored_mm3=2)
    for rules in (OF_2025, low):
        assert same(found(*wide, rules), found(*(mask[6:-5, 9:-3, 5:-9] for mask in wide), rules))
    assert found(*wide, low)[2] > 1


def test_a_dilation_ends_at_the_border_of_the_grid():
    truth = np.zeros((4, 30, 30), bool)
    truth[:, :5, :5] = truth[:, 25:, 25:] = True
    assert same(found(truth, truth, OF_2023), (1, 0, 2, 0, 0))
    assert same(found(truth[:, :, ::-1], truth, OF_2023), (0, 374, 2, 2, 2))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8))
def test_a_perfect_prediction_scores_1_and_0(seed, how_many):
    mask = islands(np.random.default_rng(seed), (14, 15, 16), how_many)
    mask[5, 5, 5] = True
    assert found(mask, mask, OF_2023)[:2] == (1, 0)
    assert found(mask, mask, OF_2025)[:3] == (1, 0, 1)
    assert found(mask, mask, OF_2023)[3:] == found(mask, mask, OF_2025)[4:] == (0, 0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_2025_is_symmetric_with_missed_and_false_exchanged(seed):
    rng = np.random.default_rng(seed)
    a, b = (islands(rng, (12, 13, 14), 4) for _ in range(2))
    there, back = found(a, b, OF_2025), found(b, a, OF_2025)
    assert there[0] == pytest.approx(back[0], nan_ok=True)
    assert there[3] - there[4] == back[3] - back[4]  # as many matched
    assert (there[4], there[5]) == (back[5], back[4])


def class_maps():
    truth, prediction = np.zeros((40, 30, 30), np.uint8), np.zeros((40, 30, 30), np.uint8)
    truth[3:15, 3:15, 3:15], truth[5:12, 5:12, 5:12], truth[6:10, 6:10, 6:10] = 2, 3, 1
    truth[20:26, 5:11, 5:11] = 4
    prediction[3:15, 4:15, 3:15], prediction[5:12, 6:12, 5:12], prediction[7:10, 6:10, 6:10] = 2, 3, 1
    prediction[30:36, 20:26, 20:26] = 3
    return prediction, truth


@pytest.mark.parametrize("protocol", LESION_RULES)
def test_class_maps_are_scored_region_by_region(protocol):
    prediction, truth = class_maps()
    parts = ("WT", "ET", "TC", "NCR", "ED", "RC")
    scores = measure_lesions(prediction, truth, (2.0, 1.0, 1.0), parts, protocol)
    assert list(dict.fromkeys(region for region, _ in scores)) == list(parts)
    for part in parts:
        masks = (region_mask(x, part) for x in (prediction, truth))
        alone = lesion_scores(*masks, (2.0, 1.0, 1.0), LESION_RULES[protocol])
        assert {metric: value for (region, metric), value in scores.items() if region == part} == alone
    assert scores["ET", "lesions_false"] == 1
    assert scores["RC", "lesions_missed"] == 1


def test_names_and_values_are_those_that_rows_explain():
    for protocol, nsd in (("brats2023", False), ("brats2025", True)):
        scores = measure_lesions(*class_maps(), MM, ("ET",), protocol)
        names = [name for _, name in scores]
        nsd_names = ["lesion_nsd_1mm"] if nsd else []
        assert names == ["lesion_dice", "lesion_hd95", *nsd_names, "lesions", "lesions_missed", "lesions_false"]
        assert set(names) <= set(METRICS)
        assert all(type(value) is float for value in scores.values())


@pytest.mark.parametrize(("protocol", "mm"), [("brats2023", 374), ("brats2025", 373)])
def test_rows_keep_what_the_protocol_says_of_empty_regions(protocol, mm):
    prediction, truth = class_maps()
    none = np.zeros_like(truth)
    for maps, expected in (((none, truth), mm), ((prediction, none), mm), ((none, none), None)):
        measured = measure_lesions(*maps, MM, ("ET",), protocol)
        measured |= {("ET", "volume"): float(maps[0].any()), ("ET", "volume_truth"): float(maps[1].any())}
        rows = {row.metric: row.value for row in score_rows("s", "m", measured, protocol)}
        if expected is None:
            assert (rows["lesion_dice"], rows["lesion_hd95"]) == ((1, 0) if protocol == "brats2023" else (None, None))
        else:
            assert (rows["lesion_dice"], rows["lesion_hd95"]) == (0, expected)


def test_other_tumours_of_2023_are_a_change_of_two_numbers():
    truth = bars((4, 8), (11, 15)) | bars((20, 21), side=2)
    metastases = replace(OF_2023, dilation=1, ignored_mm3=2.0)
    assert found(truth, truth, metastases)[2] == 3
    assert found(truth, truth, replace(metastases, ignored_mm3=4.0))[2] == 2
    assert found(truth, truth, OF_2023)[2] == 1
    assert metric("lesion_hd95").unit == "mm"
