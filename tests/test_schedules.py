from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gliomap.recipe import Training
from gliomap.schedules import plateau_factor, rate_factor

TRAINING = Training(patches=10, patch_size=(8, 8, 8), batch_size=1, learning_rate=1.0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-2, 1) | st.sampled_from([0.1, 0.5]), max_size=40),
    st.sampled_from([0.1, 0.5, 0.9]),
    st.integers(0, 5),
)
def test_plateau_is_torchs_reduce_on_plateau(scores, factor, patience):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    oracle = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=factor, patience=patience, threshold=0, eps=0
    )
    for step, score in enumerate(scores):
        oracle.step(score)
        assert plateau_factor(scores[: step + 1], factor, patience) == pytest.approx(optimizer.param_groups[0]["lr"])


def test_plateau_by_hand():
    assert plateau_factor([], 0.5, 2) == 1
    assert plateau_factor([0.1, 0.1, 0.1], 0.5, 2) == 1
    assert plateau_factor([0.1, 0.1, 0.1, 0.1], 0.5, 2) == 0.5
    assert plateau_factor([0.1, 0.1, 0.1, 0.2], 0.5, 2) == 1


def test_cosine_falls_from_one_through_a_half_to_zero():
    cosine = replace(TRAINING, schedule="cosine")
    values = [rate_factor(cosine, progress, []) for progress in (0, 0.25, 0.5, 0.75, 1, 1.2)]
    assert values == pytest.approx([1, 0.853553, 0.5, 0.146447, 0, 0], abs=1e-6)


def test_schedule_is_the_recipes():
    flat = [0.3] * 6
    assert rate_factor(TRAINING, 0.7, flat) == 1
    plateau = replace(TRAINING, schedule="plateau", plateau_factor=0.2, plateau_patience=1)
    assert rate_factor(plateau, 0.7, flat) == pytest.approx(0.2**2)


def test_cosine_cycles_are_torchs_warm_restarts():
    epochs = 20
    settings_ = replace(TRAINING, schedule="cosine", cosine_cycles=2, rate_floor=0.1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    oracle = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=epochs // 2, eta_min=0.1)
    for epoch in range(epochs):
        oracle.step(epoch)
        assert rate_factor(settings_, epoch / epochs, []) == pytest.approx(optimizer.param_groups[0]["lr"])
    assert rate_factor(settings_, 1.0, []) == pytest.approx(0.1)


def test_polynomial_falls_to_its_floor():
    polynomial = replace(TRAINING, schedule="polynomial", polynomial_power=0.9)
    assert [rate_factor(polynomial, p, []) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5**0.9, 0])
    assert rate_factor(replace(polynomial, rate_floor=0.6), 0.9, []) == 0.6
