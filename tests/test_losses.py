import math

import monai.losses
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gliomap.classes import ALL_CLASSES, NESTED_REGIONS, RC, Target
from gliomap.errors import UsageError
from gliomap.losses import (
    LOSSES,
    at_size,
    binary_cross_entropy_dice,
    build_loss,
    cross_entropy_dice,
    dice,
    encode,
    inter_class,
    pooled_dice,
    supervised_attention,
)
from gliomap.networks import Outputs
from gliomap.networks.cga_unet import CGAUNet
from gliomap.recipe import LossSpec

SHAPE = (2, 4, 3, 5, 4)


def random_logits(seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 2, SHAPE)).float().requires_grad_()


def random_classes(seed=1, high=4):
    shape = (SHAPE[0], *SHAPE[2:])
    return torch.from_numpy(np.random.default_rng(seed).integers(0, high, shape).astype(np.uint8))


def terms_of(logits, classes):
    return cross_entropy_dice(Outputs((logits,)), classes, ALL_CLASSES, 0)


def test_two_voxels_by_hand():
    classes = torch.tensor([0, 1], dtype=torch.uint8).reshape(1, 1, 1, 2)
    probabilities = torch.tensor([[0.7, 0.2], [0.1, 0.6], [0.1, 0.1], [0.1, 0.1]]).reshape(1, 4, 1, 1, 2)
    terms = terms_of(probabilities.log(), classes)
    assert float(terms["cross_entropy"]) == pytest.approx(0.5 * -(math.log(0.7) + math.log(0.6)) / 2, rel=1e-5)
    found = 1 - 2 * 0.6 / (0.1 + 0.6 + 1)  # class 1; 2 and 3 are absent and predicted at all: about 1 each
    assert float(terms["dice"]) == pytest.approx(0.5 * (found + 1 + 1) / 3, rel=1e-4)


def test_cross_entropy_is_torchs():
    logits, classes = random_logits(), random_classes()
    expected = 0.5 * F.cross_entropy(logits, classes.long())
    torch.testing.assert_close(terms_of(logits, classes)["cross_entropy"], expected)


def test_dice_term_is_monais_over_the_batch_without_background():
    logits, classes = random_logits(), random_classes()
    oracle = monai.losses.DiceLoss(include_background=False, batch=True, smooth_nr=1e-6, smooth_dr=1e-6)
    expected = 0.5 * oracle(torch.softmax(logits, 1), encode(classes, ALL_CLASSES))
    torch.testing.assert_close(terms_of(logits, classes)["dice"], expected)


def test_pooled_dice_is_monais_for_each_channel_of_the_batch():
    truth = encode(random_classes(), ALL_CLASSES)
    probabilities = torch.softmax(random_logits(), 1)
    oracle = monai.losses.DiceLoss(reduction="none", batch=True, smooth_nr=1e-6, smooth_dr=1e-6)
    torch.testing.assert_close(pooled_dice(probabilities, truth), oracle(probabilities, truth).flatten())


def test_channel_absent_from_both_costs_nothing():
    probabilities = torch.zeros(1, 1, 2, 2, 2, requires_grad=True)
    loss = pooled_dice(probabilities, torch.zeros(1, 1, 2, 2, 2))
    assert loss.item() == 0
    loss.sum().backward()
    assert probabilities.grad is not None
    assert torch.isfinite(probabilities.grad).all()


def test_perfect_logits_cost_almost_nothing():
    classes = random_classes()
    logits = 50 * encode(classes, ALL_CLASSES)
    assert float(sum(terms_of(logits, classes).values())) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("high", [1, 2, 4])
def test_gradients_are_finite_with_absent_classes_and_extreme_logits(high, scale):
    logits = (random_logits().detach() * scale).requires_grad_()
    loss = sum(terms_of(logits, random_classes(high=high)).values())
    assert torch.isfinite(loss)
    loss.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_a_step_along_the_gradient_lowers_the_loss():
    logits, classes = random_logits(), random_classes()
    before = sum(terms_of(logits, classes).values())
    before.backward()
    after = sum(terms_of(logits.detach() - 5 * logits.grad, classes).values())
    assert after.item() < before.item()


def test_resection_cavity_trains_as_background():
    classes = random_classes(high=5)
    assert (classes == RC).any()
    filled = torch.where(classes == RC, torch.zeros_like(classes), classes)
    assert torch.equal(encode(classes, ALL_CLASSES), encode(filled, ALL_CLASSES))
    assert torch.equal(encode(classes, NESTED_REGIONS), encode(filled, NESTED_REGIONS))


def test_channels_of_a_target():
    classes = torch.tensor([0, 1, 2, 3, 4], dtype=torch.uint8).reshape(1, 5)
    one_hot = encode(classes, ALL_CLASSES)
    assert one_hot.shape == (1, 4, 5)
    assert one_hot[0].tolist() == [[1, 0, 0, 0, 1], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]]
    assert encode(classes, NESTED_REGIONS)[0].tolist() == [[0, 0, 0, 1, 0], [0, 1, 0, 1, 0], [0, 1, 1, 1, 0]]


def test_sigmoid_target_is_refused():
    with pytest.raises(UsageError, match="softmax"):
        cross_entropy_dice(Outputs((random_logits(),)), random_classes(), NESTED_REGIONS, 0)


def test_losses_are_found_by_name():
    logits, classes = random_logits(), random_classes()
    built = build_loss(LossSpec("cross_entropy_dice"))(Outputs((logits,)), classes, ALL_CLASSES, 0)
    assert built.keys() == terms_of(logits, classes).keys()
    with pytest.raises(UsageError, match="no loss is called"):
        build_loss(LossSpec("nothing"))
    with pytest.raises(UsageError, match="there is no setting nothing"):
        build_loss(LossSpec("cross_entropy_dice", {"nothing": 1}))


def test_the_share_of_the_dice_weighs_both_terms():
    logits = torch.randn(2, 4, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    classes = torch.randint(0, 4, (2, 4, 4, 4), generator=torch.Generator().manual_seed(1))
    even = terms_of(logits, classes)
    terms = cross_entropy_dice(Outputs((logits,)), classes, ALL_CLASSES, 0, dice_share=0.1)
    assert terms["cross_entropy"].item() == pytest.approx(1.8 * even["cross_entropy"].item())
    assert terms["dice"].item() == pytest.approx(0.2 * even["dice"].item())
    with pytest.raises(UsageError, match="dice_share"):
        build_loss(LossSpec("cross_entropy_dice", {"dice_share": 1.5}))


def test_a_weight_of_the_background_multiplies_its_odds_where_the_loss_is_least():
    """A logit that is the same everywhere is best at the log of the classes' shares, the background's times its weight."""
    classes = torch.tensor([0, 0, 0, 0, 0, 1, 2, 3], dtype=torch.uint8).reshape(1, 2, 2, 2)
    best = torch.tensor([3.0 * 5, 1, 1, 1]).log().requires_grad_()
    logits = best[None, :, None, None, None].expand(1, 4, 2, 2, 2)
    terms = cross_entropy_dice(Outputs((logits,)), classes, ALL_CLASSES, 0, background_weight=3.0)
    (gradient,) = torch.autograd.grad(terms["cross_entropy"], best)
    torch.testing.assert_close(gradient, torch.zeros(4), atol=1e-6, rtol=0)
    with pytest.raises(UsageError, match="background_weight"):
        build_loss(LossSpec("cross_entropy_dice", {"background_weight": 0.0}))


def test_binary_cross_entropy_dice_by_hand():
    logits = torch.tensor([0.0, 0.0, 50.0, -50.0]).reshape(1, 1, 1, 2, 2)
    classes = torch.tensor([3, 0, 3, 0], dtype=torch.uint8).reshape(1, 1, 2, 2)
    target = Target("sigmoid", ((3,),))
    terms = binary_cross_entropy_dice(Outputs((logits,)), classes, target, 0)
    assert terms["binary_cross_entropy"].item() == pytest.approx(2 * math.log(2) / 4)
    assert terms["dice"].item() == pytest.approx(1 - 2 * 1.5 / (2 + 2), abs=1e-6)


def test_binary_cross_entropy_dice_pools_its_sums_over_batch_and_channels():
    logits = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    classes = torch.randint(0, 4, (2, 4, 4, 4), generator=torch.Generator().manual_seed(1))
    p, g = torch.sigmoid(logits), encode(classes, NESTED_REGIONS)
    terms = binary_cross_entropy_dice(Outputs((logits,)), classes, NESTED_REGIONS, 0)
    assert terms["dice"].item() == pytest.approx(1 - 2 * (p * g).sum().item() / (p + g).sum().item(), abs=1e-5)
    with pytest.raises(UsageError, match="needs a sigmoid target"):
        binary_cross_entropy_dice(Outputs((logits,)), classes, ALL_CLASSES, 0)


def test_binary_cross_entropy_dice_has_finite_gradients_without_a_tumour():
    logits = torch.full((1, 3, 2, 2, 2), -200.0, requires_grad=True)
    terms = binary_cross_entropy_dice(Outputs((logits,)), torch.zeros(1, 2, 2, 2, dtype=torch.uint8), NESTED_REGIONS, 0)
    sum(terms.values()).backward()
    assert torch.isfinite(logits.grad).all()


def levels_of_logits(channels, sizes, scale=2.0):
    rng = np.random.default_rng(2)
    return tuple(torch.from_numpy(rng.normal(0, scale, (2, channels, *size))).float() for size in sizes)


def some_classes(size, high=5):
    return torch.from_numpy(np.random.default_rng(3).integers(0, high, (2, *size)).astype(np.uint8))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("target", [ALL_CLASSES, NESTED_REGIONS])
def test_dice_is_monais_over_the_batch(target, reduction):
    logits, classes = random_logits()[:, : len(target.channels)], random_classes(high=5)
    softmax = target.kind == "softmax"
    oracle = monai.losses.DiceLoss(
        include_background=not softmax,
        softmax=softmax,
        sigmoid=not softmax,
        batch=True,
        reduction=reduction,
        smooth_nr=1e-5,
        smooth_dr=1e-5,
    )
    found = dice(Outputs((logits,)), classes, target, 0, reduction=reduction)
    assert list(found) == ["dice"]
    torch.testing.assert_close(found["dice"], oracle(logits, encode(classes, target)))


def test_dice_by_hand_is_the_sum_of_paper_002():
    classes = torch.tensor([1, 1, 2, 3], dtype=torch.uint8).reshape(2, 1, 1, 2)
    p = torch.tensor([[[0.4, 0.1], [0.3, 0.6], [0.2, 0.2], [0.1, 0.1]], [[0.1, 0.1], [0.1, 0.1], [0.8, 0.1], [0, 0.7]]])
    overlap, predicted, true = [0.9, 0.8, 0.7], [1.1, 1.3, 0.9], [2, 1, 1]
    wanted = sum(1 - 2 * o / (s + t) for o, s, t in zip(overlap, predicted, true, strict=True))
    outputs = Outputs((p.reshape(2, 4, 1, 1, 2).log(),))
    assert dice(outputs, classes, ALL_CLASSES, 0, reduction="sum")["dice"].item() == pytest.approx(wanted, rel=1e-4)
    assert dice(outputs, classes, ALL_CLASSES, 0)["dice"].item() == pytest.approx(wanted / 3, rel=1e-4)


def test_dice_of_next_to_nothing_is_next_to_nothing():
    logits = torch.full((1, 1, 1, 1, 1), math.log(1e-5))
    found = dice(Outputs((logits,)), torch.zeros(1, 1, 1, 1), Target("sigmoid", ((3,),)), 0)
    assert found["dice"].item() == pytest.approx(0.5, rel=1e-3)  # as much predicted as is added to both sums


@pytest.mark.parametrize("size", [(16, 8, 24), (16, 24), (12, 20)])
def test_a_class_map_is_brought_to_the_voxels_where_strided_convolutions_are_centred(size):
    classes = some_classes(size)
    steps = (slice(None), *(slice(None, None, 4) for _ in size))
    assert torch.equal(at_size(classes, [n // 4 for n in size]), classes[steps])
    assert at_size(classes, size) is classes


@pytest.mark.parametrize("sizes", [((8, 12, 16), (4, 6, 8), (2, 3, 4)), ((16, 8), (8, 4), (4, 2))])
@pytest.mark.parametrize(
    ("loss", "target", "oracle"),
    [
        (dice, NESTED_REGIONS, monai.losses.DiceLoss(sigmoid=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5)),
        (
            cross_entropy_dice,
            ALL_CLASSES,
            monai.losses.DiceCELoss(
                include_background=False,
                softmax=True,
                batch=True,
                smooth_nr=1e-6,
                smooth_dr=1e-6,
                lambda_dice=0.5,
                lambda_ce=0.5,
            ),
        ),
    ],
)
def test_deep_supervision_is_monais(loss, target, oracle, sizes):
    logits, classes = levels_of_logits(len(target.channels), sizes), some_classes(sizes[0])
    deep = monai.losses.DeepSupervisionLoss(oracle, weights=[4 / 7, 2 / 7, 1 / 7])
    deep.interp_mode = "nearest"
    found = sum(loss(Outputs(logits), classes, target, 0).values())
    torch.testing.assert_close(found, deep(list(logits), encode(classes, target)))
    assert found.item() != pytest.approx(sum(loss(Outputs(logits[:1]), classes, target, 0).values()).item(), rel=1e-3)


@pytest.mark.parametrize("name", ["dice", "cross_entropy_dice", "binary_cross_entropy_dice"])
def test_levels_that_all_say_the_truth_cost_what_one_does(name):
    target = NESTED_REGIONS if name == "binary_cross_entropy_dice" else ALL_CLASSES
    classes = some_classes((8, 8, 8))
    logits = [20 * (2 * encode(at_size(classes, [8 // k] * 3), target) - 1) for k in (1, 2, 4)]
    for count in (1, 2, 3):
        terms = LOSSES[name](Outputs(tuple(logits[:count])), classes, target, 0)
        assert sum(terms.values()).item() == pytest.approx(0, abs=1e-4)
    wrong = LOSSES[name](Outputs((*logits[:2], -logits[2])), classes, target, 0)
    assert sum(wrong.values()).item() > 0.1


def sam_outputs(size=(16, 8, 24), down=8, channels=6):
    """Outputs of a network with a SAM, all of them leaves that need a gradient."""
    rng = np.random.default_rng(5)
    shapes = [(2, 4, *size), (2, 4, *(n // down for n in size)), (2, 4, channels)]
    logits, maps, prototypes = (torch.from_numpy(rng.normal(0, 1, s)).float().requires_grad_() for s in shapes)
    return Outputs((logits,), maps, prototypes)


def test_supervised_attention_is_dice_plus_twenty_times_the_square_error_of_the_class_maps():
    outputs, classes = sam_outputs(), some_classes((16, 8, 24))
    terms = supervised_attention(outputs, classes, ALL_CLASSES, 0)
    assert list(terms) == ["dice", "attention", "inter_class"]
    torch.testing.assert_close(terms["dice"], dice(outputs, classes, ALL_CLASSES, 0, reduction="sum")["dice"])
    coarse = classes[:, ::8, ::8, ::8].long()
    one_hot = F.one_hot(torch.where(coarse == RC, 0, coarse), 4).movedim(-1, 1)
    torch.testing.assert_close(terms["attention"], 20 * (outputs.attention_logits - one_hot).square().mean())
    assert terms["inter_class"] == 0
    halved = supervised_attention(outputs, classes, ALL_CLASSES, 0, attention_weight=0.5)
    torch.testing.assert_close(40 * halved["attention"], terms["attention"])


def test_class_maps_are_supervised_by_classes_whatever_the_target():
    outputs, classes = sam_outputs(), some_classes((16, 8, 24))
    regions = Outputs((outputs.logits[0][:, :3],), outputs.attention_logits, outputs.prototypes)
    terms = supervised_attention(regions, classes, NESTED_REGIONS, 30, segmentation="binary_cross_entropy_dice")
    wanted = binary_cross_entropy_dice(regions, classes, NESTED_REGIONS, 30)
    assert list(terms) == [*wanted, "attention", "inter_class"]
    assert all(torch.equal(terms[name], value) for name, value in wanted.items())
    softmax = supervised_attention(outputs, classes, ALL_CLASSES, 30, segmentation="cross_entropy_dice")
    assert list(softmax)[:2] == ["cross_entropy", "dice"]
    assert all(torch.equal(terms[name], softmax[name]) for name in ("attention", "inter_class"))


@pytest.mark.parametrize(("start", "epoch", "counts"), [(20, 19, False), (20, 20, True), (3, 2, False), (0, 0, True)])
def test_the_distance_of_the_classes_counts_from_its_epoch(start, epoch, counts):
    outputs, classes = sam_outputs(), some_classes((16, 8, 24))
    terms = supervised_attention(outputs, classes, ALL_CLASSES, epoch, inter_from_epoch=start)
    assert (terms["inter_class"] != 0) == counts
    assert "inter_class" not in supervised_attention(outputs, classes, ALL_CLASSES, epoch, inter="off")


def prototypes_by_hand():
    """Two samples of four prototypes with squared distances that are squares of small numbers."""
    first = [[0.0, 0], [3, 4], [0, 0], [0, 8]]
    second = [[1.0, 1], [1, 1], [1, 1], [1, 7]]
    return torch.tensor([first, second])


def test_distances_of_the_released_code_by_hand():
    everything = torch.ones(2, 4, dtype=torch.bool)
    # ordered pairs: 2 * (25 + 0 + 64 + 25 + 25 + 64) = 406 and 2 * 3 * 36 = 216
    wanted = 10 * math.log(1 + 100 / (math.sqrt(406) + math.sqrt(216)))
    assert inter_class(prototypes_by_hand(), everything, "code").item() == pytest.approx(wanted, rel=1e-5)


def test_distances_of_the_paper_by_hand():
    everything = torch.ones(2, 4, dtype=torch.bool)
    wanted = -0.1 * (math.log(1 + 2 * (5 + 0 + 8 + 5 + 5 + 8)) + math.log(1 + 2 * 3 * 6)) / 2
    assert inter_class(prototypes_by_hand(), everything, "paper").item() == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("form", ["code", "paper"])
def test_absent_classes_and_samples_without_a_pair_add_nothing(form):
    prototypes = prototypes_by_hand()
    present = torch.tensor([[True, True, False, True], [True, False, False, False]])
    found = inter_class(prototypes, present, form).item()
    if form == "code":
        assert found == pytest.approx(10 * math.log(1 + 100 / math.sqrt(2 * (25 + 64 + 25))), rel=1e-5)
    else:
        assert found == pytest.approx(-0.1 * math.log(1 + 2 * (5 + 8 + 5)) / 2, rel=1e-3)
    assert inter_class(prototypes, torch.zeros(2, 4, dtype=torch.bool), form).item() == 0


@pytest.mark.parametrize("form", ["code", "paper"])
def test_a_step_along_the_gradient_takes_prototypes_apart_or_together(form):
    outputs, classes = sam_outputs(), some_classes((16, 8, 24))

    def distance(prototypes):
        return torch.cdist(prototypes, prototypes).sum().item()

    before = distance(outputs.prototypes)
    for weight in (1.0, -1.0):
        settings = {"inter": form, "inter_weight": weight, "skip_absent": False}
        term = supervised_attention(outputs, classes, ALL_CLASSES, 20, **settings)["inter_class"]
        (gradient,) = torch.autograd.grad(term, outputs.prototypes)
        assert (distance(outputs.prototypes - 0.1 * gradient) - before) * weight > 0
        assert term.item() == pytest.approx(
            weight * inter_class(outputs.prototypes, torch.ones(2, 4, dtype=torch.bool), form).item()
        )


def test_classes_that_the_truth_lacks_are_skipped_only_where_asked():
    outputs, classes = sam_outputs(), some_classes((16, 8, 24), high=2)  # no ED and no ET
    for skip in (True, False):
        term = supervised_attention(outputs, classes, ALL_CLASSES, 20, skip_absent=skip)["inter_class"]
        (gradient,) = torch.autograd.grad(term, outputs.prototypes)
        moved = gradient.abs().sum(2) > 0
        assert moved[:, :2].all()
        assert moved[:, 2:].unique().tolist() == [not skip]
    only_seen = classes.clone()
    only_seen[:, 1::8] = 3  # ET where no voxel of the coarse map lies
    torch.testing.assert_close(
        supervised_attention(outputs, only_seen, ALL_CLASSES, 20)["inter_class"],
        supervised_attention(outputs, classes, ALL_CLASSES, 20)["inter_class"],
    )


CASES = {
    "class absent": some_classes((8, 8, 8), high=3),
    "no tumour": torch.zeros(2, 8, 8, 8, dtype=torch.uint8),
    "nothing but a resection cavity": torch.full((2, 8, 8, 8), RC, dtype=torch.uint8),
    "all classes": some_classes((8, 8, 8)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("skip_absent", [True, False])
@pytest.mark.parametrize("inter", ["code", "paper"])
def test_gradients_are_finite_where_prototypes_coincide_and_maps_are_one_voxel(inter, skip_absent, case):
    outputs = sam_outputs(size=(8, 8, 8))
    for start in (outputs.prototypes, torch.zeros(2, 4, 6), torch.ones(2, 4, 6), 1e-6 * outputs.prototypes.detach()):
        prototypes = start.detach().clone().requires_grad_()
        given = Outputs(outputs.logits, outputs.attention_logits, prototypes)
        terms = supervised_attention(given, CASES[case], ALL_CLASSES, 20, inter=inter, skip_absent=skip_absent)
        total = sum(terms.values())
        assert torch.isfinite(total)
        for gradient in torch.autograd.grad(total, (outputs.logits[0], outputs.attention_logits, prototypes)):
            assert torch.isfinite(gradient).all()
            assert gradient.abs().max() < 1e5


@pytest.mark.parametrize("inter", ["code", "paper"])
def test_a_network_whose_hard_masks_are_empty_still_learns(inter):
    torch.manual_seed(0)
    network = CGAUNet(base=2, groups=2, blocks=(1, 1, 1, 1))
    with torch.no_grad():
        network.attend.class_maps[-1].bias[0] = 1e3  # every voxel is background
    outputs = network.supervised(torch.randn(2, 4, 8, 8, 16))
    assert not outputs.prototypes[:, 1:].any()
    terms = supervised_attention(outputs, some_classes((8, 8, 16)), ALL_CLASSES, 20, inter=inter, skip_absent=False)
    sum(terms.values()).backward()
    for parameter in network.parameters():
        assert torch.isfinite(parameter.grad).all()
    assert network.first.weight.grad.abs().max() > 0


def test_a_network_without_class_maps_is_refused():
    with pytest.raises(UsageError, match="needs a network with a supervised attention module, such as cga_unet"):
        supervised_attention(Outputs((random_logits(),)), random_classes(), ALL_CLASSES, 0)


def test_settings_are_bound_and_checked_before_training():
    outputs, classes = sam_outputs(), some_classes((16, 8, 24))
    built = build_loss(
        LossSpec("supervised_attention", {"inter": "paper", "inter_from_epoch": 2, "attention_weight": 1})
    )
    wanted = supervised_attention(
        outputs, classes, ALL_CLASSES, 2, inter="paper", inter_from_epoch=2, attention_weight=1
    )
    assert built(outputs, classes, ALL_CLASSES, 2) == wanted
    for settings, words in (
        ({"inter": "both"}, "inter is 'both'"),
        ({"inter_from_epoch": "soon"}, "inter_from_epoch is 'soon'"),
        ({"skip_absent": 1}, "skip_absent is 1"),
        ({"segmentation": "supervised_attention"}, "segmentation is 'supervised_attention'"),
        ({"reversed": True}, "there is no setting reversed; expected segmentation, attention_weight, inter"),
    ):
        with pytest.raises(UsageError, match=words):
            build_loss(LossSpec("supervised_attention", settings))
