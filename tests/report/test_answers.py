import numpy as np
import pytest

from gliomap.report.answers import Pair, answers_to, outcome, pair_name, sentence
from gliomap.report.scores import Scores
from gliomap.report.wording import decimals, metric_title, number, p_text, precise

BASE = np.array([0.61, 0.72, 0.55, 0.8, 0.67, 0.7, 0.59, 0.77, 0.64, 0.69])
SPREAD = np.array([1.0, 2.0, 0.5, 1.5, 1.2, 0.8, 1.1, 0.9, 1.4, 0.7])


def answer(a, b, metric="dice", region="ET", **options):
    values = np.stack([np.asarray(a, float), np.asarray(b, float)], axis=1)
    status = np.where(np.isnan(values), options.get("status", "prediction_empty"), "ok")
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
        ("hd95", 1, "0.022 mm higher (worse) than", "it is worse."),
        ("hd95", -1, "0.022 mm lower (better) than", "it is better."),
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
    assert "0.0000033 higher than" in sentence(tiny).found


def test_what_is_missing_is_said_by_side_and_too_little_is_undecided():
    a, b = BASE.copy(), BASE - 0.1
    a[:2], b[1:4] = np.nan, np.nan
    one = answer(a, b)
    assert "lower than B in the studies that both have (" in sentence(answer(b, a)).found
    assert "6 studies, 4 more left out: first 2 without a value, second 3 without a value; Holm" in sentence(one).found
    assert [side[:2] for side in one.absent] == [(2, 0), (3, 0)]
    assert [side.lacking for side in one.absent] == [1, 2]
    assert (one.comparison.p_holm, one.verdict) == (pytest.approx(2 / 64), "supported")  # b lost more
    assert sentence(answer(b, a)).outcome == "it is worse."
    nothing = sentence(answer([0.5, np.nan], [np.nan, 0.5]))
    assert str(nothing) == (
        "ET: A and B have Dice in common in 0 studies, 2 more left out: first 1 without a value, "
        "second 1 without a value, and an answer needs 2: undecided. A has no value in 1 study in which B has one; "
        "B has no value in 1 study in which A has one."
    )
    alone = answer([0.5, np.nan, 0.7], [0.4, np.nan, np.nan])
    assert "in 1 study, 2 more" in sentence(alone).found
    both = answer([0.5, 0.6, np.nan], [0.5, 0.6, np.nan])
    assert outcome(both) == "equal"
    equal_where_known = sentence(answer([0.5, 0.6, np.nan], [0.5, 0.6, 0.7]))
    assert equal_where_known.outcome == "undecided."
    assert equal_where_known.outlook == "A has no value in 1 study in which B has one."


def test_the_other_side_is_worse_only_where_the_test_says_so_too():
    a = BASE - np.array([0.2, 0.21, 0.19, 0.22, -0.01, -0.012, -0.011, -0.013, 0.0, -0.005])
    one = answer(a, BASE)
    assert one.comparison.high < 0
    assert one.comparison.p_holm > 0.05
    assert outcome(one) == "undecided"
    assert outcome(answer(BASE - 0.02 * SPREAD, BASE)) == "worse"


def with_one_outlier(shift):
    """15 studies: 14 slightly in favour of the first, one far against it."""
    a = 0.8 + np.linspace(0.01, 0.02, 15)
    a[0] = 0.8 + shift
    return a, np.full(15, 0.8)


def test_where_a_few_studies_decide_the_mean_that_is_said():
    for metric, sides in (("dice", with_one_outlier(-0.3)), ("hd95", with_one_outlier(-0.3)[::-1])):
        one = answer(*sides, metric)
        assert one.comparison.p_holm < 0.05
        assert one.comparison.low < 0 < one.comparison.high
        told = sentence(one)
        assert told.outcome == "undecided."
        assert told.outlook.startswith(
            "Most studies favour A (14 of 15), but the mean does not bear that out: a few studies decide it. 15 studies"
        )
    other = sentence(answer(*with_one_outlier(-0.3)[::-1]))
    assert other.outlook.startswith("Most studies favour B (14 of 15)")
    a, b = (np.append(side, np.full(15, 0.8)) for side in with_one_outlier(-0.3))  # half of all are ties
    assert sentence(answer(a, b)).outlook.startswith("The corrected p-value is below 0.05, but the interval of the")


def test_what_is_small_does_not_look_like_nothing():
    a = 0.9998 + 0.00001 * SPREAD
    told = sentence(answer(a + 0.00002 + 0.000005 * SPREAD, a))
    assert told.outcome == "it is better."
    assert "0.000026 higher than B (95 % interval 0.000024 to 0.00002" in told.found
    assert "e-" not in str(told)
    assert [precise(v, "1") for v in (0.5, 0.022, 0.00123, -0.000456, 0.0, 1e-17, np.nan)] == [
        "0.500", "0.022", "0.0012", "-0.00046", "0.000", "0.000", "-",
    ]  # fmt: skip
    assert [precise(v, "mm") for v in (0.0123, 0.5, 12.34)] == ["0.012", "0.50", "12.3"]
    assert decimals([0.99987, 0.99991, np.nan], "1") == 5
    assert decimals([0.1, 0.1], "1") == 0
    assert decimals([0.999871, 0.999872], "1") == 6
    assert decimals([0.5, 0.5 + 1e-9], "1") == 0


def test_p_values_stay_on_their_side_when_rounded():
    assert [p_text(p) for p in (0.04996, 0.0099996, 0.0500001, 0.01000001, 0.0999999)] == [
        "p 0.04996", "p 0.0099996", "p 0.05", "p 0.01", "p 0.1",
    ]  # fmt: skip


def test_power_is_of_one_test_alone_where_there_are_several():
    columns = {(r, "dice"): np.stack([BASE, BASE - 0.01 * SPREAD], axis=1) for r in ("ET", "WT")}
    status = {column: np.full((10, 2), "ok") for column in columns}
    scores = Scores(tuple(map(str, range(10))), ("A", "B"), columns, status, "plain")
    several = answers_to([Pair(("A",), ("B",))], scores, "wilcoxon", 0)
    assert [sentence(one).outlook.endswith("(80 % power, one test alone).") for one in several] == [True, True]
    assert sentence(answer(BASE, BASE - 0.01 * SPREAD)).outlook.endswith("(80 % power).")


def test_sides_of_several_models_miss_a_study_where_one_does_and_are_empty_where_all_are():
    nan = np.nan
    values = np.array([[nan, nan, 0.5], [nan, 0.4, 0.5], [0.3, nan, nan], [0.3, 0.4, 0.5]])
    status = np.array(
        [["both_empty"] * 2 + ["ok"], ["both_empty", "ok", "ok"], ["ok", "failed", "both_empty"], ["ok"] * 3]
    )
    column = ("ET", "precision")
    scores = Scores(tuple("wxyz"), ("A", "B", "C"), {column: values}, {column: status}, "plain")
    assert scores.empty(("A", "B"), column).tolist() == [True, False, False, False]
    assert scores.gone(("A", "B"), column).tolist() == [False, False, True, False]
    (one,) = answers_to([Pair(("A", "B"), ("C",))], scores, "wilcoxon", 0)
    assert one.absent == ((1, 1, 0, 1), (0, 1, 0, 1))
    both = scores.values[column][:, [0, 0]]
    same = Scores(tuple("wxyz"), ("A", "B"), {column: both}, {column: status[:, [0, 0]]}, "plain")
    (one,) = answers_to([Pair(("A",), ("B",))], same, "wilcoxon", 0)
    assert one.absent == ((0, 2, 0, 0), (0, 2, 0, 0))
    assert sentence(one).outcome == "no difference."


def test_two_empty_masks_with_a_value_are_a_value():
    column = ("ET", "dice")
    values, status = np.array([[1.0, 0.5], [0.9, 0.8]]), np.array([["both_empty", "truth_empty"], ["ok", "ok"]])
    scores = Scores(("x", "y"), ("A", "B"), {column: values}, {column: status}, "plain")
    assert not scores.empty(("A",), column).any()
    assert (scores.ranked(column) == values).all()


def test_holms_correction_counts_the_comparisons_that_have_a_p():
    columns = {("ET", "dice"): np.stack([BASE, BASE - 0.01 * SPREAD], axis=1), ("WT", "dice"): np.full((10, 2), np.nan)}
    scores = Scores(
        tuple(map(str, range(10))), ("A", "B"), columns, dict.fromkeys(columns, np.full((10, 2), "ok")), "plain"
    )
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
    status = {column: np.where(np.isnan(table), "failed", "ok") for column, table in values.items()}
    scores = Scores(tuple(map(str, range(len(columns[0])))), models, values, status, "plain")
    pairs = [Pair((models[0],), (other,)) for other in models[1:]]
    return [one.reachable for one in answers_to(pairs, scores, "wilcoxon", 0)]


def test_what_could_have_been_shown_depends_on_the_studies_and_on_all_comparisons():
    ten = np.stack([BASE, BASE - 0.01 * SPREAD], axis=1)
    four = np.where(np.arange(10)[:, None] < 4, ten, np.nan)
    assert reachable(ten[:6]) == [True]  # 2 / 2^6 = 0.03
    assert reachable(ten[:6], alike=2) == [False, False]
    assert reachable(four, ten) == [False, True]
    assert reachable(np.full((10, 2), np.nan), ten) == [False, True]
