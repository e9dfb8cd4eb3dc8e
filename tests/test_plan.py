from dataclasses import replace

import pytest
import torch

from gliomap.classes import Target
from gliomap.errors import UsageError
from gliomap.plan import _remarks, check, check_memory, keep_heap_if_roomy, plan
from gliomap.recipe import Coarse, LossSpec, NetworkSpec, Start, with_settings
from gliomap.recipes import RECIPES

SMALL = with_settings(
    RECIPES["attention_resunet_small"],
    ["network.settings.base=4", "training.patch_size=[16,16,16]", "training.batch_size=2", "training.patches=9",
     "training.validate_every=4"],
)  # fmt: skip
CPU = torch.device("cpu")


def test_a_plan_counts_steps_and_validations_of_every_training():
    second = replace(SMALL, name="second", starts_from=(Start(SMALL),), training=replace(SMALL.training, patches=4))
    first, last = plan(second, "cpu")
    assert (first.recipe, first.patches, first.steps, first.validations) == (SMALL.name, 9, 5, 3)
    assert (last.recipe, last.patches, last.steps, last.validations) == ("second", 4, 2, 1)
    assert first.memory_bytes == last.memory_bytes > 1e6
    assert first.time_s > 0
    assert first.refused == ""


def test_a_training_in_which_all_is_frozen_takes_nothing():
    whole = ("encoder", "bottleneck", "up", "decoder", "head", "gates")
    (stage,) = plan(replace(SMALL, frozen=whole), "cpu")
    assert (stage.patches, stage.steps, stage.validations, stage.memory_bytes) == (0, 0, 1, 0)


def test_too_little_memory_is_refused_with_what_to_turn_down(monkeypatch):
    needed = plan(SMALL, "cpu")[0].memory_bytes
    monkeypatch.setattr("gliomap.plan.available_memory_bytes", lambda: int(0.9 * needed))
    check_memory(SMALL, CPU)  # the count may be a fifth too high
    monkeypatch.setattr("gliomap.plan.available_memory_bytes", lambda: int(0.7 * needed))
    with pytest.raises(UsageError, match=r"GB are free; turn down training\.batch_size \(now 2\)") as caught:
        check_memory(SMALL, CPU)
    assert plan(SMALL, "cpu")[0].refused == str(caught.value)
    whole = ("encoder", "bottleneck", "up", "decoder", "head", "gates")
    check_memory(replace(SMALL, frozen=whole), CPU)


@pytest.mark.parametrize(("device", "share", "kept"), [("cpu", 2.1, 1), ("cpu", 1.9, 0), ("cuda", 2.1, 0)])
def test_the_heap_is_kept_only_where_there_is_room_for_its_gaps(monkeypatch, device, share, kept):
    calls = []
    needed = plan(SMALL, "cpu")[0].memory_bytes
    monkeypatch.setattr("gliomap.plan.keep_heap", lambda: calls.append(1))
    monkeypatch.setattr("gliomap.plan.available_memory_bytes", lambda: int(share * needed))
    keep_heap_if_roomy(SMALL, torch.device(device))
    assert len(calls) == kept
    if device == "cpu":
        plan(SMALL, "cpu")
        assert len(calls) == 2 * kept  # so that what is timed is what will be


def remarks(name: str, *settings: str, device: str = "cpu") -> str:
    return "; ".join(_remarks(with_settings(RECIPES[name], list(settings)), torch.device(device)))


def test_a_part_of_one_patch_on_a_cpu_is_remarked_with_what_to_set():
    assert "set training.batch_size=2" in remarks("druwas", "training.batch_size=1")
    assert "set training.accumulation=3" in remarks("druwas", "training.batch_size=9", "training.accumulation=9")
    assert "set training.accumulation=1" in remarks("druwas", "training.batch_size=3", "training.accumulation=3")
    assert remarks("druwas", "training.batch_size=4", "training.accumulation=2") == ""
    assert remarks("druwas", "training.batch_size=1", device="cuda") == ""
    one_slice, two = (f"training.patch_size=[{depth},64,64]" for depth in (1, 2))
    assert "a part of one" in remarks("aspp_attention_unet_t1c", "training.batch_size=1", one_slice)
    assert "a part of one" not in remarks("aspp_attention_unet_t1c", "training.batch_size=1", two)


def test_what_batchnorm_sees_of_a_batch_is_remarked():
    halves = ("training.batch_size=4", "training.accumulation=2")
    assert "each part of 2 patches" in remarks("attention_resunet", *halves)
    assert "several processes" in remarks("attention_resunet")
    assert "several processes" not in remarks("attention_resunet", device="cuda")
    assert "each part" in remarks("attention_resunet", *halves, device="cuda")
    assert "each part" not in remarks("attention_resunet")
    assert remarks("druwas", *halves) == ""  # GroupNorm sees one patch
    whole = ("encoder", "bottleneck", "up", "decoder", "head", "gates")
    assert _remarks(replace(SMALL, frozen=whole), CPU) == ()  # what is frozen takes no statistics
    assert plan(SMALL, "cpu")[0].remarks == tuple(_remarks(SMALL, CPU)) != ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frozen": ("nothing",)}, "cannot freeze nothing"),
        ({"network": NetworkSpec("nothing")}, "no network is called"),
        ({"training": replace(SMALL.training, loss=LossSpec("nothing"))}, "no loss is called"),
        ({"training": replace(SMALL.training, patch_size=(16, 20, 16))}, r"training\.patch_size is \(16, 20, 16\)"),
        ({"inference": replace(SMALL.inference, window=(8, 16, 16))}, r"inference\.window is \(8, 16, 16\)"),
        (
            {"training": replace(SMALL.training, accumulation=3)},
            r"training\.batch_size is 2 .* multiple of 3, such as 3",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_it_begins_whatever_comes_first(changes, message):
    with pytest.raises(UsageError, match=message):
        check(replace(SMALL, **changes))
    last = replace(SMALL, starts_from=(Start(replace(SMALL, name="first", **changes)),))
    with pytest.raises(UsageError, match=message):
        check(last)


def test_weights_that_will_not_fit_are_refused_before_they_are_trained():
    wider = replace(SMALL, name="wider", network=NetworkSpec("attention_resunet", {"base": 6}))
    with pytest.raises(UsageError, match="wider will not fit the network"):
        check(replace(SMALL, starts_from=(Start(wider),)))
    with pytest.raises(UsageError, match="will not fit the part 'nothing'"):
        check(replace(SMALL, starts_from=(Start(SMALL, "nothing"),)))
    check(replace(SMALL, name="second", starts_from=(Start(SMALL),)))


def test_late_fusion_must_know_what_its_logits_mean():
    small = {
        "dynunet": {"filters": [4, 4, 4]},
        "segresnet": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    }
    late = replace(SMALL, network=NetworkSpec("late_fusion", small), frozen=("dynunet", "segresnet"))
    with pytest.raises(UsageError, match=r"set network\.settings\.kind=softmax"):
        check(late)
    check(replace(late, network=NetworkSpec("late_fusion", small | {"kind": "softmax"})))


def test_a_target_without_a_region_and_two_recipes_of_one_name_are_refused():
    with pytest.raises(UsageError, match="makes up none of the regions"):
        check(replace(SMALL, target=Target("softmax", ((0,), (1,)))))
    other = replace(SMALL, training=replace(SMALL.training, patches=8))
    with pytest.raises(UsageError, match="two different recipes are called"):
        check(replace(SMALL, name="last", starts_from=(Start(SMALL), Start(other))))
    check(replace(SMALL, name="last", starts_from=(Start(SMALL), Start(SMALL))))
    with pytest.raises(UsageError, match="two different recipes are called"):
        check(replace(SMALL, name="last", starts_from=(Start(SMALL),), coarse=Coarse(other)))


def test_what_finds_the_tumour_is_checked_and_planned_too():
    first = replace(SMALL, name="first")
    last = replace(SMALL, coarse=Coarse(first))
    check(last)
    assert [stage.recipe for stage in plan(last, "cpu")] == ["first", SMALL.name]
    for other, match in (
        (replace(first, modalities=SMALL.modalities[::-1]), "has other modalities"),
        (replace(first, training=replace(SMALL.training, loss=LossSpec("nothing"))), "no loss is called"),
        (replace(first, coarse=Coarse(replace(SMALL, name="before"))), "needs another that finds it first"),
    ):
        with pytest.raises(UsageError, match=match):
            check(replace(SMALL, coarse=Coarse(other)))
