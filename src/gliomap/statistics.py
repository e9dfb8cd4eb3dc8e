"""Two models on the same studies: which is better, how sure that is, and what so many studies could have shown at all.

Plain arrays. Several models at once are in `gliomap.ranking`; docs/statistics.md says which question each number answers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from gliomap.errors import InputError, UsageError

Array = NDArray[np.float64]
Verdict = Literal["supported", "not supported", "undecided"]

ALPHA = 0.05
"""A p-value, corrected where there are several, decides below this."""

EXACT_FLIPS = 17
"""Up to this many pairs the permutation test goes through all 2^n flips of signs; beyond it draws `FLIPS`."""

FLIPS = 100_000
_BLOCK = 10_000

EXACT_WILCOXON = 50
"""Up to this many pairs the distribution of the signed rank sum is exact, as in scipy; beyond it is the normal one."""


def wilcoxon(differences: ArrayLike) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; 1 where all differences are zero.

    Zeros are left out (Wilcoxon 1945; scipy's and R's default). Differences that are equal to 9 digits of the largest tie.
    Exact up to `EXACT_WILCOXON` non-zero differences, ties included.
    """
    values = _rounded(differences)
    values = values[values != 0]
    if not values.size:
        return 1.0
    if values.size <= EXACT_WILCOXON and np.unique(np.abs(values)).size < values.size:
        return _exact_with_ties(values)
    return float(stats.wilcoxon(values).pvalue)


def _exact_with_ties(values: Array) -> float:
    """Share of all flips of signs whose signed rank sum is as far from its mean, adding one rank after the other."""
    doubled = (2 * stats.rankdata(np.abs(values))).astype(int)  # whole numbers, as tied ranks end in a half
    shares = np.ones(1)
    for rank in doubled:
        shares = (np.pad(shares, (0, rank)) + np.pad(shares, (rank, 0))) / 2
    distance = np.abs(2 * np.arange(shares.size) - doubled.sum())
    return float(shares[distance >= abs(doubled @ np.sign(values))].sum())


def paired_t(differences: ArrayLike) -> float:
    """Two-sided p of the paired t test; 1 where all differences are zero, NaN where they are all equal and not zero."""
    values = np.asarray(differences, float)
    if not values.any():
        return 1.0
    return math.nan if _constant(values) else float(stats.ttest_1samp(values, 0).pvalue)


def permutation(differences: ArrayLike, seed: int = 0) -> float:
    """Two-sided p of the mean difference under flips of signs, that is, swaps of the two models in a study.

    Up to `EXACT_FLIPS` pairs all 2^n flips, else (b + 1) / (m + 1) of m = `FLIPS` random ones (Phipson & Smyth 2010).
    """
    return float(permutation_of_columns(np.asarray(differences, float)[:, None], seed)[0])


def permutation_of_columns(differences: Array, seed: int) -> Array:
    """The p of `permutation` for each column of (N, P), with the same flips for all: (P,)."""
    observed = np.abs(differences.sum(axis=0)) - 1e-10 * np.abs(differences).sum(axis=0)
    count = len(differences)
    if count <= EXACT_FLIPS:
        flips = np.arange(2 ** max(0, count - 1))[:, None] >> np.arange(count) & 1  # half are enough: the last stays
        return (np.abs((1.0 - 2 * flips) @ differences) >= observed).mean(axis=0)
    rng = np.random.default_rng(seed)
    as_far = np.zeros(differences.shape[1])
    for _ in range(FLIPS // _BLOCK):
        flips = rng.integers(0, 2, (_BLOCK, count), dtype=np.int8)
        as_far += (np.abs((1.0 - 2 * flips) @ differences) >= observed).sum(axis=0)
    return (as_far + 1) / (FLIPS + 1)


TESTS: dict[str, Callable[[Array, int], float]] = {
    "wilcoxon": lambda differences, _seed=0: wilcoxon(differences),
    "t": lambda differences, _seed=0: paired_t(differences),
    "permutation": permutation,
}
"""Paired test by name: two-sided p of differences (N,) without NaN, and a seed that only the permutation test uses."""


def smallest_p(test: str, pairs: int) -> float:
    """The smallest two-sided p that so many pairs could ever give, whatever the models do; 0 for the t test.

    Raises:
        UsageError: no test has that name.
    """
    _known(test)
    if test == "t":
        return 0.0
    if test == "permutation":
        return min(1.0, 2.0 ** (1 - pairs)) if pairs <= EXACT_FLIPS else 1 / (FLIPS + 1)
    return wilcoxon(np.arange(1.0, pairs + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number (Holm 1979); NaN stays NaN and is not counted."""
    p = np.asarray(p_values, float)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # NaN sorts last
    adjusted_p = np.full(p.shape, np.nan)
    adjusted_p[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(order.size, 0, -1)))
    return adjusted_p.tolist()


def bca_interval(values: ArrayLike, level: float = 0.95, seed: int = 0, resamples: int = 10_000) -> tuple[float, float]:
    """Bias-corrected and accelerated bootstrap interval of the mean (Efron 1987).

    Equal values give their value twice; fewer than 2 give NaN.
    """
    data = np.asarray(values, float)
    if data.size < 2:
        return math.nan, math.nan
    if _constant(data):
        return float(data[0]), float(data[0])
    rng = np.random.default_rng(seed)
    found = stats.bootstrap(
        (data,), np.mean, confidence_level=level, n_resamples=resamples, method="BCa", random_state=rng
    ).confidence_interval
    return float(found.low), float(found.high)


def detectable_difference(differences: ArrayLike, alpha: float = ALPHA, power: float = 0.8) -> float:
    """The true mean difference that a paired t test at ``alpha`` would find, in its direction, with the chance ``power``.

    From the spread of these differences and their number, by the noncentral t distribution: what the sample can show
    before any correction for several comparisons. 0 where there is no spread; NaN for fewer than 2 differences.
    """
    values = np.asarray(differences, float)
    if values.size < 2:
        return math.nan
    if _constant(values):
        return 0.0
    threshold = stats.t.isf(alpha / 2, values.size - 1)
    standard_errors = special.nctdtrinc(values.size - 1, 1 - power, threshold)
    return float(standard_errors * values.std(ddof=1) / math.sqrt(values.size))


@dataclass(frozen=True)
class PairedComparison:
    """Model a against model b on the studies that both have a value for.

    Attributes:
        studies: Pairs that count.
        missing: Pairs left out because one or both values are missing.
        mean_a: Over the pairs that count; mean_b alike.
        difference: Mean of a - b; low and high are its BCa interval.
        p_holm: NaN until `adjusted`.
        cohen_dz: Mean over standard deviation of the differences (Lakens 2013); NaN where these are equal and not zero.
        rank_biserial: Matched pairs (Kerby 2014): share of the rank sum that favours a minus that of b, -1 to 1.
        superiority: Share of the studies in which a is greater than b; ties count half.
        detectable: See `detectable_difference`.
        smallest_p: See `smallest_p`.
    """

    studies: int
    missing: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    cohen_dz: float
    rank_biserial: float
    superiority: float
    detectable: float
    smallest_p: float


def compare_paired(
    a: ArrayLike, b: ArrayLike, test: str = "wilcoxon", seed: int = 0, level: float = 0.95
) -> PairedComparison:
    """Compare two models on the same studies: a and b (N,), NaN where a value is missing.

    Fewer than 2 pairs give NaN for everything but the counts.

    Raises:
        InputError: a and b differ in shape or have infinite values.
        UsageError: no test has that name.
    """
    _known(test)
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.ndim != 1 or a.shape != b.shape:
        raise InputError(f"cannot pair values of shapes {a.shape} and {b.shape}; expected one value per study in each")
    if np.isinf(a).any() or np.isinf(b).any():
        raise InputError("a value is infinite; expected finite values, and NaN where one is missing")
    paired = ~np.isnan(a - b)
    a, b = a[paired], b[paired]
    studies, missing = a.size, int(paired.size - a.size)
    if studies < 2:
        return PairedComparison(studies, missing, *[math.nan] * 12)
    differences = a - b
    low, high = bca_interval(differences, level, seed)
    return PairedComparison(
        studies=studies,
        missing=missing,
        mean_a=float(a.mean()),
        mean_b=float(b.mean()),
        difference=float(differences.mean()),
        low=low,
        high=high,
        p=TESTS[test](differences, seed),
        p_holm=math.nan,
        cohen_dz=cohen_dz(differences),
        rank_biserial=rank_biserial(differences),
        superiority=float((np.sign(differences).mean() + 1) / 2),
        detectable=detectable_difference(differences),
        smallest_p=smallest_p(test, studies),
    )


def cohen_dz(differences: ArrayLike) -> float:
    """Mean over standard deviation; 0 where all differences are zero, NaN where they are equal and not zero."""
    values = np.asarray(differences, float)
    if not values.any():
        return 0.0
    return math.nan if _constant(values) else float(values.mean() / values.std(ddof=1))


def rank_biserial(differences: ArrayLike) -> float:
    """Matched-pairs rank-biserial correlation, zeros left out as in `wilcoxon`; 0 where all differences are zero."""
    values = _rounded(differences)
    values = values[values != 0]
    ranks = stats.rankdata(np.abs(values))
    return float(ranks @ np.sign(values) / ranks.sum()) if values.size else 0.0


def adjusted(comparisons: Sequence[PairedComparison]) -> list[PairedComparison]:
    """The comparisons with ``p_holm`` over all of them."""
    p_values = holm([one.p for one in comparisons])
    return [replace(one, p_holm=p) for one, p in zip(comparisons, p_values, strict=True)]


def verdict(
    comparison: PairedComparison, higher_is_better: bool, claimed_gain: float | None = None, alpha: float = ALPHA
) -> Verdict:
    """Whether an adjusted comparison bears out the claim that a is better than b.

    Supported: p_holm (see `adjusted`) is below alpha and the whole interval is on a's side. Not supported: the same on
    b's side, or the interval reaches 0 and stays below the claimed gain (positive, whichever way is better). Else
    undecided.

    Raises:
        UsageError: the claimed gain is not positive.
    """
    if claimed_gain is not None and not claimed_gain > 0:
        raise UsageError(f"the claimed gain is {claimed_gain:g}; expected more than 0, also where lower is better")
    low, high = comparison.low, comparison.high
    if not higher_is_better:
        low, high = -high, -low
    if comparison.p_holm < alpha and (low > 0 or high < 0):
        return "supported" if low > 0 else "not supported"
    ruled_out = claimed_gain is not None and low <= 0 and high < claimed_gain
    return "not supported" if ruled_out else "undecided"


def _rounded(differences: ArrayLike) -> Array:
    """Differences to 9 digits of the largest, so that 0.9 - 0.8 and 0.8 - 0.7 tie."""
    values = np.asarray(differences, float)
    largest = np.abs(values).max(initial=0.0)
    return np.round(values / largest, 9) if largest > 0 else values


def _constant(values: Array) -> bool:
    return bool(np.ptp(_rounded(values)) == 0)


def _known(test: str) -> None:
    if test not in TESTS:
        raise UsageError(f"no paired test is called {test!r}; expected one of {', '.join(TESTS)}")
