import itertools
import math
import time

import numpy as np
import pytest
from scipy import stats

from gliomap.errors import InputError, UsageError
from gliomap.ranking import cliques, friedman, mean_ranks, ranking

NAN = math.nan
# The studies of Friedman's test by hand: three models, higher is better.
TABLE = [[0.9, 0.8, 0.7], [0.8, 0.8, 0.6], [0.7, 0.9, NAN], [NAN, 0.5, NAN]]
TABLE_RANKS = [[1, 2, 3], [1.5, 1.5, 3], [2, 1, 3], [2.5, 1, 2.5]]


def random_values(seed, shape, missing=0.15):
    rng = np.random.default_rng(seed)
    values = np.round(rng.normal(size=shape), 1)  # rounded, so that some tie
    values[rng.random(shape) < missing] = NAN
    return values


# Friedman


@pytest.mark.parametrize(("studies", "models"), [(8, 3), (15, 4), (40, 10)])
def test_friedman_is_scipys(studies, models):
    for seed in range(3):
        values = random_values(seed, (studies, models), 0)
        statistic, p = stats.friedmanchisquare(*values.T)
        found = friedman(values)
        assert (found.statistic, found.p) == pytest.approx((statistic, p), rel=1e-9)
        assert found.studies == studies
        assert found.mean_ranks == pytest.approx(stats.rankdata(-values, axis=1).mean(axis=0))


def test_friedman_without_ties_is_the_textbook_formula():
    values = np.random.default_rng(0).normal(size=(12, 5))
    found = friedman(values, higher_is_better=False)
    expected = 12 * 12 / (5 * 6) * ((found.mean_ranks - 3) ** 2).sum()
    assert found.statistic == pytest.approx(expected)
    assert found.p == pytest.approx(stats.chi2.sf(expected, 4))
    assert found.mean_ranks == pytest.approx(6 - friedman(values).mean_ranks)


def test_missing_values_rank_worst_and_tie():
    found = friedman(TABLE)
    assert found.mean_ranks == pytest.approx(np.mean(TABLE_RANKS, axis=0))
    assert found.statistic == pytest.approx(stats.friedmanchisquare(*np.transpose(TABLE_RANKS)).statistic)
    assert found.studies == 4
    distances = [[1, 2, NAN], [2, 2, 9]]
    assert friedman(distances, higher_is_better=False).mean_ranks == pytest.approx([1.25, 1.75, 3])


def test_what_is_correctly_empty_ranks_best_and_ties():
    best = math.inf
    scores = [[best, best, 1.0], [best, 0.9, NAN], [0.2, 0.9, 0.9]]
    expected = np.mean([[1.5, 1.5, 3], [1, 2, 3], [3, 1.5, 1.5]], axis=0)
    assert friedman(scores).mean_ranks == pytest.approx(expected)
    assert ranking(np.array(scores)[..., None], [True], resamples=10).mean_ranks == pytest.approx(expected)
    distances = -np.array(scores)
    assert friedman(distances, higher_is_better=False).mean_ranks == pytest.approx(expected)
    assert ranking(distances[..., None], [False], resamples=10).mean_ranks == pytest.approx(expected)


def test_friedman_of_degenerate_tables():
    tied = friedman([[0.5] * 4, [NAN] * 4])
    assert (tied.statistic, tied.p, tied.mean_ranks.tolist()) == (0, 1, [2.5] * 4)
    none = friedman(np.empty((0, 3)))
    assert math.isnan(none.p)
    assert math.isnan(none.statistic)
    assert (none.studies, none.mean_ranks.shape) == (0, (3,))
    with pytest.raises(UsageError, match="at least 3 models, not 2"):
        friedman([[1, 2], [3, 4]])
    with pytest.raises(InputError, match="studies, models"):
        friedman([1, 2, 3])


def test_mean_ranks_are_friedmans_also_of_two_models():
    values = random_values(0, (9, 4))
    assert mean_ranks(values, False) == pytest.approx(friedman(values, False).mean_ranks)
    assert mean_ranks([[0.9, 0.8], [0.5, 0.5], [NAN, 0.1], [0.3, 0.7]]) == pytest.approx([1.625, 1.375])


def joined_by(models, pairs):
    table = np.eye(models, dtype=bool)
    for a, b in pairs:
        table[a, b] = table[b, a] = True
    return table


@pytest.mark.parametrize(
    ("models", "pairs", "expected"),
    [
        (4, [(0, 1), (1, 2), (2, 3)], [(0, 1), (1, 2), (2, 3)]),
        (4, [(0, 1), (1, 2), (0, 2), (2, 3)], [(0, 1, 2), (2, 3)]),
        (3, [(0, 2)], [(0, 2)]),  # 1 lies between them and is told apart from both
        (3, [], []),
        (3, [(0, 1), (0, 2), (1, 2)], [(0, 1, 2)]),
        (5, [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (3, 4)], [(0, 1, 2), (1, 2, 3), (3, 4)]),
        (2, [(0, 1)], [(0, 1)]),
        (1, [], []),
        (0, [], []),
    ],
)
def test_cliques_by_hand(models, pairs, expected):
    assert cliques(joined_by(models, pairs)) == expected


@pytest.mark.parametrize("seed", range(20))
def test_cliques_are_the_maximal_groups(seed):
    rng = np.random.default_rng(seed)
    models = int(rng.integers(2, 9))
    table = np.triu(rng.random((models, models)) < 0.6, 1)
    table = table | table.T
    groups = [
        set(group)
        for size in range(2, models + 1)
        for group in itertools.combinations(range(models), size)
        if all(table[a, b] for a, b in itertools.combinations(group, 2))
    ]
    maximal = [group for group in groups if not any(group < other for other in groups)]
    assert cliques(table) == sorted(tuple(sorted(group)) for group in maximal)


def test_the_most_groups_that_twelve_models_can_have_are_all_found():
    parts = np.arange(12) // 3
    assert len(cliques(parts[:, None] != parts)) == 3**4  # Moon & Moser 1965


# Ranking


def slow_study_ranks(values, higher_is_better):
    studies, models, columns = values.shape
    ranks = np.zeros((studies, models))
    for n, k in itertools.product(range(studies), range(models)):
        for c in range(columns):
            mine = score(values[n, k, c], higher_is_better[c])
            others = [score(values[n, j, c], higher_is_better[c]) for j in range(models) if j != k]
            ranks[n, k] += (1 + sum(o > mine for o in others) + 0.5 * sum(o == mine for o in others)) / columns
    return ranks


def score(value, higher_is_better):
    return -math.inf if math.isnan(value) else value if higher_is_better else -value


def slow_places(mean_ranks):
    return [1 + sum(other < mine - 1e-9 for other in mean_ranks) for mine in mean_ranks]


@pytest.mark.parametrize("seed", range(4))
def test_ranking_is_a_plain_loop(seed):
    values = random_values(seed, (7, 4, 3))
    directions = (True, False, True)
    found = ranking(values, directions, resamples=10)
    ranks = slow_study_ranks(values, directions)
    assert found.study_ranks == pytest.approx(ranks)
    assert found.mean_ranks == pytest.approx(ranks.mean(axis=0))
    assert found.places.tolist() == slow_places(ranks.mean(axis=0))
    for i, j in itertools.product(range(4), repeat=2):
        assert found.p[i, j] == pytest.approx(slow_swap_p(ranks[:, i], ranks[:, j]))


def slow_swap_p(a, b):
    """Every choice of studies in which the two models' ranks are swapped."""
    found = []
    for swapped in itertools.product((False, True), repeat=len(a)):
        one, other = np.where(swapped, b, a), np.where(swapped, a, b)
        found.append(abs(one.mean() - other.mean()))
    return np.mean(np.array(found) >= abs(a.mean() - b.mean()) - 1e-9)


def test_rank_stability_is_that_of_all_resamples():
    values = random_values(11, (4, 3, 2), 0)
    ranks = slow_study_ranks(values, (True, True))
    resampled = [ranks[list(draw)].mean(axis=0) for draw in itertools.product(range(4), repeat=4)]
    places = np.array([slow_places(means) for means in resampled])
    found = ranking(values, (True, True), resamples=40_000)
    for i, place in itertools.product(range(3), repeat=2):
        assert found.place_shares[i, place] == pytest.approx(np.mean(places[:, i] == place + 1), abs=0.012)
    assert found.place_shares.sum(axis=1) == pytest.approx([1, 1, 1])
    low, high = np.percentile(resampled, (2.5, 97.5), axis=0, method="inverted_cdf")
    assert found.rank_low == pytest.approx(low, abs=0.051)
    assert found.rank_high == pytest.approx(high, abs=0.051)
    assert (found.rank_low < found.mean_ranks).all()
    assert (found.mean_ranks < found.rank_high).all()


def test_ranking_by_hand():
    found = ranking(np.array(TABLE)[..., None], [True])
    assert found.study_ranks.tolist() == TABLE_RANKS
    assert found.mean_ranks == pytest.approx([1.75, 1.375, 2.875])
    assert found.places.tolist() == [2, 1, 3]
    assert found.p[1, 2] == found.p[2, 1] == pytest.approx(2 / 16)  # model 1 is ahead in all four studies


def test_equal_models_share_the_better_place_in_every_resample():
    column = np.random.default_rng(0).random((30, 1))
    values = np.hstack([column, column, column, column - 1])
    values = np.dstack([values] * 3)  # thirds do not add up to whole numbers
    found = ranking(values, [True] * 3)
    assert found.places.tolist() == [1, 1, 1, 4]
    assert found.place_shares.tolist() == [[1, 0, 0, 0]] * 3 + [[0, 0, 0, 1]]
    assert found.p[0, 1] == 1
    assert found.p[0, 3] < 1e-4


@pytest.mark.parametrize("columns", [3, 7, 11, 13, 49])
def test_models_that_win_alike_in_other_studies_share_a_place(columns):
    wins = np.random.default_rng(columns).integers(0, columns, 20)
    wins = np.concatenate([wins, columns - wins])
    ahead = np.arange(columns) < wins[:, None]
    found = ranking(np.stack([ahead, ~ahead], axis=1), [True] * columns, resamples=10)
    assert found.places.tolist() == [1, 1]  # though their sums of ranks differ by rounding


def test_ranking_is_seeded():
    values = random_values(0, (25, 3, 2))
    one, same, other = (ranking(values, [True, True], seed, 500) for seed in (0, 0, 1))
    assert (one.place_shares == same.place_shares).all()
    assert (one.p == same.p).all()
    assert (one.place_shares != other.place_shares).any()
    assert (one.p != other.p).any()


def test_ranking_of_one_model_or_one_study():
    alone = ranking([[[0.5]], [[0.6]]], [True])
    assert (alone.places.tolist(), alone.p.tolist(), alone.place_shares.tolist()) == ([1], [[1]], [[1]])
    once = ranking([[[0.5], [0.6]]], [True])
    assert once.places.tolist() == [2, 1]
    assert once.p.tolist() == [[1, 1], [1, 1]]
    assert once.rank_low.tolist() == once.rank_high.tolist() == [2, 1]


@pytest.mark.parametrize("shape", [(3, 2), (0, 2, 2), (3, 0, 2), (3, 2, 0), (3, 2, 1)])
def test_tables_of_another_shape_are_refused(shape):
    with pytest.raises(InputError, match="a direction per column"):
        ranking(np.ones(shape), [True, True])


def test_a_large_ranking_is_quick():
    values = random_values(0, (100, 10, 12))
    start = time.perf_counter()
    ranking(values, [True] * 12)
    assert time.perf_counter() - start < 4  # about 0.1 s alone; the machine may be busy
