import pytest
import torch

from gliomap.networks.druwas import AttentionGate, DRUwAS, ResidualBlock, SpatialAttention


def images(channels=8, size=4):
    return torch.randn(2, channels, size, size, size, generator=torch.Generator().manual_seed(0))


def test_a_residual_block_whose_convolutions_give_nothing_passes_its_input_through_the_activation():
    block = ResidualBlock(8, 8, "relu")
    torch.nn.init.zeros_(block.layers[4].weight)
    torch.nn.init.zeros_(block.layers[4].bias)
    x = images()
    torch.testing.assert_close(block(x), torch.relu(x))


def test_the_shortcut_is_projected_only_where_the_width_changes():
    assert isinstance(ResidualBlock(8, 8, "relu").shortcut, torch.nn.Identity)
    assert ResidualBlock(8, 16, "relu")(images()).shape == (2, 16, 4, 4, 4)


def test_the_gate_weighs_each_voxel_by_skip_and_decoder():
    gate = AttentionGate(8, "relu").eval()
    skip, decoder = images(), images().flip(0)
    psi = gate(skip, decoder)
    assert psi.shape == (2, 1, 4, 4, 4)
    assert 0 < psi.min() < psi.max() < 1
    assert not torch.equal(gate(skip, skip), psi)
    assert not torch.equal(gate(decoder, decoder), psi)


def test_spatial_attention_is_the_sigmoid_of_a_weighted_sum_of_channels():
    attention, x = SpatialAttention(8), images()
    weights = attention.conv.weight[0, :, 0, 0, 0]
    torch.testing.assert_close(attention(x)[:, 0], torch.sigmoid(torch.einsum("c,bcdhw->bdhw", weights, x)))


def test_attention_maps_are_named_per_level_and_only_where_built():
    x = images(4, 16)
    maps = DRUwAS().attention(x)
    assert set(maps) == {f"{kind}_{level}" for kind in ("AG", "SA") for level in (1, 2, 3, 4)}
    assert maps["AG_1"].shape == (2, 1, 16, 16, 16)
    assert maps["SA_4"].shape == (2, 1, 2, 2, 2)
    assert set(DRUwAS(attention_gate=False).attention(x)) == {f"SA_{level}" for level in (1, 2, 3, 4)}
    assert DRUwAS(attention_gate=False, spatial_attention=False).attention(x) == {}


@pytest.mark.parametrize("part", ["gates", "spatial"])
def test_attention_acts_on_the_logits(part):
    torch.manual_seed(0)
    network, x = DRUwAS().eval(), images(4, 16)
    with torch.inference_mode():
        before = network(x)
        for parameter in getattr(network, part).parameters():
            parameter.mul_(3).add_(0.5)
        assert not torch.allclose(network(x), before)


def test_weights_carry_over_to_another_activation():
    torch.manual_seed(0)
    relu, swish, x = DRUwAS().eval(), DRUwAS(activation="silu").eval(), images(4, 16)
    swish.load_state_dict(relu.state_dict())
    with torch.inference_mode():
        assert not torch.allclose(relu(x), swish(x))
    with pytest.raises(ValueError, match="no activation is called 'tanh'"):
        DRUwAS(activation="tanh")


def test_recomputed_activations_cost_no_accuracy():
    torch.manual_seed(0)
    kept = DRUwAS(base=8, depth=2)
    again = DRUwAS(base=8, depth=2, recompute=True)
    again.load_state_dict(kept.state_dict())
    x = images(4, 8)
    for network in (kept, again):
        network(x).square().mean().backward()
    for (name, a), b in zip(kept.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
