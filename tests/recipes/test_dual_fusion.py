import pytest
import torch

from gliomap.classes import NESTED_REGIONS
from gliomap.networks import build_network
from gliomap.recipe import recipe_from_json, recipe_json
from gliomap.recipes.dual_fusion import DYNUNET, FINETUNED, LATE, PAPER, PRINTED_LEARNING_RATE, ROWS, SEGRESNET

FUSIONS = [recipe for recipe in ROWS if recipe.starts_from]


def built(recipe):
    with torch.device("meta"):
        network = build_network(recipe)
    network.freeze(recipe.frozen)
    return network


def test_the_protocol_is_the_papers():
    assert PAPER.modalities == ("flair", "t1", "t2", "t1c")
    assert PAPER.target == NESTED_REGIONS
    training = PAPER.training
    assert training.patches == 100 * training.validate_every == 100 * 228
    assert (training.patch_size, training.early_stopping, training.learning_rate) == ((128, 128, 128), 6, 3e-4)
    assert (training.loss.name, training.schedule, training.weight_decay) == ("dice", "constant", 0)
    assert training.foreground_share == 0
    assert PAPER.inference.window == training.patch_size
    augmentation = PAPER.augmentation
    assert augmentation.flips
    assert augmentation.rotation_degrees > 0
    assert augmentation.intensity_scale > 0


def test_all_rows_differ_from_the_paper_in_what_they_say():
    for recipe in ROWS:
        assert (recipe.modalities, recipe.target, recipe.preprocessing, recipe.augmentation, recipe.inference) == (
            PAPER.modalities, PAPER.target, PAPER.preprocessing, PAPER.augmentation, PAPER.inference
        )  # fmt: skip
        assert (recipe.training == PAPER.training) == (recipe not in (PRINTED_LEARNING_RATE, LATE))
    assert PRINTED_LEARNING_RATE.training.learning_rate == 0.3
    assert PRINTED_LEARNING_RATE.network == PAPER.network
    trained = [(recipe.network, recipe.frozen, recipe.training.learning_rate) for recipe in ROWS]
    assert all(row not in trained[:n] for n, row in enumerate(trained))


@pytest.mark.parametrize("recipe", FUSIONS, ids=lambda recipe: recipe.name)
def test_every_fusion_starts_from_both_backbones(recipe):
    network = built(recipe)
    assert [start.recipe for start in recipe.starts_from] == [DYNUNET, SEGRESNET]
    for start in recipe.starts_from:
        assert start.into in start.recipe.name
        network.get_submodule(start.into).load_state_dict(built(start.recipe).state_dict(), assign=True)


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("dual_fusion_dynunet", 31_184_355),
        ("dual_fusion_segresnet", 4_702_227),
        ("dual_fusion_late", 0),
        ("dual_fusion_early", 1_667),
        ("dual_fusion", 117_827),
        ("dual_fusion_finetuned", 31_184_355 - 99 + 4_702_227 - 51 + 117_827),
        ("dual_fusion_no_local", 117_827 - 29_792),
        ("dual_fusion_no_global", 117_827),
    ],
)
def test_what_each_row_trains(name, trained):
    (recipe,) = [recipe for recipe in ROWS if recipe.name == name]
    network = built(recipe)
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == trained


def test_late_fusion_means_probabilities_as_the_target_makes_them():
    assert LATE.network.settings["kind"] == LATE.target.kind


def test_rows_survive_their_record():
    for recipe in (LATE, FINETUNED, *ROWS[-6:]):
        assert recipe_from_json(recipe_json(recipe)) == recipe
