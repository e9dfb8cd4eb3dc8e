from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gliomap.errors import InputError, UsageError
from gliomap.losses import build_loss
from gliomap.networks import as_slices, build_network
from gliomap.recipe import StepSpec, cautions, recipe_from_json, recipe_json, with_settings
from gliomap.recipes import RECIPES, find_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_filed_under_its_name_and_says_where_it_comes_from(name):
    assert RECIPES[name].name == name
    assert RECIPES[name].source


@pytest.mark.parametrize("name", RECIPES)
def test_patches_and_windows_fit_the_network(name):
    recipe = RECIPES[name]
    with torch.device("meta"):
        network = build_network(recipe)
    assert network.in_channels == len(recipe.modalities)
    for size in (recipe.training.patch_size, recipe.inference.window):
        assert size is None or all(n % d == 0 for n, d in zip(size, network.divisors, strict=True))
    x = torch.zeros(1, network.in_channels, *recipe.training.patch_size, device="meta")
    x = as_slices(x) if network.spatial_dims == 2 else x
    assert network(x).shape == (len(x), len(recipe.target.channels), *x.shape[2:])


@pytest.mark.parametrize("name", RECIPES)
def test_numbers_are_in_their_ranges(name):
    recipe = RECIPES[name]
    training = recipe.training
    assert build_loss(training.loss)
    assert 0 < training.batch_size <= training.validate_every <= training.patches
    assert 0 <= training.foreground_share <= 1
    assert 0 < training.learning_rate < 1
    assert 0 <= recipe.inference.overlap < 1
    assert 0 < recipe.augmentation.gamma[0] <= 1 <= recipe.augmentation.gamma[1]


def test_paper_004_is_trained_as_printed():
    recipe = RECIPES["attention_resunet"]
    training = recipe.training
    assert recipe.network.settings == {"base": 12, "gate": "free", "fusion": True}
    assert (training.patch_size, training.batch_size) == ((64, 64, 64), 2)
    assert (training.learning_rate, training.weight_decay) == (3e-4, 5e-5)
    assert (training.schedule, training.plateau_factor) == ("plateau", 0.5)
    assert training.patches == 200 * training.validate_every
    assert recipe.inference.overlap == 0.25
    assert recipe.postprocessing == (StepSpec("remove_small_components", {"min_voxels": 150}),)


def test_recipes_are_found_by_name_or_in_a_file(tmp_path):
    assert all(find_recipe(name) is recipe for name, recipe in RECIPES.items())
    path = tmp_path / "recipe.json"
    path.write_text(recipe_json(RECIPES["attention_resunet"]))
    assert find_recipe(str(path)) == RECIPES["attention_resunet"]


def test_unknown_names_and_unreadable_files_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no recipe is called 'nothing'"):
        find_recipe("nothing")
    with pytest.raises(InputError, match="cannot read"):
        find_recipe(str(tmp_path / "none.json"))
    path = tmp_path / "other.json"
    path.write_text('{"name": "half"}')
    with pytest.raises(UsageError, match="training"):
        find_recipe(str(path))


@pytest.mark.parametrize("setting", ["training.patches=0", "training.batch_size=-1", "training.learning_rate=0"])
def test_budgets_and_sizes_that_are_not_positive_are_refused(setting):
    with pytest.raises(UsageError, match="greater than 0"):
        with_settings(RECIPES["attention_resunet_small"], [setting])


def test_an_unknown_gate_is_refused_and_not_trained_without_one():
    recipe = with_settings(RECIPES["attention_resunet_small"], ["network.settings.gate=foo"])
    with pytest.raises(UsageError, match="gate is 'foo'"):
        build_network(recipe)


def test_every_recipe_is_in_the_docs():
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    assert [name for name in RECIPES if f"`{name}`" not in page] == []


def test_every_paper_row_that_may_be_compared_has_a_fair_twin_with_its_network():
    rows = [r for r in RECIPES.values() if not r.source.startswith("ours") and not cautions(r)]
    twins = [r for r in RECIPES.values() if r.name.endswith("_fair")]
    for row in rows:
        settings = row.network.settings | ({"kind": "softmax"} if "kind" in row.network.settings else {})
        assert any((t.network.name, t.network.settings) == (row.network.name, settings) for t in twins), row.name


def test_fair_recipes_differ_in_nothing_but_the_network_and_what_it_cannot_do_without():
    common = RECIPES["unet3d_fair"]
    for recipe in RECIPES.values():
        if not recipe.name.endswith("_fair"):
            continue
        alike = ("modalities", "target", "preprocessing", "augmentation", "postprocessing")
        assert all(getattr(recipe, part) == getattr(common, part) for part in alike), recipe.name
        stages = [recipe, *(start.recipe for start in recipe.starts_from)]
        assert sum(stage.training.patches for stage in stages) == pytest.approx(20_000, abs=len(stages))
        for stage in stages:
            free = {"patches": 1, "validate_every": 1, "batch_size": 1, "loss": common.training.loss}
            free["patch_size"] = common.training.patch_size
            assert replace(stage.training, **free) == replace(common.training, **free), recipe.name
            loss = stage.training.loss
            if loss.name == "supervised_attention":  # its last term begins while there is time for it
                assert (loss.settings["segmentation"], loss.settings["inter_from_epoch"]) == ("cross_entropy_dice", 1)
            else:
                assert loss == common.training.loss


def test_what_starts_from_others_shares_the_budget_as_the_paper_does():
    swish, dual = RECIPES["druwas_swish_fair"], RECIPES["dual_fusion_fair"]
    assert (swish.training.patches, swish.starts_from[0].recipe.training.patches) == (7500, 12500)
    assert [s.recipe.training.patches for s in dual.starts_from] == [6666, 6666]
    assert RECIPES["dual_fusion_late_fair"].starts_from[0].recipe.training.patches == 9999


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_read_back_from_its_record(name):
    assert recipe_from_json(recipe_json(RECIPES[name])) == RECIPES[name]


def test_only_reproductions_have_cautions():
    assert {name for name, recipe in RECIPES.items() if cautions(recipe)} == {
        "druwas_truth_centred",
        "cga_unet_always_dropout",
        "dual_fusion_printed_learning_rate",
    }


def test_paper_001_is_trained_as_printed():
    relu, swish = RECIPES["druwas"].training, RECIPES["druwas_swish"]
    assert (relu.learning_rate, relu.batch_size, relu.plateau_patience) == (5e-4, 4, 4)
    assert (relu.validation_share, relu.test_share) == (0.1, 0.2)
    assert relu.patches == 100 * relu.validate_every
    assert swish.training.patches == 60 * relu.validate_every
    assert swish.network.settings == {"activation": "silu"}
    assert swish.starts_from[0].recipe == RECIPES["druwas"]
