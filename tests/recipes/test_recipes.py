import pytest
import torch

from gliomap.errors import InputError, UsageError
from gliomap.losses import build_loss
from gliomap.networks import as_slices, build_network
from gliomap.recipe import recipe_json, with_settings
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
    assert recipe.postprocessing.min_component_voxels == 150


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
    with pytest.raises(UsageError, match="no gate is called 'foo'"):
        build_network(recipe)
