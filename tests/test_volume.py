from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from gliomap.errors import InputError
from gliomap.volume import Box, Volume, bounding_box, grid_distance_mm, grid_relation

ORIENTATIONS = list(product(permutations(range(3)), product((1, -1), repeat=3)))
SHAPE = (4, 5, 6)  # z, y, x


def oriented_affine(order, signs, degrees=(0.0, 0.0, 0.0), sizes=(1.0, 1.5, 3.0)):
    """Voxel axis i runs along patient axis ``order[i]``, the whole turned by ``degrees``."""
    axes = np.zeros((3, 3))
    axes[list(order), range(3)] = signs
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ axes * np.array(sizes)
    affine[:3, 3] = (-71.5, 12.25, 33.0)
    return affine


def numbered(affine, shape=SHAPE, channels=2):
    return Volume(np.arange(1, channels * np.prod(shape) + 1).reshape(channels, *shape), affine)


def position_mm(affine, voxel_dhw):
    return affine @ [*voxel_dhw[::-1], 1]


@pytest.mark.parametrize("degrees", [(0, 0, 0), (12, -9, 20)])
@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_every_orientation_round_trips_through_ras(order, signs, degrees):
    volume = numbered(oriented_affine(order, signs, degrees))
    ras = volume.to_ras()
    turned = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    directions = ras.affine[:3, :3] / np.linalg.norm(ras.affine[:3, :3], axis=0)
    np.testing.assert_allclose(directions, turned, atol=1e-12)
    for value in (1, 8, 120):
        before, after = (np.argwhere(v.array[0] == value)[0] for v in (volume, ras))
        np.testing.assert_allclose(position_mm(volume.affine, before), position_mm(ras.affine, after), atol=1e-9)
    back = ras.placed_on(volume)
    np.testing.assert_array_equal(back.array, volume.array)
    np.testing.assert_array_equal(back.affine, volume.affine)


def test_ras_runs_right_anterior_superior_in_x_y_z():
    volume = numbered(oriented_affine((0, 1, 2), (-1, -1, 1)))  # the LPS order that most files have
    np.testing.assert_array_equal(volume.to_ras().array, volume.array[:, :, ::-1, ::-1])


def test_bright_voxel_keeps_its_millimetres():
    affine = oriented_affine((2, 0, 1), (1, -1, -1), (5, 10, -7))
    image = Volume(np.zeros((1, *SHAPE)), affine)
    image.array[0, 2, 3, 4] = 1
    wanted = position_mm(affine, (2, 3, 4))

    def found(volume):
        (place,) = np.argwhere(volume.array[0])
        return position_mm(volume.affine, place)

    ras = image.to_ras()
    box = bounding_box(ras.array[0] > 0, margin=1)
    assert box is not None
    crop = ras.crop(box)
    for step in (image, ras, crop, crop.placed_on(image), crop.placed_on(ras)):
        np.testing.assert_allclose(found(step), wanted, atol=1e-9)
    assert crop.placed_on(image).array[0, 2, 3, 4] == 1


@st.composite
def boxes(draw):
    start = [draw(st.integers(0, n - 1)) for n in SHAPE]
    stop = [draw(st.integers(a + 1, n)) for a, n in zip(start, SHAPE, strict=True)]
    return Box(tuple(start), tuple(stop))


@settings(max_examples=60, deadline=None)
@given(boxes(), st.sampled_from(ORIENTATIONS))
def test_crop_placed_back_is_the_image_inside_the_box_and_zero_outside(box, orientation):
    volume = numbered(oriented_affine(*orientation, (3, -8, 14)))
    expected = np.zeros_like(volume.array)
    inside = (slice(None), *box.slices)
    expected[inside] = volume.array[inside]
    crop = volume.crop(box)
    assert crop.shape == box.shape
    np.testing.assert_array_equal(crop.placed_on(volume).array, expected)
    np.testing.assert_array_equal(crop.to_ras().placed_on(volume).array, expected)


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(-9, 9)] * 3))
def test_a_grid_that_reaches_outside_the_image_is_cut_off(shift):
    image = numbered(oriented_affine((0, 1, 2), (1, 1, 1)))
    moved = image.affine.copy()
    moved[:3, 3] += image.affine[:3, :3] @ shift[::-1]
    placed = Volume(image.array, moved).placed_on(image).array
    padded = np.pad(image.array, [(0, 0)] + [(9, 9)] * 3)
    expected = padded[(slice(None), *(slice(9 - s, 9 - s + n) for s, n in zip(shift, SHAPE, strict=True)))]
    np.testing.assert_array_equal(placed, expected)


def other_grids():
    affine = oriented_affine((0, 1, 2), (1, 1, 1))
    rotated = oriented_affine((0, 1, 2), (1, 1, 1), (0, 0, 10))
    spaced = oriented_affine((0, 1, 2), (1, 1, 1), sizes=(1.0, 1.5, 2.0))
    doubled = affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    sheared = affine @ np.array([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    half = affine.copy()
    half[:3, 3] += affine[:3, :3] @ [0.5, 0, 0]
    return {"rotated": rotated, "spaced": spaced, "doubled": doubled, "sheared": sheared, "half a voxel": half}


@pytest.mark.parametrize("name", other_grids())
def test_grids_that_do_not_share_voxels_are_refused(name):
    image = numbered(oriented_affine((0, 1, 2), (1, 1, 1)))
    with pytest.raises(InputError, match="do not share their voxels"):
        numbered(other_grids()[name]).placed_on(image)


def test_grid_relation_names_axes_signs_and_offset():
    target = np.eye(4)
    source = oriented_affine((1, 0, 2), (1, -1, 1), sizes=(1, 1, 1))
    source[:3, 3] = (5, 6, 7)
    assert grid_relation(source, target) == ([1, 0, 2], [-1, 1, 1], [5, 6, 7])


def test_spacing_is_z_y_x_and_voxel_volume_in_ml():
    volume = numbered(oriented_affine((2, 0, 1), (1, -1, 1), (20, 0, 5), sizes=(1.0, 2.0, 5.0)))
    np.testing.assert_allclose(volume.spacing_mm, (5.0, 2.0, 1.0))
    assert volume.voxel_ml == pytest.approx(0.01)


def test_grid_distance_is_that_of_the_worst_corner():
    a = numbered(np.eye(4))
    shifted, turned = np.eye(4), np.eye(4)
    shifted[:3, 3] = (3, 4, 0)
    turned[0, 0] = 1.1  # the far corner in x is 5 voxels away
    assert grid_distance_mm(a, numbered(np.eye(4))) == 0
    assert grid_distance_mm(a, numbered(shifted)) == pytest.approx(5.0)
    assert grid_distance_mm(a, numbered(turned)) == pytest.approx(0.5)
    assert grid_distance_mm(a, numbered(np.eye(4), shape=(4, 5, 7))) == float("inf")


def test_bounding_box_holds_all_of_the_mask_and_its_margin_stays_in_the_grid():
    mask = np.zeros((6, 7, 8), bool)
    assert bounding_box(mask) is None
    mask[1, 2, 3] = mask[4, 2, 7] = True
    assert bounding_box(mask) == Box((1, 2, 3), (5, 3, 8))
    assert bounding_box(mask, 2) == Box((0, 0, 1), (6, 5, 8))
    assert bounding_box(mask, (0, 1, 0)) == Box((1, 1, 3), (5, 4, 8))


def test_other_channels_on_the_same_grid():
    volume = numbered(np.eye(4))
    assert volume.with_array(np.zeros(SHAPE)).array.shape == (1, *SHAPE)
    assert volume.with_array(np.zeros((3, *SHAPE))).array.shape == (3, *SHAPE)


def test_volume_without_channels_or_affine_is_refused():
    with pytest.raises(ValueError, match="a Volume is"):
        Volume(np.zeros(SHAPE), np.eye(4))
    with pytest.raises(ValueError, match="a Volume is"):
        Volume(np.zeros((1, *SHAPE)), np.eye(3))
