import itertools
import math

import numpy as np
import pytest
from scipy import stats

from gliomap.recipes.definitions import Definition, of_sums, terms
from gliomap.report.swaps import FLIPS, _bca, bootstrap_interval, compare_by_swaps, swap_p
from gliomap.statistics import permutation

SPREAD, POOLED, MEAN = (Definition("dice", "ET", name) for name in ("standard deviation", "pooled Dice", "mean"))


def statistic(definition):
    return lambda sums: of_sums(definition, sums)


def of(definition, *values):
    return [terms(definition, np.asarray(one, float).reshape(len(one), -1)) for one in values]


def with_rare_failures(rng, count):
    """Dice near 0.9, and near 0 in about one study of ten."""
    return np.where(rng.random(count) < 0.1, 0.05, 0.9) + 0.02 * rng.standard_normal(count)


def spread(values):
    return np.std(values, ddof=1)


def pooled(values):
    dice, first, second = np.asarray(values).T
    return (dice * (first + second)).sum() / (first + second).sum()


@pytest.mark.parametrize(("definition", "direct", "columns"), [(SPREAD, spread, 1), (POOLED, pooled, 3)])
def test_p_is_the_share_of_all_swaps_whose_difference_is_as_large(definition, direct, columns):
    rng = np.random.default_rng(3)
    for _ in range(4):
        a, b = rng.random((2, 7, columns))
        seen = abs(direct(a) - direct(b)) - 1e-12
        far = []
        for swaps in itertools.product((False, True), repeat=7):
            chosen = np.array(swaps)[:, None]
            far.append(abs(direct(np.where(chosen, b, a)) - direct(np.where(chosen, a, b))) >= seen)
        assert swap_p(*of(definition, a, b), statistic(definition)) == pytest.approx(np.mean(far))


def test_swaps_that_give_the_same_difference_count_in_spite_of_rounding():
    swaps = np.arange(2**14)[:, None] >> np.arange(14) & 1 == 1
    for seed in (5, 16, 25, 26, 29):
        a, b = np.random.default_rng(seed).random((2, 14))
        a[2:], b[2:] = a[0], b[0]  # so that only the number of swaps among them counts
        first, second = (np.where(swaps, *pair).std(axis=1, ddof=1) for pair in ((a, b), (b, a)))
        expected = (np.abs(first - second) >= abs(first[-1] - second[-1]) - 1e-12).mean()
        assert swap_p(*of(SPREAD, a, b), statistic(SPREAD)) == pytest.approx(expected, abs=1e-12)


def test_of_means_it_is_the_permutation_test():
    rng = np.random.default_rng(4)
    for count in (9, 40):
        a, b = rng.random((2, count))
        b = 0.8 * b
        ours, theirs = swap_p(*of(MEAN, a, b), statistic(MEAN)), permutation(a - b)
        assert ours == pytest.approx(theirs, abs=1e-12 if count == 9 else 0.006)


@pytest.mark.parametrize("count", [15, 25])
def test_models_that_differ_by_chance_alone_seldom_differ_where_failures_are_rare(count, monkeypatch):
    monkeypatch.setattr("gliomap.report.swaps.FLIPS", 2_000)
    rng = np.random.default_rng(5)
    p = [
        swap_p(*of(SPREAD, with_rare_failures(rng, count), with_rare_failures(rng, count)), statistic(SPREAD), n)
        for n in range(200)
    ]
    assert 0.015 < np.mean(np.array(p) < 0.05) < 0.09
    assert 0.4 < np.mean(p) < 0.62


def test_a_difference_of_spreads_is_found_and_its_sign_is_that_of_the_first():
    rng = np.random.default_rng(6)
    a, b = 0.1 * rng.standard_normal((2, 30))
    found = compare_by_swaps(*of(SPREAD, 4 * a, b), statistic(SPREAD))
    assert (found.mean_a, found.mean_b) == pytest.approx((spread(4 * a), spread(b)))
    assert found.difference == pytest.approx(spread(4 * a) - spread(b))
    assert 0 < found.low < found.difference < found.high
    assert found.p < 0.001
    assert found.detectable < found.difference
    assert math.isnan(found.p_holm)


def test_studies_that_one_of_both_lacks_are_counted_and_take_no_part():
    rng = np.random.default_rng(7)
    a, b = rng.random((2, 12))
    a[0] = b[1] = math.nan
    found, other = (compare_by_swaps(*of(SPREAD, *pair), statistic(SPREAD)) for pair in ((a, b), (a[2:], b[2:])))
    assert (found.studies, found.missing) == (10, 2)
    assert found.difference == other.difference
    assert (found.p, found.smallest_p) == (other.p, 2.0**-9)
    one = compare_by_swaps(*of(SPREAD, [0.5, math.nan], [0.4, 0.1]), statistic(SPREAD))
    assert (one.studies, one.missing) == (1, 1)
    assert math.isnan(one.p)


def test_the_smallest_p_is_reached_and_no_smaller_one():
    rng = np.random.default_rng(8)
    a, b = np.resize([0.0, 1.0], 24) + 1e-3 * rng.random(24), np.full(24, 0.5) + 1e-3 * rng.random(24)
    for count in (10, 24):
        found = compare_by_swaps(*of(SPREAD, a[:count], b[:count]), statistic(SPREAD))
        assert found.p == pytest.approx(found.smallest_p)
    assert found.smallest_p == 1 / (FLIPS + 1)


def test_the_same_scores_are_no_difference():
    for values in (np.linspace(0.1, 0.9, 8), np.full(20, 0.3)):
        found = compare_by_swaps(*of(SPREAD, values, values), statistic(SPREAD))
        assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)
    same = compare_by_swaps(*of(SPREAD, np.full(20, 0.3), np.full(20, 0.7)), statistic(SPREAD))
    assert (same.difference, same.p) == (0, 1)


@pytest.mark.parametrize("count", [9, 30])
def test_the_same_scores_in_another_order_are_no_difference_either(count):
    values = np.random.default_rng(12).random(count)
    assert swap_p(*of(SPREAD, values, values[::-1]), statistic(SPREAD)) == 1


SAMPLES = [np.random.default_rng(seed).exponential(size=25) for seed in (9, 10)]


@pytest.mark.parametrize("values", [*SAMPLES, np.repeat([0.0, 1.0], (4, 5))], ids=["skewed", "other", "ties"])
def test_the_interval_is_scipys(values):
    for definition, direct in ((SPREAD, spread), (MEAN, np.mean)):
        theirs = stats.bootstrap(
            (values,), lambda v, f=direct, axis=-1: np.apply_along_axis(f, axis, v), n_resamples=9_999, method="BCa",
            random_state=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
        ours = bootstrap_interval(*of(definition, values), statistic(definition))
        assert ours == pytest.approx(theirs, abs=0.04 * (theirs.high - theirs.low))


def test_the_interval_is_finite_where_no_resample_reaches_the_statistic():
    (some,) = of(SPREAD, np.random.default_rng(13).random(6))
    drawn = np.linspace(0.0, 1e-3, 100)
    assert _bca(some, statistic(SPREAD), drawn) == pytest.approx((drawn[-1], drawn[-1]), abs=1e-5)


def test_the_interval_of_two_or_of_one():
    low, high = bootstrap_interval(*of(SPREAD, [0.1, 0.5]), statistic(SPREAD))
    assert 0 <= low <= high <= spread([0.1, 0.5]) + 1e-12
    assert np.isnan(bootstrap_interval(*of(SPREAD, [0.1]), statistic(SPREAD))).all()


def test_the_seed_decides_what_is_drawn():
    a, b = np.random.default_rng(11).random((2, 22))
    pairs = of(SPREAD, a, b)
    again = [compare_by_swaps(*pairs, statistic(SPREAD), seed) for seed in (0, 0, 1)]
    assert (again[0].p, again[0].low) == (again[1].p, again[1].low)
    assert again[0].p != again[2].p
    assert again[0].low != again[2].low
