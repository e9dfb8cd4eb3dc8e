import itertools
from dataclasses import replace

import pytest
import torch
from networks.tiny import TINY

from gliomap.errors import InputError
from gliomap.networks import build_network, training_cost
from gliomap.networks.counting import count_step
from gliomap.networks.training_cost import HEAP_BYTES, patch_size, patch_time_s, training_memory_bytes
from gliomap.recipe import LossSpec, NetworkSpec, Recipe, Training, with_settings
from gliomap.recipes import RECIPES

CGA = replace(
    RECIPES["cga_unet"],
    network=NetworkSpec("cga_unet", TINY["cga_unet"]),
    training=replace(RECIPES["cga_unet"].training, patch_size=(32, 16, 16), batch_size=2, amsgrad=False),
)


@pytest.fixture(autouse=True)
def _counted_anew():
    training_cost._memory_bytes.cache_clear()
    yield
    training_cost._memory_bytes.cache_clear()


def test_a_recipe_is_counted_once_whatever_it_is_called(monkeypatch):
    counted = training_memory_bytes(CGA)
    monkeypatch.setattr(training_cost, "count_step", None)
    assert training_memory_bytes(replace(CGA, name="other", source="elsewhere")) == counted


def recipe(name: str, size: tuple[int, int, int], batch: int, **settings) -> Recipe:
    network = NetworkSpec(name, TINY[name] | settings)
    training = Training(patches=100, patch_size=size, batch_size=batch, learning_rate=1.0)
    return Recipe("", "", network, training)


def weights(of: Recipe) -> int:
    return sum(p.numel() for p in build_network(of).parameters())


def test_memory_is_four_times_the_weights_and_the_step(monkeypatch):
    def total(outputs, *_):
        return {"term": outputs.logits[0].sum()}

    monkeypatch.setattr(training_cost, "build_loss", lambda _: total)
    druwas = recipe("druwas", (16, 16, 16), 2)
    with torch.device("meta"):
        network = build_network(druwas)
    step = count_step(network, (16, 16, 16), 2, lambda outputs: total(outputs)["term"]).memory_bytes
    expected = HEAP_BYTES + 4 * 4 * weights(druwas) + step
    assert training_memory_bytes(druwas) == pytest.approx(expected, abs=100)


def test_the_losss_own_memory_counts(monkeypatch):
    druwas = recipe("druwas", (16, 16, 16), 2)
    whole = training_memory_bytes(druwas)
    monkeypatch.setattr(training_cost, "build_loss", lambda _: lambda outputs, *_: {"term": outputs.logits[0].sum()})
    training_cost._memory_bytes.cache_clear()
    one_hot = 2 * 4 * 16**3 * 4
    assert whole > training_memory_bytes(druwas) + one_hot


def test_amsgrad_keeps_one_moment_more_and_frozen_weights_none():
    more = training_memory_bytes(with_settings(CGA, ["training.amsgrad=true"])) - training_memory_bytes(CGA)
    assert more == 4 * weights(CGA)
    trained = recipe("druwas", (8, 8, 8), 1, base=32)
    frozen = replace(trained, frozen=("bottleneck",))
    held = sum(p.numel() for p in build_network(trained).get_submodule("bottleneck").parameters())
    less = training_memory_bytes(trained) - training_memory_bytes(frozen)
    assert less >= 3 * 4 * held
    assert less == pytest.approx(3 * 4 * held, rel=0.2)  # and some activations


def test_memory_grows_with_the_batch_and_slices_are_one():
    one, two, three = (training_memory_bytes(recipe("druwas", (16, 16, 16), batch)) for batch in (1, 2, 3))
    assert two - one == pytest.approx(three - two, rel=0.01)
    assert two - one > 1e6
    assert training_memory_bytes(recipe("unet2d", (6, 32, 32), 1)) == training_memory_bytes(
        recipe("unet2d", (1, 32, 32), 6)
    )


def test_the_losses_last_epoch_counts():
    """The prototypes' distances cost a little, and only from their epoch on."""
    late = replace(CGA.training, loss=LossSpec("supervised_attention", {"inter_from_epoch": 10**9}))
    assert training_memory_bytes(CGA) >= training_memory_bytes(replace(CGA, training=late))
    with torch.device("meta"):
        outputs = build_network(CGA).supervised(torch.zeros(1, 4, 16, 16, 16, device="meta"))
    epochs = []

    def build(spec):
        def loss(given, classes, target, epoch):
            epochs.append(epoch)
            return {"term": given.logits[0].sum()}

        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_cost, "build_loss", build)
        training_cost._loss(CGA, outputs)
    assert epochs == [CGA.training.patches // CGA.training.validate_every]


def test_patches_of_a_2d_network_are_slices():
    two, three = (build_network(recipe(name, (8, 16, 16), 1)) for name in ("unet2d", "druwas"))
    assert patch_size(two, (8, 24, 32)) == ((24, 32), 8)
    assert patch_size(three, (8, 24, 32)) == ((8, 24, 32), 1)


def trained(of: Recipe, **changes) -> Recipe:
    return replace(of, training=replace(of.training, **changes))


def test_parts_need_the_activations_of_one_and_the_images_of_all():
    four = recipe("druwas", (16, 16, 16), 4)
    halves, half = (training_memory_bytes(trained(four, **how)) for how in ({"accumulation": 2}, {"batch_size": 2}))
    assert halves - half == 2 * 16**3 * (4 * 4 + 1)  # images and classes of the other half
    assert training_memory_bytes(four) > halves + 1e6
    slices = recipe("unet2d", (6, 32, 32), 2)
    assert training_memory_bytes(trained(slices, accumulation=2)) < training_memory_bytes(slices)


def test_a_running_mean_is_one_more_copy_of_weights_and_statistics():
    plain = recipe("attention_resunet", (16, 16, 16), 2)
    held = sum(tensor.nbytes for tensor in build_network(plain).state_dict().values())
    assert (
        training_memory_bytes(trained(plain, ema_decay=0.999)) - training_memory_bytes(plain)
        == held
        > 4 * weights(plain)
    )


@pytest.fixture
def machine(monkeypatch):
    """A machine on which a step takes 10 ms and 1 us for each voxel; lists what was tried."""
    clock, tried = [0.0], []

    def step(_recipe, network, size, batch):
        seconds = 0.01 + 1e-6 * batch * torch.Size(size).numel()
        clock[0] += seconds
        tried.append((tuple(size), batch))
        return seconds

    monkeypatch.setattr(training_cost, "_step_time_s", step)
    monkeypatch.setattr(training_cost.time, "perf_counter", lambda: clock[0])
    return tried, clock


@pytest.mark.parametrize(
    ("name", "size", "batch"),
    [
        ("druwas", (128, 160, 128), 4),
        ("druwas", (16, 16, 16), 1),
        ("druwas", (32, 40, 32), 4),
        ("unet2d", (1, 240, 240), 32),
        ("unet2d", (8, 192, 192), 2),
    ],
)
def test_time_of_a_patch_is_that_of_its_share_of_a_batch(machine, name, size, batch):
    tried, clock = machine
    expected = (0.01 + 1e-6 * batch * torch.Size(size).numel()) / batch
    assert patch_time_s(recipe(name, size, batch), limit_s=3) == pytest.approx(expected)
    assert clock[0] < 3
    divisor, whole = 4, size[-len(tried[0][0]) :]
    assert all(n % divisor == 0 for axes, _ in tried for n in axes)
    assert all(2 * divisor <= n <= all_of_it for axes, _ in tried for n, all_of_it in zip(axes, whole, strict=True))
    assert all((patches == 1) == (batch == 1) for _, patches in tried)  # one alone takes longer than its share of two
    assert len(tried) <= 2 * 3
    voxels = [torch.Size(axes).numel() * patches for axes, patches in dict.fromkeys(tried)]
    assert all(more >= 2 * less for less, more in itertools.pairwise(voxels))


def test_what_every_step_costs_is_told_from_what_voxels_cost_on_a_slow_machine_too(machine):
    tried, _ = machine
    whole = recipe("druwas", (128, 128, 128), 2)
    assert patch_time_s(whole, limit_s=0.01) == pytest.approx(0.005 + 128**3 * 1e-6)
    assert tried == [((16, 16, 16), 2), ((16, 16, 16), 4)]


def test_a_batch_in_parts_takes_as_long_as_its_parts(machine):
    tried, _ = machine
    halves = trained(recipe("druwas", (16, 16, 16), 8), accumulation=2)
    assert patch_time_s(halves) == pytest.approx((0.01 + 1e-6 * 4 * 16**3) / 4)
    assert max(patches for _, patches in tried) == 4
    tried.clear()
    single = trained(recipe("druwas", (32, 32, 32), 4), accumulation=4)
    assert patch_time_s(single) == pytest.approx(0.01 + 1e-6 * 32**3)
    assert {patches for _, patches in tried} == {1}


def test_first_steps_that_the_machine_held_up_say_nothing_of_the_others(machine, monkeypatch):
    tried, clock = machine
    plain = training_cost._step_time_s

    def held_up(*step):
        held_s = max(7.0 - len(tried), 0.0) if len(tried) < 2 else 0.0
        clock[0] += held_s
        return plain(*step) + held_s

    monkeypatch.setattr(training_cost, "_step_time_s", held_up)
    truth_s = 0.005 + 1e-6 * 128**3
    assert patch_time_s(recipe("druwas", (128, 128, 128), 2)) == pytest.approx(truth_s, rel=0.3)
    voxels = [torch.Size(size).numel() * batch for size, batch in tried]
    assert max(voxels) <= 8 * voxels[1]  # by what was seen until then the whole patch could be had for nothing


def test_a_patch_that_the_network_cannot_take_is_refused():
    with pytest.raises(InputError, match="multiple of 4"):
        patch_time_s(recipe("druwas", (2, 2, 2), 2))


def test_a_network_of_one_size_is_tried_at_that(machine):
    tried, _ = machine
    size = (32, 32, 64)
    patch_time_s(recipe("unetr", size, 2, patch_size=size))
    assert set(tried) == {(size, 2)}


def test_a_step_is_timed_on_the_device_itself():
    assert 0 < patch_time_s(recipe("druwas", (16, 16, 16), 2), "cpu", limit_s=0.05) < 10
    all_of_it = ("encoder", "bottleneck", "up", "gates", "spatial", "decoder", "head")
    assert patch_time_s(replace(recipe("druwas", (16, 16, 16), 2), frozen=all_of_it), limit_s=0.05) > 0
