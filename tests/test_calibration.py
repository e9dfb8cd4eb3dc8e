import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics import CalibrationErrorMetric
from sklearn.metrics import brier_score_loss

from gliomap.calibration import calibrate
from gliomap.rows import METRICS

SHAPE = (3, 4, 5)
NAMES = ("ece", "brier", "confidence_0_10", "confidence_10_50", "confidence_50_90", "confidence_90_100")
probabilities = hnp.arrays(np.float64, SHAPE, elements=st.floats(0, 1) | st.integers(0, 10).map(lambda n: n / 10))
masks = hnp.arrays(bool, SHAPE)


def everywhere(values):
    """Probabilities as an array (1, 1, N), and a brain that has them all."""
    probability = np.asarray(values)[None, None]
    return probability, np.ones(probability.shape, bool)


def by_hand(probability, truth, brain):
    """Plain loops: of every bin its voxels, then the mean confidence and the frequency."""
    voxels = [(float(p), bool(t)) for p, t, b in zip(probability.flat, truth.flat, brain.flat, strict=True) if b]
    if not voxels:
        return dict.fromkeys(NAMES, math.nan)
    ece = 0.0
    for n in range(10):
        held = [(p, t) for p, t in voxels if n / 10 <= p < (n + 1) / 10 or (n == 9 and p == 1)]
        if held:
            confidence, frequency = sum(p for p, _ in held) / len(held), sum(t for _, t in held) / len(held)
            ece += len(held) / len(voxels) * abs(confidence - frequency)
    share = [
        sum(low <= p < high for p, _ in voxels) / len(voxels)
        for low, high in [(0, 0.1), (0.1, 0.5), (0.5, 0.9), (0.9, 2)]
    ]
    return dict(zip(NAMES, (ece, sum((p - t) ** 2 for p, t in voxels) / len(voxels), *share), strict=True))


@settings(max_examples=80, deadline=None)
@given(probabilities, masks, masks)
def test_everything_is_what_plain_loops_find(probability, truth, brain):
    assert calibrate(probability, truth, brain) == pytest.approx(by_hand(probability, truth, brain), nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(probabilities, masks, masks)
def test_shares_make_one_and_scores_lie_between_0_and_1(probability, truth, brain):
    brain[0, 0, 0] = True
    found = calibrate(probability, truth, brain)
    assert sum(found[name] for name in NAMES[2:]) == pytest.approx(1)
    assert all(0 <= value <= 1 for value in found.values())


@pytest.mark.parametrize("seed", range(4))
def test_it_is_what_monai_and_scikit_learn_find(seed):
    rng = np.random.default_rng(seed)
    probability = rng.beta(0.3, 0.6, (12, 14, 16)).astype(np.float32)
    truth = rng.random(probability.shape) < probability**1.5
    brain = rng.random(probability.shape) < 0.7
    found = calibrate(probability, truth, brain)
    monai = CalibrationErrorMetric(num_bins=10, right=True)  # what MONAI calls right is its torch.bucketize's: [a, b)
    monai(*(torch.from_numpy(np.float32(x[brain]))[None, None] for x in (probability, truth)))
    assert found["ece"] == pytest.approx(monai.aggregate().item(), abs=1e-6)
    assert found["brier"] == pytest.approx(brier_score_loss(truth[brain], probability[brain]), rel=1e-6)


def test_ece_weighs_a_bin_by_its_voxels():
    probability, brain = everywhere([0.05, 0.05, 0.05, 0.65])
    found = calibrate(probability, np.zeros_like(brain), brain)
    assert found["ece"] == pytest.approx((3 * 0.05 + 0.65) / 4)  # the bins alike would give 0.35


def test_surplus_and_want_in_one_bin_cancel_but_in_two_bins_do_not():
    one, brain = everywhere([0.5, 0.5])
    truth = np.array([[[True, False]]])
    assert calibrate(one, truth, brain)["ece"] == 0
    two, brain = everywhere([0.45, 0.55])
    assert calibrate(two, truth, brain)["ece"] == pytest.approx(0.55)


def test_probabilities_that_keep_their_word_have_next_to_no_ece():
    rng = np.random.default_rng(3)
    probability = rng.random((40, 50, 50))
    truth = rng.random(probability.shape) < probability
    found = calibrate(probability, truth, np.ones_like(truth))
    assert found["ece"] < 0.01
    assert found["brier"] == pytest.approx(1 / 6, abs=0.005)  # the mean of p (1 - p)
    assert calibrate(probability**3, truth, np.ones_like(truth))["ece"] > 0.2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_truth_itself_is_perfect_and_its_opposite_the_worst(dtype):
    truth = np.random.default_rng(0).random(SHAPE) < 0.4
    brain = np.ones(SHAPE, bool)
    right, wrong = calibrate(truth.astype(dtype), truth, brain), calibrate((~truth).astype(dtype), truth, brain)
    assert right["ece"] == right["brier"] == 0
    assert wrong["ece"] == wrong["brier"] == 1
    assert right["confidence_90_100"] == truth.mean()
    assert right["confidence_0_10"] == pytest.approx(1 - truth.mean())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_border_belongs_to_the_interval_above_it_in_any_precision(dtype):
    probability, brain = everywhere(np.array([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1], dtype))
    found = calibrate(probability, np.zeros_like(brain), brain)
    assert [round(11 * found[name]) for name in NAMES[2:]] == [1, 4, 4, 2]
    truth = np.array([[[False, True] * 5 + [False]]])  # of no two neighbouring borders the same, so each bin shows
    below = probability[0, 0, :9].astype(float)
    last = probability[0, 0, 9:].astype(float).sum() - 1  # 0.9 and 1 share the last bin; of them one is true
    expected = sum(abs(p - (n % 2)) for n, p in enumerate(below)) + abs(last)
    assert found["ece"] > 0
    assert calibrate(probability, truth, brain)["ece"] == pytest.approx(expected / 11, rel=1e-3)


def test_just_below_a_border_is_the_interval_below_it():
    edges = np.array([0.1, 0.5, 0.9])
    probability, brain = everywhere(np.nextafter(edges, 0))
    found = calibrate(probability, np.zeros_like(brain), brain)
    assert [round(3 * found[name]) for name in NAMES[2:]] == [1, 1, 1, 0]


def test_voxels_outside_the_brain_do_not_count():
    probability, truth = np.full(SHAPE, 0.95), np.ones(SHAPE, bool)
    probability[0], truth[0] = 0.3, False
    brain = np.zeros(SHAPE, np.uint8)  # a mask in whole numbers is a mask, too
    brain[1:] = 1
    found = calibrate(probability, truth, brain)
    assert found["ece"] == pytest.approx(0.05)
    assert found["brier"] == pytest.approx(0.05**2)
    assert found["confidence_90_100"] == 1


def test_without_a_brain_nothing_is_defined():
    found = calibrate(np.full(SHAPE, 0.5), np.ones(SHAPE, bool), np.zeros(SHAPE, bool))
    assert set(found) == set(NAMES)
    assert all(math.isnan(value) for value in found.values())


def test_names_are_those_that_rows_explain():
    found = calibrate(np.full(SHAPE, 0.5), np.ones(SHAPE, bool), np.ones(SHAPE, bool))
    assert tuple(found) == NAMES
    assert set(found) <= set(METRICS)


def test_low_precision_keeps_small_surpluses_of_many_voxels():
    none = np.zeros((100, 100, 100), bool)
    for dtype, digits in ((np.float32, 1e-6), (np.float16, 1e-3)):
        found = calibrate(np.full(none.shape, 1e-4, dtype), none, ~none)
        assert found["ece"] == pytest.approx(1e-4, rel=digits)
        assert found["brier"] == pytest.approx(1e-8, rel=2 * digits)
