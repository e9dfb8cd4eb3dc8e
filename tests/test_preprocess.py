from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from gliomap.errors import InputError
from gliomap.preprocess import (
    PERCENTILES,
    REFERENCE_PERCENTILES,
    brain_box,
    brain_mask,
    coarser_grid,
    match_histogram,
    normalise,
    prepare,
    resample,
    resample_classes,
    shows_brain_alone,
    study_box,
    voxel_ratio,
)
from gliomap.recipe import Coarse, Preprocessing
from gliomap.recipes import RECIPES
from gliomap.volume import Box, Volume


def study(shape=(12, 14, 10), spacing=(1.0, 1.0, 1.0), channels=2, seed=0):
    """An ellipsoid of noise with air around it, more on one side than on the other."""
    z, y, x = np.indices(shape)
    centre = [n * 0.45 for n in shape]
    inside = sum(((g - c) / (0.38 * n)) ** 2 for g, c, n in zip((z, y, x), centre, shape, strict=True)) < 1
    array = np.random.default_rng(seed).normal(300, 40, (channels, *shape)).astype(np.float32) * inside
    return Volume(array, np.diag([*spacing[::-1], 1.0]))


def prepared_with(volume, **settings):
    """A study of t1 and flair, prepared with these settings."""
    recipe = replace(RECIPES["druwas"], modalities=("t1", "flair"), preprocessing=Preprocessing(**settings))
    shown = volume.crop(study_box(volume, recipe.preprocessing))
    return prepare(shown, recipe, voxel_ratio(volume, recipe.preprocessing))


def centres_in_source(count, ratio):
    return (np.arange(count) + 0.5) * ratio - 0.5


@pytest.mark.parametrize(
    ("own", "first", "expected"),
    [
        (Preprocessing(spacing_mm=2.0), None, True),
        (Preprocessing(grid=(8, 8, 8)), None, False),
        (Preprocessing(crop="truth_centre", crop_size=(8, 8, 8)), None, False),
        (Preprocessing(), Preprocessing(spacing_mm=2.0), True),
        (Preprocessing(), Preprocessing(grid=(8, 8, 8)), False),
    ],
)
def test_the_surroundings_of_a_brain_matter_to_a_grid_of_all_and_to_a_box_about_the_truth(own, first, expected):
    recipe = replace(RECIPES["druwas"], preprocessing=own)
    before = None if first is None else Coarse(replace(RECIPES["druwas"], preprocessing=first), 4.0)
    assert shows_brain_alone(replace(recipe, coarse=before)) is expected


def test_brain_is_where_any_modality_is_not_zero():
    volume = Volume(np.zeros((2, 4, 5, 6)), np.eye(4))
    volume.array[0, 1, 1, 1] = 3
    volume.array[1, 2, 4, 1] = -3
    assert np.argwhere(brain_mask(volume)).tolist() == [[1, 1, 1], [2, 4, 1]]
    assert brain_box(volume) == Box((1, 1, 1), (3, 5, 2))
    assert brain_box(volume, 1) == Box((0, 0, 0), (4, 5, 3))
    with pytest.raises(InputError, match="all zero"):
        brain_box(Volume(np.zeros((2, 4, 5, 6)), np.eye(4)))


def test_zscore_is_over_each_channels_own_voxels_and_background_stays_zero():
    array = study().array.copy()
    mask = (array != 0).any(0)
    hole = tuple(np.argwhere(mask)[7])
    array[(1, *hole)] = 0  # a voxel that only this modality lacks
    out = normalise(array, mask, "zscore")
    assert out.dtype == np.float32
    assert (out[:, ~mask] == 0).all()
    assert out[(1, *hole)] == 0
    for channel in range(2):
        values = array[channel][array[channel] != 0].astype(np.float64)
        expected = (values - values.mean()) / values.std()
        np.testing.assert_allclose(out[channel][array[channel] != 0], expected, atol=1e-4)


def test_zscore_of_constant_or_missing_modalities_is_finite():
    array = np.zeros((2, 3, 3, 3), np.float32)
    array[0, 1:] = 7
    out = normalise(array, np.ones((3, 3, 3), bool), "zscore")
    assert (out == 0).all()


def test_prepare_crops_to_the_brain_and_keeps_the_grid():
    volume = study()
    prepared = prepared_with(volume)
    box = brain_box(volume)
    assert prepared.shape == box.shape
    assert prepared.array.dtype == np.float32
    np.testing.assert_allclose(prepared.affine[:3, 3], [box.start[2], box.start[1], box.start[0]])
    outside = ~brain_mask(volume)[box.slices]
    assert (prepared.array[:, outside] == 0).all()


def test_prepare_leaves_its_input_alone():
    volume = study()
    before = volume.array.copy()
    prepared_with(volume, spacing_mm=2.0)
    np.testing.assert_array_equal(volume.array, before)


def test_resampled_brain_is_not_darker_at_its_edge():
    volume = study((16, 18, 20), (1.5, 1.0, 1.0))
    brain = volume.array != 0
    halves = np.where(np.arange(20) < 9, 200, 400) * brain
    prepared = prepared_with(volume.with_array(halves.astype(np.float32)), spacing_mm=2.0)
    z, y, x = (n * s / 2 for n, s in zip(brain_box(volume).shape, volume.spacing_mm, strict=True))
    assert prepared.shape == (int(np.ceil(z)), int(np.ceil(y)), int(np.ceil(x)))
    np.testing.assert_allclose(prepared.spacing_mm, (2, 2, 2))
    values = prepared.array[0][prepared.array[0] != 0]
    assert np.isclose(values, values.min(), atol=1e-3).mean() > 0.2  # all of the dark half, its edge too
    assert np.isclose(values, values.max(), atol=1e-3).mean() > 0.2


@pytest.mark.parametrize("spacing_mm", [0.5, 1.0, 2.0, 3.3])
def test_coarser_grid_keeps_the_outer_corner_and_covers_the_box(spacing_mm):
    affine = np.array([[0, -1.0, 0, 10], [1.5, 0, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1]])
    shape = (7, 9, 11)
    volume = Volume(np.zeros((1, *shape)), affine)
    counts, out = coarser_grid(shape, affine, voxel_ratio(volume, Preprocessing(spacing_mm=spacing_mm)))
    np.testing.assert_allclose(np.linalg.norm(out[:3, :3], axis=0), spacing_mm)
    corner = [-0.5, -0.5, -0.5, 1]
    np.testing.assert_allclose(out @ corner, affine @ corner)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)[::-1]
    length = np.array(counts) * spacing_mm
    assert (length >= np.array(shape) * sizes - 1e-4).all()
    assert (length < np.array(shape) * sizes + spacing_mm).all()


@pytest.mark.parametrize("ratio", [0.4, 1.0, 1.7, 2.0, 5.0])
def test_resampling_preserves_constants(ratio):
    shape = tuple(int(np.ceil(n / ratio)) for n in (6, 7, 8))
    out = resample(np.full((1, 6, 7, 8), 3.5), shape, (ratio,) * 3)
    np.testing.assert_allclose(out, 3.5, rtol=1e-6)


def test_finer_grid_is_linear_interpolation():
    array = np.random.default_rng(1).normal(size=(1, 5, 6, 4)).astype(np.float32)
    shape, ratio = (10, 9, 12), (0.5, 2 / 3, 1 / 3)
    places = [np.clip(centres_in_source(n, r), 0, s - 1) for n, r, s in zip(shape, ratio, array.shape[1:], strict=True)]
    expected = ndimage.map_coordinates(array[0], np.meshgrid(*places, indexing="ij"), order=1)
    np.testing.assert_allclose(resample(array, shape, ratio)[0], expected, atol=1e-5)


def test_same_grid_is_left_as_it_is():
    array = np.random.default_rng(1).normal(size=(2, 5, 6, 4)).astype(np.float32)
    np.testing.assert_array_equal(resample(array, (5, 6, 4), (1.0, 1.0, 1.0)), array)


def test_two_millimetre_voxels_average_one_millimetre_voxels():
    ramp = np.indices((8, 10, 6)).astype(np.float32).sum(0)
    box_means = ramp.reshape(4, 2, 5, 2, 3, 2).mean((1, 3, 5))
    out = resample(ramp[None], (4, 5, 3), (2.0, 2.0, 2.0))[0]
    np.testing.assert_allclose(out[1:-1, 1:-1, 1:-1], box_means[1:-1, 1:-1, 1:-1], atol=1e-5)
    impulse = np.zeros((1, 1, 1, 8), np.float32)
    impulse[..., 3] = (
        1  # half a voxel from the second new centre, one and a half from the third: a triangle two voxels wide
    )
    out = resample(impulse, (1, 1, 4), (1.0, 1.0, 2.0))
    np.testing.assert_allclose(out.ravel(), [0, 0.75 / 2, 0.25 / 2, 0], atol=1e-6)


def test_smooth_field_survives_a_coarse_grid():
    z, y, x = np.indices((32, 32, 32))
    field = np.sin(z / 7) + np.cos(y / 8) * np.sin(x / 9)
    coarse = resample(field[None], (16, 16, 16), (2.0, 2.0, 2.0))
    fine = resample(coarse, (32, 32, 32), (0.5, 0.5, 0.5))[0]
    inner = (slice(3, -3),) * 3
    assert np.abs(fine - field)[inner].max() < 0.05


def test_class_of_a_larger_voxel_is_the_one_that_fills_most_of_it():
    classes = np.zeros((8, 8, 8), np.uint8)
    classes[:, :, 4:] = 3
    classes[0:2, 0:2, 0] = 2
    out = resample_classes(classes, (4, 4, 4), (2.0, 2.0, 2.0))
    assert out.dtype == np.uint8
    assert (out[..., :2] == 0).all()
    assert (out[..., 2:] == 3).all()


def test_a_voxel_that_one_class_fills_keeps_it():
    classes = np.zeros((8, 8, 8), np.uint8)
    classes[4:6, 2:4, 2:4] = 3  # exactly one voxel of 2 mm
    out = resample_classes(classes, (4, 4, 4), (2.0, 2.0, 2.0))
    assert np.argwhere(out).tolist() == [[2, 1, 1]]


@pytest.mark.parametrize("ratio", [1.3, 2.0, 2.7])
def test_class_of_a_larger_voxel_is_that_of_brute_force(ratio):
    classes = np.random.default_rng(3).integers(0, 4, (7, 8, 6)).astype(np.uint8)
    shape = tuple(int(np.ceil(n / ratio)) for n in classes.shape)
    out = resample_classes(classes, shape, (ratio,) * 3)
    parts = 40  # points along each axis of a new voxel
    for place in np.ndindex(shape):
        axes = [np.floor((p + (np.arange(parts) + 0.5) / parts) * ratio).astype(int) for p in place]
        axes = [a[a < n] for a, n in zip(axes, classes.shape, strict=True)]
        counts = np.bincount(classes[np.ix_(*axes)].ravel(), minlength=4)
        assert counts[out[place]] > 0.97 * counts.max()


def test_class_map_on_a_finer_grid_repeats_its_voxels():
    classes = np.random.default_rng(2).integers(0, 4, (3, 4, 5)).astype(np.uint8)
    out = resample_classes(classes, (9, 12, 15), (1 / 3,) * 3)
    np.testing.assert_array_equal(out[1::3, 1::3, 1::3], classes)
    assert set(np.unique(out)) <= set(np.unique(classes))


def test_minmax_maps_the_brain_and_the_background_to_0_and_1():
    array = np.zeros((2, 1, 2, 2), np.float32)
    array[0, 0] = [[0, 5], [10, 20]]
    array[1, 0] = [[0, -10], [0, 30]]  # interpolation leaves some studies with negative voxels
    volume = Volume(array, np.eye(4))
    found = prepared_with(volume, normalisation="minmax").array
    np.testing.assert_allclose(found[0, 0], [[0, 0.25], [0.5, 1]])
    np.testing.assert_allclose(found[1, 0], [[0, 0], [0, 1]])


def test_a_grid_of_voxels_is_of_the_whole_study_not_of_its_brain():
    volume = study((24, 28, 20))
    ratio = voxel_ratio(volume, Preprocessing(grid=(12, 14, 40)))
    assert ratio == (2, 2, 0.5)
    prepared = prepared_with(volume, grid=(12, 14, 40))
    box = brain_box(volume)
    assert prepared.shape == tuple(int(np.ceil(n / r)) for n, r in zip(box.shape, ratio, strict=True))
    np.testing.assert_allclose(prepared.spacing_mm, (2, 2, 0.5))
    assert voxel_ratio(volume, Preprocessing()) is None


def labelled(volume, place):
    classes = np.zeros((1, *volume.shape), np.uint8)
    classes[(0, *place)] = 3
    return volume.with_array(classes)


def test_a_truth_centred_crop_lies_about_the_tumour_and_inside_the_grid():
    volume = study((20, 24, 28))
    settings = Preprocessing(crop="truth_centre", crop_size=(8, 10, 12))
    box = study_box(volume, settings, labelled(volume, np.s_[9:12, 10:13, 14:17]))
    assert box == Box((6, 6, 9), (14, 16, 21))
    at_the_edge = study_box(volume, settings, labelled(volume, np.s_[0:1, 0:1, 27:28]))
    assert at_the_edge == Box((-4, -5, 21), (4, 5, 33))
    cropped = volume.crop(at_the_edge)
    assert cropped.shape == (8, 10, 12)
    np.testing.assert_array_equal(cropped.array[:, 4:, 5:, :7], volume.array[:, :4, :5, 21:])
    assert np.count_nonzero(cropped.array) == np.count_nonzero(volume.array[:, :4, :5, 21:])
    nothing = study_box(volume, settings, volume.with_array(np.zeros(volume.shape, np.uint8)))
    assert nothing == Box((6, 7, 8), (14, 17, 20))


def test_a_truth_centred_crop_without_a_truth_is_refused():
    with pytest.raises(InputError, match="only look at studies with a label map"):
        study_box(study(), Preprocessing(crop="truth_centre"))


def test_matched_percentiles_are_the_references_whatever_scanner_made_the_image():
    volume = study((30, 30, 30))
    mask = brain_mask(volume)
    for image in (volume.array[0], volume.array[0] ** 2 / 100):
        out = match_histogram(image, mask, "flair")
        np.testing.assert_allclose(np.percentile(out[mask], PERCENTILES), REFERENCE_PERCENTILES["flair"], atol=0.02)
        assert (out[~mask] == 0).all()
        order = np.argsort(image[mask])
        assert (np.diff(out[mask][order]) >= 0).all()


def test_beyond_the_outermost_percentiles_the_map_goes_on():
    values = np.linspace(1, 1001, 1001).reshape(1, 1, -1).astype(np.float32)
    out = match_histogram(values, np.ones_like(values, bool), "t1")[0, 0]
    first, second = REFERENCE_PERCENTILES["t1"][:2]
    slope = (second - first) / 90  # nine percentiles are ninety values
    assert out[0] == pytest.approx(first - 10 * slope, abs=1e-3)


def test_an_image_without_a_histogram_is_left_as_it_is():
    image = np.zeros((1, 2, 2), np.float32)
    image[0, 0] = 7
    np.testing.assert_array_equal(match_histogram(image, image > 0, "t2"), image)
    assert (match_histogram(image, image > 9, "t2") == 0).all()


def test_histogram_matching_precedes_normalisation():
    volume = study((30, 30, 30))
    plain, squared = (volume.with_array(volume.array**power) for power in (1, 2))
    matched = [prepared_with(v, histogram_matching=True).array for v in (plain, squared)]
    assert np.abs(matched[0] - matched[1]).mean() < 0.02
    unmatched = [prepared_with(v).array for v in (plain, squared)]
    assert np.abs(unmatched[0] - unmatched[1]).mean() > 0.02
    inside = matched[0][0] != 0
    assert abs(matched[0][0][inside].mean()) < 1e-3


def test_slices_are_normalised_by_themselves():
    array = study().array.copy()
    array[:, 6] *= 3
    mask = (array != 0).any(0)
    out = normalise(array, mask, "slice_zscore")
    for index in range(array.shape[1]):
        np.testing.assert_array_equal(out[:, index], normalise(array[:, index], mask[index], "zscore"))
    assert abs(out[0, 6][mask[6]].mean()) < 1e-4
