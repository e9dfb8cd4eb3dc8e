from dataclasses import replace

import numpy as np
import pytest

from gliomap.recipes import RECIPES
from gliomap.recipes.published import published
from gliomap.report import published_beside as published_beside_module
from gliomap.report.published_beside import NOT_COMPARABLE, published_beside, recipe_of
from gliomap.report.scores import Scores


def made(*models, name="dice", region="ET", value=0.75):
    values = np.full((4, len(models)), value)
    values[0] = np.nan
    return Scores(("1", "2", "3", "4"), models, {(region, name): values}, {}, "plain")


def test_a_models_name_begins_with_its_recipe_or_it_has_none():
    assert recipe_of("cga_unet") == "cga_unet"
    assert recipe_of("cga_unet-0a1b2c3d") == "cga_unet"
    assert recipe_of("cga_unet_fair-0a1b2c3d") == "cga_unet_fair"
    for other in (
        "cga_unet-0a1b2c3",
        "cga_unet-xyzxyzxy",
        "cga_unet_mine",
        "mine_cga_unet",
        "nnunet",
        "",
        "cga_unet-0a1b2c3d-2",
    ):
        assert recipe_of(other) is None


def test_every_way_that_a_score_came_about_has_its_statement_and_none_promises_a_comparison():
    scored = {number.how for number in published() if number.metric in ("dice", "hd95", "hd100", "miou", "accuracy")}
    assert scored == set(NOT_COMPARABLE)
    assert all(text.startswith("Not comparable") for text in NOT_COMPARABLE.values())


def test_all_scores_of_a_recipe_are_there_by_table_and_way_with_the_means_in_their_units():
    groups = published_beside(made("cga_unet-0a1b2c3d"))
    expected = [
        n for n in published() if n.recipe == "cga_unet" and n.how in NOT_COMPARABLE and not n.metric.endswith("_sd")
    ]
    assert sum(len(group.lines) for group in groups) == len(expected)
    assert {group.place for group in groups} == {f"paper 002, table {n.table}" for n in expected}
    server = next(group for group in groups if group.place == "paper 002, table 2")
    assert server.statement == NOT_COMPARABLE["official server"]
    shown = {line.score: (line.printed, line.measured) for line in server.lines}
    assert shown["Dice ET"] == ("78.83 %", "75.0 % (3)")
    assert shown["Dice WT"][1] == ""
    assert shown["HD95 ET"][1] == ""
    validated = next(group for group in groups if group.place == "paper 002, table 4")
    assert validated.statement == NOT_COMPARABLE["cross-validation"]


def test_what_came_about_in_two_ways_never_shares_a_statement(monkeypatch):
    mine = next(n for n in published() if n.recipe == "cga_unet" and n.how == "official server")
    both = [mine, replace(mine, how="hold-out"), mine]
    monkeypatch.setattr(published_beside_module, "published", lambda: both)
    assert [(group.statement, len(group.lines)) for group in published_beside(made("cga_unet"))] == [
        (NOT_COMPARABLE["official server"], 2),
        (NOT_COMPARABLE["hold-out"], 1),
    ]


def test_distances_have_their_unit_and_fractions_none():
    (group, *_) = published_beside(made("druwas", name="hd95", value=3.0))
    assert {line.score: line.measured for line in group.lines}["HD95 ET"] == "3.00 mm (3)"
    (group, *_) = published_beside(made("druwas"))
    assert {line.score: line.measured for line in group.lines}["Dice ET"] == "0.750 (3)"


def test_a_model_trained_by_the_common_protocol_is_said_to_be_and_finds_its_paper():
    plain, fair = published_beside(made("druwas")), published_beside(made("druwas_fair"))
    assert [g.lines for g in plain] == [g.lines for g in fair]
    assert all("protocol common to all" in group.statement for group in fair)
    assert not any("protocol common to all" in group.statement for group in plain)
    single = published_beside(made("aspp_attention_unet_fair"))
    assert {line.dataset for group in single for line in group.lines} == {
        n.dataset for n in published() if n.recipe.startswith("aspp_attention_unet_")
    }


@pytest.mark.parametrize("recipe", [name for name in RECIPES if not name.endswith("_fair")])
def test_nothing_of_another_recipe_is_shown(recipe):
    rows = {n.row for n in published() if n.recipe == recipe}
    assert {line.row for group in published_beside(made(recipe)) for line in group.lines} <= rows


def test_other_tools_have_nothing_published_here():
    assert published_beside(made("nnunet", "SegResNet")) == []
