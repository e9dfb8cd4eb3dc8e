import pytest

from gliomap.recipes import RECIPES
from gliomap.recipes.costs import counted
from gliomap.recipes.published import published


def count(table, recipe, metric):
    number = next(n for n in published() if (n.table, n.recipe, n.metric) == (table, recipe, metric))
    return counted(number, RECIPES[recipe])


def test_the_size_of_cga_unet_is_exact_and_by_the_papers_rule_so_are_its_flops():
    assert count("section 4.3", "cga_unet", "parameters_m") == [("parameters of the whole network", 4.768616)]
    ours, printed = count("section 4.3", "cga_unet", "gflops")
    assert ours[1] == pytest.approx(151.5515, abs=5e-5)
    assert printed == ("as the paper's released code counts", pytest.approx(151.1176, abs=5e-5))


@pytest.mark.parametrize(
    ("recipe", "millions", "gmac"),
    [
        ("cga_unet", 0.010404, 0.6907),
        ("cga_unet_self_attention", 0.049152, 4.4963),
        ("cga_unet_context_prior", 0.557056, 4.4292),
        ("cga_unet_sam_4", 0.034628, 1.9420),
        ("cga_unet_sam_2", 0.010404, 2.7850),
    ],
)
def test_table_3_is_of_modules_alone(recipe, millions, gmac):
    assert count("3", recipe, "parameters_m")[0][1] == pytest.approx(millions)
    assert count("3", recipe, "gflops")[0][1] == pytest.approx(gmac, abs=5e-5)
    assert len(count("3", recipe, "gflops")) == 1


def test_paper_004_is_counted_on_its_patches():
    assert count("section 4.3", "attention_resunet_baseline", "gflops")[0][1] == pytest.approx(12.636, abs=5e-4)
    assert count("section 5", "attention_resunet", "parameters_m")[0][1] == pytest.approx(3.293338)
