import json
from dataclasses import replace

import pytest

from gliomap.classes import NESTED_REGIONS
from gliomap.errors import UsageError
from gliomap.recipe import (
    NetworkSpec,
    Preprocessing,
    Recipe,
    Start,
    Training,
    cautions,
    recipe_from_json,
    recipe_json,
    with_settings,
)
from gliomap.recipes import RECIPES

BASE = Recipe(
    name="test",
    source="nobody",
    network=NetworkSpec("attention_resunet", {"base": 4}),
    training=Training(patches=10, patch_size=(16, 24, 32), batch_size=2, learning_rate=1e-3),
)


def changed(path, value):
    content = json.loads(recipe_json(BASE))
    *parents, last = path.split(".")
    place = content
    for name in parents:
        place = place[name]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return json.dumps(content)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_json(name):
    assert recipe_from_json(recipe_json(RECIPES[name])) == RECIPES[name]


def test_a_recipe_without_defaults_survives_json():
    recipe = replace(BASE, target=NESTED_REGIONS, modalities=("flair",))
    recipe = with_settings(
        recipe, ["preprocessing.spacing_mm=1.5", "inference.window=[16,16,32]", "training.patches=7"]
    )
    back = recipe_from_json(recipe_json(recipe))
    assert back == recipe
    assert isinstance(back.training.patch_size, tuple)
    assert back.target.channels == NESTED_REGIONS.channels


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("surprise", 1, "surprise"),
        ("training.surprise", 1, "training.surprise"),
        ("augmentation.rotation", 1, "augmentation.rotation"),
        ("training.patches", "10", "training.patches"),
        ("training.patches", 1.5, "training.patches"),
        ("training.batch_size", True, "training.batch_size"),
        ("training.patch_size", [16, 16], "training.patch_size"),
        ("training.schedule", "linear", "training.schedule"),
        ("training.learning_rate", float("nan"), "training.learning_rate"),
        ("target.kind", "argmax", "target.kind"),
        ("name", 3, "name"),
        ("training.patches", None, "training.patches"),
        ("network", None, "network"),
        ("source", None, "source"),
    ],
)
def test_wrong_fields_are_refused_by_name(path, value, named):
    with pytest.raises(UsageError, match=named):
        recipe_from_json(changed(path, value))


def test_a_modality_that_a_study_may_not_lack_is_one_of_the_recipes():
    assert with_settings(BASE, ['needs_one_of=["flair"]']).needs_one_of == ("flair",)
    message = (
        "needs_one_of of the recipe test has t1ce, which the network does not see; .* modalities, t1, t1c, t2, flair,"
    )
    with pytest.raises(UsageError, match=message):
        with_settings(BASE, ['needs_one_of=["t1ce","flair"]'])
    with pytest.raises(UsageError, match=message):
        recipe_from_json(changed("needs_one_of", ["t1ce"]))
    with pytest.raises(UsageError, match=r"has t1c, .* modalities, flair,"):
        with_settings(replace(BASE, needs_one_of=("t1c", "flair")), ['modalities=["flair"]'])


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3"])
def test_text_that_is_no_recipe_is_refused(text):
    with pytest.raises(UsageError, match="not a recipe"):
        recipe_from_json(text)


def test_settings_replace_nested_values():
    recipe = with_settings(
        BASE,
        [
            "name=other",
            "training.patches=2000",
            "training.learning_rate=2e-3",
            "training.patch_size=[8, 8, 8]",
            "augmentation.flips=true",
            "augmentation.gamma=[0.5,2]",
            "network.settings.base=8",
            "network.settings.gate=se",
        ],
    )
    training = replace(BASE.training, patches=2000, learning_rate=2e-3, patch_size=(8, 8, 8))
    augmentation = replace(BASE.augmentation, flips=True, gamma=(0.5, 2.0))
    network = NetworkSpec("attention_resunet", {"base": 8, "gate": "se"})
    assert recipe == replace(BASE, name="other", training=training, augmentation=augmentation, network=network)
    assert BASE.network.settings == {"base": 4}


def test_no_settings_change_nothing_and_null_is_none():
    assert with_settings(BASE, []) == BASE
    coarse = with_settings(BASE, ["preprocessing.spacing_mm=2"])
    assert coarse.preprocessing.spacing_mm == 2.0
    assert with_settings(coarse, ["preprocessing.spacing_mm=null"]) == BASE


@pytest.mark.parametrize(
    "setting",
    ["patches=3", "training.patch=3", "training", "training.patches", "=3", "training.=3", "name.first=a",
     "network.settings.a.b=1", "network.options.base=1"],
)  # fmt: skip
def test_unknown_paths_are_refused(setting):
    with pytest.raises(UsageError, match="cannot set"):
        with_settings(BASE, [setting])


@pytest.mark.parametrize(
    "setting",
    ["training.patches=many", "training.patches=1.5", "training.patch_size=16", "training.learning_rate=NaN",
     "training.learning_rate=1e999", "augmentation.flips=2", "network.settings=3", "name=7"],
)  # fmt: skip
def test_values_that_do_not_fit_are_refused_by_field(setting):
    with pytest.raises(UsageError, match=setting.partition("=")[0]):
        with_settings(BASE, [setting])


def with_starts():
    return replace(BASE, starts_from=(Start(BASE, "first"), Start(replace(BASE, starts_from=(Start(BASE),)))))


def test_what_a_recipe_starts_from_is_part_of_its_record():
    recipe = with_starts()
    assert recipe_from_json(recipe_json(recipe)) == recipe


def test_a_star_sets_a_value_in_everything_a_recipe_starts_from():
    found = with_settings(with_starts(), ["*.training.patches=7", "training.batch_size=3"])
    inner = [
        found.starts_from[0].recipe,
        found.starts_from[1].recipe,
        found.starts_from[1].recipe.starts_from[0].recipe,
    ]
    assert [r.training.patches for r in [found, *inner]] == [7] * 4
    assert [r.training.batch_size for r in [found, *inner]] == [3] + [BASE.training.batch_size] * 3
    with pytest.raises(UsageError, match="cannot set"):
        with_settings(with_starts(), ["*.training.nothing=7"])


def test_only_recipes_that_reproduce_what_nobody_should_do_have_cautions():
    assert cautions(BASE) == []
    told = replace(BASE, preprocessing=Preprocessing(crop="truth_centre"))
    (caution,) = cautions(told)
    assert "told where the tumour is" in caution
    steep = replace(BASE, training=replace(BASE.training, learning_rate=0.3, patch_place="largest_tumour"))
    assert len(cautions(steep)) == 2
    assert "0.3" in cautions(steep)[1]
    assert "dropout" in cautions(replace(BASE, network=NetworkSpec("cga_unet", {"always_dropout": True})))[0]
    assert cautions(replace(BASE, starts_from=(Start(told),))) == [f"{BASE.name}: {caution}"]
