"""Several models on the same studies: do they differ, which stand apart, and who comes first. Plain arrays."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from gliomap.errors import InputError, UsageError
from gliomap.statistics import Array, permutation_of_columns


@dataclass(frozen=True)
class Friedman:
    """Friedman's test over K models: chi-squared statistic, p, mean ranks (K,) with 1 best, and the studies counted."""

    statistic: float
    p: float
    mean_ranks: Array
    studies: int


def friedman(values: ArrayLike, higher_is_better: bool = True) -> Friedman:
    """Whether any of K models differs from the rest: values (N studies, K models), NaN where missing.

    A missing value ranks worst, several of them tied; an infinitely good one is what is correctly empty. Ties are corrected
    for; all tied gives p = 1, no study NaN.

    Raises:
        InputError: the values are no table.
        UsageError: there are fewer than 3 models.
    """
    table = np.asarray(values, float)
    if table.ndim != 2:
        raise InputError(f"the values have the shape {table.shape}; expected (studies, models)")
    studies, models = table.shape
    if models < 3:
        raise UsageError(f"Friedman's test needs at least 3 models, not {models}; compare two with a paired test")
    if not studies:
        return Friedman(math.nan, math.nan, np.full(models, np.nan), 0)
    ranks = _ranks(table, higher_is_better)
    if (ranks == ranks[:, :1]).all():
        return Friedman(0.0, 1.0, ranks.mean(axis=0), studies)
    found = stats.friedmanchisquare(*ranks.T)
    return Friedman(float(found.statistic), float(found.pvalue), ranks.mean(axis=0), studies)


def mean_ranks(values: ArrayLike, higher_is_better: bool = True) -> Array:
    """Mean rank (K,) over the studies of (N studies, K models), 1 is best, by the rules of `friedman`."""
    return _ranks(np.asarray(values, float), higher_is_better).mean(axis=0)


def cliques(joined: ArrayLike) -> list[tuple[int, ...]]:
    """The maximal groups of two or more models of which all are joined two by two: (K, K), symmetric, True where they are.

    Each group is in rising order, and so are the groups. Found by Bron & Kerbosch (1973) with a pivot.
    """
    table = np.asarray(joined, bool)
    neighbours = [set(np.flatnonzero(row).tolist()) - {model} for model, row in enumerate(table)]
    found: list[tuple[int, ...]] = []

    def extend(group: set[int], candidates: set[int], seen: set[int]) -> None:
        if not candidates and not seen and len(group) > 1:
            found.append(tuple(sorted(group)))
        pivot = max(candidates | seen, key=lambda model: len(neighbours[model] & candidates), default=0)
        for model in sorted(candidates - (neighbours[pivot] if candidates else set())):
            extend(group | {model}, candidates & neighbours[model], seen & neighbours[model])
            candidates, seen = candidates - {model}, seen | {model}

    extend(set(), set(range(len(table))), set())
    return sorted(found)


@dataclass(frozen=True)
class Ranking:
    """Models ranked as in BraTS and FeTS.

    Attributes:
        study_ranks: (N, K): rank among the models in a study, averaged over the columns; 1 is best.
        mean_ranks: (K,): averaged over studies.
        places: (K,): 1 for the lowest mean rank; equal ones share the better place.
        p: (K, K): two-sided permutation test of the study ranks of two models; 1 on the diagonal, not adjusted.
        place_shares: (K, K): share of the resamples in which model i takes place j + 1; a row sums to 1.
        rank_low: (K,): 2.5th percentile of the mean rank over the resamples; rank_high the 97.5th.
    """

    study_ranks: Array
    mean_ranks: Array
    places: NDArray[np.int64]
    p: Array
    place_shares: Array
    rank_low: Array
    rank_high: Array


def ranking(values: ArrayLike, higher_is_better: Sequence[bool], seed: int = 0, resamples: int = 10_000) -> Ranking:
    """Rank K models on N studies by C columns (a column is a region and metric): values (N, K, C), NaN where missing.

    In each study and column the models are ranked, ties averaged, missing values worst and infinitely good ones, that is,
    what is correctly empty, best. These ranks are averaged over
    the columns and then over the studies. How stable that is, a bootstrap over the studies tells.

    Raises:
        InputError: the values have another shape, or nothing in them, or not one direction per column.
    """
    table = np.asarray(values, float)
    if table.ndim != 3 or not table.size or len(higher_is_better) != table.shape[2]:
        raise InputError(
            f"values of the shape {table.shape} with {len(higher_is_better)} directions; expected (studies, models, "
            "columns), none of them 0, and a direction per column"
        )
    studies, models, columns = table.shape
    ranks = np.stack([_ranks(table[..., i], better) for i, better in enumerate(higher_is_better)], axis=2)
    doubled = 2 * ranks.sum(axis=2)  # whole numbers, so that equal ranks stay equal in every sum
    first, second = np.triu_indices(models, 1)
    p = np.ones((models, models))
    p[first, second] = p[second, first] = permutation_of_columns(doubled[:, first] - doubled[:, second], seed)
    draws = np.random.default_rng(seed).multinomial(studies, np.full(studies, 1 / studies), size=resamples)
    sums = draws @ doubled
    places = _places(sums)
    low, high = np.percentile(sums, (2.5, 97.5), axis=0) / (2 * columns * studies)
    return Ranking(
        study_ranks=doubled / (2 * columns),
        mean_ranks=doubled.sum(axis=0) / (2 * columns * studies),
        places=_places(doubled.sum(axis=0, keepdims=True))[0],
        p=p,
        place_shares=(places[:, :, None] == np.arange(1, models + 1)).mean(axis=0),
        rank_low=low,
        rank_high=high,
    )


def _ranks(table: Array, higher_is_better: bool) -> Array:
    """Rank within each row of (N, K); 1 is best, ties averaged, NaN worst, infinities as they are."""
    costs = -table if higher_is_better else table
    return stats.rankdata(np.where(np.isnan(costs), np.inf, costs), axis=1)


def _places(sums: Array) -> NDArray[np.int64]:
    """Place by row of (R, K): 1 for the lowest; equal ones share the better place."""
    return stats.rankdata(sums, method="min", axis=1).astype(np.int64)
