from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from gliomap.classes import ED, ET, NCR, NESTED_REGIONS, RC, region_mask
from gliomap.errors import UsageError
from gliomap.postprocess import (
    STEPS,
    build_steps,
    enclosed_to_ncr,
    fill_holes,
    largest_component,
    postprocess,
    remove_small_components,
    small_et_to_ncr,
)
from gliomap.recipe import StepSpec, recipe_from_json, recipe_json, with_settings
from gliomap.recipes import RECIPES

VOXEL_ML = 0.001
EVERY_STEP = (
    StepSpec("remove_small_components", {"min_voxels": 3}),
    StepSpec("largest_component"),
    StepSpec("enclosed_to_ncr"),
    StepSpec("fill_holes"),
    StepSpec("small_et_to_ncr", {"min_ml": 0.01}),
)


def class_map():
    classes = np.zeros((8, 9, 10), np.uint8)
    classes[1:4, 1:4, 1:4] = ED  # 27 voxels
    classes[2, 2, 2] = ET  # one inside them, which leaves 26
    classes[6, 6, 6] = ET
    classes[7, 7, 7] = ET  # touches only by a corner
    classes[0, 8, 9] = NCR
    return classes


def random_map(seed, shape=(12, 11, 13)):
    """Blobs of all classes, with holes."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 0.7)
    return np.digitize(noise, np.quantile(noise, [0.3, 0.55, 0.75, 0.95])).astype(np.uint8)


def box(*, inside):
    """ED on the six faces of a cube of 5 voxels, and something in the 27 voxels inside."""
    classes = np.zeros((7, 7, 7), np.uint8)
    classes[1:6, 1:6, 1:6] = ED
    classes[2:5, 2:5, 2:5] = inside
    return classes


def run(classes, name, voxel_ml=VOXEL_ML, **limits):
    return postprocess(classes, (StepSpec(name, limits),), voxel_ml)


def test_smaller_components_of_a_class_are_removed():
    out = remove_small_components(class_map(), VOXEL_ML, min_voxels=2)
    expected = class_map()
    expected[2, 2, 2] = expected[0, 8, 9] = 0
    np.testing.assert_array_equal(out, expected)


def test_a_component_of_exactly_the_limit_stays():
    assert (remove_small_components(class_map(), VOXEL_ML, min_voxels=26) == ED).sum() == 26
    assert not remove_small_components(class_map(), VOXEL_ML, min_voxels=27).any()


def test_components_are_counted_for_each_class_on_its_own():
    out = remove_small_components(class_map(), VOXEL_ML, min_voxels=3)
    assert set(np.unique(out)) == {0, ED}


def test_little_enhancing_tumour_becomes_necrosis():
    classes = class_map()
    assert (classes == ET).sum() == 3
    out, _ = run(classes, "small_et_to_ncr", min_voxels=4)
    np.testing.assert_array_equal(out, np.where(classes == ET, NCR, classes))
    np.testing.assert_array_equal(run(classes, "small_et_to_ncr", min_voxels=3)[0], classes)


@pytest.mark.parametrize("name", ["remove_small_components", "small_et_to_ncr"])
@pytest.mark.parametrize("voxel_ml", [0.001, 0.008, 0.00046875])
def test_a_limit_in_ml_follows_the_size_of_the_voxels(name, voxel_ml):
    classes = np.zeros((10, 10, 10), np.uint8)
    classes[:5, 0, 0] = ET
    np.testing.assert_array_equal(run(classes, name, voxel_ml, min_ml=5 * voxel_ml)[0], classes)
    nearly = voxel_ml * (1 - 1e-8)  # what an affine in 32 bits makes of it
    np.testing.assert_array_equal(run(classes, name, nearly, min_ml=5 * voxel_ml)[0], classes)
    assert not (run(classes, name, voxel_ml, min_ml=5.01 * voxel_ml)[0] == ET).any()
    np.testing.assert_array_equal(run(classes, name, 2 * voxel_ml, min_ml=10 * voxel_ml)[0], classes)
    np.testing.assert_array_equal(run(classes, name, 2 * voxel_ml, min_voxels=5)[0], classes)


@pytest.mark.parametrize("seed", range(4))
def test_the_papers_limits_in_voxels_do_what_they_did_on_whole_grids(seed):
    """Paper 004's and paper 002's rules, written down again and without a box."""
    classes = np.pad(random_map(seed), ((3, 0), (2, 5), (0, 4)))
    expected = np.zeros_like(classes)
    for value in (1, 2, 3, 4):
        components, count = ndimage.label(classes == value, np.ones((3, 3, 3)))
        for number in range(1, count + 1):
            if (components == number).sum() >= 6:
                expected[components == number] = value
    if (expected == ET).sum() < 100:
        expected[expected == ET] = NCR
    steps = (StepSpec("remove_small_components", {"min_voxels": 6}), StepSpec("small_et_to_ncr", {"min_voxels": 100}))
    np.testing.assert_array_equal(postprocess(classes, steps, 0.5)[0], expected)
    assert (expected != classes).any()


def test_a_hole_of_the_tumour_takes_the_class_that_is_most_around_it():
    classes = box(inside=ET)
    classes[3, 3, 3] = 0
    classes[3, 3, 1] = 0  # reaches the outside
    out, changes = run(classes, "fill_holes")
    expected = classes.copy()
    expected[3, 3, 3] = ET
    np.testing.assert_array_equal(out, expected)
    assert [(c.before, c.after, c.voxels) for c in changes] == [("background", "ET", 1)]


def test_a_hole_is_not_left_by_a_corner_or_an_edge():
    classes = box(inside=0)
    classes[1, 1, 1] = classes[1, 1, 2] = 0
    np.testing.assert_array_equal(run(classes, "fill_holes")[0] - classes, box(inside=ED) - box(inside=0))
    classes[2, 2, 1] = 0  # an open face
    np.testing.assert_array_equal(run(classes, "fill_holes")[0], classes)


@pytest.mark.parametrize("seed", range(4))
def test_after_filling_there_is_no_hole_left_as_scipy_sees_it(seed):
    classes = random_map(seed)
    filled = fill_holes(classes, VOXEL_ML)
    np.testing.assert_array_equal(filled != 0, ndimage.binary_fill_holes(classes != 0))
    np.testing.assert_array_equal(filled[classes != 0], classes[classes != 0])
    assert (filled != classes).any()


def test_oedema_and_background_inside_a_ring_of_tumour_are_its_necrosis():
    ring = box(inside=ED)
    ring[(ring == ED) & ~ndimage.binary_erosion(ring)] = ET
    ring[3, 3, 3], ring[3, 3, 2] = 0, RC
    out, changes = run(ring, "enclosed_to_ncr")
    assert (out[2:5, 2:5, 2:5] == NCR).sum() == 26
    assert out[3, 3, 2] == RC
    assert {(c.before, c.after): c.voxels for c in changes} == {("background", "NCR"): 1, ("ED", "NCR"): 25}
    ring[3, 3, 1] = ED  # a way out
    np.testing.assert_array_equal(run(ring, "enclosed_to_ncr")[0], ring)


def test_what_oedema_alone_encloses_is_no_core():
    np.testing.assert_array_equal(run(box(inside=0), "enclosed_to_ncr")[0], box(inside=0))


def test_only_the_largest_component_of_the_whole_tumour_stays():
    classes = class_map()
    classes[7, 0, 0] = RC
    out, changes = run(classes, "largest_component")
    expected = np.zeros_like(classes)
    expected[1:4, 1:4, 1:4] = classes[1:4, 1:4, 1:4]  # oedema and the tumour in it are one
    expected[7, 0, 0] = RC
    np.testing.assert_array_equal(out, expected)
    assert {(c.before, c.voxels) for c in changes} == {("NCR", 1), ("ET", 2)}
    np.testing.assert_array_equal(run(expected, "largest_component")[0], expected)


def test_the_first_of_equally_large_components_stays():
    classes = np.zeros((3, 3, 9), np.uint8)
    classes[1, 1, [1, 4, 7]] = ED
    assert np.argwhere(largest_component(classes, VOXEL_ML)).tolist() == [[1, 1, 1]]


def test_regions_nest_in_every_decoded_map_so_that_no_step_has_to_see_to_it():
    probabilities = np.random.default_rng(0).random((3, 6, 7, 8)).astype(np.float32)
    classes = NESTED_REGIONS.decode(probabilities)
    et, tc, wt = (region_mask(classes, region) for region in ("ET", "TC", "WT"))
    assert (et <= tc).all()
    assert (tc <= wt).all()
    assert (probabilities[0] > 0.5).sum() == et.sum()


@given(seed=st.integers(0, 10_000), first=st.sampled_from(sorted(STEPS)), second=st.sampled_from(sorted(STEPS)))
@settings(max_examples=40, deadline=None)
def test_changes_are_the_difference_and_the_box_and_the_input_do_not_matter(seed, first, second):
    limits = {"remove_small_components": {"min_voxels": 5}, "small_et_to_ncr": {"min_ml": 0.1}}
    steps = tuple(StepSpec(name, limits.get(name, {})) for name in (first, second))
    classes = random_map(seed, (7, 8, 9))
    before = classes.copy()
    out, changes = postprocess(classes, steps, VOXEL_ML)
    np.testing.assert_array_equal(classes, before)
    padded, same = postprocess(np.pad(classes, 3), steps, VOXEL_ML)
    np.testing.assert_array_equal(padded, np.pad(out, 3))
    assert same == changes
    assert out.dtype == np.uint8
    names = ["background", "NCR", "ED", "ET", "RC"]
    counts = np.bincount(classes.ravel(), minlength=5)
    for change in changes:
        counts[names.index(change.before)] -= change.voxels
        counts[names.index(change.after)] += change.voxels
    np.testing.assert_array_equal(counts, np.bincount(out.ravel(), minlength=5))
    again, _ = postprocess(out, steps[1:], VOXEL_ML)
    np.testing.assert_array_equal(again, out)  # a step that has been run has nothing left to do


def test_steps_run_in_their_order_and_say_what_they_did():
    parts, little = EVERY_STEP[0], StepSpec("small_et_to_ncr", {"min_voxels": 3})
    out, changes = postprocess(class_map(), (StepSpec("remove_small_components", {"min_voxels": 2}), little), VOXEL_ML)
    assert (out == NCR).sum() == 2  # one of three voxels of ET goes first, and two are too few
    assert [str(c) for c in changes] == [
        "remove_small_components: 0.001 ml of NCR (1 voxel) was removed",
        "remove_small_components: 0.001 ml of ET (1 voxel) was removed",
        "small_et_to_ncr: 0.002 ml of ET (2 voxels) became NCR",
    ]
    expected = {"step": "small_et_to_ncr", "before": "ET", "after": "NCR", "voxels": 2, "volume_ml": 0.002}
    assert asdict(changes[-1]) == expected
    assert not (postprocess(class_map(), (little, parts), VOXEL_ML)[0] == NCR).any()


def test_nothing_is_done_to_an_empty_map_or_without_steps():
    empty = np.zeros((3, 4, 5), np.uint8)
    for classes, steps in ((empty, EVERY_STEP), (class_map(), ())):
        out, changes = postprocess(classes, steps, VOXEL_ML)
        np.testing.assert_array_equal(out, classes)
        assert changes == ()
    for step in (fill_holes, enclosed_to_ncr, largest_component):
        np.testing.assert_array_equal(step(empty, VOXEL_ML), empty)
    np.testing.assert_array_equal(small_et_to_ncr(empty, VOXEL_ML, min_voxels=3), empty)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        (StepSpec("erode"), "expected one of remove_small_components, small_et_to_ncr"),
        (StepSpec("fill_holes", {"min_voxels": 3}), "there is no setting min_voxels; expected none"),
        (StepSpec("small_et_to_ncr"), "expected either min_voxels or min_ml"),
        (StepSpec("small_et_to_ncr", {"min_voxels": 3, "min_ml": 3.0}), "expected either min_voxels or min_ml"),
        (StepSpec("small_et_to_ncr", {"min_voxels": "500"}), "min_voxels is '500'"),
        (StepSpec("small_et_to_ncr", {"min_voxels": 1.5}), "min_voxels is 1.5"),
        (StepSpec("small_et_to_ncr", {"min_voxels": True}), "min_voxels is True"),
        (StepSpec("remove_small_components", {"min_voxels": 0}), "min_voxels is 0"),
        (StepSpec("remove_small_components", {"min_ml": -1}), "min_ml is -1"),
        (StepSpec("remove_small_components", {"min_ml": float("inf")}), "min_ml is inf"),
    ],
)
def test_unknown_steps_and_settings_are_refused_even_where_there_is_nothing_to_do(spec, match):
    with pytest.raises(UsageError, match=match):
        build_steps((spec,))
    with pytest.raises(UsageError, match=match):
        postprocess(np.zeros((2, 2, 2), np.uint8), (spec,), VOXEL_ML)


@pytest.mark.parametrize("name", RECIPES)
def test_the_steps_of_every_recipe_can_be_run(name):
    assert len(build_steps(RECIPES[name].postprocessing)) == len(RECIPES[name].postprocessing)


def test_steps_are_part_of_a_recipes_record_and_are_set_as_json():
    base = RECIPES["cga_unet_fair"]
    text = '[{"name":"small_et_to_ncr","settings":{"min_voxels":500}},{"name":"fill_holes"}]'
    recipe = with_settings(base, [f"postprocessing={text}"])
    assert recipe.postprocessing == (StepSpec("small_et_to_ncr", {"min_voxels": 500}), StepSpec("fill_holes"))
    assert recipe_from_json(recipe_json(recipe)) == recipe
    assert with_settings(recipe, ["postprocessing=[]"]) == base
    for wrong in ('{"min_et_voxels":500}', '[{"settings":{}}]', '[{"name":"fill_holes","limit":3}]', "fill_holes"):
        with pytest.raises(UsageError, match="postprocessing"):
            with_settings(base, [f"postprocessing={wrong}"])
