import itertools
import math
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from gliomap.errors import InputError, UsageError
from gliomap.statistics import (
    EXACT_FLIPS,
    EXACT_WILCOXON,
    FLIPS,
    TESTS,
    adjusted,
    bca_interval,
    cohen_dz,
    compare_paired,
    detectable_difference,
    holm,
    paired_t,
    permutation,
    permutation_of_columns,
    rank_biserial,
    smallest_p,
    wilcoxon,
)

SMALL_WHOLE = st.lists(st.integers(-4, 4), min_size=1, max_size=9)


def normal(seed, size, shift=0.3):
    return np.random.default_rng(seed).normal(shift, 1, size)


def share_as_far(weights, observed):
    """Share of all flips of signs of the weights whose sum is as far from 0: by enumeration."""
    sums = [abs(np.dot(signs, weights)) for signs in itertools.product((-1, 1), repeat=len(weights))]
    return np.mean(np.array(sums) >= abs(observed) - 1e-9)


@pytest.mark.parametrize("size", [2, 5, 15, 50, 51, 120])
def test_wilcoxon_and_t_are_scipys(size):
    for seed in range(5):
        values = normal(seed, size)
        assert wilcoxon(values) == pytest.approx(stats.wilcoxon(values).pvalue, abs=1e-12)
        assert paired_t(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(SMALL_WHOLE)
def test_wilcoxon_with_ties_and_zeros_is_brute_force(values):
    kept = np.array([v for v in values if v], float)
    ranks = stats.rankdata(np.abs(kept))
    expected = share_as_far(ranks, ranks @ np.sign(kept)) if kept.size else 1
    assert wilcoxon(values) == pytest.approx(expected, abs=1e-12)


def test_wilcoxon_with_many_ties_is_a_slow_count():
    values = np.random.default_rng(0).integers(-3, 8, 40)
    kept = values[values != 0]
    ranks = [round(2 * r) for r in stats.rankdata(np.abs(kept))]
    ways = Counter({0: 1})
    for rank in ranks:
        ways = Counter(ways) + Counter({total + rank: count for total, count in ways.items()})
    observed = sum(r for r, v in zip(ranks, kept, strict=True) if v > 0)
    middle = sum(ranks) / 2
    far = sum(count for total, count in ways.items() if abs(total - middle) >= abs(observed - middle))
    assert wilcoxon(values) == pytest.approx(far / 2 ** len(kept), rel=1e-12)


@pytest.mark.parametrize(("size", "exact"), [(EXACT_WILCOXON, True), (EXACT_WILCOXON + 1, False)])
def test_ties_end_the_exact_test_where_size_does(size, exact):
    values = np.random.default_rng(1).integers(1, 6, size) * np.resize([1, 1, -1], size)
    asymptotic = stats.wilcoxon(values, method="asymptotic").pvalue
    assert (abs(wilcoxon(values) - asymptotic) > 1e-6) == exact
    assert wilcoxon(values) == pytest.approx(asymptotic, rel=0.1)


def test_wilcoxon_by_hand():
    assert wilcoxon([1, 2, 3, 4, -5]) == pytest.approx(20 / 32)  # 10 of the 32 rank sums are 10 or more
    assert wilcoxon([2, 3, 4, 0, 0]) == pytest.approx(2 / 8)
    assert wilcoxon([0, 0, 0]) == 1


def test_differences_that_only_rounding_tells_apart_tie():
    values = np.array([0.9 - 0.8, 0.8 - 0.7, 0.7 - 0.6, 0.5 - 0.6, 0.1])
    assert len(set(np.abs(values))) > 2
    assert wilcoxon(values) == wilcoxon(values * 1e-11) == wilcoxon([1, 1, 1, -1, 1])
    assert rank_biserial(values) == pytest.approx(3 / 5)


@settings(max_examples=40, deadline=None)
@given(SMALL_WHOLE)
def test_permutation_is_every_swap(values):
    assert permutation(values) == pytest.approx(share_as_far(values, sum(values)), abs=1e-12)


def test_permutation_is_scipys_where_exact():
    theirs = stats.permutation_test((normal(3, 12),), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert permutation(normal(3, 12)) == pytest.approx(theirs.pvalue, abs=1e-12)


def test_permutation_beyond_the_exact_is_close_to_it_and_seeded():
    values = normal(1, EXACT_FLIPS + 1, 0.4)
    bits = np.arange(2 ** (EXACT_FLIPS + 1))[:, None] >> np.arange(EXACT_FLIPS + 1) & 1
    exact = np.mean(np.abs((1.0 - 2 * bits) @ values) >= abs(values.sum()) - 1e-9)
    assert permutation(values) == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / FLIPS))
    assert permutation(values) != exact
    assert permutation(values, 1) == permutation(values, 1) != permutation(values, 2)


def test_random_flips_never_give_zero():
    assert permutation(np.full(60, 0.1)) == 1 / (FLIPS + 1)


@pytest.mark.parametrize("size", [9, 30])
def test_permutation_of_columns_is_one_test_per_column(size):
    values = normal(0, (size, 4))
    assert permutation_of_columns(values, 5) == pytest.approx([permutation(column, 5) for column in values.T])


@pytest.mark.parametrize("test", TESTS)
def test_all_zero_differences_are_no_evidence(test):
    assert TESTS[test](np.zeros(8), 0) == 1


def test_t_of_equal_differences_is_undefined():
    assert math.isnan(paired_t([0.9 - 0.8, 0.8 - 0.7, 0.7 - 0.6]))
    assert math.isnan(cohen_dz([2, 2, 2]))


@pytest.mark.parametrize("pairs", [0, 1, 2, 5, EXACT_FLIPS, EXACT_FLIPS + 1, 50, 51])
def test_smallest_p_is_what_the_clearest_data_give(pairs):
    clearest = np.arange(1.0, pairs + 1)
    assert smallest_p("wilcoxon", pairs) == pytest.approx(wilcoxon(clearest), rel=1e-12)
    assert smallest_p("permutation", pairs) == pytest.approx(permutation(clearest), rel=1e-12)
    assert smallest_p("t", pairs) == 0
    if 1 <= pairs <= EXACT_FLIPS:
        assert smallest_p("wilcoxon", pairs) == smallest_p("permutation", pairs) == 2 / 2**pairs


def test_more_pairs_never_need_a_larger_p():
    for test in TESTS:
        found = [smallest_p(test, n) for n in range(EXACT_FLIPS + 5)]
        assert found == sorted(found, reverse=True)


def test_unknown_test_is_refused():
    with pytest.raises(UsageError, match="wilcoxon, t, permutation"):
        smallest_p("sign", 5)
    with pytest.raises(UsageError, match="'sign'"):
        compare_paired([1], [1], "sign")


def attainable(ranks):
    """The largest p-value of signed rank sums that is not above 0.05."""
    sums = np.array([abs(np.dot(signs, ranks)) for signs in itertools.product((-1, 1), repeat=len(ranks))])
    shares = [np.mean(sums >= s) for s in np.unique(sums)]
    return max(share for share in shares if share <= 0.05)


@pytest.mark.parametrize(
    ("test", "expected"), [("wilcoxon", attainable(np.arange(1, 12))), ("t", 0.05), ("permutation", 102 / 2048)]
)
def test_false_positive_rate_lies_in_its_interval(test, expected):
    simulated = normal(7, (2000, 11), 0)
    wrong = sum(TESTS[test](values, 0) <= 0.05 for values in simulated)
    low, high = stats.binom.ppf((0.005, 0.995), len(simulated), expected)
    assert low <= wrong <= high


def test_family_wise_rate_of_holm_lies_in_its_interval():
    families, size = 1500, 6
    simulated = normal(8, (families, size, 10), 0)
    p = stats.ttest_1samp(simulated, 0, axis=2).pvalue
    assert paired_t(simulated[0, 0]) == pytest.approx(p[0, 0])
    wrong = sum(min(holm(family)) <= 0.05 for family in p.tolist())
    low, high = stats.binom.ppf((0.005, 0.995), families, 1 - (1 - 0.05 / size) ** size)
    assert low <= wrong <= high
    assert (p.min(axis=1) <= 0.05).sum() > 3 * high  # what no correction would give


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1) | st.just(math.nan), max_size=12))
def test_holm_is_statsmodels_of_what_is_known(p_values):
    expected = np.array(p_values, float)
    known = ~np.isnan(expected)
    if known.any():
        expected[known] = multipletests(expected[known], method="holm")[1]
    assert holm(p_values) == pytest.approx(expected.tolist(), abs=1e-12, nan_ok=True)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, math.nan, 0.5]) == pytest.approx([1, math.nan, 1], nan_ok=True)
    assert holm([]) == []


def slow_bca(values, level, resamples):
    """Efron & Tibshirani 1993, equations 14.9 to 14.15, step by step."""
    rng = np.random.default_rng(99)
    means = np.sort([rng.choice(values, len(values)).mean() for _ in range(resamples)])
    below = (np.mean(means < values.mean()) + np.mean(means <= values.mean())) / 2
    bias = stats.norm.ppf(below)
    left_out = np.array([np.delete(values, i).mean() for i in range(len(values))])
    deviations = left_out.mean() - left_out
    acceleration = (deviations**3).sum() / (6 * (deviations**2).sum() ** 1.5)
    z = bias + stats.norm.ppf([(1 - level) / 2, (1 + level) / 2])
    return np.quantile(means, stats.norm.cdf(bias + z / (1 - acceleration * z)))


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_bca_is_a_slow_reference(level):
    values = np.random.default_rng(2).exponential(1, 20) ** 1.5
    found = bca_interval(values, level, resamples=40_000)
    width = found[1] - found[0]
    assert found == pytest.approx(slow_bca(values, level, 20_000), abs=0.03 * width)
    percentile = stats.bootstrap((values,), np.mean, confidence_level=level, method="percentile", random_state=0)
    assert abs(percentile.confidence_interval.high - found[1]) > 0.06 * width  # so the test can tell them apart


def test_bca_covers_the_mean():
    rng = np.random.default_rng(5)
    simulated = rng.exponential(1, (500, 40))
    intervals = np.array([bca_interval(values, resamples=1000) for values in simulated])
    covered = np.mean((intervals[:, 0] <= 1) & (intervals[:, 1] >= 1))
    assert 0.90 <= covered <= 0.97
    widths = intervals[:, 1] - intervals[:, 0]
    assert np.median(widths) == pytest.approx(2 * 1.96 / math.sqrt(40), rel=0.15)


def test_bca_is_seeded_and_moves_with_the_data():
    values = normal(0, 15)
    assert bca_interval(values) == bca_interval(values, seed=0) != bca_interval(values, seed=1)
    assert bca_interval(values + 5) == pytest.approx(np.array(bca_interval(values)) + 5)
    wide, narrow = bca_interval(values, 0.99), bca_interval(values, 0.5)
    assert wide[0] < narrow[0] < values.mean() < narrow[1] < wide[1]


@pytest.mark.parametrize("seed", range(6))
def test_bca_of_few_or_lumpy_values_stays_within_them(seed):
    rng = np.random.default_rng(seed)
    for values in (rng.normal(size=2), rng.normal(size=3), np.eye(1, 15)[0], np.eye(1, 90)[0] * 1e-6, [0, 0, 0, 1, 1]):
        low, high = bca_interval(values)
        assert min(values) - 1e-12 <= low <= np.mean(values) <= high <= max(values) + 1e-12


def test_bca_of_degenerate_values():
    assert all(math.isnan(edge) for edge in (*bca_interval([]), *bca_interval([0.5])))
    assert bca_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)
    assert bca_interval([0.9 - 0.8, 0.8 - 0.7, 0.7 - 0.6]) == pytest.approx((0.1, 0.1))


@pytest.mark.parametrize("size", [3, 15, 60, 300])
@pytest.mark.parametrize(("alpha", "power"), [(0.05, 0.8), (0.01, 0.9)])
def test_detectable_difference_is_statsmodels(size, alpha, power):
    values = normal(size, size)
    found = detectable_difference(values, alpha, power)
    effect = found / values.std(ddof=1)
    theirs = TTestPower().power(effect, size, alpha / 2, alternative="larger")
    assert theirs == pytest.approx(power, abs=1e-6)


def test_detectable_difference_by_default_is_the_usual_one():
    values = normal(0, 15)
    effect = TTestPower().solve_power(nobs=15, alpha=0.05, power=0.8)
    assert detectable_difference(values) == pytest.approx(
        effect * values.std(ddof=1), rel=1e-5
    )  # theirs counts the wrong direction too
    large = normal(0, 5000)
    assert detectable_difference(large) == pytest.approx(
        (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * large.std(ddof=1) / math.sqrt(5000), rel=1e-3
    )


def test_detectable_difference_of_degenerate_differences():
    assert all(math.isnan(detectable_difference(values)) for values in ([], [0.3]))
    assert detectable_difference([0.3, 0.3]) == 0
    assert detectable_difference([0.1, 0.4], alpha=1e-5, power=0.99) == pytest.approx(27_000, rel=0.1)


def test_effect_sizes_by_hand():
    a, b = np.array([3.0, 5, 4, 2, 6]), np.array([2.0, 3, 7, 2, 2])  # differences 1, 2, -3, 0, 4
    found = compare_paired(a, b)
    assert (found.mean_a, found.mean_b, found.difference) == pytest.approx((4, 3.2, 0.8))
    assert found.cohen_dz == pytest.approx(0.8 / math.sqrt((0.04 + 1.44 + 14.44 + 0.64 + 10.24) / 4))
    assert found.rank_biserial == pytest.approx((1 + 2 + 4 - 3) / 10)
    assert found.superiority == pytest.approx(3.5 / 5)
    assert found.p == pytest.approx(wilcoxon(a - b)) == pytest.approx(10 / 16)
    assert (found.studies, found.missing, found.smallest_p) == (5, 0, 2 / 32)
    assert math.isnan(found.p_holm)
    assert rank_biserial([0, 0, 1, -2]) == pytest.approx(-1 / 3)


def test_effect_sizes_of_two_equal_models():
    found = compare_paired([1, 2, 3], [1, 2, 3])
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert (found.cohen_dz, found.rank_biserial, found.superiority, found.detectable) == (0, 0, 0.5, 0)


@pytest.mark.parametrize("test", TESTS)
def test_comparison_is_its_parts(test):
    a, b = normal(1, 25), normal(2, 25, 0)
    found = compare_paired(a, b, test, seed=3, level=0.9)
    assert (found.p, found.smallest_p) == (TESTS[test](a - b, 3), smallest_p(test, 25))
    assert (found.low, found.high, found.detectable) == (*bca_interval(a - b, 0.9, 3), detectable_difference(a - b))
    assert found == compare_paired(a, b, test, seed=3, level=0.9)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=12))
def test_swapping_the_models_turns_the_comparison_round(pairs):
    a, b = np.array(pairs, float).T
    one, other = compare_paired(a, b, "permutation"), compare_paired(b, a, "permutation")
    assert other.p == one.p
    assert other.difference == -one.difference
    assert other.rank_biserial == pytest.approx(-one.rank_biserial)
    assert other.superiority == pytest.approx(1 - one.superiority)
    assert other.cohen_dz == pytest.approx(-one.cohen_dz, nan_ok=True)


def test_pairs_with_a_missing_value_are_counted_and_not_used():
    nan = math.nan
    found = compare_paired([1, nan, 3, 5, nan, 9], [2, 2, nan, 4, nan, 6])
    assert (found.studies, found.missing) == (3, 3)
    assert asdict(found) == {**asdict(compare_paired([1, 5, 9], [2, 4, 6])), "missing": 3, "p_holm": found.p_holm}


@pytest.mark.parametrize(("a", "b", "counts"), [([], [], (0, 0)), ([1, math.nan], [2, 3], (1, 1))])
def test_fewer_than_two_pairs_say_nothing(a, b, counts):
    found = asdict(compare_paired(a, b))
    assert (found.pop("studies"), found.pop("missing")) == counts
    assert all(math.isnan(value) for value in found.values())


def test_values_that_do_not_pair_are_refused():
    for a, b in (([1, 2], [1, 2, 3]), ([[1, 2]], [[1, 2]])):
        with pytest.raises(InputError, match="one value per study"):
            compare_paired(a, b)
    for a, b in (([math.inf, 1], [0, 0]), ([0, 0], [1, -math.inf])):
        with pytest.raises(InputError, match="infinite"):
            compare_paired(a, b)


def test_adjusted_is_holm_over_all():
    comparisons = [compare_paired(normal(seed, 12, 0.8), np.zeros(12)) for seed in range(4)]
    comparisons.insert(1, compare_paired([1], [2]))
    found = adjusted(comparisons)
    assert [c.p_holm for c in found] == pytest.approx(holm([c.p for c in comparisons]), nan_ok=True)
    assert math.isnan(found[1].p_holm)
    assert [c.p for c in found] == pytest.approx([c.p for c in comparisons], nan_ok=True)
