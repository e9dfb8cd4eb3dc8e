import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from gliomap.errors import InputError
from gliomap.networks.backbones import DynUNet, SegResNet
from gliomap.networks.dual_fusion import (
    DualFusion,
    EarlyFusion,
    EarlyFusionAttention,
    LateFusion,
    LocalAttention,
    ResidualBlock,
)

BACKBONES = {
    "dynunet": {"filters": [4, 8, 8]},
    "segresnet": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
}
FUSIONS = [LateFusion, EarlyFusion, DualFusion]


def images(*size):
    return torch.randn(2, 4, *(size or (4, 8, 8)), generator=torch.Generator().manual_seed(1))


def dual(**settings):
    torch.manual_seed(0)
    return DualFusion(**{**BACKBONES, "width": 6, "grid": 2, **settings}).eval()


def own_parameters(network):
    return sum(p.numel() for name, p in network.named_parameters() if not name.startswith(("dynunet.", "segresnet.")))


@pytest.mark.parametrize(
    ("network", "settings", "parameters"),
    [
        (DualFusion, {}, 117_827),
        (DualFusion, {"width": 16}, 29_987),
        (DualFusion, {"attention": "none"}, 117_827),
        (DualFusion, {"local": False}, 117_827 - 1_056 - 27_680 - 1_056),
        (DualFusion, {"separable": True}, 117_827 - 55_328 - 27_680 + (1_792 + 2_080) + (896 + 1_056)),
        (EarlyFusion, {}, 1_667),
        (LateFusion, {}, 0),
    ],
)
def test_parameters_of_the_fusion_alone(network, settings, parameters):
    with torch.device("meta"):
        assert own_parameters(network(**settings)) == parameters


@pytest.mark.parametrize(("width", "gmac"), [(32, 246.09), (16, 62.38)])
def test_multiply_accumulates_of_the_fusions_convolutions(width, gmac):
    with torch.device("meta"):
        network = DualFusion(width=width, attention="none").eval()
        x = torch.zeros(1, 4, 128, 128, 128)
        totals = []
        for run in (network, network.features):
            with FlopCounterMode(display=False) as counter:
                run(x)
            totals.append(counter.get_total_flops() / 2e9)
    assert totals[0] - totals[1] == pytest.approx(gmac, abs=0.01)


def test_the_value_is_the_mean_of_joint_query_and_key():
    torch.manual_seed(0)
    block = EarlyFusionAttention((3, 5), 6, separable=False, recompute=False)
    first, second = torch.randn(2, 3, 4, 4, 6), torch.randn(2, 5, 4, 4, 6)
    query, key, value = block(first, second)
    torch.testing.assert_close(query, F.conv3d(first, block.query.weight, block.query.bias))
    torch.testing.assert_close(key, F.conv3d(second, block.key.weight, block.key.bias))
    torch.testing.assert_close(value, (block.joint(torch.cat([query, key], 1)) + query + key) / 3)
    for parameter in block.joint.parameters():
        nn.init.zeros_(parameter)
    query, key, value = block(first, second)
    torch.testing.assert_close(value, (query + key) / 3)


def test_the_residual_block_is_its_layers_around_a_shortcut():
    torch.manual_seed(0)
    block, x = ResidualBlock(4, 6, separable=False), torch.randn(2, 4, 4, 4, 6)
    kernels = [m.kernel_size[0] for m in block.layers.modules() if isinstance(m, nn.Conv3d)]
    assert kernels == [3, 1, 3]
    y = x
    for convolution in [m for m in block.layers.modules() if isinstance(m, nn.Conv3d)]:
        y = F.instance_norm(convolution(y))
        y = F.leaky_relu(y, 0.01) if convolution is not block.layers[-1][0] else y
    torch.testing.assert_close(block(x), F.leaky_relu(y + block.shortcut(x), 0.01))
    nn.init.zeros_(block.layers[-1][1].weight)
    torch.testing.assert_close(block(x), F.leaky_relu(block.shortcut(x), 0.01))


def test_a_separable_block_sees_each_channel_by_itself_first():
    torch.manual_seed(0)
    depthwise, pointwise = ResidualBlock(4, 6, separable=True).layers[0][0]
    assert depthwise.groups == 4
    assert (depthwise.kernel_size, pointwise.kernel_size) == ((3, 3, 3), (1, 1, 1))


def test_local_attention_adds_a_local_correction():
    torch.manual_seed(0)
    block, x = LocalAttention(6), torch.randn(2, 6, 4, 4, 6)
    first, _, second, _, third = block.layers
    torch.testing.assert_close(block(x), x + third(F.gelu(second(F.gelu(first(x))))))
    assert [m.kernel_size[0] for m in (first, second, third)] == [1, 3, 1]
    nn.init.zeros_(third.weight)
    nn.init.zeros_(third.bias)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("attention", ["kvpool", "none"])
@pytest.mark.parametrize("local", [True, False])
def test_the_network_is_its_blocks_in_the_order_of_the_figure(attention, local):
    network, x = dual(attention=attention, local=local), images()
    query, key, value = network.early(network.dynunet.features(x), network.segresnet.features(x))
    if attention == "kvpool":
        value = network.global_attention(query, key, value)
    if local:
        value = network.local_attention(value)
    torch.testing.assert_close(network(x), network.head(value))


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_late_fusion_is_the_mean_probability(kind):
    torch.manual_seed(0)
    network, x = LateFusion(**BACKBONES, kind=kind).eval(), images()
    probabilities = torch.sigmoid if kind == "sigmoid" else lambda logits: torch.softmax(logits, 1)
    mean = (probabilities(network.dynunet(x)) + probabilities(network.segresnet(x))) / 2
    torch.testing.assert_close(probabilities(network(x)), mean)
    if kind == "softmax":
        torch.testing.assert_close(network(x).exp(), mean)


class Says(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, _):
        return self.logits


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_late_fusion_of_very_sure_networks_stays_finite(kind):
    sure = torch.tensor([[300.0, -300.0, 300.0, -300.0], [-300.0, -300.0, 300.0, 0.0]])[:, :, None, None, None]
    other = torch.tensor([[300.0, -300.0, -300.0, 0.0], [300.0, -300.0, 300.0, -300.0]])[:, :, None, None, None]
    network = LateFusion(**BACKBONES, kind=kind)
    network.dynunet, network.segresnet = Says(sure), Says(other)
    logits = network(images())
    if kind == "sigmoid":
        # sure and sure, not and not; one of each is even; half of what is even, and nothing, is 1 / 4: logit -ln 3
        expected = torch.tensor([[300.0, -300.0, 0.0, -math.log(3)], [0.0, -300.0, 300.0, -math.log(3)]])
        torch.testing.assert_close(logits[..., 0, 0, 0], expected)
    logits.sum().backward()
    assert torch.isfinite(logits).all()
    assert torch.isfinite(network.dynunet.logits.grad).all()


def test_late_fusion_of_equal_networks_changes_nothing():
    network = LateFusion(**BACKBONES)
    logits = torch.tensor([-40.0, -2.0, 0.0, 3.0, 60.0])[None, :, None, None, None]
    network.dynunet = network.segresnet = Says(logits)
    torch.testing.assert_close(network(images()), logits)


def test_early_fusion_is_two_convolutions_of_the_joined_features():
    torch.manual_seed(0)
    network, x = EarlyFusion(**BACKBONES, width=5).eval(), images()
    joined = torch.cat([network.dynunet.features(x), network.segresnet.features(x)], 1)
    torch.testing.assert_close(network(x), network.head[2](torch.relu(network.head[0](joined))))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_weights_of_trained_backbones_fit_their_part(fusion):
    torch.manual_seed(0)
    settings = {**BACKBONES, "dynunet": {"filters": [4, 8, 8, 8], "deep_supervision": True}}
    dynunet, segresnet = DynUNet(**settings["dynunet"]).eval(), SegResNet(**settings["segresnet"]).eval()
    network, x = fusion(**settings).eval(), images(8, 8, 16)
    for name, backbone in (("dynunet", dynunet), ("segresnet", segresnet)):
        network.get_submodule(name).load_state_dict(backbone.state_dict())
    for ours, theirs in zip(network.features(x), (dynunet.features(x), segresnet.features(x)), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("fusion", [EarlyFusion, DualFusion])
def test_output_layers_of_the_backbones_are_not_trained(fusion):
    network = fusion(**{**BACKBONES, "dynunet": {"filters": [4, 8, 8, 8], "deep_supervision": True}})
    network(images(8, 8, 16)).square().mean().backward()
    without = {name for name, p in network.named_parameters() if p.grad is None}
    assert without == {name for name, p in network.named_parameters() if not p.requires_grad}
    assert without
    assert all("output_block" in name or "conv_final.2" in name or "supervision_heads" in name for name in without)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_frozen_backbones_are_as_in_evaluation_and_build_no_graph(fusion):
    network, x = fusion(**BACKBONES), images(8, 8, 16)
    network.freeze(["dynunet", "segresnet"])
    network.train()
    features = network.features(x)
    assert not any(f.requires_grad for f in features)
    assert torch.equal(features[1], network.features(x)[1])  # SegResNet drops channels in training
    trained = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert trained.isdisjoint({"dynunet", "segresnet"})
    assert bool(trained) == (fusion is not LateFusion)


def trained_once(**settings):
    """The numbers that a forward pass keeps for the backward pass, and the gradients that this gives."""
    network, saved = dual(**settings), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t.numel()), t)[1], lambda t: t):
        loss = network(images()).square().mean()
    loss.backward()
    return sum(saved), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("local", [True, False])
def test_recomputing_gives_the_same_gradients(local):
    torch.testing.assert_close(
        trained_once(local=local, recompute=True)[1], trained_once(local=local, recompute=False)[1]
    )


def test_recomputing_keeps_less_of_the_early_and_of_the_local_block():
    spared = {
        local: trained_once(local=local, recompute=False)[0] - trained_once(local=local, recompute=True)[0]
        for local in (True, False)
    }
    volume = 2 * 6 * 4 * 8 * 8  # of the common width
    assert spared[False] > 5 * volume
    assert spared[True] - spared[False] > 3 * volume


@pytest.mark.parametrize(
    ("attention", "shape"),
    [
        ("kvpool", (2, 1, 2, 2, 2)),
        ("exact", (2, 1, 4, 8, 8)),
        ("axial", (2, 1, 4, 8, 8)),
        ("window", (2, 1, 4, 8, 8)),
        ("linear", (2, 1, 4, 8, 8)),
        ("channel", (2, 6, 1, 1, 1)),
    ],
)
def test_the_attention_map_says_which_keys_are_attended_to(attention, shape):
    network, x = dual(attention=attention, window=4), images()
    (weights,) = network.attention(x).values()
    assert weights.shape == shape
    assert (weights > 0).all()
    assert torch.equal(weights.amax((1, 2, 3, 4)), torch.ones(2))
    first, second = network.features(x)
    torch.testing.assert_close(
        weights, network.global_attention.key_weights(network.early.query(first), network.early.key(second))
    )


def test_without_global_attention_there_is_no_map():
    network = dual(attention="none")
    assert network.attention(images()) == {}
    with pytest.raises(InputError, match="multiple of 4"):
        network.attention(images(4, 4, 6))


@pytest.mark.parametrize(
    ("settings", "divisor"),
    [({"grid": 2}, 4), ({"grid": 6}, 12), ({"attention": "window", "window": 8}, 8), ({"attention": "axial"}, 4)],
)
def test_sizes_must_suit_both_backbones_and_the_attention(settings, divisor):
    network = dual(**settings)
    assert network.size_divisor == divisor
    assert network(images(divisor, divisor, 2 * divisor)).shape == (2, 3, divisor, divisor, 2 * divisor)
    with pytest.raises(InputError, match=f"multiple of {divisor}"):
        network(images(divisor, divisor, 2 * divisor - 1))


def test_exact_attention_is_refused_on_a_whole_patch_unless_forced():
    settings = {**BACKBONES, "width": 2, "attention": "exact"}
    with torch.device("meta"):
        x = torch.zeros(1, 4, 32, 32, 36)
        for ask in (DualFusion(**settings), DualFusion(**settings).attention):
            with pytest.raises(InputError, match="force_exact"):
                ask(x)
        assert DualFusion(**settings, force_exact=True)(x).shape == (1, 3, 32, 32, 36)


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="no attention is called 'sparse'"):
        dual(attention="sparse")
    with pytest.raises(ValueError, match="expected sigmoid or softmax"):
        LateFusion(**BACKBONES, kind="argmax")
