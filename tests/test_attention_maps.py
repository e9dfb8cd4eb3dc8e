from dataclasses import replace

import numpy as np
import pytest
import torch
from follower import Follower, SliceFollower
from models import tiny_model
from networks.tiny import TINY

from gliomap.attention_maps import MEANINGS, Shown, meaning, network_maps
from gliomap.networks import NETWORKS, build_network
from gliomap.segmenter import Engine, Segmenter
from gliomap.torch_engine import torch_engine

UNTOLD = meaning("something else")


def _shown(network, size, window=None, seed=0):
    recipe = tiny_model("unet2d").recipe
    recipe = replace(recipe, inference=replace(recipe.inference, window=window))
    images = np.random.default_rng(seed).normal(size=(4, *size)).astype(np.float32)
    return Shown(images, size, Segmenter(recipe, (Engine(torch_engine(network), network.divisors),)))


def _tiny(name, **settings):
    torch.manual_seed(0)
    return build_network(tiny_model(name, **settings).recipe).eval()


@pytest.mark.parametrize("kind", [Follower, SliceFollower])
def test_a_map_lies_where_its_voxels_do_whatever_had_to_be_added_around_the_images(kind):
    network = kind().eval()
    shown = _shown(network, (11, 13, 10))  # multiples of nothing
    shown.images[:] = 0
    spot = (7, 9, 3)
    shown.images[(3, *spot)] = 60.0
    found = network_maps(network, shown)
    assert list(found.maps) == ["AG_1", "AG_2", "AG_3"]  # the finest first
    assert found.own_size["AG_1"] == ((12, 16, 12) if kind is Follower else (11, 16, 12))
    pads = np.array([0, 1, 1])  # in front of 11, 13, 10 voxels that become 12, 16, 12
    for level, values in enumerate(found.maps.values()):
        assert values.shape == (11, 13, 10)
        size = np.array([2**level] * 3 if kind is Follower else [1, 2**level, 2**level])
        middle = (spot + pads) // size * size + (size - 1) / 2 - pads  # of the coarse voxel that the spot is in
        peak = np.argwhere(values > values.max() - 1e-6).mean(0)
        np.testing.assert_allclose(peak, middle, atol=1e-6)


def test_windows_give_the_map_of_one_pass_where_the_network_looks_at_one_voxel_only():
    network = Follower().eval()
    whole, parts = (_shown(network, (12, 16, 20), window) for window in (None, (8, 8, 8)))
    expected, found = (network_maps(network, shown).maps["AG_1"] for shown in (whole, parts))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(expected, 1 / (1 + np.exp(-0.05 * whole.images[3])), atol=1e-6)


def test_weights_of_channels_are_no_maps_and_a_weight_for_every_place_and_channel_is_shown_as_the_mean():
    free, cbam = _tiny("attention_resunet"), _tiny("attention_resunet", gate="cbam")
    shown = _shown(free, (16, 32, 16))
    with torch.inference_mode():
        x = torch.from_numpy(shown.images[None])
        weights, places = free.attention(x), cbam.attention(x)
    found = network_maps(free, shown)
    assert (found.maps, found.features) == ({}, {})
    assert {name: one.shape for name, one in found.channels.items()} == {f"A_{k + 1}": (4 * 2**k,) for k in range(4)}
    np.testing.assert_allclose(found.channels["A_2"], weights["A_2"].flatten(), rtol=1e-5)
    found = network_maps(cbam, shown)
    assert found.channels == {}
    assert list(found.maps) == [f"A_{k}_mean" for k in (1, 2, 3, 4)]
    np.testing.assert_allclose(found.maps["A_1_mean"], places["A_1"][0].mean(0), rtol=1e-4)


def test_features_are_shown_before_and_after_the_module_that_updates_them_if_they_are_asked_for():
    network = _tiny("cga_unet", downsampling=2)
    shown = _shown(network, (16, 16, 16))
    assert network_maps(network, shown).features == {}
    found = network_maps(network, shown, features=True)
    assert list(found.maps) == ["SAM_background", "SAM_NCR", "SAM_ED", "SAM_ET"]
    before, after = found.features["sam"]
    with torch.inference_mode():
        expected = network.updated_features(torch.from_numpy(shown.images[None]))["sam"]
    for values, own in zip((before, after), expected, strict=True):
        mean = own.mean((0, 1)).numpy()
        assert values.shape == (16, 16, 16)
        np.testing.assert_allclose(values[::15, ::15, ::15], mean[::7, ::7, ::7], rtol=1e-4, atol=1e-6)  # the corners


@pytest.mark.parametrize("name", NETWORKS)
def test_every_map_of_every_network_is_finite_on_the_images_grid_and_says_what_it_is(name):
    network = _tiny(name)
    size = tuple(TINY[name].get("patch_size", (network.divisors[0], 2 * network.divisors[1], network.divisors[2])))
    shown = _shown(network, size, size if name == "unetr" else None)
    found = network_maps(network, shown, features=True)
    for one in (*found.maps, *found.channels):
        assert meaning(one) != UNTOLD
    for values in (*found.maps.values(), *(one for pair in found.features.values() for one in pair)):
        assert values.shape == size
        assert np.isfinite(values).all()


def test_a_meaning_names_the_level_and_the_region():
    assert "level 3" in meaning("AG_3")
    assert meaning("saliency_WT").startswith("How much the mean logit of the WT")
    assert all(text.endswith(".") for text in MEANINGS.values())
