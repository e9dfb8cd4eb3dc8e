import itertools
import math

import pytest
import torch
from networks.tiny import TINY
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from gliomap.networks import NETWORKS, Network, Outputs
from gliomap.networks.cga_unet import CGAUNet
from gliomap.networks.counting import count_forward, count_step, layers, mean_logit, parameters

FLOAT = 4


class Net(Network):
    """A network of whatever modules, run by a function of (network, images)."""

    def __init__(self, forward, in_channels=1, **modules):
        super().__init__()
        self.in_channels, self.size_divisor, self._forward = in_channels, 1, forward
        for name, module in modules.items():
            setattr(self, name, module)

    def supervised(self, x):
        return Outputs((self._forward(self, x),))


def on_meta(build):
    with torch.device("meta"):
        return build()


def chain(length, channels=2):
    """Convolution without bias and ReLU, ``length`` times."""
    widths = [1] + length * [channels]
    pairs = [(nn.Conv3d(i, o, 1, bias=False), nn.ReLU()) for i, o in itertools.pairwise(widths)]
    return Net(lambda n, x: n.body(x), body=nn.Sequential(*(module for pair in pairs for module in pair)))


def total(outputs):
    return outputs.logits[0].sum()


def tiny(name):
    return on_meta(lambda: NETWORKS[name](4, 4, **TINY[name])), TINY[name].get("patch_size") or smallest(name)


def smallest(name):
    network = on_meta(lambda: NETWORKS[name](4, 4, **TINY[name]))
    return (2 * network.size_divisor,) * network.spatial_dims


@pytest.mark.parametrize(
    ("layer", "size", "macs"),
    [
        (nn.Conv3d(6, 5, 3, padding=1, stride=2), (8, 8, 8), 4**3 * 6 * 5 * 27),
        (nn.Conv3d(6, 5, 3, padding=4, dilation=4), (8, 8, 8), 8**3 * 6 * 5 * 27),
        (nn.Conv3d(6, 12, (1, 3, 5), padding=(0, 1, 2), groups=3), (4, 5, 6), 120 * 2 * 12 * 15),
        (nn.ConvTranspose3d(6, 5, 2, stride=2), (8, 8, 8), 16**3 * 6 * 5),
        (nn.Conv2d(6, 5, 3, padding=1), (7, 9), 63 * 6 * 5 * 9),
        (nn.Linear(9, 4), (7, 9), 6 * 7 * 9 * 4),
        (nn.Sequential(nn.BatchNorm3d(6), nn.ReLU(), nn.MaxPool3d(2), nn.Upsample(scale_factor=2)), (4, 4, 4), 0),
    ],
)
def test_layers_cost_what_they_cost_by_hand(layer, size, macs):
    network = Net(lambda n, x: n.layer(x), in_channels=6, layer=layer).to("meta")
    assert count_forward(network, size).gmac == pytest.approx(macs / 1e9)


@pytest.mark.parametrize(
    "attend",
    [
        lambda q, k: F.scaled_dot_product_attention(q, k, k),
        lambda q, k: torch.softmax(q @ k.mT / math.sqrt(8), -1) @ k,
        lambda q, k: torch.einsum("bhnm,bhmf->bhnf", torch.softmax(torch.einsum("bhnf,bhmf->bhnm", q, k), -1), k),
    ],
)
def test_both_products_of_an_attention_count(attend):
    network = Net(lambda _, x: attend(x.flatten(2).mT[:, None], x[:, :, :2].flatten(2).mT[:, None]), in_channels=8)
    assert count_forward(network, (6, 5, 4)).gmac == pytest.approx(2 * 120 * 40 * 8 / 1e9)


def test_scores_that_no_kernel_writes_down_need_no_memory():
    def attend(network, x):
        tokens = network.body(x).flatten(2).mT[:, None]
        return F.scaled_dot_product_attention(tokens, tokens, tokens)

    network = on_meta(lambda: Net(attend, in_channels=8, body=nn.Conv3d(8, 8, 1)))
    voxels = 16**3
    scores = voxels**2 * FLOAT
    assert count_forward(network, (16, 16, 16)).memory_bytes < scores / 50
    step = count_step(network, (16, 16, 16), 1, total)
    assert step.memory_bytes < scores / 25
    convolution, attention = voxels * 8 * 8, 2 * voxels**2 * 8
    # backwards a convolution costs one product for its weights, none for images; attention makes its scores anew, and four
    assert step.gmac == pytest.approx((2 * convolution + 3.5 * attention) / 1e9)


@pytest.mark.parametrize("name", TINY)
def test_torchs_own_counter_agrees_and_rows_have_everything(name):
    network, size = tiny(name)
    forward = count_forward(network, size)
    with FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, 4, *size, device="meta"))
    assert forward.gmac == pytest.approx(counter.get_total_flops() / 2e9)
    assert math.fsum(row.gmac for row in forward.layers) == pytest.approx(forward.gmac)
    assert sum(row.parameters for row in forward.layers) == parameters(network)
    assert "rest" not in {row.name for row in forward.layers if row.gmac}


def test_forward_memory_by_hand():
    voxels = 4 * 5 * 6
    images, maps = voxels * FLOAT, 2 * voxels * FLOAT
    for length in (1, 2, 5):
        memory = count_forward(on_meta(lambda n=length: chain(n)), (4, 5, 6)).memory_bytes
        assert memory == images + 2 * maps  # what goes into a layer and what comes out, beside the images


def test_step_memory_by_hand():
    voxels = 4 * 5 * 6
    images, maps = voxels * FLOAT, 2 * voxels * FLOAT
    for length, batch in ((1, 1), (2, 1), (5, 1), (2, 3)):
        step = count_step(on_meta(lambda n=length: chain(n)), (4, 5, 6), batch, total)
        kept = images + length * maps  # what each convolution got, and what each ReLU gave
        scalars = 2 * FLOAT  # the loss and its gradient
        weights = 2 * 2 * FLOAT if length > 1 else 0  # their gradient, while both sides of a convolution have theirs
        assert step.memory_bytes == batch * (kept + maps) + weights + scalars
        assert step.gmac == pytest.approx(batch * voxels * (2 * 2 + (length - 1) * 4 * 3) / 1e9)


def test_views_and_what_is_changed_in_place_share_their_memory():
    def run(network, x):
        x = network.body(x)
        return torch.relu_(x.flatten(2).mT.reshape(2, 1, 1, -1)[..., ::2])

    network = on_meta(lambda: Net(run, body=nn.Conv3d(1, 2, 1, bias=False)))
    voxels = 4 * 5 * 6
    # images, maps, the reshaped copy of them: its slice and the ReLU add nothing
    assert count_forward(network, (4, 5, 6)).memory_bytes == voxels * FLOAT * (1 + 2 + 2)


def test_weights_and_gradients_are_not_activations():
    wide = on_meta(lambda: Net(lambda n, x: n.body(x), body=nn.Conv3d(1, 1000, 9, padding=4, bias=False)))
    weights = 1000 * 9**3 * FLOAT
    assert count_forward(wide, (2, 2, 2)).memory_bytes == 8 * (1 + 1000) * FLOAT
    step = count_step(wide, (2, 2, 2), 1, total).memory_bytes
    assert weights <= step < 1.1 * weights  # the gradient on its way to the one that is kept


def test_a_view_of_weights_is_no_activation_either():
    network = on_meta(lambda: Net(lambda n, x: n.body(x), body=nn.Linear(6, 1000)))
    assert count_forward(network, (1, 1, 6)).memory_bytes == (6 + 1000) * FLOAT


def test_forward_is_counted_as_in_use_and_a_step_as_in_training():
    network = on_meta(lambda: Net(lambda n, x: n.body(x), body=nn.Sequential(nn.Conv3d(1, 2, 1), nn.Dropout(0.5))))
    voxels = 4 * 5 * 6
    assert count_forward(network, (4, 5, 6)).memory_bytes == voxels * FLOAT * (1 + 2)
    dropped = count_step(network, (4, 5, 6), 1, total).memory_bytes
    assert dropped > voxels * FLOAT * (1 + 2 + 2)  # what goes in, what comes out, and where
    assert count_step(on_meta(lambda: chain(1)), (4, 5, 6), 1, total).memory_bytes < dropped


def test_what_is_counted_is_what_a_real_step_allocates():
    def network():
        torch.manual_seed(0)
        return NETWORKS["druwas"](4, 3, base=8, depth=2)

    size, batch = (16, 16, 16), 2
    expected = count_step(on_meta(network), size, batch, mean_logit).memory_bytes
    real = network().to(memory_format=torch.channels_last_3d)  # in the other layout kernels copy what they are given
    images = torch.randn(batch, 4, *size).contiguous(memory_format=torch.channels_last_3d)
    for parameter in real.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        mean_logit(real.supervised(images)).backward()
    live = peak = images.nbytes
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    assert expected == pytest.approx(peak, rel=0.03)


def test_recomputing_trades_memory_for_arithmetic():
    kept, recomputed = (
        count_step(on_meta(lambda r=r: CGAUNet(base=8, recompute=r)), (32, 32, 32), 1, mean_logit)
        for r in (False, True)
    )
    assert recomputed.memory_bytes < 0.8 * kept.memory_bytes
    assert 1.1 * kept.gmac < recomputed.gmac < 4 / 3 * kept.gmac


def test_what_is_frozen_keeps_nothing():
    def run(network, x):
        return network.head(network.body.body(x))

    network = on_meta(lambda: Net(run, body=chain(6), head=nn.Conv3d(2, 1, 1)))
    whole = count_step(network, (8, 8, 8), 1, total)
    learnt = parameters(network)
    network.freeze(["body"])
    frozen = count_step(network, (8, 8, 8), 1, total)
    assert parameters(network) == 3 < learnt
    assert frozen.memory_bytes < 0.6 * whole.memory_bytes
    network.freeze(["body", "head"])
    assert count_step(network, (8, 8, 8), 1, total).gmac == count_forward(network, (8, 8, 8)).gmac


def test_rows_are_in_the_order_of_execution_with_their_own_share():
    def run(network, x):
        x = network.last(network.items[1](x))
        x = network.pool(network.items[0](x))
        return network.pool(x)

    parts = {
        "items": nn.ModuleList([nn.Conv3d(2, 3, 1), nn.Conv3d(1, 2, 3, padding=1)]),
        "nothing": nn.Identity(),
        "pool": nn.MaxPool3d(2),
        "last": nn.Sequential(nn.Conv3d(2, 2, 1), nn.ReLU()),
    }
    rows = count_forward(on_meta(lambda: Net(run, **parts)).to("meta"), (8, 8, 8)).layers
    assert [(row.name, row.kind, row.output, row.parameters) for row in rows] == [
        ("items.1", "Conv3d", (2, 8, 8, 8), 2 * 27 + 2),
        ("last", "Sequential", (2, 8, 8, 8), 2 * 2 + 2),
        ("items.0", "Conv3d", (3, 8, 8, 8), 2 * 3 + 3),
        ("pool", "MaxPool3d", (3, 4, 4, 4), 0),
        ("pool", "MaxPool3d", (3, 2, 2, 2), 0),
    ]
    assert [round(row.gmac * 1e9) for row in rows] == [512 * n for n in (2 * 27, 2 * 2, 2 * 3, 0, 0)]


def test_weights_used_twice_are_counted_once_and_arithmetic_twice():
    network = on_meta(lambda: Net(lambda n, x: n.a(n.b(n.a(x))), a=nn.Conv3d(1, 1, 1), b=nn.Conv3d(1, 1, 3, padding=1)))
    rows = count_forward(network, (4, 4, 4)).layers
    assert [(row.name, row.parameters, round(row.gmac * 1e9)) for row in rows] == [
        ("a", 2, 64),
        ("b", 28, 64 * 27),
        ("a", 0, 64),
    ]


def test_a_part_of_which_only_parts_run_is_one_row_and_the_rest_has_what_is_nowhere():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.idle = nn.Conv3d(1, 2, 1), nn.Conv3d(2, 4, 1), nn.Conv3d(1, 1, 1)

    def run(network, x):
        x = network.inner.second(network.inner.first(x))
        return network.head(x) * torch.mm(network.scale, network.scale).sum()

    network = on_meta(lambda: Net(run, inner=Inner(), head=nn.Conv3d(4, 1, 1), scale=nn.Parameter(torch.ones(3, 3))))
    rows = count_forward(network, (4, 4, 4)).layers
    assert [(row.name, row.output, row.parameters, round(row.gmac * 1e9)) for row in rows] == [
        ("inner", (4, 4, 4, 4), (2 + 2) + (8 + 4), 64 * (2 + 8)),
        ("head", (1, 4, 4, 4), 5, 64 * 4),
        ("rest", (), 9 + 2, 27),
    ]


def test_layers_that_call_each_other_share_nothing():
    class Outer(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.own = inner, nn.Conv3d(1, 1, 3, padding=1)

        def forward(self, x):
            return self.own(self.inner(x))

    inner = nn.Conv3d(1, 1, 1)
    network = Net(lambda n, x: n.outer(x), inner=inner, outer=Outer(inner)).to("meta")
    rows = count_forward(network, (4, 4, 4)).layers
    assert [(row.name, row.parameters, round(row.gmac * 1e9)) for row in rows] == [
        ("outer", 28, 64 * 27),
        ("inner", 2, 64),
    ]
    dynunet = count_forward(tiny("dynunet")[0], (32, 32, 32)).layers
    assert [row.name for row in dynunet if "skip_layers" in row.name] == []


def test_a_wrapped_network_has_the_parts_of_the_wrapped_one():
    parts = nn.ModuleDict({"a": nn.ReLU(), "b": nn.ModuleList([nn.ReLU(), nn.Identity(), nn.ReLU()])})
    assert list(layers(Net(None, parts=parts, head=nn.ReLU()))) == ["parts.a", "parts.b.0", "parts.b.2", "head"]
    repeated = nn.Sequential(nn.ModuleList([nn.ReLU(), nn.ReLU()]))  # a part that is nothing but a list
    assert list(layers(Net(None, repeated=repeated, head=nn.ReLU()))) == ["repeated.0.0", "repeated.0.1", "head"]
    assert list(layers(Net(None, inner=nn.Sequential(nn.ReLU(), nn.Tanh())))) == ["inner.0", "inner.1"]
    assert list(layers(Net(None, head=nn.ReLU()))) == ["head"]


def test_the_mean_logit_reaches_everything():
    given = [torch.ones(2, 3, 4, requires_grad=True) for _ in range(4)]
    mean_logit(Outputs((given[0], given[1]), given[2], given[3])).backward()
    assert all(tensor.grad is not None and tensor.grad.abs().min() > 0 for tensor in given)
    mean_logit(Outputs((given[0],)))
