import numpy as np
import pytest
import torch
from models import tiny_model

from gliomap import tracing
from gliomap.errors import InputError, IntegrityError, UsageError
from gliomap.networks import Network
from gliomap.openvino_engine import openvino_engine
from gliomap.torch_engine import bytes_per_voxel
from gliomap.tracing import LONG_AXIS, convert


class Odd(Network):
    """A network that traces must get wrong, by what it does with its images."""

    in_channels, size_divisor = 4, 8

    def __init__(self, change):
        super().__init__()
        self.layer = torch.nn.Conv3d(4, 4, 1)
        self.change = change

    def forward(self, x):
        return self.change(self.layer(x))


def longest_first(x):
    return x * 2 if max(int(n) for n in x.shape[2:]) >= 100 else x


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda x: x * float(x.shape[2]), "differ from torch's"),
        (longest_first, "differ from torch's"),
        (lambda x: x + torch.rand_like(x), "differ from torch's"),
        (lambda x: x * float("nan"), "differ from torch's by nan"),
        (lambda x: x[:, :, : int(x.shape[2])], "torch"),
    ],
    ids=["size as a number", "branch on a long axis", "chance", "nan", "size as an index"],
)
def test_a_network_that_is_another_after_tracing_is_refused(change, why, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(tracing, "load_networks", lambda _: (Odd(change),))
    with pytest.raises(UsageError, match=why):
        convert(tiny_model(), "torchscript")


def test_a_network_of_one_size_is_converted_for_that(monkeypatch):
    class Fixed(Odd):
        patch_size = (8, 8, 16)

        def check_input(self, x):
            assert tuple(x.shape[2:]) == self.patch_size

        def forward(self, x):
            self.check_input(x)
            return super().forward(x)

    network = Fixed(lambda x: x * torch.arange(16.0))
    monkeypatch.setattr(tracing, "load_networks", lambda _: (network,))
    engine = openvino_engine(convert(tiny_model(), "openvino"))
    assert engine.only_size == (8, 8, 16)
    images = torch.randn(2, 4, 8, 8, 16)
    np.testing.assert_allclose(engine.run(images.numpy()), network(images).detach().numpy(), atol=1e-4)
    with pytest.raises(InputError, match="takes no other"):
        engine.run(images.repeat(1, 1, 1, 1, 2).numpy())


def test_a_network_that_cannot_be_traced_says_why(monkeypatch):
    def refuse(_):
        raise RuntimeError("first line\nthe reason")

    monkeypatch.setattr(tracing, "load_networks", lambda _: (Odd(refuse),))
    with pytest.raises(UsageError, match=r"^first line the reason$"):
        convert(tiny_model(), "torchscript")


def test_weights_that_do_not_fit_are_not_a_matter_of_converting():
    model = tiny_model()
    model.weights.popitem()
    with pytest.raises(IntegrityError, match="do not fit its recipe"):
        convert(model, "torchscript")


@pytest.mark.parametrize("name", ["attention_resunet", "unet2d"])
def test_every_axis_is_compared_at_other_lengths_than_traced_and_one_as_long_as_a_brain(name):
    (network,) = tracing.load_networks(tiny_model(name))
    traced, *compared = tracing._sizes(network)
    assert len(set(compared)) == 2
    assert all(n != m for size in compared for n, m in zip(size, traced, strict=True))
    assert max(n for size in compared for n in size) >= LONG_AXIS
    for size in (traced, *compared):
        assert all(n % d == 0 for n, d in zip(size, network.divisors, strict=True))


def test_what_is_known_of_the_network_goes_along():
    about = convert(tiny_model(), "torchscript").about
    assert (about["spatial_dims"], about["divisors"], about["only_size"]) == (2, (1, 4, 4), None)
    assert about["bytes_per_voxel"] == bytes_per_voxel(tiny_model().recipe) > 4 * (4 + 4)
    assert 0 <= about["largest_difference"] < 1e-5


def test_memory_of_a_pass_grows_with_the_networks_width():
    narrow, wide = (bytes_per_voxel(tiny_model(base=base).recipe) for base in (4, 8))
    assert wide / narrow == pytest.approx(2, rel=0.3)


@pytest.mark.parametrize("to", ["openvino", "onnx", "torchscript"])
def test_what_another_program_makes_of_the_network_is_compared_with_torch(to, monkeypatch):
    write = tracing._WRITERS[to]

    def write_another(_, images, about):
        return write(tracing.load_networks(tiny_model(seed=1))[0], images, about)

    monkeypatch.setitem(tracing._WRITERS, to, write_another)
    with pytest.raises(UsageError, match="differ from torch's"):
        convert(tiny_model(), to)
