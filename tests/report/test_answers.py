import numpy as np
import pytest

from gliomap.report.answers import (
    Pair,
    Scores,
    answers_to,
    metric_title,
    number,
    outcome,
    p_text,
    pair_name,
    sentence,
    undirected,
)

BASE = np.array([0.61, 0.72, 0.55, 0.8, 0.67, 0.7, 0.59, 0.77, 0.64, 0.69])
SPREAD = np.array([1.0, 2.0, 0.5, 1.5, 1.2, 0.8, 1.1, 0.9, 1.4, 0.7])


def answer(a, b, metric="dice", region="ET", **options):
    values = np.stack([np.asarray(a, float), np.asarray(b, float)], axis=1)
    status = np.full(values.shape, "ok")
    scores = Scores(
        tuple(map(str, range(len(a)))), ("A", "B"), {(region, metric): values}, {(region, metric): status}, "plain"
    )
    return answers_to([Pair(("A",), ("B",))], scores, options.get("test", "wilcoxon"), 0)[0]


def test_a_decided_answer_is_one_sentence_with_all_that_decides_it():
    one = answer(BASE + 0.02 * SPREAD, BASE)
    told = sentence(one)
    low, high = one.comparison.low, one.comparison.high
    assert told.region == "ET:"
    assert told.found == (
        f"A has a mean Dice 0.022 higher than B (95 % interval {low:.3f} to {high:.3f}; 10 studies; Holm-adjusted p 0.00195):"
    )
    assert told.outcome == "it is better."
    assert told.outlook == f"10 studies can show a difference of about {one.comparison.detectable:.2g} (80 % power)."
    assert str(told) == " ".join(told)


@pytest.mark.parametrize(
    ("metric", "sign", "way", "result"),
    [
        ("dice", 1, "0.022 higher than", "it is better."),
        ("dice", -1, "0.022 lower than", "it is worse."),
        ("hd95", 1, "0.02 mm higher (worse) than", "it is worse."),
        ("hd95", -1, "0.02 mm lower (better) than", "it is better."),
    ],
)
def test_which_way_is_better_is_the_metrics(metric, sign, way, result):
    told = sentence(answer(BASE + sign * 0.02 * SPREAD, BASE, metric))
    assert way in told.found
    assert told.outcome == result


def test_undecided_is_said_where_the_interval_has_0_and_where_the_test_does_not_follow():
    flat = sentence(answer(BASE + 0.02 * SPREAD * np.tile([1, -1], 5), BASE))
    assert flat.outcome == "undecided."
    assert flat.outlook.startswith("10 studies can show")
    few = answer(BASE[:5] + 0.02 * SPREAD[:5], BASE[:5], test="permutation")
    assert few.comparison.low > 0
    assert outcome(few) == "undecided"
    assert not few.reachable
    assert sentence(few).outlook.startswith(
        "With 5 studies no permutation test of the mean by flips of signs can reach 0.05, whatever"
    )
    skewed = BASE + np.array([-0.01, -0.012, -0.011, -0.013, 0.2, 0.21, 0.19, 0.22, 0.0, -0.005])
    told = sentence(answer(skewed, BASE))
    assert told.outcome == "undecided."
    assert told.outlook.startswith(
        "The interval leaves out 0, but the corrected p-value does not bear that out. 10 studies can"
    )


def test_ties_are_said_as_ties():
    same = sentence(answer(BASE, BASE))
    assert str(same) == "ET: A and B have exactly the same Dice in 10 studies: no difference."
    balanced = answer([0.5, 0.6, 0.7], [0.6, 0.6, 0.6])
    assert balanced.comparison.difference == 0
    assert "A has a mean Dice equal to that of B" in sentence(balanced).found
    tiny = answer([0.5, 0.6, 0.70001], [0.5, 0.6, 0.7])
    assert "less than 0.001 higher than" in sentence(tiny).found


def test_what_is_missing_is_said_by_side_and_too_little_is_undecided():
    a, b = BASE.copy(), BASE - 0.1
    a[:2], b[1:4] = np.nan, np.nan
    one = answer(a, b)
    assert "6 studies, 4 more without a value (2 of the first, 3 of the second);" in sentence(one).found
    assert one.missing == (2, 3)
    nothing = sentence(answer([0.5, np.nan], [np.nan, 0.5]))
    assert str(nothing) == (
        "ET: A and B have Dice in common in 0 studies, 2 more without a value (1 of the first, 1 of the second), "
        "and an answer needs 2: undecided."
    )
    alone = answer([0.5, np.nan, 0.7], [0.4, np.nan, np.nan])
    assert "in 1 study, 2 more" in sentence(alone).found
    equal_where_known = answer([0.5, 0.6, np.nan], [0.5, 0.6, 0.7])
    assert outcome(equal_where_known) == "equal"


def test_not_better_is_for_a_claim_only():
    a = BASE - np.array([0.2, 0.21, 0.19, 0.22, -0.01, -0.012, -0.011, -0.013, 0.0, -0.005])
    one = answer(a, BASE)
    assert one.comparison.high < 0
    assert sentence(one).outcome == "it is not better."
    assert sentence(undirected(one)).outcome == "undecided."
    worse = answer(BASE - 0.02 * SPREAD, BASE)
    assert undirected(worse) is worse


def test_holms_correction_counts_the_comparisons_that_have_a_p():
    columns = {("ET", "dice"): np.stack([BASE, BASE - 0.01 * SPREAD], axis=1), ("WT", "dice"): np.full((10, 2), np.nan)}
    scores = Scores(tuple(map(str, range(10))), ("A", "B"), columns, {}, "plain")
    found = answers_to([Pair(("A",), ("B",))], scores, "wilcoxon", 0)
    assert [one.tests for one in found] == [1, 1]
    assert found[0].comparison.p_holm == found[0].comparison.p


def test_numbers_and_names_are_printed_as_the_field_does():
    assert [number(v, "1") for v in (0.12345, -0.0001, float("nan"))] == ["0.123", "0.000", "-"]
    assert [number(v, "mm") for v in (1.234, -9.876, 12.345, float("inf"))] == ["1.23", "-9.88", "12.3", "-"]
    assert [p_text(p) for p in (0.0001, 0.04321, 0.214, 1.0, float("nan"))] == [
        "p < 0.001",
        "p 0.0432",
        "p 0.21",
        "p 1.00",
        "p not defined",
    ]
    assert metric_title("hd95") == "HD95"
    assert metric_title("nsd_2.5mm_area_weighted") == "NSD at 2.5 mm, area-weighted"
    assert metric_title("volume_error_absolute") == "volume error absolute"
    assert pair_name(Pair(("a", "b"), ("c",))) == "a + b against c"
    assert sentence(answer(BASE, BASE, "mean_iou_of_classes", "")).region == "All classes:"


def reachable(*columns, alike=1):
    """Whether each column's answer could have been below 0.05: each (N, 2), in the order given."""
    models = tuple(f"m{i}" for i in range(1 + alike))
    values = {(f"R{i}", "dice"): np.stack([c[:, 0], *[c[:, 1]] * alike], axis=1) for i, c in enumerate(columns)}
    scores = Scores(tuple(map(str, range(len(columns[0])))), models, values, {}, "plain")
    pairs = [Pair((models[0],), (other,)) for other in models[1:]]
    return [one.reachable for one in answers_to(pairs, scores, "wilcoxon", 0)]


def test_what_could_have_been_shown_depends_on_the_studies_and_on_all_comparisons():
    ten = np.stack([BASE, BASE - 0.01 * SPREAD], axis=1)
    four = np.where(np.arange(10)[:, None] < 4, ten, np.nan)
    assert reachable(ten[:6]) == [True]  # 2 / 2^6 = 0.03
    assert reachable(ten[:6], alike=2) == [False, False]
    assert reachable(four, ten) == [False, True]
    assert reachable(np.full((10, 2), np.nan), ten) == [False, True]
