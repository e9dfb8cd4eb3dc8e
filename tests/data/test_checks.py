from pathlib import Path

import numpy as np
import pytest
from studies import SHAPE, brain_images, brain_mask, nested_tumour, small_affine

from gliomap.classes import ED, ET, NCR, named_convention
from gliomap.data.checks import (
    anatomical_hint,
    check_images,
    check_whole_numbers,
    contact_with_brain,
    implausible_convention,
    skull_measure_ml,
)
from gliomap.data.study import MODALITIES
from gliomap.errors import InputError
from gliomap.volume import Volume


def volume(array=None):
    return Volume((brain_images() if array is None else array).astype(np.float32), small_affine())


def refusal(array, **options):
    with pytest.raises(InputError) as raised:
        check_images(volume(array), MODALITIES, **options)
    assert raised.value.exit_code == 3
    return str(raised.value)


def with_modality(index, image):
    images = brain_images().astype(np.float32)
    images[index] = image
    return images


def test_four_different_images_of_a_brain_pass():
    assert check_images(volume(), MODALITIES) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_voxel_that_is_not_finite_is_refused(value):
    images = brain_images().astype(np.float32)
    images[2, 12, 16, 16] = value
    assert "t2 has 1 voxels that are NaN or infinite" in refusal(images)


def test_all_zero_modality_is_refused():
    assert "flair is all zero" in refusal(with_modality(3, 0))


def test_constant_modality_is_refused():
    assert "t1c is constant (7.5)" in refusal(with_modality(1, 7.5))


@pytest.mark.parametrize("rescaled", [lambda x: x, lambda x: 3.5 * x, lambda x: 0.001 * x, lambda x: x / 2 + 20])
def test_same_image_as_two_modalities_is_refused(rescaled):
    images = brain_images().astype(np.float32)
    images[3] = rescaled(images[0]) * brain_mask()
    assert "t1 and flair are the same image" in refusal(images)


def test_same_image_rounded_to_seven_bits_is_refused():
    images = brain_images().astype(np.float32)
    images[2] = np.round(images[1] / images[1].max() * 127)
    assert "t1c and t2 are the same image" in refusal(images)


def test_same_image_is_found_in_a_brain_of_few_voxels():
    images = brain_images().astype(np.float32)
    images[:, :, ::2] = 0
    images[3] = 2 * images[0]
    assert "the same image" in refusal(images)


@pytest.mark.parametrize("strength", [0.05, 0.5])
def test_similar_but_different_images_pass(strength):
    rng = np.random.default_rng(1)
    images = brain_images().astype(np.float32)
    images[1] = images[0] + strength * images[0].max() * rng.random(SHAPE) * brain_mask()
    assert check_images(volume(images), MODALITIES) == []


def test_head_with_its_skull_is_refused_with_its_volume():
    images = np.random.default_rng(0).integers(1, 400, (4, *SHAPE))
    message = refusal(images)
    assert "the skull looks still on: 5308 ml are not background" in message
    assert "0% of the grid is background" in message
    assert "HD-BET" in message


def test_head_with_its_skull_is_continued_with_a_warning():
    images = np.random.default_rng(0).integers(1, 400, (4, *SHAPE))
    warnings = check_images(volume(images), MODALITIES, skull_on_anyway=True)
    assert len(warnings) == 1
    assert "5308 ml" in warnings[0]
    assert "continued because of --skull-on-anyway" in warnings[0]


def test_skull_in_one_modality_is_enough():
    skull = np.random.default_rng(9).integers(1, 400, SHAPE)
    assert "the skull looks still on" in refusal(with_modality(2, skull))
    assert skull_measure_ml(volume(with_modality(2, skull))) == pytest.approx(np.prod(SHAPE) * 0.216)


def test_permission_to_keep_the_skull_warns_of_nothing_on_a_brain():
    assert check_images(volume(), MODALITIES, skull_on_anyway=True) == []


def test_hardly_any_brain_is_warned_about():
    images = brain_images()
    images[:, 3:] = 0
    warnings = check_images(volume(images), MODALITIES)
    assert any("hardly a brain" in w for w in warnings)


def test_modality_that_covers_a_part_of_the_brain_is_warned_about():
    images = brain_images()
    images[3, :, :16] = 0
    warnings = check_images(volume(images), MODALITIES)
    assert warnings == ["flair has signal in only 50% of the voxels where another modality has it"]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_whole_numbers_from_0_to_255_pass(dtype):
    check_whole_numbers(np.array([0, 1, 4, 255], dtype), Path("seg.nii.gz"))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0.5], "not whole numbers"),
        ([0, np.nan], "not whole numbers"),
        ([0, np.inf], "not whole numbers"),
        ([-1, 2], "values from -1 to 2; expected labels from 0 to 255"),
        ([0, 256], "values from 0 to 256"),
    ],
)
def test_other_values_are_refused(values, expected):
    with pytest.raises(InputError, match=expected):
        check_whole_numbers(np.array(values), Path("seg.nii.gz"))


def test_contact_is_the_share_of_outer_faces_against_unlabelled_brain():
    labels = np.zeros((3, 3, 4), int)
    labels[1, 1, 1], labels[1, 1, 2] = 5, 7
    brain = np.ones(labels.shape, bool)
    brain[0] = False
    assert contact_with_brain(labels, brain) == {5: 4 / 6, 7: 4 / 6}
    brain[1, 1, 3] = False
    assert contact_with_brain(labels, brain) == {5: 4 / 6, 7: 3 / 6}


def test_label_that_fills_the_grid_touches_nothing():
    assert contact_with_brain(np.full((2, 2, 2), 3), np.ones((2, 2, 2), bool)) == {3: 0.0}


def test_hint_names_oedema_and_necrosis():
    values = np.array([0, 9, 5, 7], np.uint8)[nested_tumour()]
    hint = anatomical_hint(values, brain_mask())
    assert "5 looks like oedema, 9 like necrosis" in hint


@pytest.mark.parametrize("labels", [np.zeros((4, 4, 4), int), np.pad(np.ones((2, 2, 2), int), 1)])
def test_hint_says_nothing_of_fewer_than_two_labels(labels):
    assert anatomical_hint(labels, np.ones(labels.shape, bool)) == ""


def test_plausible_convention_is_not_warned_about():
    assert implausible_convention(nested_tumour(), brain_mask(), named_convention("brats2023", "a test")) == []


@pytest.mark.parametrize("wrong", [(0, ED, NCR, ET), (0, NCR, ET, ED)])
def test_convention_whose_oedema_is_inside_is_warned_about(wrong):
    classes = np.array(wrong, np.uint8)[nested_tumour()]
    (warning,) = implausible_convention(classes, brain_mask(), named_convention("brats2023", "dataset.json"))
    assert "brats2023 (1 NCR, 2 ED, 3 ET), taken from dataset.json, looks implausible" in warning
    assert "--labels" in warning


@pytest.mark.parametrize("classes", [np.zeros(SHAPE, np.uint8), nested_tumour() * (nested_tumour() == NCR)])
def test_tumour_without_oedema_contradicts_nothing(classes):
    assert implausible_convention(classes, brain_mask(), named_convention("brats2023", "a test")) == []
