from dataclasses import replace

import numpy as np
import pytest

from gliomap.recipes.claims import claims_of
from gliomap.recipes.tables import find_table
from gliomap.report.judgement import Outcome, Trained, judge, lines_of
from gliomap.report.reproduction import sentence
from gliomap.statistics import bca_interval, compare_paired, holm, permutation

STUDIES = tuple(f"s{n:02d}" for n in range(30))
TABLE = find_table("002/table4")
CLAIMS = {(c.better, c.worse, c.region, c.metric): n for n, c in enumerate(claims_of("002/table4"))}
INTRA = CLAIMS["cga_unet_intra", "cga_unet_baseline", "ET", "dice"]
SCORES = ("dice", "hd100")
MIOU = "mean_iou_of_slices_empty_0"
INTRA_HD = CLAIMS["cga_unet_intra", "cga_unet_baseline", "ET", "hd100"]


def trained(shift=0.0, studies=STUDIES, whole=True, seed=0, **changes):
    """Scores with noise of their own about the same studies' difficulties; better by ``shift``, in Dice and 100 mm."""
    difficulty, own = np.random.default_rng(7).random(len(STUDIES)), np.random.default_rng(seed)
    scores = {}
    for n, study in enumerate(STUDIES):
        for region in ("ET", "TC", "WT"):
            scores[study, region, "dice"] = 0.3 + 0.3 * difficulty[n] + shift + 0.02 * own.standard_normal()
            scores[study, region, "hd100"] = 50 - 20 * difficulty[n] - 100 * shift + 2 * own.standard_normal()
    return Trained(scores | changes.pop("scores", {}), studies, 134_000 if whole else 13, 134_000, whole, **changes)


def outcome(**changes):
    rows = {n.recipe: trained(seed=k) for k, n in enumerate(TABLE.numbers)}
    values = {"trained": rows, "failed": {}, "counts": lambda number: [("ours", number.value * 2)]} | changes
    return Outcome(**values)


def judged(found, number=INTRA):
    return judge(claims_of("002/table4"), found)[number]


def with_rows(found, **rows):
    return replace(found, trained={**found.trained, **rows})


def test_a_line_is_the_mean_in_the_published_unit_with_its_interval():
    found = outcome()
    line = next(one for one in lines_of(TABLE.numbers, found) if one.number.recipe == "cga_unet_intra")
    values = np.array([found.trained["cga_unet_intra"].scores[s, "ET", "dice"] for s in STUDIES]) * 100
    assert line.measured == pytest.approx(values.mean())
    assert (line.low, line.high) == pytest.approx(bca_interval(values))
    assert line.difference == pytest.approx(values.mean() - 78.60)
    assert (line.studies, line.missing, line.trained, line.budget) == (30, 0, 134_000, 134_000)
    assert (
        line.remark == "comparable only as far as the data are BraTS 2019 with the authors' folds, which are not known"
    )
    assert len(lines_of(TABLE.numbers, found)) == len(TABLE.numbers) == 48


def test_a_claim_is_judged_by_pairs_of_studies_and_holm_over_all_claims():
    found = with_rows(outcome(), cga_unet_intra=trained(0.1, seed=50))
    every = judge(claims_of("002/table4"), found)
    a, b = (
        np.array([found.trained[name].scores[s, "ET", "dice"] for s in STUDIES]) * 100
        for name in ("cga_unet_intra", "cga_unet_baseline")
    )
    one = every[INTRA]
    assert one.comparison.difference == pytest.approx((a - b).mean())
    assert one.comparison.p == pytest.approx(permutation(a - b))
    assert (one.comparison.low, one.comparison.high) == pytest.approx(
        (compare_paired(a, b).low, compare_paired(a, b).high)
    )
    assert [j.comparison.p_holm for j in every] == pytest.approx(holm([j.comparison.p for j in every]))
    assert (one.verdict, one.tested) == ("supported", 38)


def test_less_is_better_where_it_is():
    found = with_rows(outcome(), cga_unet_intra=trained(0.1, seed=50))
    one = judged(found, INTRA_HD)
    assert one.comparison.difference < 0 < one.gain[1] < one.gain[0] < one.gain[2]
    assert one.verdict == "supported"
    assert judged(with_rows(outcome(), cga_unet_intra=trained(-0.1, seed=50)), INTRA_HD).verdict == "not supported"


def test_the_published_gain_is_held_against_whole_trainings_only():
    same = with_rows(
        outcome(), cga_unet_intra=trained(), cga_unet_baseline=trained()
    )  # no difference, and 4.13 % claimed
    assert judged(same).verdict == "not supported"
    assert judged(replace(same, partial="--set changed the recipes")).verdict == "undecided"
    assert judged(with_rows(same, cga_unet_baseline=trained(whole=False))).verdict == "undecided"
    worse = with_rows(same, cga_unet_intra=trained(-0.1, whole=False, seed=50))
    assert judged(worse).verdict == "not supported"


def test_a_gain_that_the_paper_does_not_print_is_not_held_against_it():
    one = judged(outcome(), CLAIMS["cga_unet", "cga_unet_intra", "WT", "dice"])
    assert one.claim.published_gain < 0
    assert one.verdict == "undecided"
    assert "the paper's own numbers say the opposite" in sentence(one)


def test_missing_pairs_are_counted():
    gone = {(STUDIES[0], "ET", "dice"): None}
    found = with_rows(outcome(), cga_unet_intra=trained(0.1, seed=50, scores=gone))
    assert (judged(found).comparison.studies, judged(found).comparison.missing) == (29, 1)
    assert "29 studies, 1 missing" in sentence(judged(found))
    line = next(one for one in lines_of(TABLE.numbers, found) if one.number.recipe == "cga_unet_intra")
    assert (line.studies, line.missing) == (29, 1)


def test_sentences_say_the_interval_the_studies_the_training_and_what_they_can_show():
    found = with_rows(outcome(), cga_unet_intra=trained(0.1, seed=50, whole=False))
    text = sentence(judged(found))
    for words in ("+ Intra beats the baseline, ET dice: supported in this run, after 0.0097 % of the training. Gain +1",
                  "% (95 % interval +", "; 30 studies; p ", "after Holm for 38 claims), in print +4.13.",
                  "30 studies can show a gain of about "):  # fmt: skip
        assert words in text
    assert "of the training" not in sentence(judged(outcome()))
    assert "undecided at this sample size" in sentence(judged(replace(outcome(), partial="x")))


def test_few_studies_are_told_that_no_difference_would_do():
    few = outcome(trained={name: trained(studies=STUDIES[:6]) for name in outcome().trained})
    assert judged(few).verdict == "undecided"  # they could not have supported it either
    assert "With 6 studies no difference, however large, can reach p 0.05 after 38 claims." in sentence(judged(few))
    one = outcome(trained={name: trained(seed=k, studies=STUDIES[:1]) for k, name in enumerate(outcome().trained)})
    assert judged(one).verdict == "undecided"
    assert "1 of 1 studies have both scores, which is no comparison" in sentence(judged(one))


def only_first(count):
    return {(s, region, name): None for s in STUDIES[count:] for region in ("ET", "TC", "WT") for name in SCORES}


def test_what_few_studies_cannot_show_is_told_by_the_whole_family_and_never_beside_a_verdict_that_they_bore_out():
    """Holm's multiplier falls with every claim that is rejected, so 10 studies among claims of 30 can reach 0.05; 5 cannot."""
    recipes = dict.fromkeys(n.recipe for n in TABLE.numbers)
    rows = {name: trained(0.1 * k, seed=k) for k, name in enumerate(recipes)}
    some = judge(
        claims_of("002/table4"), outcome(trained=rows | {"cga_unet_intra": trained(0.1, scores=only_first(10))})
    )
    found = some[INTRA]
    assert found.comparison.smallest_p * found.tested > 0.05 > found.comparison.p_holm
    assert found.verdict == "supported"
    assert not any("however large" in sentence(j) for j in some)
    few = judge(claims_of("002/table4"), outcome(trained=rows | {"cga_unet_intra": trained(0.1, scores=only_first(5))}))
    for one in few:
        told = "With 5 studies no difference, however large, can reach p 0.05" in sentence(one)
        assert told == (one.comparison.studies == 5) == (not one.reachable)


def test_a_gain_in_print_is_not_held_against_studies_that_could_not_have_shown_it():
    same = {"cga_unet_intra": trained(scores=only_first(5)), "cga_unet_baseline": trained()}
    assert judged(with_rows(outcome(), **same)).verdict == "undecided"
    enough = same | {"cga_unet_intra": trained(scores=only_first(10))}
    assert judged(with_rows(outcome(), **enough)).verdict == "not supported"


def test_gains_of_deviations_are_differences_of_the_deviations_that_are_shown():
    table, claims = find_table("002/table5"), claims_of("002/table5")
    rows = {n.recipe: trained(seed=k) for k, n in enumerate(table.numbers)}
    wild = {(s, "ET", "dice"): 0.05 if n % 6 else 0.9 for n, s in enumerate(STUDIES)}
    found = outcome(trained=rows | {"cga_unet_baseline": trained(scores=wild)})
    shown = {(x.number.recipe, x.number.region, x.number.metric): x for x in lines_of(table.numbers, found)}
    every = judge(claims, found)
    for one in every:
        keys = [(name, one.claim.region, one.claim.metric) for name in (one.claim.better, one.claim.worse)]
        better, worse = (shown[key] for key in keys)
        assert one.comparison.difference == pytest.approx(better.measured - worse.measured)
        assert better.low < better.measured < better.high
    spread = shown["cga_unet_baseline", "ET", "dice_sd"].measured
    assert spread == pytest.approx(100 * np.std(list(wild.values()), ddof=1))
    calm = next(j for j in every if (j.claim.worse, j.claim.region) == ("cga_unet_baseline", "ET"))
    assert (calm.verdict, calm.gain[0] > 0) == ("supported", True)


def test_gains_of_a_pooled_dice_are_in_percent_and_differences_of_what_is_shown():
    table = find_table("003/table1")
    numbers = [n for n in table.numbers if n.recipe in ("aspp_attention_unet_t2", "attention_unet2d_t2")]

    def sized(seed):
        own = np.random.default_rng(seed)
        values = {(s, "WT", m): own.random() for s in STUDIES for m in ("dice", "volume", "volume_truth")}
        scores = values | {(s, "WT", m): own.random() for s in STUDIES for m in ("accuracy", MIOU)}
        return trained(scores=scores)

    found = outcome(trained={n.recipe: sized(k) for k, n in enumerate(numbers)})
    shown = {x.number.recipe: x for x in lines_of(numbers, found) if x.number.metric == "dice"}
    rows = {"aspp_attention_unet_t2", "attention_unet2d_t2"}
    (one,) = (j for j in judge(claims_of("003/table1"), found) if {j.claim.better, j.claim.worse} == rows
              and j.claim.metric == "dice")  # fmt: skip
    better, worse = shown["aspp_attention_unet_t2"], shown["attention_unet2d_t2"]
    assert one.comparison.difference == pytest.approx(better.measured - worse.measured)
    assert 1 < better.low < better.measured < better.high < 100


def test_what_did_not_run_says_why():
    rows = dict(outcome().trained)
    del rows["cga_unet_intra"]
    found = outcome(trained=rows, failed={"cga_unet_intra": "no memory"})
    lines = [one for one in lines_of(TABLE.numbers, found) if one.number.recipe == "cga_unet_intra"]
    assert {one.remark for one in lines} == {"failed: no memory"}
    assert np.isnan([one.measured for one in lines]).all()
    assert judged(found).verdict == "not tested"
    assert sentence(judged(found)) == "+ Intra beats the baseline, ET dice: not tested; Baseline + Intra failed."
    other = judge(claims_of("002/table4"), found)[CLAIMS["cga_unet", "cga_unet_baseline", "ET", "dice"]]
    assert other.tested == sum("cga_unet_intra" not in (better, worse) for better, worse, _, _ in CLAIMS)


@pytest.mark.parametrize(
    ("address", "recipe", "remark"),
    [
        ("001/table1", "", "never run: quoted from another publication, on its own data"),
        ("003/table2", "unet2d_t2", "never run: the authors' machine"),
        ("004/section4.2", "", "never run: gliomap has no recipe for it"),
    ],
)
def test_what_is_never_run_says_why(address, recipe, remark):
    numbers = [n for n in find_table(address).numbers if n.recipe == recipe]
    assert {line.remark for line in lines_of(numbers, outcome())} == {remark}


def test_a_servers_score_is_never_comparable():
    table = find_table("002/table2")
    found = outcome(trained={n.recipe: trained() for n in table.numbers if n.recipe})
    numbers = [n for n in table.numbers if n.recipe]
    assert all(line.remark.startswith("not comparable: published on a server") for line in lines_of(numbers, found))
    cut = replace(outcome(), partial="4 patients only")
    assert lines_of(TABLE.numbers, cut)[0].remark == "not comparable: 4 patients only"
    assert lines_of(numbers, replace(found, partial="4 patients only"))[0].remark.startswith(
        "not comparable: published on"
    )
    short = with_rows(outcome(), cga_unet_baseline=trained(whole=False))
    assert [one.remark for one in lines_of(TABLE.numbers[:1], short)] == ["not comparable: the training was cut short"]


def test_a_second_definition_is_named_beside_the_first():
    numbers = [n for n in find_table("001/section5.2").numbers if n.metric == "hd95"]
    scores = {
        (s, n.region, m): v for s in STUDIES for n in numbers for m, v in (("hd95", 4.0), ("hd95_all_voxels", 1.0))
    }
    found = outcome(trained={"druwas_swish": trained(scores=scores)})
    lines = lines_of(numbers, found)
    assert [(one.measured, one.beside) for one in lines] == [(4.0, ""), (1.0, "as hd95_all_voxels")] * 3


def test_counted_sizes_are_judged_without_statistics():
    table = find_table("002/section4.3")
    found = Outcome({}, {}, lambda number: [("ours", number.value * 2), ("theirs", number.value)])
    lines = lines_of(table.numbers, found)
    assert [(one.definition, one.measured) for one in lines[:2]] == [("ours", 62.4), ("theirs", 31.2)]
    assert [one.beside for one in lines[:2]] == ["", "theirs"]
    (parameters, flops) = judge(claims_of("002/section4.3"), found)
    assert (parameters.verdict, flops.verdict) == ("supported", "supported")
    assert "counted 9.54 against 62.4 M; the paper prints 4.77 against 31.2" in sentence(parameters)
    turned = Outcome({}, {}, lambda number: [("ours", -number.value)])
    assert {one.verdict for one in judge(claims_of("002/section4.3"), turned)} == {"not supported"}
