import itertools

import numpy as np
import pytest
import torch
from models import tiny_model
from scipy.stats import spearmanr

from gliomap.networks import build_network
from gliomap.sanity import (
    RANDOM_ORDERS,
    SHARES,
    answers,
    area,
    highest_first,
    lead,
    likeness,
    ordered_answers,
    random_blocks,
    rank_correlation,
    ranking_areas,
    shuffled,
    without,
)


def _rng():
    return np.random.default_rng(0)


def test_shuffled_weights_are_the_same_numbers_in_other_places():
    network = build_network(tiny_model("aspp_attention_unet").recipe).eval()
    for tensor in (*network.parameters(), *(b for b in network.buffers() if b.is_floating_point())):
        tensor.data = torch.randn_like(tensor)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    after = shuffled(network, 3).state_dict()
    for name, tensor in before.items():
        assert torch.equal(after[name].flatten().sort()[0], tensor.flatten().sort()[0]), name
        if tensor.numel() > 9:
            assert not torch.equal(after[name], tensor), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    again, other = shuffled(network, 3).state_dict(), shuffled(network, 4).state_dict()
    assert all(torch.equal(after[name], again[name]) for name in after)
    assert not all(torch.equal(after[name], other[name]) for name in after)


def test_rank_correlation_is_scipys_and_unknown_of_a_constant():
    a, b = _rng().integers(0, 9, (2, 5, 40))  # with ties
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a.ravel(), b.ravel()).statistic)
    assert rank_correlation(a, np.ones_like(a)) is None
    assert rank_correlation(a[0, :1], b[0, :1]) is None
    many = _rng().normal(size=250_000)
    assert rank_correlation(many, many**3) == pytest.approx(1)
    assert rank_correlation(many, np.roll(many, 1)) == pytest.approx(0, abs=0.01)


def test_likeness_is_of_either_sign_and_leaves_out_constants():
    values = np.arange(10.0)
    assert likeness(values, [values, -values, np.zeros(10)]) == pytest.approx(1)
    assert likeness(values, [np.zeros(10)]) is None


def test_the_area_of_a_ranking_by_hand():
    values = np.array([1.0, 2.0, 2.0, 3.0, 0.0])
    masks = {"a": np.array([0, 0, 1, 1, 0]), "all": np.ones(5), "none": np.zeros(5)}
    # of six pairs (2 of the mask, 3 outside) the mask wins all but one tie
    found = ranking_areas(values, {name: mask.astype(bool) for name, mask in masks.items()})
    assert found == {"a": pytest.approx(5.5 / 6), "all": None, "none": None}
    inverted = ranking_areas(-values, {"a": masks["a"].astype(bool)})
    assert inverted["a"] == pytest.approx(0.5 / 6)


def test_the_lead_is_beyond_the_best_of_the_others_whichever_way_round():
    mask = np.array([True, True, False, False])
    perfect, upside_down, nothing = np.array([4, 3, 2, 1]), np.array([1, 2, 3, 4]), np.zeros(4)
    assert lead(perfect, [nothing, nothing], mask) == 1
    assert lead(upside_down, [nothing], mask) == 1
    assert lead(perfect, [nothing, upside_down], mask) == 0
    assert lead(nothing, [perfect], mask) == -1


def test_the_highest_voxels_of_the_brain_come_first_and_equal_ones_in_no_order():
    values, brain = np.array([[5.0, 9.0, 1.0, 7.0, 8.0]]), np.array([[True, False, True, True, True]])
    assert highest_first(values, brain).tolist() == [4, 3, 0, 2]
    flat = highest_first(np.zeros((1, 1000)), np.ones((1, 1000), bool))
    assert sorted(flat) == list(range(1000))
    assert abs(spearmanr(flat, range(1000)).statistic) < 0.1


def test_random_blocks_hold_the_brain_once_cube_by_cube():
    brain = _rng().random((7, 10, 9)) > 0.2
    order = random_blocks(brain, 4, seed=1)
    assert sorted(order) == np.flatnonzero(brain).tolist()
    cubes = [tuple(np.array(np.unravel_index(place, brain.shape)) // 4) for place in order]
    assert len(list(dict.fromkeys(cubes))) == 1 + sum(a != b for a, b in itertools.pairwise(cubes))
    assert random_blocks(brain, 4, seed=2).tolist() != order.tolist()


def test_what_is_taken_away_becomes_the_brains_mean_and_never_background():
    images = np.zeros((2, 2, 2, 2), np.float32)
    images[0].flat[:4] = 1, 2, 3, 6
    images[1].flat[:4] = -1, 1, -2, 2  # its mean is 0, which would be background
    brain = np.arange(4)
    out = without(images, brain[:2], brain)
    assert out[0].ravel().tolist() == [3, 3, 3, 6, 0, 0, 0, 0]
    assert (out[1].flat[:2] != 0).all()
    np.testing.assert_allclose(out[1].ravel(), [0, 0, -2, 2, 0, 0, 0, 0], atol=1e-5)
    assert images[0].flat[0] == 1


def _planted():
    """Images whose answer is what is left of a tumour that takes 5 % of the brain, and that tumour."""
    images = np.ones((1, 20, 20, 20), np.float32) + np.float32(0.01) * _rng().random((1, 20, 20, 20), np.float32)
    tumour = np.zeros((20, 20, 20), bool)
    tumour[5:12, 5:12, 5:13] = True
    images[0][tumour] += 5
    return images, tumour, lambda changed: float((changed[0][tumour] > 5).mean())


def test_deletion_and_insertion_of_a_map_that_knows_and_of_one_that_does_not():
    images, tumour, score = _planted()
    own, random = ordered_answers(images, {"good": tumour * 1.0, "bad": -1.0 * tumour}, score, 4, seed=0)
    assert own["good"].deletion == pytest.approx((1, 1 - 0.02 / 0.049, 0, 0, 0, 0, 0), abs=1e-3)
    assert own["good"].insertion == pytest.approx((0, 0.02 / 0.049, 1, 1, 1, 1, 1), abs=1e-3)
    assert own["bad"].deletion == (1, 1, 1, 1, 1, 1, 0)
    assert len(random) == RANDOM_ORDERS
    for one in random:
        assert area(own["good"].deletion) < area(one.deletion) < area(own["bad"].deletion)
        assert area(own["good"].insertion) > area(one.insertion) > area(own["bad"].insertion)
        assert one.deletion[0] == one.insertion[-1] == 1
        assert one.deletion[-1] == one.insertion[0] == 0


def test_the_ends_of_the_curves_are_given_and_cost_nothing():
    images, _, score = _planted()
    asked = []

    def counted(changed):
        asked.append(1)
        return score(changed)

    answers(images, np.flatnonzero(images[0]), counted, (1.0, 0.0))
    assert len(asked) == 2 * (len(SHARES) - 2)


def test_the_area_below_a_curve_is_one_below_one():
    assert area((1.0,) * len(SHARES)) == pytest.approx(1)
    assert area(SHARES) == pytest.approx(0.5)
