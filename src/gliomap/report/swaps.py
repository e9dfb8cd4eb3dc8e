"""Two models by a statistic that is no mean of the studies' scores: a standard deviation, a Dice of all studies together.

Plain arrays. Such a statistic is a function of sums over the studies; ``terms`` (N, F) are what each study adds to them.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import special

from gliomap.statistics import EXACT_FLIPS, FLIPS, PairedComparison, smallest_p

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
"""From sums (..., F) to (...)."""

RESAMPLES = 10_000
_BLOCK = 1_000


def compare_by_swaps(a: Array, b: Array, statistic: Statistic, seed: int = 0) -> PairedComparison:
    """Compare two models by the terms of both, (N, F), NaN where a study is missing; as `gliomap.statistics.compare_paired`.

    ``mean_a`` and ``mean_b`` are the statistics, ``difference`` is theirs, with a bootstrap interval over studies; p is that of
    `swap_p`. ``detectable`` is by the normal approximation with the bootstrap's standard error. What is only of single studies
    (cohen_dz, rank_biserial, superiority) is NaN, as is all but the counts of fewer than 2 pairs.
    """
    paired = ~np.isnan(a + b).any(axis=1)
    a, b = a[paired], b[paired]
    studies, missing = len(a), int(paired.size - len(a))
    if studies < 2:
        return PairedComparison(studies, missing, *[math.nan] * 12)

    def difference(sums: Array) -> Array:
        first, second = np.split(sums, 2, axis=-1)
        return statistic(first) - statistic(second)

    both = np.concatenate([a, b], axis=1)
    drawn = _resampled(both, difference, seed)
    low, high = _bca(both, difference, drawn)
    return PairedComparison(
        studies=studies,
        missing=missing,
        mean_a=float(statistic(a.sum(axis=0))),
        mean_b=float(statistic(b.sum(axis=0))),
        difference=float(difference(both.sum(axis=0))),
        low=low,
        high=high,
        p=swap_p(a, b, statistic, seed),
        p_holm=math.nan,
        cohen_dz=math.nan,
        rank_biserial=math.nan,
        superiority=math.nan,
        detectable=float((special.ndtri(0.975) + special.ndtri(0.8)) * drawn.std()),
        smallest_p=smallest_p("permutation", studies),
    )


def swap_p(a: Array, b: Array, statistic: Statistic, seed: int = 0) -> float:
    """Two-sided p of the difference of the statistics under swaps of the two models, study by study.

    Up to `EXACT_FLIPS` studies all 2^n swaps, else (b + 1) / (m + 1) of m = `FLIPS` random ones.
    """
    first, total, change = a.sum(axis=0), (a + b).sum(axis=0), b - a
    observed = abs(statistic(first) - statistic(total - first))
    observed -= 1e-9 * (abs(statistic(first)) + abs(statistic(total - first)))

    def as_far(swaps: NDArray[np.int8]) -> NDArray[np.bool_]:
        sums = first + swaps @ change
        return np.abs(statistic(sums) - statistic(total - sums)) >= observed

    count = len(a)
    if count <= EXACT_FLIPS:
        numbers = np.arange(2 ** (count - 1))[:, None]  # half are enough: the last study stays
        return float(as_far((numbers >> np.arange(count) & 1).astype(np.int8)).mean())
    rng = np.random.default_rng(seed)
    found = sum(int(as_far(rng.integers(0, 2, (_BLOCK, count), np.int8)).sum()) for _ in range(FLIPS // _BLOCK))
    return (found + 1) / (FLIPS + 1)


def bootstrap_interval(terms: Array, statistic: Statistic, seed: int = 0) -> tuple[float, float]:
    """The BCa 95 % interval of a statistic by resampling studies, from terms (N, F); NaN of fewer than 2."""
    if len(terms) < 2:
        return math.nan, math.nan
    return _bca(terms, statistic, _resampled(terms, statistic, seed))


def _resampled(terms: Array, statistic: Statistic, seed: int) -> Array:
    rng, count = np.random.default_rng(seed), len(terms)
    shares = np.full(count, 1 / count)
    drawn = [statistic(rng.multinomial(count, shares, _BLOCK) @ terms) for _ in range(RESAMPLES // _BLOCK)]
    return np.concatenate(drawn)


def _bca(terms: Array, statistic: Statistic, drawn: Array) -> tuple[float, float]:
    """Bias-corrected and accelerated (Efron 1987); ties with the statistic count half."""
    sums = terms.sum(axis=0)
    value = statistic(sums)
    below = ((drawn < value).mean() + (drawn <= value).mean()) / 2
    bias = special.ndtri(np.clip(below, 0.5 / drawn.size, 1 - 0.5 / drawn.size))
    without = statistic(sums - terms)
    apart = without.mean() - without  # NaN where two studies leave one
    spread = (apart**2).sum()
    acceleration = (apart**3).sum() / (6 * spread**1.5) if spread > 0 else 0.0
    tails = bias + special.ndtri([0.025, 0.975])
    low, high = np.quantile(drawn, special.ndtr(bias + tails / (1 - acceleration * tails)))
    return float(low), float(high)
