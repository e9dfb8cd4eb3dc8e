import copy

import pytest
import torch
from monai.networks.nets.segresnet import SegResNet as MonaiSegResNet
from torch.nn import functional as F

from gliomap.networks.backbones import DynUNet, SegResNet

FILTERS = (4, 6, 8, 8, 8)
SMALL = {"init_filters": 8, "blocks_down": (1, 2), "blocks_up": (1,)}


def images(*size):
    return torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(1))


def dynunet(**settings):
    torch.manual_seed(0)
    return DynUNet(filters=FILTERS, **settings)


def test_dynunet_is_monais_with_its_coarser_logits_at_their_own_sizes():
    network, x = dynunet(deep_supervision=True), images(16, 16, 32)
    logits = network.supervised(x).logits
    assert [tuple(scale.shape) for scale in logits] == [(2, 3, 16, 16, 32), (2, 3, 8, 8, 16), (2, 3, 4, 4, 8)]
    stacked = network.network(x).unbind(1)  # MONAI brings them all to the full size
    for ours, theirs in zip(logits, stacked, strict=True):
        torch.testing.assert_close(F.interpolate(ours, x.shape[2:]), theirs)


def test_dynunet_has_one_logit_map_when_it_does_not_train():
    network, x = dynunet(deep_supervision=True).eval(), images(16, 16, 32)
    assert len(network.supervised(x).logits) == 1
    assert len(dynunet().supervised(x).logits) == 1
    torch.testing.assert_close(network(x), network.network(x))


def test_dynunet_keeps_nothing_of_a_pass():
    network = dynunet(deep_supervision=True)
    network.supervised(images(16, 16, 32))
    copy.deepcopy(network)  # torch refuses to copy what still holds a graph


@pytest.mark.parametrize("deep_supervision", [False, True])
def test_dynunets_sizes_follow_from_its_filters(deep_supervision):
    network = dynunet(deep_supervision=deep_supervision)
    assert (network.size_divisor, network.feature_channels) == (16, 4)
    with pytest.raises(ValueError, match="expected at least 3"):
        DynUNet(filters=(8, 8, 8)[: 2 + deep_supervision], deep_supervision=deep_supervision)


def test_residual_blocks_are_another_network():
    assert len(dynunet(res_block=True).state_dict()) > len(dynunet().state_dict())


def test_segresnet_is_monais():
    torch.manual_seed(0)
    ours, theirs = SegResNet(dropout=0, **SMALL), MonaiSegResNet(in_channels=4, out_channels=3, dropout_prob=0, **SMALL)
    theirs.load_state_dict(ours.network.state_dict())
    x = images(2, 4, 6)
    torch.testing.assert_close(ours(x), theirs(x))
    assert (ours.size_divisor, ours.feature_channels) == (2, 8)


@pytest.mark.parametrize(("build", "divisor"), [(DynUNet, 32), (SegResNet, 8)])
def test_defaults_need_multiples_of_no_less_than_their_divisor(build, divisor):
    with torch.device("meta"):
        network = build()
        assert network.size_divisor == divisor
        network.check_input = lambda _: None
        with pytest.raises(RuntimeError, match=r"[Ss]ize"):
            network(torch.zeros(1, 4, divisor, divisor, 5 * divisor // 2))


def test_segresnet_drops_channels_in_training_only():
    torch.manual_seed(0)
    network, x = SegResNet(dropout=0.5, **SMALL), images(2, 4, 6)
    assert not torch.equal(network(x), network(x))
    assert torch.equal(network.eval()(x), network(x))


def test_segresnets_decoder_must_fit_its_encoder():
    with pytest.raises(ValueError, match="one less than blocks_down"):
        SegResNet(blocks_down=(1, 2, 2, 4), blocks_up=(1, 1))


@pytest.mark.parametrize("build", [lambda: dynunet(deep_supervision=True), lambda: SegResNet(**SMALL)])
def test_features_are_what_the_final_convolution_sees(build):
    network = build().eval()
    x = images(*[network.size_divisor] * 2, 2 * network.size_divisor)
    final = network.output_layers[0]
    seen = []
    hook = final.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits = network(x)
    hook.remove()
    features = network.features(x)
    assert features.shape == (2, network.feature_channels, *x.shape[2:])
    assert torch.equal(features, seen[0])
    assert torch.equal(final(features), logits)
    convolutions = [module for module in final.modules() if isinstance(module, torch.nn.Conv3d)]
    assert [tuple(c.kernel_size) for c in convolutions] == [(1, 1, 1)]


def test_output_layers_are_all_that_features_do_without():
    for network in (dynunet(deep_supervision=True), dynunet(), SegResNet(**SMALL)):
        network.features(images(*[network.size_divisor] * 2, 2 * network.size_divisor)).square().sum().backward()
        without = {name for name, parameter in network.named_parameters() if parameter.grad is None}
        idle = {p for layer in network.output_layers for p in layer.parameters()}
        assert without == {name for name, parameter in network.named_parameters() if parameter in idle}
