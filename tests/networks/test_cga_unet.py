import pytest
import torch
from monai.networks.nets import DynUNet
from torch import nn
from torch.nn import functional as F

from gliomap.networks.cga_unet import CGAUNet, ResidualBlock, SupervisedAttention, Up, attention_path
from gliomap.networks.non_local import ContextPrior, SelfAttention

SMALL = {"base": 4, "groups": 2, "blocks": (1, 1, 1, 1)}
SIZE = (16, 24, 32)
SAMS = ("sam", "sam_without_path")
OTHERS = ("self_attention", "context_prior")


def images(channels=4, size=SIZE, batch=2):
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))


def small(**settings):
    torch.manual_seed(0)
    return CGAUNet(**SMALL | settings)


def one_hot(classes, scale=1.0):
    """Class maps (1, 4, 1, 1, N) that are clear about each of N voxels."""
    return scale * F.one_hot(torch.tensor(classes), 4).T.float()[None, :, None, None]


def sam(mask="hard", update="all"):
    return SupervisedAttention(nn.Identity(), mask, update)


def test_residual_block_is_the_formula():
    torch.manual_seed(0)
    block, x = ResidualBlock(4, 2), images(size=(3, 4, 5))
    for norm in (block.layers[0], block.layers[3]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    branch = x
    for norm, convolution in (block.layers[0:3:2], block.layers[3:6:2]):
        branch = convolution(torch.relu(F.group_norm(branch, 2, norm.weight, norm.bias)))
    before = x.clone()
    torch.testing.assert_close(block(x), x + branch)
    assert torch.equal(x, before)


def test_up_doubles_the_size_and_joins_the_skip_first():
    torch.manual_seed(0)
    up, x, skip = Up(3), images(6, (2, 3, 4)), images(3, (4, 6, 8))
    with torch.no_grad():
        up.join.weight[:, 3:] = 0
    torch.testing.assert_close(up(x, skip), F.conv3d(skip, up.join.weight[:, :3], up.join.bias))
    with torch.no_grad():
        up.join.weight.copy_(torch.eye(3, 6).roll(3, 1)[..., None, None, None])
        up.join.bias.zero_()
    enlarged = up(x, skip)
    torch.testing.assert_close(enlarged, up.enlarge(up.narrow(x)))
    assert enlarged.shape == skip.shape


@pytest.mark.parametrize(("rate", "weights"), [(8, 10_368), (4, 34_560), (2, 10_368)])
def test_the_attention_path_is_three_bare_convolutions(rate, weights):
    torch.manual_seed(0)
    path, x = attention_path(4, 16, rate), images(size=(16, 8, 24), batch=1)
    assert [type(layer) for layer in path] == [nn.Conv3d] * 3
    assert sum(layer.weight.numel() for layer in path) == weights
    assert path(x).shape == (1, 4, 16 // rate, 8 // rate, 24 // rate)
    none = path(torch.zeros_like(x))  # so the path as a whole is affine
    torch.testing.assert_close(path(3 * x) - none, 3 * (path(x) - none), atol=1e-5, rtol=1e-4)


def test_prototypes_and_update_by_hand():
    x = torch.tensor([[1.0, 3, 10, 7], [0, 4, 20, 5]]).reshape(1, 2, 1, 1, 4)
    features, maps, prototypes = sam()(one_hot([1, 1, 3, 0], 5), x)
    assert torch.equal(maps, one_hot([1, 1, 3, 0], 5))
    wanted = torch.tensor([[7.0, 5], [2, 2], [0, 0], [10, 20]])  # no voxel is ED
    torch.testing.assert_close(prototypes[0], wanted, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(features - x, wanted[[1, 1, 3, 0]].T.reshape(x.shape), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(("update", "moved"), [("NCR", [0, 1]), ("ED", []), ("ET", [2]), ("none", [])])
def test_an_update_of_one_class_leaves_the_other_voxels_alone(update, moved):
    x = images(3, (1, 1, 4), batch=1)
    maps = one_hot([1, 1, 3, 0])
    everything, (features, _, prototypes) = sam()(maps, x), sam(update=update)(maps, x)
    assert torch.equal(prototypes, everything[2])
    wanted = x.clone()
    wanted[..., moved] = everything[0][..., moved]
    torch.testing.assert_close(features, wanted)


def test_soft_masks_weigh_every_voxel_with_the_softmax():
    x, maps = images(3, (2, 2, 3)), images(4, (2, 2, 3))
    features, _, prototypes = sam("soft")(maps, x)
    weights = torch.softmax(maps, 1)
    wanted = torch.einsum("bcdhw,bkdhw->bkc", x, weights) / weights.sum((2, 3, 4))[..., None]
    torch.testing.assert_close(prototypes, wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(features, x + torch.einsum("bkc,bkdhw->bcdhw", wanted, weights), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", SAMS)
def test_only_soft_masks_let_the_main_loss_reach_what_makes_them(kind):
    for mask, reached in (("hard", False), ("soft", True)):
        network = small(attention=kind, mask=mask)
        outputs = network.supervised(images())
        outputs.logits[0].square().mean().backward(retain_graph=True)
        made_by = list(network.attend.class_maps.parameters())
        assert all((p.grad is not None) == reached for p in made_by)
        outputs.attention_logits.square().mean().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in made_by)


@pytest.mark.parametrize("kind", SAMS)
@pytest.mark.parametrize("rate", [8, 4, 2])
def test_class_maps_have_the_size_of_the_map_that_they_update(kind, rate):
    network, x = small(attention=kind, downsampling=rate).eval(), images()
    outputs = network.supervised(x)
    size = [n // rate for n in SIZE]
    assert outputs.attention_logits.shape == (2, 4, *size)
    assert outputs.prototypes.shape == (2, 4, 4 * rate)
    maps = network.attention(x)
    assert list(maps) == ["SAM_background", "SAM_NCR", "SAM_ED", "SAM_ET"]
    torch.testing.assert_close(torch.cat(list(maps.values()), 1), outputs.attention_logits.clamp(0, 1))


@pytest.mark.parametrize("kind", [*SAMS, *OTHERS])
def test_features_before_and_after_the_attention_are_those_that_it_takes_and_gives(kind):
    network, x = small(attention=kind).eval(), images()
    ((name, (before, after)),) = network.updated_features(x).items()
    assert name == kind
    given = network.attend(x, before) if kind in SAMS else network.attend(before)
    torch.testing.assert_close(after, given[0])
    assert not torch.allclose(before, after)
    assert small(attention="none").eval().updated_features(x) == {}


def test_class_maps_are_made_of_the_images_or_of_the_features():
    x = images()
    path, without = small().eval(), small(attention="sam_without_path").eval()
    torch.testing.assert_close(path.supervised(x).attention_logits, path.attend.class_maps(x))
    seen = []
    without.encoder[3].register_forward_hook(lambda *call: seen.append(call[-1]))
    without.attend.class_maps.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    without(x)
    assert seen[0] is seen[1]


@pytest.mark.parametrize(("rate", "level"), [(8, 3), (4, 2), (2, 1)])
def test_the_update_takes_the_maps_place_on_the_skip_and_below(rate, level):
    network, arrived, updated = small(downsampling=rate).eval(), [], []
    network.attend.register_forward_hook(lambda *call: updated.append(call[-1][0]))
    if level < 3:
        network.up[level].register_forward_pre_hook(lambda _, inputs: arrived.append(inputs[1]))
        network.down[level].register_forward_pre_hook(lambda _, inputs: arrived.append(inputs[0]))
    else:
        network.up[2].register_forward_pre_hook(lambda _, inputs: arrived.append(inputs[0]))
    network(images())
    assert len(arrived) == (2 if level < 3 else 1)
    assert all(x is updated[0] for x in arrived)


def test_without_update_the_sam_is_the_baseline_with_prototypes():
    network, baseline, x = small(update="none").eval(), small(attention="none").eval(), images()
    weights = {k: v for k, v in network.state_dict().items() if not k.startswith("attend.")}
    baseline.load_state_dict(weights)
    assert torch.equal(network(x), baseline(x))
    assert baseline.supervised(x).attention_logits is None
    assert baseline.supervised(x).prototypes is None
    assert baseline.attention(x) == {}
    updating = small().eval()
    updating.load_state_dict(network.state_dict())
    assert not torch.allclose(updating(x), baseline(x))


def test_dropout_takes_whole_channels_in_training_only_unless_asked():
    def first_features(network):
        network.encoder[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        network(images())
        return seen.pop()

    seen = []
    torch.testing.assert_close(first_features(small().eval()), small().first(images()))
    for network in (small(dropout=0.5).train(), small(dropout=0.5, always_dropout=True).eval()):
        dropped, whole = first_features(network), network.first(images())
        gone = (dropped == 0).flatten(2).all(2)
        assert gone.any()
        assert not gone.all()
        torch.testing.assert_close(dropped[~gone], 2 * whole[~gone])
    assert not torch.equal(network(images()), network(images()))


@pytest.mark.parametrize("kind", [*SAMS, *OTHERS, "none"])
def test_recomputing_changes_neither_logits_nor_gradients(kind):
    results = []
    for recompute in (False, True):
        network = small(attention=kind, recompute=recompute).train()
        torch.manual_seed(1)
        logits = network(images())
        logits.square().mean().backward()
        results.append((logits, {n: p.grad for n, p in network.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(results[0], results[1])


def test_recomputing_keeps_less_for_the_backward_pass():
    def kept(network):
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.setdefault(t.data_ptr(), t), lambda t: t):
            network(images())
        return sum(t.numel() for t in sizes.values())

    one_map = 2 * SMALL["base"] * torch.Size(SIZE).numel()
    assert kept(small()) - kept(small(recompute=True)) > 6 * one_map  # three in each block, and two are full-size


@pytest.mark.parametrize("kind", OTHERS)
def test_the_modules_of_the_cost_table_run_at_any_size(kind):
    network = small(attention=kind).eval()
    maps = network.attention(images())
    assert list(maps) == [kind]
    assert maps[kind].shape == (2, 1, 2, 3, 4)
    assert 0 < maps[kind].min() < maps[kind].max() == 1
    assert network(images()).shape == (2, 4, *SIZE)
    baseline = small(attention="none").eval()
    baseline.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("attend.")})
    assert not torch.allclose(network(images()), baseline(images()))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"attention": "SAM"}, "attention is 'SAM'; expected one of none, sam,"),
        ({"mask": "firm"}, "mask is 'firm'; expected one of hard, soft"),
        ({"update": 4}, "update is 4; expected one of all, none, NCR, ED, ET"),
        ({"downsampling": 16}, "downsampling is 16; expected one of 8, 4, 2"),
        ({"attention": "none", "update": "ET"}, "attention is 'none'; downsampling, mask and update are settings"),
        ({"attention": "self_attention", "downsampling": 4}, "settings of the SAM alone"),
        ({"attention": "context_prior", "mask": "soft"}, "settings of the SAM alone"),
        ({"blocks": (1, 2, 2)}, "blocks has 3 levels; expected 4"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        CGAUNet(**settings)


def test_self_attention_is_torchs_without_its_scaling():
    torch.manual_seed(0)
    module, x = SelfAttention(5), images(5, (2, 3, 4))
    query, key, value = (part(x).flatten(2).mT for part in (module.query, module.key, module.value))
    wanted = F.scaled_dot_product_attention(query, key, value, scale=1.0).mT.reshape(x.shape)
    found, received = module(x)
    torch.testing.assert_close(found, x + wanted)
    weights = torch.softmax(query @ key.mT, 2)  # (B, N queries, N keys)
    mean = weights.mean(1)
    torch.testing.assert_close(received.flatten(1), mean / mean.max(1, keepdim=True).values)


def test_the_context_prior_is_a_convolution_to_one_channel_per_voxel():
    torch.manual_seed(0)
    module, x = ContextPrior(5, (2, 3, 4)), images(5, (2, 3, 4))
    convolution = nn.Conv3d(5, 24, 1, bias=False)
    with torch.no_grad():
        convolution.weight.copy_(module.filters[0].flatten(1).T[..., None, None, None])
    weights = torch.sigmoid(convolution(x)).flatten(2)  # (B, N related voxels, N voxels)
    value = module.value(x).flatten(2)
    context = torch.stack([(value * weights[:, None, :, n]).mean(2) for n in range(24)], 2)
    found, received = module(x)
    torch.testing.assert_close(found, x + module.output(context.reshape(x.shape)))
    mean = weights.mean(2)
    torch.testing.assert_close(received.flatten(1), mean / mean.max(1, keepdim=True).values)


def test_the_context_priors_filters_are_interpolated_to_another_grid():
    torch.manual_seed(0)
    module, other, x = ContextPrior(5, (2, 1, 1)), ContextPrior(5, (4, 2, 1)), images(5, (4, 2, 1))
    first, second = module.filters.detach()[0, :, :, 0, 0].T
    along = torch.stack([first, 0.75 * first + 0.25 * second, 0.25 * first + 0.75 * second, second], 1)
    other.load_state_dict({**module.state_dict(), "filters": along[None, :, :, None, None].expand(1, 5, 4, 2, 1)})
    torch.testing.assert_close(module(x), other(x))


def counted_as_printed(network, *, biased=False):
    """What the released counter counts at 4 x 128^3, in 10^9: MAC and biases of convolutions, values out of ReLUs.

    Transposed convolutions, normalisations and matrix products are left out. ``biased`` counts a bias for each convolution.
    """
    total = 0

    def count(module, _, output):
        nonlocal total
        if isinstance(module, nn.Conv3d):
            macs = module.in_channels * torch.Size(module.kernel_size).numel()
            total += output.numel() * (macs + (biased or module.bias is not None))
        elif isinstance(module, nn.ReLU | nn.LeakyReLU):
            total += output.numel()

    for module in network.modules():
        module.register_forward_hook(count)
    network(torch.zeros(1, 4, 128, 128, 128, device="meta"))
    return total / 1e9


def test_the_papers_own_count_is_151_12():
    with torch.device("meta"):
        network = CGAUNet()
    assert counted_as_printed(network) == pytest.approx(151.1176, abs=5e-5)


def test_the_same_rule_gives_the_papers_count_of_nnunet():
    with torch.device("meta"):
        nnunet = DynUNet(3, 4, 4, [3] * 6, [1, *[2] * 5], [2] * 5, deep_supervision=True, deep_supr_num=4)
    assert counted_as_printed(nnunet.train(), biased=True) == pytest.approx(475.710, abs=5e-4)
