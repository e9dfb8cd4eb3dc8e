import math
from dataclasses import replace

import numpy as np
import pytest

from gliomap.metrics import measure
from gliomap.recipes.definitions import (
    Definition,
    definitions,
    estimate,
    factor,
    metrics_of,
    of_sums,
    terms,
)
from gliomap.recipes.published import published
from gliomap.recipes.tables import SCORED
from gliomap.rows import metric, score_rows

SCORED_NUMBERS = [n for n in published() if n.how in SCORED and n.recipe]


def number(paper, name, **changes):
    return replace(next(n for n in SCORED_NUMBERS if (n.paper, n.metric) == (paper, name)), **changes)


def scores_of(slices, definition):
    """Rows of (prediction, truth) masks of one slice each, by study, region and metric."""
    scores = {}
    for n, (prediction, truth) in enumerate(slices):
        maps = [np.where(mask[None], 2, 0).astype(np.uint8) for mask in (prediction, truth)]
        measured = measure(*maps, (1.0, 1.0, 1.0), ("WT",), definition.measured_metrics)
        for row in score_rows(f"s{n}", "model", measured):
            scores[row.study, row.region, row.metric] = row.value
    return scores


def random_slices(count=12, seed=0):
    """Masks of which some are empty in one, some in both."""
    rng = np.random.default_rng(seed)
    out = []
    for n in range(count):
        truth, prediction = (rng.random((20, 20)) < share for share in rng.random(2) * 0.3)
        out.append((prediction * (n % 4 != 1), truth * (n % 4 != 1) * (n % 5 != 2)))
    return [(p.astype(bool), t.astype(bool)) for p, t in out]


STUDIES = [f"s{n}" for n in range(12)]


def test_the_dice_of_paper_003_is_that_of_all_slices_as_one():
    (found,) = definitions(number("003", "dice"))
    slices = random_slices()
    together = [np.concatenate([mask.ravel() for mask in masks]) for masks in zip(*slices, strict=True)]
    expected = 2 * (together[0] & together[1]).sum() / (together[0].sum() + together[1].sum())
    assert estimate(found, scores_of(slices, found), STUDIES).value == pytest.approx(expected)
    assert (found.region, found.slices) == ("WT", "middle")


def test_the_mean_iou_of_paper_003_counts_an_empty_slice_as_0():
    (found,) = definitions(number("003", "miou"))
    slices = random_slices()
    values = [(p & t).sum() / (p | t).sum() if (p | t).any() else 0.0 for p, t in slices]
    assert 0.0 in values
    assert estimate(found, scores_of(slices, found), STUDIES).value == pytest.approx(np.mean(values))
    assert found.slices == "middle"


def test_the_accuracy_of_paper_003_is_of_pixels():
    (found,) = definitions(number("003", "accuracy"))
    slices = random_slices()
    expected = np.mean([(p == t).mean() for p, t in slices])
    assert estimate(found, scores_of(slices, found), STUDIES).value == pytest.approx(expected)


def test_both_distances_of_paper_001_stand_beside_its_own():
    surface, voxels = definitions(number("001", "hd95"))
    assert (surface.metric, voxels.metric) == ("hd95", "hd95_all_voxels")
    assert [d.metric for d in definitions(number("004", "hd95"))] == ["hd95"]


def test_every_published_score_has_a_definition_in_metrics_that_exist():
    for one in SCORED_NUMBERS:
        for found in definitions(one):
            assert found.region == (one.region or "WT")
            assert all(metric(name) for name in found.measured_metrics)
            assert found.higher_is_better == (one.metric in ("dice", "miou", "accuracy"))
            assert (found.statistic == "standard deviation") == one.metric.endswith("_sd")
    assert set(metrics_of([number("001", "dice"), number("001", "hd95")])) == {"dice", "hd95", "hd95_all_voxels"}
    assert metrics_of([number("003", "dice")]) == ("dice", "volume", "volume_truth")


def test_percent_stands_beside_percent_and_mm_beside_mm():
    dice, distance = number("002", "dice"), number("002", "hd100")
    assert (dice.unit, factor(dice, definitions(dice)[0])) == ("%", 100.0)
    assert factor(distance, definitions(distance)[0]) == 1.0
    spread = number("002", "dice_sd")
    assert factor(spread, definitions(spread)[0]) == 100.0
    plain = number("000", "dice")
    assert factor(plain, definitions(plain)[0]) == 1.0


def plain_scores(values, name="dice"):
    return {(f"s{n}", "ET", name): value for n, value in enumerate(values)}


def test_missing_values_are_counted_and_take_no_part():
    found = estimate(Definition("hd95", "ET"), plain_scores([4.0, None, 2.0], "hd95"), ["s0", "s1", "s2", "s3"])
    assert (found.value, found.missing) == (3.0, 2)
    assert np.array_equal(found.values, [[4.0], [np.nan], [2.0], [np.nan]], equal_nan=True)
    nothing = estimate(Definition("hd95", "ET"), {}, ["s0", "s1"])
    assert math.isnan(nothing.value)
    assert nothing.missing == 2


SPREAD = Definition("dice", "ET", "standard deviation")


def test_a_standard_deviation_is_of_a_sample():
    values = np.random.default_rng(1).random(40)
    found = estimate(SPREAD, plain_scores(values), [f"s{n}" for n in range(40)])
    assert found.value == pytest.approx(values.std(ddof=1))
    assert estimate(SPREAD, plain_scores([0.1] * 7), [f"s{n}" for n in range(7)]).value == 0
    assert math.isnan(estimate(SPREAD, plain_scores([0.5]), ["s0"]).value)


def test_statistics_of_many_sums_at_once():
    values = np.random.default_rng(2).random((5, 9, 1))
    sums = np.stack([terms(SPREAD, one).sum(axis=0) for one in values])
    np.testing.assert_allclose(of_sums(SPREAD, sums), values[..., 0].std(axis=1, ddof=1))
    np.testing.assert_allclose(of_sums(Definition("dice", "ET"), sums), values[..., 0].mean(axis=1))


def test_a_study_that_lacks_one_of_the_values_of_a_pooled_dice_takes_no_part():
    scores = {("s0", "WT", "dice"): 1.0, ("s0", "WT", "volume"): 2.0, ("s0", "WT", "volume_truth"): None}
    found = estimate(Definition("dice", "WT", "pooled Dice"), scores, ["s0"])
    assert np.isnan(found.values).all()
    assert found.missing == 1


def test_pooled_dice_of_nothing_is_1_and_of_one_study_its_own():
    definition = Definition("dice", "WT", "pooled Dice")
    empty = {("s0", "WT", "dice"): 1.0, ("s0", "WT", "volume"): 0.0, ("s0", "WT", "volume_truth"): 0.0}
    assert estimate(definition, empty, ["s0"]).value == 1.0
    one = {("s0", "WT", "dice"): 0.7, ("s0", "WT", "volume"): 3.0, ("s0", "WT", "volume_truth"): 4.0}
    assert estimate(definition, one, ["s0"]).value == pytest.approx(0.7)


def test_texts_say_the_statistic_the_metric_and_the_region():
    assert Definition("hd100", "TC", "standard deviation").text == "standard deviation over studies of hd100 of TC"
    assert definitions(number("003", "dice"))[0].text == "Dice of WT, middle axial slice, all studies pooled"
