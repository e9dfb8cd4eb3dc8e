import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from gliomap.errors import UsageError
from gliomap.statistics import TESTS, PairedComparison, bca_interval, smallest_p, verdict


def compared(low, high, p_holm):
    rest = dict.fromkeys(PairedComparison.__dataclass_fields__, 0.0)
    return PairedComparison(**rest | {"low": low, "high": high, "p_holm": p_holm})


@pytest.mark.parametrize(
    ("low", "high", "p_holm", "gain", "expected"),
    [
        (0.01, 0.05, 0.01, None, "supported"),
        (0.01, 0.05, 0.01, 0.2, "supported"),  # better, even if by less than claimed
        (0.01, 0.05, 0.05, None, "undecided"),  # p is not below alpha
        (0.01, 0.05, math.nan, None, "undecided"),  # never adjusted
        (0.01, 0.05, 0.2, 0.1, "undecided"),  # excludes the gain, but not some gain
        (0.00, 0.05, 0.01, None, "undecided"),
        (-0.01, 0.05, 0.01, None, "undecided"),
        (-0.01, 0.05, 0.3, 0.04, "undecided"),
        (-0.01, 0.05, 0.3, 0.05, "undecided"),
        (-0.01, 0.05, 0.3, 0.06, "not supported"),
        (0.00, 0.05, 0.3, 0.06, "not supported"),
        (-0.05, 0.00, 0.3, None, "undecided"),
        (-0.05, -0.01, 0.3, None, "undecided"),  # as hard as the other way round
        (-0.05, -0.01, 0.05, None, "undecided"),
        (-0.05, -0.01, math.nan, None, "undecided"),
        (-0.05, -0.01, 0.04, None, "not supported"),
        (-0.05, 0.00, 0.04, None, "undecided"),
        (-0.05, -0.01, 0.3, 0.02, "not supported"),  # the claimed gain is ruled out
        (-0.05, -0.01, 0.01, 0.02, "not supported"),
        (math.nan, math.nan, math.nan, 0.02, "undecided"),
    ],
)
def test_verdict(low, high, p_holm, gain, expected):
    assert verdict(compared(low, high, p_holm), True, gain) == expected
    assert verdict(compared(-high, -low, p_holm), False, gain) == expected


def test_verdict_takes_its_alpha():
    assert verdict(compared(0.01, 0.05, 0.03), True, alpha=0.01) == "undecided"
    assert verdict(compared(0.01, 0.05, 0.08), True, alpha=0.1) == "supported"
    assert verdict(compared(-0.05, -0.01, 0.08), True, alpha=0.1) == "not supported"


@pytest.mark.parametrize("test", ["wilcoxon", "t"])
@pytest.mark.parametrize("pairs", [2, 3, 5, 10])
def test_two_equal_models_are_told_apart_no_more_often_than_alpha_says_either_way(test, pairs):
    found = Counter()
    simulated = np.random.default_rng(pairs).normal(size=(600, pairs))
    for differences in simulated:
        low, high = bca_interval(differences, resamples=200)
        found[verdict(compared(low, high, TESTS[test](differences, 0)), True)] += 1
    most = stats.binom.ppf(0.999, len(simulated), 0.025)
    assert found["supported"] <= most
    assert found["not supported"] <= most
    if smallest_p(test, pairs) > 0.05:
        assert set(found) == {"undecided"}
    elif test == "t":
        assert min(found["supported"], found["not supported"]) >= stats.binom.ppf(0.001, len(simulated), 0.025)


@pytest.mark.parametrize("gain", [0.0, -0.1, math.nan])
def test_a_claimed_gain_is_positive(gain):
    with pytest.raises(UsageError, match="more than 0"):
        verdict(compared(0.01, 0.05, 0.01), True, gain)
