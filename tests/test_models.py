import csv
import json
import sys
from dataclasses import replace
from importlib.resources import files

import pytest
from networks.tiny import TINY

from gliomap import cli
from gliomap import models as verb
from gliomap.errors import UsageError
from gliomap.models import ModelsOptions, models
from gliomap.networks import NETWORKS
from gliomap.networks.counting import Forward, Step
from gliomap.recipe import NetworkSpec
from gliomap.recipes import RECIPES
from gliomap.recipes.published import Published

STATED = list(csv.DictReader(files("gliomap.networks").joinpath("published_layers.csv").read_text().splitlines()))


def tiny(name, network, settings=None, source="ours", **changes):
    """A recipe whose network is tiny and whose patch is small."""
    base = RECIPES["cga_unet"] if network == "cga_unet" else RECIPES["attention_resunet"]
    size = (1, 32, 32) if network.endswith("2d") else (32, 32, 32)
    training = replace(base.training, patch_size=size)
    spec = NetworkSpec(network, TINY[network] | (settings or {}))
    return replace(base, name=name, source=source, network=spec, training=training, **changes)


@pytest.fixture
def few(monkeypatch):
    """Four networks under seven recipes, and one network without a recipe."""
    found = (
        tiny("gated", "attention_resunet", source="paper 004, + both"),
        tiny("gated_again", "attention_resunet", {"gate": "free"}, "paper 004, the default spelt out"),
        tiny("plain", "attention_resunet", {"gate": "none"}, "paper 004, baseline"),
        tiny("slices", "unet2d", modalities=("t1c",), source="paper 003, UNet"),
        tiny("slices_of_two", "unet2d", modalities=("t1c", "flair"), source="ours: paper 003's network"),
        tiny("slices_fair", "unet2d", {"base": 6}),
    )
    monkeypatch.setattr(verb, "RECIPES", {recipe.name: recipe for recipe in found})
    monkeypatch.setattr(verb, "NETWORKS", {name: NETWORKS[name] for name in ("attention_resunet", "unet2d", "druwas")})
    monkeypatch.setattr(verb, "_COMMON_PATCH", {3: (16, 16, 16), 2: (32, 32)})
    return found


@pytest.fixture
def printed(monkeypatch):
    """What papers print: the second recipe of a network, a module alone, a number without a recipe."""

    def number(recipe, metric, value, paper="004", table="section 4.3"):
        return Published(paper, table, "", recipe, "", "", metric, value, "", "counted", "")

    rows = [
        number("plain", "parameters_m", 0.02, "002", "3"),
        number("gated_again", "dice", 0.9),
        number("gated_again", "parameters_m", 0.4),
        number("gated_again", "gflops", 0.2),
        number("gated", "parameters_m", 0.5),
        number("", "gflops", 3.0),
    ]
    monkeypatch.setattr(verb, "published", lambda: rows)


def test_the_table_has_every_network_once_under_its_first_recipe(few):
    rows = models(ModelsOptions(quiet=True)).models
    assert [(row.name, row.network, row.paper) for row in rows] == [
        ("gated", "attention_resunet", "004"),
        ("plain", "attention_resunet", "004"),
        ("slices", "unet2d", "003"),
        ("slices_of_two", "unet2d", ""),
        ("druwas", "druwas", ""),
    ]
    assert [row.input for row in rows] == [(4, 32, 32, 32)] * 2 + [(1, 32, 32), (2, 32, 32), (4, 16, 16, 16)]
    assert [row.outputs for row in rows] == [4, 4, 4, 4, 3]
    assert rows[-1].settings == {}


def test_no_two_of_all_networks_are_the_same(monkeypatch):
    monkeypatch.setattr(verb, "count_forward", lambda *_: Forward(1.0, 1, ()))
    monkeypatch.setattr(verb, "count_step", lambda *_: Step(1.0, 1))
    rows = models(ModelsOptions(quiet=True)).models
    distinct = {json.dumps([row.network, row.settings, row.input[0], row.outputs], sort_keys=True) for row in rows}
    assert len(distinct) == len(rows) == len({row.name for row in rows})
    assert {row.network for row in rows} == set(NETWORKS)
    assert not [row.name for row in rows if row.name.endswith("_fair")]
    assert {row.paper for row in rows} == {"", "000", "001", "002", "003", "004"}
    listed = {row.name: row for row in rows}
    assert (listed["cga_unet"].published_parameters_m, listed["cga_unet"].published_gflops) == (4.77, 151.12)
    assert listed["cga_unet_sam_2"].published_parameters_m is None  # table 3 has the module alone
    assert (listed["attention_resunet"].published_parameters_m, listed["attention_resunet"].published_gflops) == (
        3.6,
        13.1,
    )
    assert listed["attention_resunet_baseline"].published_gflops == 12.8


def test_deviations_are_ours_from_the_papers_in_percent(few, printed):
    gated, plain, *_ = models(ModelsOptions(quiet=True)).models
    assert (gated.published_parameters_m, gated.published_gflops) == (0.4, 0.2)
    assert gated.parameter_deviation_percent == pytest.approx((gated.parameters - 400_000) / 4_000)
    assert gated.gflops_deviation_percent == pytest.approx((gated.gmac - 0.2) / 0.002)
    assert (plain.published_parameters_m, plain.published_gflops) == (None, None)
    assert (plain.parameter_deviation_percent, plain.gflops_deviation_percent) == (None, None)


def test_what_a_paper_prints_is_not_compared_with_patches_of_another_size(few, printed, monkeypatch):
    larger = replace(few[0], name="larger", training=replace(few[0].training, patch_size=(48, 32, 32)))
    monkeypatch.setitem(verb.RECIPES, "larger", larger)
    assert models(ModelsOptions("larger", quiet=True)).models[0].published_gflops is None


def test_memory_is_of_one_patch_and_leaves_out_what_is_frozen(few, monkeypatch):
    free = models(ModelsOptions("gated", quiet=True)).models[0]
    frozen = replace(few[0], name="frozen", frozen=("encoder", "bottleneck"))
    batches = replace(few[0], name="batches", training=replace(few[0].training, batch_size=7))
    monkeypatch.setitem(verb.RECIPES, "frozen", frozen)
    monkeypatch.setitem(verb.RECIPES, "batches", batches)
    held, many = (models(ModelsOptions(name, quiet=True)).models[0] for name in ("frozen", "batches"))
    assert 0 < free.forward_memory_mb < held.training_memory_mb < 0.8 * free.training_memory_mb
    assert held.parameters == free.parameters
    assert many.training_memory_mb == free.training_memory_mb


def test_a_name_may_be_a_recipes_or_a_networks(few):
    def named(name):
        return models(ModelsOptions(name, quiet=True)).models[0]

    assert named("gated_again").name == "gated_again"
    assert named("slices_fair").settings["base"] == 6
    assert named("druwas").input == (4, 16, 16, 16)
    assert named("unet2d").settings == {}  # no recipe has it as it is
    with pytest.raises(UsageError, match=r"called 'gatde'; did you mean gated"):
        named("gatde")
    with pytest.raises(UsageError, match="gliomap models lists all of them"):
        named("zzz")


def test_a_network_is_shown_as_its_paper_has_it(monkeypatch):
    default = replace(tiny("first", "unet2d"), network=NetworkSpec("unet2d"))
    monkeypatch.setattr(verb, "RECIPES", {"other": tiny("other", "unet2d"), "first": default})
    (cost,) = models(ModelsOptions("unet2d", quiet=True)).models
    assert (cost.name, cost.input) == ("first", (4, 32, 32))


@pytest.mark.parametrize("name", dict.fromkeys(row["recipe"] for row in STATED))
def test_what_is_stated_of_layers_is_what_is_built_but_for_the_papers_own_slips(name):
    slips = {
        "cga_unet": {"DeBlock3": ("output",)},  # printed as the size of DeBlock1
        "cga_unet_self_attention": {"Self-Attention": ("parameters", "gmac")},
        "cga_unet_context_prior": {"CP Block": ("parameters", "gmac")},
        "cga_unet_sam_4": {"SAM at 4": ("parameters", "gmac")},
        "cga_unet_sam_2": {"SAM at 2": ("gmac",)},
    }
    result = models(ModelsOptions(name, quiet=True))
    stated = [row for row in STATED if row["recipe"] == name]
    assert {row["module"] for row in stated} <= {layer.name for layer in result.layers}
    assert {layer.stated_layer: layer.differs for layer in result.layers if layer.differs} == slips.get(name, {})
    assert sum(layer.parameters for layer in result.layers) == result.models[0].parameters


def test_stated_sums_and_their_rounding(few, monkeypatch):
    gated = models(ModelsOptions("gated", quiet=True)).layers
    head = next(layer for layer in gated if layer.name == "head")
    assert (head.stated_by, head.differs) == ("", ())
    right = {"recipe": "gated", "layer": "last", "module": "head", "output": "4 32 32 32", "source": "somebody"}
    assert head.gmac == pytest.approx(4 * 4 * 32**3 / 1e9)  # 0.000524

    def differs(parameters, gmac, **changes):
        row = right | {"parameters": parameters, "gmac": gmac} | changes
        (marked,) = verb._compared((head,), {"head": row})
        assert (marked.stated_layer, marked.stated_by) == ("last", "somebody")
        return marked.differs

    assert differs("16+2x2", "0.0005") == ()
    assert differs("16+2x2", "0.0003+0.0003") == ()  # each may be half a unit more
    assert differs("16+2x2", "0.0007") == ("gmac",)
    assert differs("2x10+1", "") == ("parameters",)
    assert differs("0.00M", "") == ()
    assert differs("0.01M", "") == ("parameters",)
    assert differs("", "", output="4 32 32 16") == ("output",)
    assert differs("", "", output="") == ()


def test_stated_layers_are_those_of_the_same_network_at_the_same_size():
    def stated(name):
        return {layer.stated_layer for layer in models(ModelsOptions(name, quiet=True)).layers} - {""}

    assert "EnBlock1" in stated("cga_unet_intra")  # the same network, trained otherwise
    assert not stated("cga_unet_baseline")
    assert not stated("druwas_swish")
    assert stated("druwas_fair") == set()  # three regions there, four classes here
    assert stated("attention_resunet")
    assert not stated("attention_resunet_fair")  # the same network, on larger patches


def test_json_has_an_object_per_layer_and_unknown_names_end_with_2(capsys, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gliomap", "models", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    _, told, _ = run("druwas_baseline", "--json")
    rows = json.loads(told)
    assert rows[0]["name"] == "encoder.0"
    assert rows[0]["output"] == [8, 128, 128, 128]
    assert sum(row["parameters"] for row in rows) == 1_413_171
    code, told, errors = run("drwas")
    assert (code, told) == (2, "")
    assert "did you mean druwas" in errors
