import pytest

from gliomap.classes import ALL_CLASSES
from gliomap.losses import build_loss
from gliomap.networks import build_network
from gliomap.recipe import StepSpec, recipe_from_json, recipe_json
from gliomap.recipes.cga_unet import PAPER, ROWS

BY_NAME = {recipe.name: recipe for recipe in ROWS}

TABLE_4 = {
    "baseline": "none",
    "intra": "all",
    "intra_ncr": "NCR",
    "intra_ed": "ED",
    "intra_et": "ET",
    "inter": "none",
    "minus_inter": "none",
}


def test_the_protocol_is_the_papers():
    training = PAPER.training
    assert training.patches == 500 * training.validate_every
    assert (training.patch_size, training.batch_size, training.foreground_share) == ((128, 128, 128), 8, 0)
    assert (training.learning_rate, training.weight_decay, training.amsgrad) == (1e-3, 1e-5, True)
    assert (training.schedule, training.polynomial_power) == ("polynomial", 0.9)
    assert PAPER.modalities == ("flair", "t1c", "t1", "t2")
    assert PAPER.target == ALL_CLASSES
    assert (PAPER.augmentation.flips, PAPER.augmentation.intensity_scale, PAPER.augmentation.intensity_shift) == (
        True,
        0.1,
        0.1,
    )
    assert PAPER.inference.window is None
    assert PAPER.postprocessing == (StepSpec("small_et_to_ncr", {"min_voxels": 500}),)


@pytest.mark.parametrize(("name", "update"), TABLE_4.items())
def test_rows_of_table_4_differ_in_what_is_updated_and_what_is_minimised(name, update):
    recipe = BY_NAME[f"cga_unet_{name}"]
    assert "table 4, Baseline" in recipe.source
    network = build_network(recipe)
    assert getattr(network.attend, "update", "none") == update
    assert (network.attend is None) == (name == "baseline")
    terms = {
        "baseline": ("dice", {"reduction": "sum"}),
        "inter": ("supervised_attention", {"skip_absent": False}),
        "minus_inter": ("supervised_attention", {"skip_absent": False, "inter_weight": -1.0}),
    }
    loss = recipe.training.loss
    assert (loss.name, loss.settings) == terms.get(name, ("supervised_attention", {"inter": "off"}))


def test_all_rows_share_the_protocol():
    for recipe in ROWS:
        training, ours = dict(vars(recipe.training)), dict(vars(PAPER.training))
        assert training.pop("loss")
        assert ours.pop("loss")
        assert training == ours
        assert (recipe.augmentation, recipe.postprocessing) == (PAPER.augmentation, PAPER.postprocessing)
        assert build_loss(recipe.training.loss)
        assert recipe_from_json(recipe_json(recipe)) == recipe
    assert len(BY_NAME) == len(ROWS) == 18
    assert BY_NAME["cga_unet_context_prior"].inference.window == PAPER.training.patch_size
