import itertools

import pytest
import torch
from torch import nn

from gliomap.networks.attention_resunet import (
    AttentionResUNet,
    CBAMGate,
    FreeGate,
    MultiScaleFusion,
    ResidualBlock,
    SEGate,
)

GATES = ("none", "free", "se", "cbam")
SIZE = (16, 32, 16)


def images(channels=4, size=SIZE):
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(1))


def fill(convolution, centre, bias):
    """A 3x3x3 convolution that multiplies each voxel by ``centre`` and adds ``bias``."""
    nn.init.zeros_(convolution.weight)
    with torch.no_grad():
        convolution.weight[:, :, 1, 1, 1] = centre
        convolution.bias.fill_(bias)


@pytest.mark.parametrize(("post_activation", "wanted"), [(False, [-3.0, -1.0, 1.0, 6.0]), (True, [0.0, 0.0, 0.0, 6.0])])
def test_residual_block_by_hand(post_activation, wanted):
    block = ResidualBlock(1, 1, post_activation=post_activation).eval()
    block.norm.eps = 0
    fill(block.conv1, 2.0, -2.0)  # 2h - 2
    fill(block.conv2, 1.0, -1.0)  # ReLU(2h - 2) - 1
    x = torch.tensor([-3.0, -1.0, 1.0, 3.0]).reshape(1, 1, 1, 1, 4)
    # the branch is -1, -1, -1, 3 before its ReLU
    torch.testing.assert_close(block(x).ravel(), torch.tensor(wanted))


@pytest.mark.parametrize("post_activation", [False, True])
def test_residual_block_is_the_formula(post_activation):
    torch.manual_seed(0)
    block = ResidualBlock(3, 5, post_activation=post_activation).eval()
    block.norm.running_mean.normal_()
    block.norm.running_var.uniform_(0.5, 2)
    x = images(3, (4, 5, 6))
    branch = block.conv2(torch.relu(block.norm(block.conv1(x))))
    summed = torch.relu(block.shortcut(x) + branch) if post_activation else block.shortcut(x) + torch.relu(branch)
    torch.testing.assert_close(block(x), summed)
    assert isinstance(block.shortcut, nn.Conv3d)
    assert isinstance(ResidualBlock(3, 3).shortcut, nn.Identity)


def test_residual_block_with_a_zero_branch_is_the_identity():
    block = ResidualBlock(4, 4)
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(block.conv2.bias)
    x = images()
    assert torch.equal(block(x), x)


def test_free_gate_is_the_sigmoid_of_each_channels_mean_without_parameters():
    x = images(3, (4, 5, 6)) + torch.tensor([-2.0, 0.0, 3.0]).reshape(1, 3, 1, 1, 1)
    gate = FreeGate()
    assert not list(gate.parameters())
    assert gate(x).shape == (2, 3, 1, 1, 1)
    torch.testing.assert_close(gate(x)[:, :, 0, 0, 0], torch.sigmoid(x.flatten(2).mean(2)))


def test_se_gate_is_a_two_layer_perceptron_of_the_means():
    torch.manual_seed(0)
    gate = SEGate(6, 2)
    x = images(6, (4, 4, 4))
    first, second = gate.squeeze.weight[:, :, 0, 0, 0], gate.excite.weight[:, :, 0, 0, 0]
    hidden = torch.relu(x.flatten(2).mean(2) @ first.T + gate.squeeze.bias)
    torch.testing.assert_close(gate(x)[:, :, 0, 0, 0], torch.sigmoid(hidden @ second.T + gate.excite.bias))


def test_cbam_gate_is_a_channel_times_a_spatial_weight():
    torch.manual_seed(0)
    gate = CBAMGate(3)
    x = images(3, (5, 6, 7))
    channel = gate.channel(x)
    gated = x * channel
    spatial = torch.sigmoid(gate.spatial(torch.stack([gated.mean(1), gated.max(1).values], 1)))
    assert gate(x).shape == x.shape
    torch.testing.assert_close(gate(x), channel * spatial)


def test_fusion_branches_see_one_two_and_four_voxels_far():
    reached = []
    fusion = MultiScaleFusion(1, 1, 1)
    for branch in fusion.branches:
        x = torch.zeros(1, 1, 11, 11, 11)
        x[0, 0, 5, 5, 5] = 1
        nn.init.ones_(branch[0].weight)
        nn.init.zeros_(branch[0].bias)
        places = branch[0](x)[0, 0].nonzero()
        reached.append(sorted(set((places - 5).flatten().tolist())))
        assert len(places) == 27
    assert reached == [[-1, 0, 1], [-2, 0, 2], [-4, 0, 4]]
    assert fusion(torch.zeros(2, 1, 4, 4, 4)).shape == (2, 1, 4, 4, 4)


@pytest.mark.parametrize(("gate", "fusion", "post"), list(itertools.product(GATES, (False, True), (False, True))))
def test_every_variant_runs_and_reaches_every_parameter(gate, fusion, post):
    torch.manual_seed(0)
    network = AttentionResUNet(base=4, gate=gate, fusion=fusion, post_activation=post)
    logits = network(images())
    assert logits.shape == (2, 4, *SIZE)
    logits.square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize("gate", GATES)
def test_attention_maps_are_the_encoders_gates(gate):
    torch.manual_seed(0)
    network = AttentionResUNet(base=4, gate=gate).eval()
    maps = network.attention(images())
    if gate == "none":
        assert maps == {}
        return
    assert list(maps) == ["A_1", "A_2", "A_3", "A_4"]
    for level, weight in enumerate(maps.values()):
        own = tuple(n // 2**level for n in SIZE) if gate == "cbam" else (1, 1, 1)
        assert weight.shape == (2, 4 * 2**level, *own)
        assert 0 <= weight.min() <= weight.max() <= 1
    torch.testing.assert_close(maps["A_1"], network.gates[0](network.encoder[0](images())))


def test_gated_map_goes_to_the_skip_and_to_the_next_stage():
    class Shut(nn.Module):
        def forward(self, x):
            return torch.zeros_like(x[:, :, :1, :1, :1])

    network = AttentionResUNet(base=4).eval()
    network.gates[0] = Shut()
    with torch.inference_mode():
        assert torch.equal(network(images()), network(images() * 3 + 1))


def test_sizes_that_divide_by_sixteen_and_other_channels():
    network = AttentionResUNet(2, 3, base=4).eval()
    with torch.inference_mode():
        assert network(images(2, (32, 16, 48))).shape == (2, 3, 32, 16, 48)
