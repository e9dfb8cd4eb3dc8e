import numpy as np
import pytest
import torch

from gliomap.engines import load_engines
from gliomap.errors import IntegrityError, UsageError
from gliomap.model_file import Model
from gliomap.networks import Network, build_network, channels_last
from gliomap.recipe import with_settings
from gliomap.recipes import RECIPES
from gliomap.torch_engine import SLICES_PER_BATCH, find_device, load_networks, torch_engine

RECIPE = with_settings(RECIPES["attention_resunet"], ["network.settings.base=4"])


def model(dtype=np.float32, **changes):
    torch.manual_seed(0)
    state = {name: t.numpy() for name, t in build_network(RECIPE).state_dict().items()}
    weights = {name: a.astype(dtype) if a.dtype == np.float32 else a for name, a in state.items()}
    return Model("test", RECIPE, weights | changes, {}, "")


def images(seed=0):
    return np.random.default_rng(seed).normal(size=(2, 4, 16, 16, 32)).astype(np.float32)


def test_engine_gives_the_networks_logits():
    (network,) = load_networks(model())
    logits = torch_engine(network)(images())
    with torch.inference_mode():
        expected = network(torch.from_numpy(images())).numpy()
    assert logits.shape == (2, 4, 16, 16, 32)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_engine_takes_strided_arrays():
    engine = torch_engine(*load_networks(model()))
    turned = images().transpose(0, 1, 4, 3, 2)
    np.testing.assert_array_equal(engine(turned), engine(np.ascontiguousarray(turned)))


def test_engine_evaluates_whatever_mode_the_network_is_in_and_leaves_it_there():
    network = build_network(RECIPE)
    engine = torch_engine(network)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    network.train()
    in_training = engine(images())
    assert network.training
    network.eval()
    np.testing.assert_array_equal(engine(images()), in_training)
    assert not network.training
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())


def test_loaded_network_has_the_models_weights_ready_to_run():
    stored = model()
    (network,) = load_networks(stored)
    assert not network.training
    for name, tensor in network.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), stored.weights[name])


def test_half_precision_weights_run_in_float32():
    (network,) = load_networks(model(np.float16))
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_weights_that_do_not_fit_the_recipe_are_refused():
    with pytest.raises(IntegrityError, match="do not fit its recipe"):
        load_networks(model(extra=np.zeros(3)))
    with pytest.raises(IntegrityError, match="do not fit its recipe"):
        load_networks(model(**{"head.bias": np.zeros(9, np.float32)}))


def ensemble():
    """Two networks, the second with another bias in its last layer."""
    first, second = model().weights, dict(model().weights)
    second["head.bias"] = first["head.bias"] + np.float32(3)
    both = {f"{n}.{name}": array for n, own in enumerate((first, second)) for name, array in own.items()}
    return Model("test", RECIPE, both, {}, "", ("0.", "1."))


def test_an_ensemble_has_an_engine_for_each_network():
    engines = load_engines(ensemble(), "cpu", "torch")
    assert {engine.divisors for engine in engines} == {load_networks(model())[0].divisors}
    first, second = (engine.run(images()) for engine in engines)
    np.testing.assert_array_equal(first, torch_engine(*load_networks(model()))(images()))
    np.testing.assert_allclose(second, first + 3, atol=1e-5)


def test_an_ensemble_with_a_member_that_does_not_fit_is_refused():
    stored = ensemble()
    del stored.weights["1.head.bias"]
    with pytest.raises(IntegrityError, match="do not fit its recipe"):
        load_networks(stored)


def test_channels_last_is_only_a_layout():
    network = build_network(RECIPE).eval()
    with torch.inference_mode():
        before = network(torch.from_numpy(images()))
        after = channels_last(network)(torch.from_numpy(images()))
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-4)


def test_device_names(monkeypatch):
    assert find_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == torch.device("cpu")
    with pytest.raises(UsageError, match="no CUDA device"):
        find_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert find_device("auto") == find_device("cuda") == torch.device("cuda")
    with pytest.raises(UsageError, match="expected auto, cpu or cuda"):
        find_device("gpu0")


class Slices(Network):
    """A 2-D network whose logits are known: each class's is a multiple of the slice."""

    spatial_dims, size_divisor, in_channels = 2, 4, 2

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.check_input(x)
        self.seen.append(len(x))
        return torch.cat([x[:, :1], 2 * x[:, :1], x[:, 1:]], 1)


def test_a_two_dimensional_network_sees_every_axial_slice():
    network, batch = Slices(), np.random.default_rng(0).normal(size=(2, 2, 7, 4, 8)).astype(np.float32)
    logits = torch_engine(network)(batch)
    np.testing.assert_array_equal(logits, np.concatenate([batch[:, :1], 2 * batch[:, :1], batch[:, 1:]], 1))
    assert sum(network.seen) == 14
    assert max(network.seen) <= SLICES_PER_BATCH
