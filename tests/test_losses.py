import math

import monai.losses
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gliomap.classes import ALL_CLASSES, NESTED_REGIONS, RC, Target
from gliomap.errors import UsageError
from gliomap.losses import binary_cross_entropy_dice, build_loss, cross_entropy_dice, encode, soft_dice
from gliomap.networks import Outputs
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


def test_soft_dice_is_monais_for_each_sample_and_channel():
    truth = encode(random_classes(), ALL_CLASSES)
    probabilities = torch.softmax(random_logits(), 1)
    oracle = monai.losses.DiceLoss(reduction="none", smooth_nr=1e-6, smooth_dr=1e-6)
    torch.testing.assert_close(soft_dice(probabilities, truth), oracle(probabilities, truth).flatten(1))


def test_channel_absent_from_both_costs_nothing():
    probabilities = torch.zeros(1, 1, 2, 2, 2, requires_grad=True)
    loss = soft_dice(probabilities, torch.zeros(1, 1, 2, 2, 2))
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
    with pytest.raises(UsageError, match="has no setting nothing"):
        build_loss(LossSpec("cross_entropy_dice", {"nothing": 1}))


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
