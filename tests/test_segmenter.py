import importlib
import weakref
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from scipy import ndimage

from gliomap.classes import ED, ET, NCR, NESTED_REGIONS, Target
from gliomap.errors import InputError, UsageError
from gliomap.metrics import dice
from gliomap.preprocess import brain_box
from gliomap.recipe import ALL_FLIPS, Coarse, Inference, Preprocessing, StepSpec, View
from gliomap.recipes import RECIPES
from gliomap.segmenter import (
    Engine,
    Segmenter,
    activate,
    relative_entropy,
    with_preset,
)
from gliomap.volume import Box, Volume
from gliomap.windows import centre_slices, gaussian_weight, pad_to, padded_size, turn, turn_back, window_starts

segmenter_module = importlib.import_module("gliomap.segmenter")

RECIPE = replace(
    RECIPES["attention_resunet"],
    preprocessing=Preprocessing(),
    inference=Inference(),
    postprocessing=(),
    modalities=("t1c", "flair"),
)
SHAPE = (36, 44, 40)
SOFTMAX_CHANNEL = {0: 0, NCR: 1, ED: 2, ET: 3}


def convolutions(channels=2, seed=0):
    torch.manual_seed(seed)
    network = torch.nn.Sequential(
        torch.nn.Conv3d(channels, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(4, 4, 3, padding=1)
    )
    return network.eval().requires_grad_(requires_grad=False)


def engine_of(network):
    return lambda images: network(torch.from_numpy(np.ascontiguousarray(images))).numpy()


def threshold_engine(images):
    """ED where the first modality is more than a standard deviation bright, background elsewhere."""
    assert images.dtype == np.float32
    bright = images[:, 0] > 1
    logits = np.zeros((len(images), 4, *images.shape[2:]), np.float32)
    logits[:, SOFTMAX_CHANNEL[ED]] = np.where(bright, 20, -20)
    return logits


def everything_engine(images):
    logits = np.zeros((len(images), 4, *images.shape[2:]), np.float32)
    logits[:, SOFTMAX_CHANNEL[ET]] = 20
    return logits


def ball(shape, spacing, centre_mm, radius_mm):
    grids = np.meshgrid(*[(np.arange(n) + 0.5) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij")
    return sum((g - c) ** 2 for g, c in zip(grids, centre_mm, strict=True)) < radius_mm**2


def brain_with_tumour(shape=SHAPE, spacing=(1.0, 1.0, 1.0)):
    """A brain off the middle with air around it and a bright ball off its middle; the ball's mask."""
    brain = ball(shape, spacing, (17, 24, 18), 15)
    tumour = ball(shape, spacing, (19, 21, 20), 8)
    first = np.where(tumour, 300, 100) * brain
    noise = np.random.default_rng(0).normal(0, 2, (2, *shape))
    array = ((np.stack([first, brain * 50]) + noise) * brain).astype(np.float32)
    affine = np.diag([*spacing[::-1], 1.0])
    affine[:3, 3] = (-60, 30, 12)
    return Volume(array, affine), tumour, brain


@pytest.mark.parametrize(
    ("shape", "window", "overlap"),
    [
        ((13, 11, 17), (8, 8, 8), 0.5),
        ((13, 11, 17), (8, 8, 8), 0.25),
        ((13, 9, 7), (7, 9, 5), 0.6),
        ((5, 20, 6), (8, 6, 9), 0.5),  # the window is larger than the image along two axes
        ((16, 12, 18), (8, 12, 6), 0.0),
    ],
)
def test_windows_are_combined_as_by_monai(shape, window, overlap):
    network = convolutions()
    images = np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32)
    segmenter = Segmenter(
        replace(RECIPE, inference=Inference(window, overlap)), (Engine(engine_of(network), (1,) * 3),)
    )
    theirs = sliding_window_inference(
        torch.from_numpy(images)[None], window, 2, network, overlap=overlap, mode="gaussian", sigma_scale=0.125
    )
    np.testing.assert_allclose(segmenter.logits(images, *segmenter.engines), theirs[0].numpy(), atol=1e-5)


def test_windows_cover_every_voxel_and_stay_inside():
    size, window = (13, 8, 21), (8, 8, 6)
    covered = np.zeros(size, int)
    for start in window_starts(size, window, 0.25):
        assert all(0 <= s <= n - w for s, n, w in zip(start, size, window, strict=True))
        covered[tuple(slice(s, s + w) for s, w in zip(start, window, strict=True))] += 1
    assert covered.min() > 0
    assert window_starts((8, 8, 8), (8, 8, 8), 0.9) == [(0, 0, 0)]
    assert [s[0] for s in window_starts((20, 4, 4), (8, 4, 4), 0.5)] == [0, 4, 8, 12]


def test_window_weight_is_a_gaussian_of_an_eighth_of_the_window_with_a_floor():
    weight = gaussian_weight((17, 9, 33))
    assert weight[8, 4, 16] == 1
    assert weight[8, 4, 20] == pytest.approx(np.exp(-0.5 * (4 / (33 / 8)) ** 2))
    np.testing.assert_allclose(weight, weight[::-1, ::-1, ::-1])
    assert weight.min() == np.float32(1e-3)


def test_one_pass_sees_padded_images_and_its_padding_is_removed():
    images = np.random.default_rng(1).normal(size=(2, 13, 16, 19)).astype(np.float32)
    seen = []

    def engine(batch):
        seen.append(batch.shape)
        return np.concatenate([batch, batch + 1], 1)

    padding = Engine(engine, (16,) * 3)
    logits = Segmenter(RECIPE, (padding,)).logits(images, padding)
    assert seen == [(1, 2, 16, 16, 32)]
    np.testing.assert_array_equal(logits, np.concatenate([images, images + 1]))


def test_padding_is_zero_and_central():
    images = np.ones((1, 3, 4, 5))
    padded = pad_to(images, padded_size(images.shape[1:], (4, 4, 4)))
    assert padded.shape == (1, 4, 4, 8)
    assert padded.sum() == 60
    np.testing.assert_array_equal(padded[(slice(None), *centre_slices(padded.shape[1:], (3, 4, 5)))], images)
    assert pad_to(images, (3, 4, 5)) is images
    assert pad_to(images, (3, 4, 9))[0, 0, 0].tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("inference", [Inference(), Inference((16, 16, 16), 0.5)])
def test_a_perfect_engine_gives_back_exactly_the_mask_on_the_images_grid(inference):
    volume, tumour, _ = brain_with_tumour()
    classes = Segmenter(replace(RECIPE, inference=inference), (Engine(threshold_engine, (16,) * 3),))(volume)
    assert classes.array.dtype == np.uint8
    np.testing.assert_array_equal(classes.affine, volume.affine)
    np.testing.assert_array_equal(classes.array, (tumour * np.uint8(ED))[None])


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [(SHAPE, (1.0, 1.0, 1.0)), ((14, 44, 40), (2.6, 1.0, 1.0)), ((60, 30, 36), (0.6, 1.5, 1.1))],
)
def test_a_perfect_engine_at_two_millimetres_gives_nearly_the_mask(shape, spacing):
    volume, tumour, brain = brain_with_tumour(shape, spacing)
    segmenter = Segmenter(
        replace(RECIPE, preprocessing=Preprocessing(spacing_mm=2.0)), (Engine(threshold_engine, (16,) * 3),)
    )
    classes = segmenter(volume)
    assert classes.array.shape == (1, *shape)
    np.testing.assert_array_equal(classes.affine, volume.affine)
    found = classes.array[0] == ED
    assert dice(found, tumour) > 0.9
    assert not (found & ~brain).any()
    middles = [np.argwhere(m).mean(0) * spacing for m in (found, tumour)]
    np.testing.assert_allclose(*middles, atol=0.3)


def test_grid_of_equal_shape_but_another_spacing_is_still_resampled():
    spacing, shape = (1.9, 1.9, 1.9), (20, 20, 20)
    brain = ball(shape, spacing, (19, 19, 19), 17)
    tumour = ball(shape, spacing, (25, 25, 25), 6)
    volume = Volume(np.stack([np.where(tumour, 300, 100) * brain] * 2).astype(np.float32), np.diag([1.9, 1.9, 1.9, 1]))
    sizes = []

    def engine(images):
        sizes.append(images.shape[2:])
        return threshold_engine(images)

    segmenter = Segmenter(replace(RECIPE, preprocessing=Preprocessing(spacing_mm=2.0)), (Engine(engine, (1,) * 3),))
    assert segmenter.with_probabilities(volume)[1].shape == sizes[0]  # rounding up hides the difference
    found = segmenter(volume).array[0] == ED
    middles = [np.argwhere(m).mean(0) * spacing for m in (found, tumour)]
    np.testing.assert_allclose(*middles, atol=0.4)


@pytest.mark.parametrize("spacing_mm", [None, 2.0])
def test_nothing_is_found_outside_the_brain(spacing_mm):
    volume, _, brain = brain_with_tumour()
    recipe = replace(RECIPE, preprocessing=Preprocessing(spacing_mm=spacing_mm))
    classes = Segmenter(recipe, (Engine(everything_engine, (16,) * 3),))(volume).array[0]
    np.testing.assert_array_equal(classes, brain * np.uint8(ET))


def test_oblique_study_keeps_its_affine():
    volume, tumour, _ = brain_with_tumour()
    turn = np.array([[0.96, -0.28, 0, -50], [0.28, 0.96, 0, 20], [0, 0, 1, -7], [0, 0, 0, 1]])
    oblique = Volume(volume.array, turn)
    classes = Segmenter(RECIPE, (Engine(threshold_engine, (16,) * 3),))(oblique)
    np.testing.assert_array_equal(classes.affine, turn)
    np.testing.assert_array_equal(classes.array[0] == ED, tumour)


def test_recipes_postprocessing_is_applied():
    volume, tumour, brain = brain_with_tumour()
    volume.array[0, 8:10, 24, 18] = 300  # two bright voxels away from the ball
    assert brain[8:10, 24, 18].all()
    segmenter = Segmenter(RECIPE, (Engine(threshold_engine, (16,) * 3),))
    assert (segmenter(volume).array[0] == ED).sum() == tumour.sum() + 2
    tidy = replace(
        segmenter, recipe=replace(RECIPE, postprocessing=(StepSpec("remove_small_components", {"min_voxels": 3}),))
    )
    np.testing.assert_array_equal(tidy(volume).array[0] == ED, tumour)


def test_probabilities_are_on_the_brains_box():
    volume, tumour, brain = brain_with_tumour()
    probabilities = Segmenter(RECIPE, (Engine(threshold_engine, (16,) * 3),)).with_probabilities(volume)[1]
    places = np.argwhere(brain)
    low, high = places.min(0), places.max(0) + 1
    assert probabilities.shape == tuple(high - low)
    np.testing.assert_allclose(probabilities.affine[:3, 3], volume.affine[:3, 3] + low[::-1])
    np.testing.assert_allclose(probabilities.array.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(probabilities.placed_on(volume).array[2] > 0.5, tumour)


def test_sigmoid_target_is_decoded_by_regions():
    def regions_engine(images):
        bright = images[:, 0] > 1
        return np.stack([np.full_like(images[:, 0], -200), np.where(bright, 200, -200), images[:, 0] * 0 + 200], 1)

    volume, tumour, brain = brain_with_tumour()
    recipe = replace(RECIPE, target=NESTED_REGIONS)
    classes = Segmenter(recipe, (Engine(regions_engine, (16,) * 3),))(volume).array[0]
    np.testing.assert_array_equal(classes, np.where(tumour, NCR, ED) * brain)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_activation_is_torchs_even_for_extreme_logits(kind):
    logits = np.random.default_rng(0).normal(0, 1, (3, 2, 2, 2)).astype(np.float32)
    logits[0] *= 500
    tensor = torch.from_numpy(logits)
    expected = torch.softmax(tensor, 0) if kind == "softmax" else torch.sigmoid(tensor)
    found = activate(logits, Target(kind, ((0,), (1,), (2,))))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("view", get_args(View))
def test_every_view_is_turned_back_to_what_it_was(view):
    images = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    turned = turn(images, view)
    np.testing.assert_array_equal(turn_back(turned, view), images)
    assert np.array_equal(turned, images) == (view == "identity")
    np.testing.assert_array_equal(np.sort(turned.ravel()), np.sort(images.ravel()))


def test_views_are_named_by_the_patient():
    images = np.zeros((1, 3, 3, 3))
    images[0, 0, 1, 2] = 1  # inferior, in the middle, at the right
    assert np.argwhere(turn(images, "flip_left_right"))[0].tolist() == [0, 0, 1, 0]
    assert np.argwhere(turn(images, "flip_top_bottom"))[0].tolist() == [0, 2, 1, 2]
    assert np.argwhere(turn(images, "flip_front_back"))[0].tolist() == [0, 0, 1, 2]
    assert np.argwhere(turn(images, "rotate_90"))[0].tolist()[1] == 0


def left_right_engine(images):
    """A network that knows right from left: ED where the first modality is bright and x is in the upper half."""
    logits = threshold_engine(images)
    logits[..., : images.shape[-1] // 2] = 0
    return logits


@pytest.mark.parametrize(("combine", "share"), [("mean", 1.0), ("vote", 0.5)])
def test_views_are_combined_as_the_recipe_says(combine, share):
    volume, tumour, _ = brain_with_tumour()
    views = ("identity", "flip_left_right", "rotate_180", "flip_front_back")
    seen = []

    def engine(images):
        seen.append(images.copy())
        return left_right_engine(images)

    recipe = replace(RECIPE, inference=Inference(views=views, combine=combine))
    found = Segmenter(recipe, (Engine(engine, (1, 1, 1)),))(volume).array[0] == ED
    assert len(seen) == 4
    np.testing.assert_array_equal(seen[1], seen[0][..., ::-1])
    np.testing.assert_array_equal(seen[2], seen[0][..., ::-1, ::-1])
    assert not (found & ~tumour).any()
    assert found.sum() / tumour.sum() == pytest.approx(share, abs=0.35)
    if combine == "mean":
        assert (found == tumour).all()  # each side is sure of its half, and the other says nothing


def constant_engine(tissue, logit):
    """A network that says everywhere the same tissue, so surely."""

    def run(images):
        logits = np.zeros((len(images), 4, *images.shape[2:]), np.float32)
        logits[:, SOFTMAX_CHANNEL[tissue]] = logit
        return logits

    return run


@pytest.mark.parametrize(("combine", "tissue"), [("mean", ET), ("vote", ED)])
def test_networks_of_an_ensemble_are_combined_as_views_are(combine, tissue):
    volume, _, brain = brain_with_tumour()
    sure_of_one = (constant_engine(ET, 9), constant_engine(ED, 1), constant_engine(ED, 1))
    recipe = replace(RECIPE, inference=Inference(views=("identity", "rotate_180"), combine=combine))
    classes, probabilities = Segmenter(recipe, tuple(Engine(one, (1, 1, 1)) for one in sure_of_one)).with_probabilities(
        volume
    )
    np.testing.assert_array_equal(classes.array[0], brain * np.uint8(tissue))
    sure, unsure = np.exp(9) / (np.exp(9) + 3), np.e / (np.e + 3)
    np.testing.assert_allclose(probabilities.array[SOFTMAX_CHANNEL[ET]], (sure + 2 / (np.e + 3)) / 3, rtol=1e-5)
    np.testing.assert_allclose(
        probabilities.array[SOFTMAX_CHANNEL[ED]], (2 * unsure + 1 / (np.exp(9) + 3)) / 3, rtol=1e-5
    )


@pytest.mark.parametrize("spacing_mm", [None, 2.0])
def test_an_ensembles_probabilities_are_the_mean_of_its_members(spacing_mm):
    volume, _, _ = brain_with_tumour()
    inference = Inference((16, 16, 16), views=("identity", "flip_left_right"))
    recipe = replace(RECIPE, preprocessing=Preprocessing(spacing_mm=spacing_mm), inference=inference)
    engines = tuple(Engine(engine_of(convolutions(seed=seed)), (1, 1, 1)) for seed in range(3))
    together = Segmenter(recipe, engines).with_probabilities(volume)[1].array
    alone = [Segmenter(recipe, (engine,)).with_probabilities(volume)[1].array for engine in engines]
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, np.mean(alone, 0), atol=1e-6)


def test_a_study_is_prepared_once_and_one_networks_probabilities_are_held_at_a_time(monkeypatch):
    volume, _, _ = brain_with_tumour()
    prepared, held, alive = [], [], []
    prepare, activate_one = segmenter_module.prepare, segmenter_module.activate

    def counted(*arguments):
        prepared.append(arguments)
        return prepare(*arguments)

    def watched(logits, target):
        alive[:] = [reference for reference in alive if reference() is not None]
        held.append(len(alive))
        found = activate_one(logits, target)
        alive.append(weakref.ref(found))
        return found

    monkeypatch.setattr(segmenter_module, "prepare", counted)
    monkeypatch.setattr(segmenter_module, "activate", watched)
    Segmenter(RECIPE, (Engine(threshold_engine, (16,) * 3),) * 6).with_probabilities(volume)
    assert len(prepared) == 1
    assert max(held) <= 1


@pytest.mark.parametrize("views", [("identity",), ("identity", "flip_all")])
def test_prepared_images_are_gone_when_the_last_pass_sees_them_padded(views, monkeypatch):
    volume, _, _ = brain_with_tumour()
    held, there = [], []
    prepare = segmenter_module.prepare

    def watched(*arguments):
        made = prepare(*arguments)
        held.append(weakref.ref(made.array))
        return made

    def engine(images):
        there.append(held[0]() is not None)
        return threshold_engine(images)

    monkeypatch.setattr(segmenter_module, "prepare", watched)
    Segmenter(replace(RECIPE, inference=Inference(views=views)), (Engine(engine, (64,) * 3),))(volume)
    assert there == [True] * (len(views) - 1) + [False]


def test_an_engine_gives_its_memory_back_before_the_next_one_runs():
    volume, _, _ = brain_with_tumour()
    done = []

    def noted(name):
        return Engine(
            lambda images: (done.append(f"{name} ran"), threshold_engine(images))[1],
            (16, 16, 16),
            release=lambda: done.append(f"{name} released"),
        )

    inference = replace(RECIPE.inference, views=("identity", "flip_all"))
    Segmenter(replace(RECIPE, inference=inference), (noted("first"), noted("second")))(volume)
    assert done == ["first ran", "first released", "second ran", "second released"] * 2


def test_a_truth_centred_recipe_sees_only_the_box_about_the_true_tumour():
    volume, tumour, _ = brain_with_tumour()
    settings = Preprocessing(crop="truth_centre", crop_size=(20, 20, 20))
    seen = []

    def engine(images):
        seen.append(images.shape)
        return threshold_engine(images)

    segmenter = Segmenter(replace(RECIPE, preprocessing=settings), (Engine(engine, (4, 4, 4)),))
    truth = volume.with_array((tumour * np.uint8(ED)).astype(np.uint8))
    classes = segmenter(volume, truth)
    assert seen == [(1, 2, 20, 20, 20)]
    np.testing.assert_array_equal(classes.array[0] == ED, tumour)
    with pytest.raises(InputError, match="label map"):
        segmenter(volume)


def test_windows_without_brain_are_not_run_and_change_nothing():
    images = np.zeros((2, 16, 16, 48), np.float32)
    images[:, :, :, :16] = np.random.default_rng(0).normal(size=(2, 16, 16, 16))
    seen = []

    def engine(batch):
        seen.extend(batch)
        return np.concatenate([batch, batch + 1], 1)

    recipe = replace(RECIPE, inference=Inference((16, 16, 16), overlap=0.0))
    windowed = Engine(engine, (1, 1, 1))
    logits = Segmenter(recipe, (windowed,)).logits(images, windowed)
    assert len(seen) == 1
    np.testing.assert_allclose(logits[..., :16], np.concatenate([images, images + 1])[..., :16], rtol=1e-6)
    assert not logits[..., 16:].any()


def hungry(bytes_per_voxel, divisors=(8, 8, 8), only_size=None):
    return Engine(threshold_engine, divisors, bytes_per_voxel, only_size)


@pytest.mark.parametrize(
    ("free", "recipes", "expected"),
    [
        (10**9, None, None),
        (10**9, (16, 16, 16), (16, 16, 16)),
        (1000 * 32 * 64 * 64, None, None),
        (1000 * 32 * 64 * 64 - 1, None, (32, 32, 32)),  # two windows at once: 32 x 64 x 32 would not fit
        (1000 * 16 * 32 * 32 * 2, None, (16, 32, 32)),
        (1000 * 16 * 16 * 32 * 2, (32, 32, 32), (16, 16, 32)),
    ],
)
def test_windows_are_as_large_as_the_memory_allows(free, recipes, expected, monkeypatch):
    monkeypatch.setattr(Segmenter, "_free_bytes", lambda *_: free)
    segmenter = Segmenter(replace(RECIPE, inference=Inference(recipes)), (hungry(1000.0),))
    assert segmenter.window((30, 60, 64), *segmenter.engines) == expected


@pytest.mark.parametrize(
    ("inference", "engines", "expected"),
    [
        (Inference(), [1e-6], "one pass of 32 x 64 x 64 voxels, about 0.13 s"),
        (Inference(views=ALL_FLIPS), [1e-6, 3e-6], "one pass of 32 x 64 x 64 voxels, 2 networks, 8 views, about 4.2 s"),
        (Inference((16, 32, 32)), [1e-6], "27 windows of 16 x 32 x 32, about 0.44 s"),
        (Inference((16, 32, 32), overlap=0.0), [0.0], "8 windows of 16 x 32 x 32"),
        (Inference(), [1e-6, 0.0], "one pass of 32 x 64 x 64 voxels, 2 networks"),  # whose time is not known
    ],
)
def test_a_plan_counts_windows_views_and_networks(inference, engines, expected):
    each = tuple(Engine(threshold_engine, (8, 8, 8), seconds_per_voxel=time_s) for time_s in engines)
    assert Segmenter(replace(RECIPE, inference=inference), each).plan((30, 60, 64)) == expected


def test_what_is_said_before_a_network_runs_is_its_plan():
    volume, _, _ = brain_with_tumour()
    told = []

    def engine(images):
        told.append("ran")
        return threshold_engine(images)

    cascade(*looking(), engine, engine).segmentation(volume, say=told.append)
    first, _, second, _ = told
    assert (first[:8], second[:8], told[1::2]) == ("one pass", "one pass", ["ran", "ran"])


def test_a_study_that_does_not_fit_into_the_memory_is_refused_with_what_is_missing():
    volume, _, _ = brain_with_tumour()
    segmenter = Segmenter(RECIPE, (hungry(1e6),), max_memory_bytes=int(1e9))
    with pytest.raises(InputError, match=r"smallest window.*raise --max-memory"):
        segmenter(volume)


def test_the_memory_that_is_free_is_what_the_process_does_not_use_yet(monkeypatch):
    size = (16, 16, 16)
    monkeypatch.setattr(segmenter_module, "memory_bytes", lambda: 300_000)
    monkeypatch.setattr(segmenter_module, "available_memory_bytes", lambda: 1_000_000)
    kept = 4 * 4 * 16**3 * 4
    assert Segmenter(RECIPE, (), 700_000)._free_bytes(size) == 400_000 - kept
    assert Segmenter(RECIPE, (), 10**9)._free_bytes(size) == Segmenter(RECIPE, ())._free_bytes(size) == 800_000 - kept


def test_a_network_of_one_size_always_gets_it():
    engine = hungry(1.0, only_size=(32, 32, 32))
    assert Segmenter(RECIPE, (engine,)).window((30, 60, 64), engine) == (32, 32, 32)


def test_a_class_map_alone_is_that_of_the_probabilities():
    volume, _, _ = brain_with_tumour()
    recipe = replace(RECIPE, preprocessing=Preprocessing(spacing_mm=2.5))
    segmenter = Segmenter(recipe, (Engine(engine_of(convolutions()), (1, 1, 1)),))
    classes, probabilities = segmenter.with_probabilities(volume)
    np.testing.assert_array_equal(segmenter(volume).array, classes.array)
    brain = (volume.array != 0).any(0)
    decoded = probabilities.with_array(RECIPE.target.decode(probabilities.array)[None]).placed_on(volume)
    np.testing.assert_array_equal(decoded.array[0] * brain, classes.array[0])
    assert len(np.unique(classes.array)) > 2


def test_presets_change_how_often_a_study_is_seen():
    volume, _, _ = brain_with_tumour()
    seen = []

    def engine(images):
        seen.append(images.shape)
        return threshold_engine(images)

    inference = Inference((16, 16, 16), views=("identity", "rotate_90"), combine="vote")
    both = Segmenter(replace(RECIPE, inference=inference), (Engine(engine, (1, 1, 1)),) * 2)
    with_preset(both, "fast")(volume)
    assert len(seen) == 1
    assert with_preset(both, "balanced") == both
    careful = with_preset(both, "accurate")
    assert (careful.recipe.inference.views, careful.recipe.inference.window) == (ALL_FLIPS, (16, 16, 16))
    assert len(careful.engines) == 2
    with pytest.raises(UsageError, match="expected fast, balanced, accurate"):
        with_preset(both, "best")


def test_uncertainty_is_where_probabilities_are_even_and_where_opinions_differ():
    volume, tumour, brain = brain_with_tumour()
    sure, unsure = constant_engine(ET, 30), Engine(threshold_engine, (1, 1, 1))
    segmenter = Segmenter(RECIPE, (Engine(sure, (1, 1, 1)), unsure, unsure))
    classes, _, doubt = segmenter.segmentation(volume, uncertainty=True)
    assert doubt is not None
    np.testing.assert_array_equal(classes.array[0] == ED, tumour)
    inside = doubt.disagreement.placed_on(volume).array[0]
    np.testing.assert_allclose(inside[tumour], 1 / 3)
    assert [np.count_nonzero(one.array == ET) for one in doubt.opinions] == [brain.sum(), 0, 0]
    entropy = doubt.entropy.placed_on(volume).array[0]
    assert not entropy[~brain].any()
    third = -(1 / 3 * np.log(1 / 3) + 2 / 3 * np.log(2 / 3)) / np.log(4)
    np.testing.assert_allclose(entropy[tumour], third, rtol=1e-3)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_entropy_is_one_where_nothing_is_known_and_nought_where_all_is(kind):
    target = Target(kind, ((0,), (1,), (2,), (3,)))
    even = np.full((4, 1, 1, 1), 0.25 if kind == "softmax" else 0.5, np.float32)
    certain = np.array([0, 1, 0, 0], np.float32).reshape(4, 1, 1, 1)
    assert relative_entropy(even, target) == pytest.approx(1)
    assert relative_entropy(certain, target) == 0


def looking(spacing_mm=None, margin_mm=4.0, **changes):
    """A recipe whose network looks where another that works at 2 mm finds tumour."""
    first = replace(RECIPE, name="first", preprocessing=Preprocessing(spacing_mm=2.0))
    little = replace(RECIPE.training, patch_size=(4, 4, 4))
    own = replace(RECIPE, preprocessing=Preprocessing(spacing_mm=spacing_mm), training=little, **changes)
    return replace(own, coarse=Coarse(first, margin_mm)), first


def cascade(recipe, first, fine, coarse=threshold_engine, divisors=(1, 1, 1)):
    return Segmenter(recipe, (Engine(fine, divisors),), coarse=Segmenter(first, (Engine(coarse, (1, 1, 1)),)))


@pytest.mark.parametrize("spacing_mm", [None, 1.5])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 1.0, 2.0)])
def test_a_network_after_another_sees_the_box_about_its_tumour_and_no_more(spacing, spacing_mm):
    shape = tuple(round(n / s) for n, s in zip(SHAPE, spacing, strict=True))
    volume, tumour, brain = brain_with_tumour(shape, spacing)
    seen = cascade(*looking(spacing_mm, margin_mm=5.0), everything_engine)(volume).array[0] > 0
    margins = [int(np.ceil(5 / s)) for s in spacing]
    sides = [(hit.min() - m, hit.max() + m + 1) for hit, m in zip(np.nonzero(tumour), margins, strict=True)]
    rounding = [0 if spacing_mm is None and s == 2 else int(np.ceil(4 / s)) for s in spacing]  # 2 mm find it exactly
    for grown, inside in ((1, False), (-1, True)):
        box = np.zeros(shape, bool)
        box[tuple(slice(max(a - grown * r, 0), b + grown * r) for (a, b), r in zip(sides, rounding, strict=True))] = (
            True
        )
        assert seen[box & brain].all() if inside else not seen[~box].any()
    assert not seen[~brain].any()


def box(*ranges):
    return Box(*zip(*ranges, strict=True))


@pytest.mark.parametrize(
    ("tumour", "least", "expected"),
    [
        # z voxels half as many, y the same, x twice as many as the study's; of 20 x 30 x 64, in multiples of 1, 4 and 8
        (box((9, 15), (10, 17), (8, 12)), (1, 1, 1), box((4, 8), (10, 18), (16, 24))),
        (box((9, 15), (10, 17), (8, 12)), (6, 12, 24), box((3, 9), (8, 20), (8, 32))),
        (box((0, 3), (0, 3), (0, 2)), (4, 8, 16), box((0, 4), (0, 8), (0, 16))),
        (box((37, 39), (28, 30), (31, 32)), (4, 8, 16), box((16, 20), (22, 30), (48, 64))),
        (box((0, 39), (1, 29), (0, 32)), (4, 32, 16), box((0, 20), (0, 30), (0, 64))),
    ],
)
def test_a_box_is_widened_by_what_is_around_it_on_the_networks_grid(tumour, least, expected):
    assert segmenter_module._widened(tumour, (2.0, 1.0, 0.5), least, (1, 4, 8), (20, 30, 64)) == expected


def test_a_window_is_filled_with_what_is_around_the_box():
    volume, _, _ = brain_with_tumour()
    seen = []

    def engine(images):
        seen.append(images)
        return threshold_engine(images)

    recipe, first = looking(margin_mm=0.0, inference=Inference(window=(24, 24, 24)))
    cascade(recipe, first, engine)(volume)
    ((window,),) = seen
    assert window.shape[1:] == (24, 24, 24)
    assert (window[0] != 0).mean() > 0.6  # of a ball in a box, half


@pytest.mark.parametrize("crop", ["brain", "truth_centre"])
def test_what_finds_the_tumour_sees_the_whole_study_and_its_own_part_of_it(crop):
    volume, tumour, _ = brain_with_tumour()
    truth = Volume(tumour[None].astype(np.uint8), volume.affine)
    recipe, first = looking()
    seen = []

    def noted(images):
        seen.append(images)
        return threshold_engine(images)

    for preprocessing in (Preprocessing(grid=(18, 11, 10)), Preprocessing(crop="truth_centre", crop_size=(20, 20, 20))):
        finder = replace(first, preprocessing=preprocessing)
        Segmenter(finder, (Engine(noted, (1, 1, 1)),))(volume, truth)
        whole = replace(recipe, preprocessing=Preprocessing(crop=crop, crop_size=(30, 30, 30)))
        cascade(whole, finder, threshold_engine, noted)(volume, truth)
        alone, before = seen[-2:]
        np.testing.assert_array_equal(alone, before)


def test_presets_reach_what_finds_the_tumour():
    ran = []

    def engine(name):
        return Engine(lambda images: (ran.append(name), threshold_engine(images))[1], (1, 1, 1))

    recipe, first = looking(inference=Inference(views=("identity", "rotate_180")))
    both = tuple(replace(one, inference=recipe.inference) for one in (recipe, first))
    finder = Segmenter(both[1], (engine("first a"), engine("first b")))
    segmenter = Segmenter(both[0], (engine("a"), engine("b")), coarse=finder)
    volume, _, _ = brain_with_tumour()
    for preset, count in (("fast", 2), ("balanced", 8), ("accurate", 32)):
        ran.clear()
        with_preset(segmenter, preset)(volume)
        assert len(ran) == count
    assert ran == ["first a", "first b"] * 8 + ["a", "b"] * 8


def test_memory_is_kept_for_the_whole_study_that_the_box_is_put_back_into(monkeypatch):
    volume, _, _ = brain_with_tumour()
    asked = []
    monkeypatch.setattr(Segmenter, "_free_bytes", lambda _, whole: (asked.append(whole), 1e9)[1])
    cascade(*looking(), threshold_engine)(volume)
    own = [size for size in asked if size != (15, 15, 15)]
    assert set(own) == {tuple(brain_box(volume).shape)}


def test_the_box_is_what_the_network_can_take_and_normalised_as_the_whole_brain_is():
    volume, _, _ = brain_with_tumour()
    seen = []

    def engine(images):
        seen.append(images)
        return threshold_engine(images)

    recipe, first = looking(margin_mm=1.0)
    whole = Segmenter(replace(recipe, coarse=None), (Engine(engine, (4, 4, 4)),))(volume)
    np.testing.assert_array_equal(cascade(recipe, first, engine, divisors=(4, 4, 4))(volume).array, whole.array)
    everything, part = (images[0] for images in seen)
    assert all(n % 4 == 0 for n in part.shape[1:])
    assert (np.array(part.shape[1:]) < everything.shape[1:]).all()
    wanted = part[:, part.shape[1] // 2, part.shape[2] // 2]
    rows = np.lib.stride_tricks.sliding_window_view(everything, part.shape[3], axis=3)
    assert (rows == wanted[:, None, None, None]).all((0, 4)).any()  # cut out, not padded or normalised anew


def test_where_no_tumour_is_found_first_the_whole_study_is_looked_at():
    volume, tumour, _ = brain_with_tumour()

    def nothing(images):
        return np.broadcast_to(np.array([20, 0, 0, 0], np.float32)[:, None, None, None], (1, 4, *images.shape[2:]))

    found = cascade(*looking(), threshold_engine, nothing)(volume)
    np.testing.assert_array_equal(found.array[0] == ED, tumour)


@pytest.mark.parametrize("target", [RECIPE.target, NESTED_REGIONS])
def test_outside_the_box_all_is_background_and_nothing_is_in_doubt(target):
    volume, tumour, _ = brain_with_tumour()
    recipe, first = looking(target=target, margin_mm=2.0)

    def unsure(images):
        return np.zeros((len(images), len(target.channels), *images.shape[2:]), np.float32)

    segmenter = cascade(recipe, first, unsure)
    _, probabilities = segmenter.with_probabilities(volume)
    far = ~ndimage.binary_dilation(tumour, np.ones((3, 3, 3)), iterations=7)
    shown = far[brain_box(volume).slices]
    expected = np.zeros(len(target.channels)) if target is NESTED_REGIONS else np.array([1.0, 0, 0, 0])
    np.testing.assert_array_equal(probabilities.array[:, shown], np.tile(expected[:, None], shown.sum()))
    doubt = segmenter.segmentation(volume, uncertainty=True).uncertainty
    assert doubt is not None
    assert not doubt.entropy.array[0][shown].any()
    assert doubt.entropy.array.max() == pytest.approx(1)
