import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gliomap.networks.aspp_attention_unet import (
    ASPP,
    SPP,
    ASPPAttentionUNet,
    AttentionGate,
    PooledBatchNorm,
    RepeatedASPP,
    unet2d,
)

SMALL = {"base": 8, "depth": 2, "aspp_width": 4, "spp_width": 4}
CONTEXTS = ("none", "spp", "aspp")


def images(channels=4, size=(8, 12), batch=2):
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(0))


def small(**settings):
    torch.manual_seed(0)
    return ASPPAttentionUNet(4, 3, **SMALL | settings)


def make_positive(module):
    """Every weight positive and every normalisation the identity, so that no ReLU hides a path."""
    for convolution in module.modules():
        if isinstance(convolution, nn.Conv2d):
            nn.init.constant_(convolution.weight, 0.1)
    return module.eval()


def reach(module, size=25):
    """How far from the middle of a map the output there depends on the input, in pixels."""
    x = torch.ones(1, 2, size, size, requires_grad=True)
    make_positive(module)(x)[0, :, size // 2, size // 2].sum().backward()
    return int((x.grad[0, 0].nonzero() - size // 2).abs().max())


def without_mean(blocks):
    """ASPP blocks whose fusion ignores the global mean, the last of the concatenated branches."""
    for block in blocks:
        width = block.point[0].out_channels
        block.fuse[0].register_forward_pre_hook(lambda _, inputs, width=width: (mask_last(inputs[0], width),))


def mask_last(x, width):
    return torch.cat([x[:, :-width], torch.zeros_like(x[:, -width:])], 1)


@pytest.mark.parametrize("rate", [1, 2, 4])
def test_an_atrous_branch_samples_nine_places_a_rate_apart(rate):
    branch = ASPP(1, 1, (rate,)).atrous[0]
    x = torch.zeros(1, 1, 11, 11)
    x[0, 0, 5, 5] = 1
    nn.init.ones_(branch[0].weight)
    places = branch[0](x)[0, 0].nonzero() - 5
    assert sorted(map(tuple, places.tolist())) == [(i, j) for i in (-rate, 0, rate) for j in (-rate, 0, rate)]


def test_the_network_has_three_blocks_of_rates_one_two_four_at_sixteen_by_sixteen_pixels():
    with torch.device("meta"):
        network = ASPPAttentionUNet()
    assert [[branch[0].dilation[0] for branch in block.atrous] for block in network.context.blocks] == [[1, 2, 4]] * 3
    assert network.size_divisor == 16
    assert len(network.gates) == 4


def test_on_the_bottlenecks_map_rate_eighteen_is_a_one_by_one_convolution():
    convolution = ASPP(3, 2, (18,)).atrous[0][0]
    x = images(3, (15, 15))
    torch.testing.assert_close(convolution(x), F.conv2d(x, convolution.weight[:, :, 1:2, 1:2]))


def test_aspp_is_its_branches_concatenated_and_fused():
    torch.manual_seed(0)
    block, x = ASPP(4, 3, (1, 2)).eval(), images(4, (6, 5))

    def layer(part, x, rate):
        convolution = part[-3]  # before its normalisation and ReLU
        padding = rate if convolution.kernel_size == (3, 3) else 0
        normalised = F.conv2d(x, convolution.weight, padding=padding, dilation=rate) / (1 + 1e-5) ** 0.5
        return torch.relu(normalised)

    mean = x.mean((2, 3), keepdim=True)
    branches = [
        layer(block.point, x, 1),
        layer(block.atrous[0], x, 1),
        layer(block.atrous[1], x, 2),
        layer(block.mean, mean, 1).expand(2, 3, 6, 5),
    ]
    torch.testing.assert_close(block(x), layer(block.fuse, torch.cat(branches, 1), 1))


def test_the_mean_branch_sees_the_whole_map():
    torch.manual_seed(0)
    assert reach(ASPP(2, 2, (1,))) == 12
    blocks = [ASPP(2, 2, (1, 3))]
    without_mean(blocks)
    assert reach(blocks[0]) == 3


@pytest.mark.parametrize(("arrangement", "wanted"), [("series", 9), ("residual", 9), ("parallel", 3)])
def test_blocks_in_series_add_up_their_reach(arrangement, wanted):
    repeated = RepeatedASPP(2, blocks=3, width=2, rates=(1, 3), arrangement=arrangement)
    without_mean(repeated.blocks)
    assert reach(repeated) == wanted


def test_arrangements_are_what_they_are_called():
    torch.manual_seed(0)
    made = {
        name: RepeatedASPP(4, blocks=2, width=3, rates=(1, 2), arrangement=name).eval()
        for name in ("series", "parallel", "residual")
    }
    for repeated in made.values():
        repeated.load_state_dict(made["series"].state_dict())
    (first, second), x = made["series"].blocks, images(4)
    torch.testing.assert_close(made["series"](x), second(first(x)))
    torch.testing.assert_close(made["parallel"](x), (first(x) + second(x)) / 2)
    after = x + first(x)
    torch.testing.assert_close(made["residual"](x), after + second(after))


def test_spp_is_the_means_over_its_grids_brought_back_and_fused():
    torch.manual_seed(0)
    module, x = SPP(4, 3, (1, 2, 3, 6)).eval(), images(4, (6, 6))
    parts = [x]
    for bins, grid in zip((1, 2, 3, 6), module.grids, strict=True):
        step = 6 // bins
        means = x.reshape(2, 4, bins, step, bins, step).mean((3, 5))
        parts.append(F.interpolate(grid[1:](means), (6, 6), mode="bilinear", align_corners=False))
    torch.testing.assert_close(module(x), module.fuse(torch.cat(parts, 1)))
    assert [grid[0].output_size for grid in module.grids] == [1, 2, 3, 6]


def test_the_gate_is_the_papers_formula():
    torch.manual_seed(0)
    gate, skip, decoder = AttentionGate(6).eval(), images(6), images(6).flip(0)
    for norm in (gate.from_skip[1], gate.from_decoder[1], gate.psi[2]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    query = gate.psi[2](gate.psi[1](torch.relu(gate.from_skip(skip) + gate.from_decoder(decoder))))
    alpha = gate(skip, decoder)
    assert alpha.shape == (2, 1, 8, 12)
    torch.testing.assert_close(alpha, 1 / (1 + torch.exp(-query)))
    assert not torch.allclose(gate(skip, skip), alpha)
    assert not torch.allclose(gate(decoder, decoder), alpha)


@pytest.mark.parametrize(("channels", "parameters"), [(64, 4323), (128, 16835), (256, 66435), (512, 263939)])
def test_gates_have_the_specified_sizes(channels, parameters):
    with torch.device("meta"):
        gate = AttentionGate(channels)
    assert sum(p.numel() for p in gate.parameters()) == parameters


def test_gates_act_on_the_logits_and_open_gates_make_the_ungated_network():
    class Constant(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def forward(self, skip, _):
            return torch.full_like(skip[:, :1], self.value)

    gated, ungated, x = small().eval(), small(gates=False).eval(), images()
    ungated.load_state_dict({k: v for k, v in gated.state_dict().items() if not k.startswith("gates.")})
    with torch.inference_mode():
        wanted, first = ungated(x), gated(x)
        assert not torch.allclose(first, wanted)
        for level in range(2):
            kept, gated.gates[level] = gated.gates[level], Constant(0.0)
            assert not torch.allclose(gated(x), first), level
            gated.gates[level] = kept
        gated.gates = nn.ModuleList([Constant(1.0), Constant(1.0)])
        torch.testing.assert_close(gated(x), wanted)


@pytest.mark.parametrize("context", CONTEXTS)
def test_attention_shows_the_gates_of_each_level_finest_first_named(context):
    network = small(context=context).eval()
    with torch.inference_mode():
        maps = network.attention(images())
    gates = {name: weight for name, weight in maps.items() if name.startswith("AG")}
    assert {name: tuple(weight.shape) for name, weight in gates.items()} == {
        "AG_1": (2, 1, 8, 12),
        "AG_2": (2, 1, 4, 6),
    }
    assert all(0 < weight.min() < weight.max() < 1 for weight in gates.values())
    assert not {name for name in small(context=context, gates=False).attention(images()) if name.startswith("AG")}


@pytest.mark.parametrize("arrangement", ["series", "parallel", "residual"])
def test_attention_shows_what_each_branch_of_the_aspp_makes(arrangement):
    network = small(arrangement=arrangement).eval()
    with torch.inference_mode():
        maps = {name: weight for name, weight in network.attention(images()).items() if name.startswith("ASPP")}
    assert list(maps) == ["ASPP_1x1", "ASPP_1", "ASPP_2", "ASPP_4", "ASPP_mean"]
    assert {tuple(weight.shape) for weight in maps.values()} == {(2, 1, 2, 3)}
    torch.testing.assert_close(torch.stack(list(maps.values())).sum(0), torch.ones(2, 1, 2, 3))
    for block in network.context.blocks:  # a branch that says nothing has no share
        block.atrous[1][1].weight.data.zero_()
        block.atrous[1][1].bias.data.zero_()
    with torch.inference_mode():
        assert network.attention(images())["ASPP_2"].abs().max() == 0


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_batch_of_one_trains(context):
    network = small(context=context).train()
    network(images(batch=1)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        if parameter.ndim > 1:
            assert parameter.grad.abs().max() > 0, name


def test_one_value_per_channel_is_normalised_as_in_evaluation_and_not_remembered():
    torch.manual_seed(0)
    norm = PooledBatchNorm(3).train()
    norm(3 + 2 * images(3, (1, 1), batch=16))
    remembered = {name: value.clone() for name, value in norm.state_dict().items()}
    alone = images(3, (1, 1), batch=1)
    trained = norm(alone)
    assert all(torch.equal(value, remembered[name]) for name, value in norm.state_dict().items())
    assert torch.equal(trained, norm.eval()(alone))
    assert not torch.allclose(trained, alone)


@pytest.mark.parametrize(("size", "batch"), [((1, 1), 2), ((2, 2), 1), ((3, 2), 4)])
def test_everything_else_is_normalised_by_its_batch(size, batch):
    ours, torchs, x = PooledBatchNorm(3), nn.BatchNorm2d(3), images(3, size, batch)
    assert torch.equal(ours(x), torchs(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), torchs.state_dict().values(), strict=True))


@pytest.mark.parametrize("up", ["nearest", "transposed"])
def test_the_plain_unet_has_neither_gates_nor_context(up):
    torch.manual_seed(0)
    plain = unet2d(4, 3, base=8, depth=2, up=up).eval()
    assert not {name.split(".")[0] for name, _ in plain.named_parameters()} & {"gates", "context"}
    same = small(gates=False, context="none", up=up).eval()
    same.load_state_dict(plain.state_dict())
    with torch.inference_mode():
        assert torch.equal(plain(images()), same(images()))
        assert plain(images()).shape == (2, 3, 8, 12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context": "pyramid"}, "no context is called 'pyramid'"),
        ({"arrangement": "circle"}, "no arrangement is called 'circle'"),
        ({"up": "bilinear"}, "no way up is called 'bilinear'"),
        ({"aspp_blocks": 0}, "cannot be 0 ASPP blocks"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)
