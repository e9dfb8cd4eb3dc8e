import subprocess
import sys

import pytest
import torch

from gliomap.errors import InputError
from gliomap.networks.baselines import UNETR, AttentionUNet, SwinUNETR, UNet3d, VNet


def images(*size, channels=4):
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(1))


def attention_unet(**settings):
    torch.manual_seed(0)
    return AttentionUNet(filters=(4, 8, 8), **settings).eval()


def test_attention_gates_come_out_by_name_from_the_finest():
    network, x = attention_unet(), images(8, 8, 16)
    with torch.inference_mode():
        maps = network.attention(x)
    assert {name: tuple(psi.shape) for name, psi in maps.items()} == {"AG_1": (2, 1, 8, 8, 16), "AG_2": (2, 1, 4, 4, 8)}
    assert list(maps) == ["AG_1", "AG_2"]


def test_each_gate_weighs_its_skip_by_the_map_of_its_name():
    network, x = attention_unet(), images(8, 8, 16)
    seen = []
    gate = network.network.model[1].attention  # the finest
    hook = gate.register_forward_hook(lambda _m, _a, kwargs, out: seen.append((kwargs["x"], out)), with_kwargs=True)
    psi = network.attention(x)["AG_1"]
    hook.remove()
    skip, gated = seen[0]
    assert psi.std() > 0
    torch.testing.assert_close(skip * psi, gated)


def test_asking_for_attention_leaves_nothing_behind():
    network, x = attention_unet(), images(8, 8, 16)
    before = network(x)
    network.attention(x)
    assert not any(module._forward_hooks for module in network.modules())
    assert torch.equal(network(x), before)
    with pytest.raises(InputError, match="multiple of 4"):
        network.attention(x[..., 1:])


def test_unetr_takes_its_own_size_only():
    network = UNETR(patch_size=(16, 16, 32), feature_size=4, hidden_size=12, mlp_size=12, num_heads=1)
    assert network(images(16, 16, 32)).shape == (2, 3, 16, 16, 32)
    for size in ((16, 32, 16), (16, 16, 16), (32, 32, 64)):
        with pytest.raises(InputError, match=r"built for \(16, 16, 32\)"):
            network(images(*size))
    with pytest.raises(InputError, match="expected"):
        network(images(16, 16, 32, channels=3))
    for wrong in ((16, 16, 24), (16, 16)):
        with pytest.raises(ValueError, match="three multiples of 16"):
            UNETR(patch_size=wrong)


def test_unetr_has_no_part_that_idles():
    torch.manual_seed(0)
    network = UNETR(patch_size=(16, 16, 32), feature_size=4, hidden_size=12, mlp_size=12, num_heads=1)
    network(images(16, 16, 32)).square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_vnet_needs_a_divisor_of_sixteen_channels():
    with pytest.raises(ValueError, match="divisible"):
        VNet(in_channels=3)


def test_filters_are_the_widths_of_the_levels():
    with torch.device("meta"):
        unet, attention = UNet3d(filters=(8, 16, 24, 32, 40)), AttentionUNet(filters=(8, 16, 24))
    assert (unet.size_divisor, attention.size_divisor) == (16, 4)
    assert unet.network.final_conv.in_channels == 8
    assert unet.network.down_4.convs.conv_1.conv.out_channels == 40
    assert attention.network.model[2].conv.in_channels == 8


def test_swin_unetr_is_built_on_the_device_asked_for():
    settings = {"feature_size": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "window_size": 2}
    with torch.device("meta"):
        assert {p.device.type for p in SwinUNETR(**settings).parameters()} == {"meta"}
    assert {p.device.type for p in SwinUNETR(**settings).parameters()} == {"cpu"}


def test_swin_unetr_recomputes_to_the_same_gradients():
    settings = {"feature_size": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "window_size": 2}
    gradients, kept = [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        network = SwinUNETR(recompute=recompute, **settings)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, n=saved: (n.append(t.numel()), t)[1], lambda t: t):
            loss = network(images(32, 32, 64)).square().mean()
        loss.backward()
        gradients.append(network.network.swinViT.layers1[0].blocks[0].attn.qkv.weight.grad)
        kept.append(sum(saved))
    torch.testing.assert_close(*gradients)
    assert kept[1] < kept[0]


def test_monai_is_imported_only_when_a_baseline_is_built():
    command = "import sys, gliomap.networks.dual_fusion; sys.exit('monai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0
