import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import tiny_model
from torch import nn

from gliomap.attention_maps import Shown
from gliomap.classes import ALL_CLASSES, NESTED_REGIONS
from gliomap.errors import UsageError
from gliomap.networks.base import Network, Outputs
from gliomap.saliency import saliency
from gliomap.segmenter import Engine, Segmenter
from gliomap.torch_engine import torch_engine

pytest.importorskip("captum")
WEIGHTS = torch.tensor([[0.5, -1.0, 0.0, 2.0], [3.0, 0.1, -0.2, 0.0], [1.0, 1.0, -4.0, 0.3]])


class Linear(Network):
    """Each logit of a voxel is a weighted sum of its four images."""

    size_divisor = 4

    def __init__(self, weights=WEIGHTS):
        super().__init__()
        self.in_channels = 4
        self.weights = nn.Parameter(weights.clone())

    def supervised(self, x):
        self.check_input(x)
        return Outputs((torch.einsum("kc,bc...->bk...", self.weights, x),))


class LinearSlices(Linear):
    """The same on axial slices."""

    spatial_dims = 2


def _shown(network, size=(6, 9, 10), window=None):
    recipe = tiny_model("unet2d").recipe
    recipe = replace(recipe, inference=replace(recipe.inference, window=window))
    images = np.random.default_rng(0).normal(size=(4, *size)).astype(np.float32)
    return Shown(images, size, Segmenter(recipe, (Engine(torch_engine(network), network.divisors),)))


def _found(shown, share=0.3):
    rng = np.random.default_rng(1)
    return {region: rng.random(shown.images.shape[1:]) < share for region in ("ET", "TC", "WT")}


@pytest.mark.parametrize("kind", [Linear, LinearSlices])
@pytest.mark.parametrize("window", [None, (4, 4, 8)])
def test_the_gradient_of_a_linear_network_is_its_weights_where_the_region_was_found(kind, window):
    network = kind().eval()
    shown = _shown(network, window=window)
    found = _found(shown)
    gradients = saliency(network, shown, found, NESTED_REGIONS)
    assert list(gradients) == ["ET", "TC", "WT"]
    for weights, (region, values) in zip(WEIGHTS.numpy(), gradients.items(), strict=True):
        expected = np.abs(weights)[:, None, None, None] * found[region] / found[region].sum()
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-9)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_of_classes_it_is_the_gradient_of_the_regions_own_logit():
    torch.manual_seed(0)
    network = Linear(torch.randn(4, 4)).eval()
    shown = _shown(network, (4, 4, 4))
    found = {"TC": np.zeros((4, 4, 4), bool)}
    spot = (1, 2, 3)
    found["TC"][spot] = True

    def logit(images):  # of classes 1 and 3 against 0 and 2
        p = np.exp(network.weights.detach().double().numpy() @ images)
        return np.log((p[1] + p[3]) / (p[0] + p[2]))

    x, step = shown.images[(slice(None), *spot)].astype(float), 1e-5
    expected = [abs(logit(x + step * one) - logit(x - step * one)) / (2 * step) for one in np.eye(4)]
    values = saliency(network, shown, found, ALL_CLASSES)["TC"]
    np.testing.assert_allclose(values[(slice(None), *spot)], expected, rtol=1e-3)
    assert np.count_nonzero(values.sum(0)) == 1


def test_a_region_that_was_not_found_is_left_out():
    network = Linear().eval()
    shown = _shown(network)
    found = _found(shown) | {"ET": np.zeros(shown.images.shape[1:], bool)}
    assert list(saliency(network, shown, found, NESTED_REGIONS)) == ["TC", "WT"]
    assert saliency(network, shown, {"ET": found["ET"]}, NESTED_REGIONS) == {}


def test_without_captum_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    network = Linear().eval()
    shown = _shown(network)
    with pytest.raises(UsageError, match=r"pip install 'gliomap\[explain\]'"):
        saliency(network, shown, _found(shown), NESTED_REGIONS)
