"""What every network promises, over every name in NETWORKS and every recipe."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks.tiny import TINY
from torch.utils.flop_counter import FlopCounterMode

from gliomap.errors import InputError, UsageError
from gliomap.losses import build_loss
from gliomap.networks import NETWORKS, Network, Outputs, build_network
from gliomap.recipe import NetworkSpec
from gliomap.recipes import RECIPES

COUNTS = list(csv.DictReader((Path(__file__).parent.parent / "counts.csv").read_text().splitlines()))
CHANNELS, CLASSES = 4, 4

narrow = pytest.mark.usefixtures("narrow_vnet")


def build(name) -> Network:
    torch.manual_seed(0)
    return NETWORKS[name](CHANNELS, CLASSES, **TINY[name])


def images(network, channels=CHANNELS, batch=2):
    """The smallest images that every level keeps more than one voxel of, one axis longer than the others."""
    size = [network.size_divisor] * network.spatial_dims
    size[-1] *= 2
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))


@narrow
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_have_the_images_shape(name):
    network = build(name)
    x = images(network)
    outputs = network.supervised(x)
    assert isinstance(outputs, Outputs)
    assert outputs.logits[0].shape == (2, CLASSES, *x.shape[2:])
    assert torch.isfinite(outputs.logits[0]).all()
    coarser = [logits.shape[2:].numel() for logits in outputs.logits]
    assert coarser == sorted(coarser, reverse=True)


@narrow
@pytest.mark.parametrize("name", NETWORKS)
def test_forward_is_the_finest_supervised_logits_and_evaluation_is_deterministic(name):
    network = build(name).eval()
    x = images(network)
    with torch.inference_mode():
        first = network(x)
        assert torch.equal(first, network.supervised(x).logits[0])
        assert torch.equal(first, network(x))
        torch.testing.assert_close(network(x[:1]), first[:1], atol=1e-5, rtol=1e-4)


@narrow
@pytest.mark.parametrize("name", NETWORKS)
def test_illegal_sizes_name_the_next_legal_one(name):
    network = build(name)
    legal = images(network).shape[2:]
    for axis in range(network.spatial_dims):
        size = list(legal)
        size[axis] -= 1
        with pytest.raises(InputError) as caught:
            network(torch.zeros(1, CHANNELS, *size))
        assert str(tuple(legal)) in str(caught.value)


@narrow
@pytest.mark.parametrize("name", NETWORKS)
def test_wrong_channels_and_axes_are_refused(name):
    network = build(name)
    x = images(network)
    for wrong in (x[:, 1:], x[0], x[None]):
        with pytest.raises(InputError, match="expected"):
            network(wrong)


@narrow
@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_loss_trains_every_parameter_but_the_frozen_ones(name):
    recipe = RECIPES[name]
    torch.manual_seed(0)
    spec = NetworkSpec(recipe.network.name, recipe.network.settings | TINY[recipe.network.name])
    network = build_network(replace(recipe, network=spec))
    network.freeze(recipe.frozen)
    trained = {key: p for key, p in network.train().named_parameters() if p.requires_grad}
    assert bool(trained) == ("late" not in name)
    x = images(network, len(recipe.modalities))
    classes = torch.randint(0, 5, (2, *x.shape[2:]), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    terms = build_loss(recipe.training.loss)(network.supervised(x), classes, recipe.target, 1000)
    total = torch.stack(list(terms.values())).sum()
    assert torch.isfinite(total)
    if trained:
        total.backward()
    for key, parameter in network.named_parameters():
        assert (parameter.grad is not None) == (key in trained), key
        if parameter.grad is None:
            continue
        assert torch.isfinite(parameter.grad).all(), key
        if parameter.ndim > 1:  # a bias before a normalisation has no gradient but rounding
            assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", NETWORKS)
def test_attention_maps_are_weights_of_the_batch(name):
    network = build(name).eval()
    x = images(network)
    with torch.inference_mode():
        maps = network.attention(x)
    for weight in maps.values():
        assert weight.ndim == x.ndim
        assert weight.shape[0] == 2
        assert all(n == 1 or whole % n == 0 for n, whole in zip(weight.shape[2:], x.shape[2:], strict=True))
        assert weight.min() >= 0
        assert weight.max() <= 1


@narrow
@pytest.mark.parametrize("name", NETWORKS)
def test_state_survives_a_rebuild(name):
    network = build(name).eval()
    other = NETWORKS[name](CHANNELS, CLASSES, **TINY[name]).eval()
    other.load_state_dict(network.state_dict())
    x = images(network, batch=1)
    with torch.inference_mode():
        assert torch.equal(network(x), other(x))


def counted(network, patch):
    """Trainable parameters and GMAC of one patch, counted without memory or arithmetic.

    torch counts two operations per multiply-accumulate, of convolutions and matrix products only. For a transposed
    convolution it counts input voxels times kernel, which for kernels as large as their stride is output voxels times 1.
    """
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, network.in_channels, *patch, device="meta"))
    parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return parameters, counter.get_total_flops() / 2e9


@pytest.mark.parametrize("row", COUNTS, ids=lambda row: f"{row['network']} {row['settings']}")
def test_parameters_and_multiply_accumulates_are_the_published_ones(row):
    inputs = int(row["inputs"] or CHANNELS)
    with torch.device("meta"):
        network = NETWORKS[row["network"]](inputs, int(row["classes"]), **json.loads(row["settings"])).eval()
    parameters, gmac = counted(network, [int(n) for n in row["patch"].split()])
    assert parameters == int(row["params"])
    if row["gmac"]:  # some rows of the specification have parameters only
        assert gmac == pytest.approx(float(row["gmac"]), abs=0.01)


def test_every_network_is_counted():
    assert {row["network"] for row in COUNTS} == set(NETWORKS)


def test_the_counter_follows_the_rule_for_single_layers():
    class One(Network):
        in_channels, size_divisor = 6, 1

        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x)

    with torch.device("meta"):
        convolution = One(torch.nn.Conv3d(6, 5, 3, padding=1, stride=2))
        dilated = One(torch.nn.Conv3d(6, 5, 3, padding=4, dilation=4))
        transposed = One(torch.nn.ConvTranspose3d(6, 5, 2, stride=2))
    assert counted(convolution, (8, 8, 8)) == (6 * 5 * 27 + 5, 4**3 * 6 * 5 * 27 / 1e9)
    assert counted(dilated, (8, 8, 8))[1] == 8**3 * 6 * 5 * 27 / 1e9
    assert counted(transposed, (8, 8, 8)) == (6 * 5 * 8 + 5, 16**3 * 6 * 5 / 1e9)


def test_unknown_networks_and_settings_are_refused():
    recipe = next(iter(RECIPES.values()))
    with pytest.raises(UsageError, match="no network is called"):
        build_network(replace(recipe, network=NetworkSpec("nothing")))
    with pytest.raises(UsageError, match="there is no setting nothing"):
        build_network(replace(recipe, network=NetworkSpec(recipe.network.name, {"nothing": 1})))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("druwas", {"attention_gate": "False"}, "attention_gate is 'False'"),
        ("druwas", {"depth": 0}, "depth is 0; expected 1 or more"),
        ("druwas", {"base": 8.0}, "base is 8.0"),
        ("aspp_attention_unet", {"rates": [0, 2, 4]}, "rates is"),
        ("cga_unet", {"dropout": 1.5}, "dropout is 1.5; expected at least 0 and less than 1"),
        ("dual_fusion", {"grid": -1}, "grid is -1"),
        ("dual_fusion", {"dynunet": {"filters": [0, 4, 4]}}, "filters is"),
        ("swin_unetr", {"num_heads": [4]}, "does not take these settings"),
    ],
)
def test_settings_of_a_wrong_type_or_size_are_refused_and_not_read_as_something_else(name, settings, message):
    recipe = next(iter(RECIPES.values()))
    with pytest.raises(UsageError, match="does not take these settings") as caught:
        build_network(replace(recipe, network=NetworkSpec(name, settings)))
    assert message in str(caught.value)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_smallest_legal_size_runs_and_a_smaller_one_is_refused_by_us(name):
    network = build(name).train()
    size = [network.size_divisor] * network.spatial_dims
    if name == "unetr":
        size = list(network.patch_size)
    x = torch.zeros(2, CHANNELS, *size)
    if network.instance_norm:
        with pytest.raises(InputError, match="one voxel and cannot be normalised"):
            network(x)
    else:
        assert torch.isfinite(network(x)).all()
