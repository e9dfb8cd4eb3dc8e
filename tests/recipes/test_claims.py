import pytest

from gliomap.recipes import RECIPES
from gliomap.recipes.claims import CLAIMS, claims_of
from gliomap.recipes.definitions import definitions
from gliomap.recipes.published import published
from gliomap.recipes.tables import TABLES

ABLATIONS = ("000/table2", "001/table4", "002/table4", "002/table5", "003/table1", "004/section4.3", "004/commentary5")


def claim(address, better, worse, region, metric):
    return next(
        c for c in claims_of(address) if (c.better, c.worse, c.region, c.metric) == (better, worse, region, metric)
    )


def test_every_claim_stands_on_two_numbers_of_its_paper():
    for one in CLAIMS:
        better, worse = one.numbers
        assert {better, worse} <= set(published())
        assert {better.paper, worse.paper} == {one.paper}
        assert (better.region, better.metric) == (worse.region, worse.metric)
        assert better.unit == worse.unit or not one.testable
        assert one.better in (better.recipe, better.row)
        assert one.worse in (worse.recipe, worse.row)
        assert one.address in TABLES


def test_what_can_be_tested_has_two_recipes():
    for one in CLAIMS:
        names = [n.recipe for n in one.numbers]
        assert one.testable == all(name in RECIPES for name in names)
        assert len(set(names)) == 2 or not one.testable
    assert sum(one.testable for one in CLAIMS) > 150


def test_every_ablation_has_claims_and_none_is_listed_twice():
    assert all(any(c.testable for c in claims_of(address)) for address in ABLATIONS)
    keys = [(c.address, c.better, c.worse, c.region, c.metric) for c in CLAIMS]
    assert len(set(keys)) == len(keys)


def test_every_row_of_an_ablation_is_in_a_claim():
    for address in ABLATIONS:
        rows = {n.recipe for n in TABLES[address].numbers if n.how in ("hold-out", "cross-validation")}
        aside = {"cga_unet_intra_ncr", "cga_unet_intra_ed", "cga_unet_intra_et"} if address == "002/table5" else set()
        assert rows - aside <= {name for c in claims_of(address) for name in (c.better, c.worse)}


@pytest.mark.parametrize(
    ("key", "gain"),
    [
        (("002/table4", "cga_unet_intra", "cga_unet_baseline", "ET", "dice"), 78.60 - 74.47),
        (("002/table4", "cga_unet", "cga_unet_baseline", "WT", "hd100"), 52.748 - 32.440),
        (("002/table4", "cga_unet_baseline", "cga_unet_minus_inter", "TC", "dice"), 79.75 - 78.21),
        (("002/table5", "cga_unet", "cga_unet_baseline", "ET", "dice_sd"), 30.28 - 27.71),
        (("001/table4", "druwas_ag", "druwas_baseline", "ET", "hd95"), 18.084 - 2.7929),
        (("000/table2", "dual_fusion", "dual_fusion_segresnet", "WT", "dice"), 0.90267 - 0.81753),
        (("003/table1", "aspp_attention_unet_t2", "unet2d_t2", "", "miou"), 42.49 - 38.59),
        (("004/section4.3", "attention_resunet", "attention_resunet_fusion", "WT", "dice"), 0.920 - 0.915),
        (("004/commentary5", "attention_resunet", "attention_resunet_attention", "WT", "dice"), 0.915 - 0.912),
        (("002/section4.3", "cga_unet", "cga_unet_dynunet", "", "parameters_m"), 31.2 - 4.77),
        (("002/table3", "cga_unet", "cga_unet_context_prior", "", "gflops"), 2.284 - 0.675),
    ],
)
def test_published_gains_are_positive_where_the_better_row_is_better(key, gain):
    assert claim(*key).published_gain == pytest.approx(gain)


def test_what_a_paper_contradicts_itself_is_said():
    against = {(c.address, c.better, c.worse, c.region, c.metric) for c in CLAIMS if "opposite" in c.doubt}
    assert against == {(c.address, c.better, c.worse, c.region, c.metric) for c in CLAIMS if c.published_gain < 0}
    assert {
        ("000/table2", "dual_fusion_early", "dual_fusion_late", "TC", "dice"),
        ("001/table4", "druwas_sa", "druwas_baseline", "WT", "dice"),
        ("001/table4", "druwas", "druwas_resnet", "TC", "hd95"),
        ("002/table4", "cga_unet", "cga_unet_intra", "WT", "dice"),
        ("000/table3", "dual_fusion", "Zhang et al.[1]", "ET", "dice"),
    } <= against
    assert "60 epochs more" in claim("001/table4", "druwas_swish", "druwas", "ET", "dice").doubt
    assert claim("002/table4", "cga_unet", "cga_unet_baseline", "ET", "dice").doubt == ""


OVER_OTHERS = [c for c in CLAIMS if "best of the other works" in c.text]


def test_no_other_work_of_the_table_is_better_than_the_one_named_whatever_its_unit():
    assert {c.address for c in OVER_OTHERS} == {"000/table3", "001/table1", "001/table2", "001/table3", "002/table2"}
    for one in OVER_OTHERS:
        better, best = one.numbers
        numbers = [n for n in TABLES[one.address].numbers if (n.region, n.metric) == (one.region, "dice")]
        others = [n for n in numbers if n.recipe != better.recipe and "ours" not in n.row.lower()]
        assert len(others) >= 3
        shares = {n.row: n.value / (100 if n.value > 1 else 1) for n in others}
        assert shares[best.row] == max(shares.values())
        assert best.row in one.text


def test_the_best_of_the_other_works_where_units_are_mixed_or_the_best_has_a_recipe():
    (mixed,) = (c for c in OVER_OTHERS if (c.address, c.region) == ("001/table1", "ET"))
    assert mixed.worse == "Multimodal Transformer of Incomplete MRI Data [39]"
    assert mixed.published_gain == pytest.approx(0.8584 - 0.8155)
    assert mixed.doubt == "published elsewhere, on other studies"
    server = {c.region: c for c in OVER_OTHERS if c.address == "002/table2"}
    assert [server[r].worse for r in ("ET", "TC", "WT")] == ["Li et al. [53]", "cga_unet_dynunet", "cga_unet_dynunet"]
    assert server["TC"].published_gain == pytest.approx(82.32 - 83.90)
    assert server["WT"].testable
    assert all("same 125 studies" in c.doubt and "elsewhere" not in c.doubt for c in server.values())
    assert ["opposite" in server[r].doubt for r in ("ET", "TC", "WT")] == [False, True, True]


def test_claims_are_judged_in_one_definition():
    for one in CLAIMS:
        if one.testable and one.numbers[0].how != "counted":
            assert definitions(one.numbers[0])[0] == definitions(one.numbers[1])[0]
