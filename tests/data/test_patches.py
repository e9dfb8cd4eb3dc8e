from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gliomap.classes import Convention, named_convention
from gliomap.data.images import volume_bytes
from gliomap.data.patches import PatchSampler, PreparedStudy, cut, patch_start, prepare_studies, prepare_study
from gliomap.data.study import ImageFile, Study
from gliomap.errors import InputError
from gliomap.recipe import NetworkSpec, Preprocessing, Recipe, Training
from gliomap.volume import Volume

TRAINING = Training(patches=100, patch_size=(8, 6, 10), batch_size=2, learning_rate=1e-3, foreground_share=0.5)


def prepared(name, shape, tumour=True, seed=0):
    classes = np.zeros(shape, np.uint8)
    if tumour:
        classes[2:4, 3:5, 4:6] = 1
        classes[4, 3, 4] = 3
    images = np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float16)
    points = tuple(np.argwhere(classes == v) for v in np.unique(classes[classes != 0]))
    return PreparedStudy(name, images, classes, points, shape[0] // 2)


STUDIES = [prepared("a", (12, 14, 16)), prepared("b", (5, 20, 9), seed=1), prepared("c", (8, 6, 10), tumour=False)]


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_cut_is_a_window_of_the_zero_padded_array(data):
    shape = tuple(data.draw(st.integers(1, 6)) for _ in range(3))
    start = tuple(data.draw(st.integers(-9, 9)) for _ in range(3))
    size = tuple(data.draw(st.integers(1, 7)) for _ in range(3))
    array = np.arange(1, 2 * np.prod(shape) + 1, dtype=np.float32).reshape(2, *shape)
    padded = np.pad(array, [(0, 0)] + [(20, 20)] * 3)
    expected = padded[(slice(None), *(slice(20 + a, 20 + a + n) for a, n in zip(start, size, strict=True)))]
    found = cut(array, start, size)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, expected)


def test_sample_is_a_pure_function_of_seed_and_index():
    sampler = PatchSampler(STUDIES, TRAINING, 5)
    forwards = [sampler.sample(n) for n in range(12)]
    backwards = [PatchSampler(STUDIES, TRAINING, 5).sample(n) for n in reversed(range(12))][::-1]
    for first, second in zip(forwards, backwards, strict=True):
        np.testing.assert_array_equal(first[0], second[0])
        np.testing.assert_array_equal(first[1], second[1])
        assert first[2] == second[2]
        assert first[3].random() == second[3].random()
    others = [PatchSampler(STUDIES, TRAINING, 6).sample(n) for n in range(12)]
    assert any(a[2] != b[2] or not np.array_equal(a[0], b[0]) for a, b in zip(forwards, others, strict=True))


def test_every_study_is_seen_once_per_pass_in_changing_order():
    sampler = PatchSampler(STUDIES, TRAINING, 0)
    passes = [[sampler.sample(3 * turn + n)[2] for n in range(3)] for turn in range(12)]
    assert all(sorted(ids) == ["a", "b", "c"] for ids in passes)
    assert len({tuple(ids) for ids in passes}) > 1


def test_patches_always_have_the_recipes_shape_and_hold_the_studys_voxels():
    sampler = PatchSampler(STUDIES, TRAINING, 1)
    for index in range(30):
        images, classes, _, _ = sampler.sample(index)
        assert images.shape == (2, 8, 6, 10)
        assert images.dtype == np.float32
        assert classes.shape == (8, 6, 10)
        assert classes.dtype == np.uint8


def test_images_and_classes_are_cut_at_the_same_place():
    study = prepared("a", (12, 14, 16))
    same = replace(study, images=np.stack([study.classes] * 2).astype(np.float16))
    sampler = PatchSampler([same], TRAINING, 1)
    for index in range(20):
        images, classes, _, _ = sampler.sample(index)
        np.testing.assert_array_equal(images[0], classes)


def test_batch_is_its_samples_stacked():
    sampler = PatchSampler(STUDIES, TRAINING, 1)
    images, classes, ids, generators = sampler.batch(4, 3)
    assert images.shape == (3, 2, 8, 6, 10)
    for n in range(3):
        one = sampler.sample(4 + n)
        np.testing.assert_array_equal(images[n], one[0])
        np.testing.assert_array_equal(classes[n], one[1])
        assert ids[n] == one[2]
        assert generators[n].random() == one[3].random()


def starts(study, training, count=400):
    return np.array([patch_start(study, training, np.random.default_rng([9, n])) for n in range(count)])


def test_foreground_share_of_the_patches_hold_the_voxel_they_are_centred_on():
    study = prepared("a", (40, 40, 40))
    small = replace(TRAINING, patch_size=(4, 4, 4))

    def share_with_tumour(foreground_share):
        places = starts(study, replace(small, foreground_share=foreground_share))
        return np.mean([cut(study.classes[None], p, (4, 4, 4)).any() for p in places])

    by_chance = share_with_tumour(0.0)
    assert by_chance < 0.05
    centred = starts(study, replace(small, foreground_share=1.0)) + 2
    assert (study.classes[tuple(centred.T)] > 0).all()
    assert share_with_tumour(1.0) == 1
    assert share_with_tumour(0.7) == pytest.approx(0.7 + 0.3 * by_chance, abs=0.06)


def test_the_class_is_chosen_before_the_voxel():
    study = prepared("a", (40, 40, 40))
    alone = replace(TRAINING, patch_size=(1, 1, 1), foreground_share=1.0)
    found = Counter(int(study.classes[tuple(p)]) for p in starts(study, alone))
    assert found[1] + found[3] == 400
    assert found[3] / 400 == pytest.approx(0.5, abs=0.08)  # one voxel of nine


def test_patches_stay_inside_larger_studies_and_hold_all_of_smaller_ones():
    study = prepared("b", (5, 20, 9))
    for start in starts(study, TRAINING):
        for first, size, n in zip(start, TRAINING.patch_size, study.classes.shape, strict=True):
            assert min(n - size, 0) <= first <= max(n - size, 0)
    small = prepared("d", (6, 6, 7))
    for start in starts(small, TRAINING, 20):
        patch = cut(small.classes[None] + 1, start, TRAINING.patch_size)
        assert np.count_nonzero(patch) == small.classes.size


def test_positions_without_foreground_cover_the_whole_study():
    study = prepared("a", (12, 14, 16), tumour=False)
    places = starts(study, replace(TRAINING, foreground_share=1.0), 1000)
    assert places.min(0).tolist() == [0, 0, 0]
    assert places.max(0).tolist() == [4, 8, 6]


def write_study(folder, classes, spacing=(1.0, 1.0, 1.0)):
    affine = np.diag([*spacing[::-1], 1.0])
    inside = np.zeros(classes.shape, bool)
    inside[3:-4, 2:-3, 4:-2] = True
    rng = np.random.default_rng(0)
    images = {}
    folder.mkdir(exist_ok=True)
    for name in ("t1", "flair"):
        array = rng.normal(300, 30, classes.shape).astype(np.float32) * inside
        path = folder / f"{name}.nii.gz"
        path.write_bytes(volume_bytes(Volume(array[None], affine)))
        images[name] = ImageFile(path)
    label = folder / "seg.nii.gz"
    label.write_bytes(volume_bytes(Volume(classes[None], affine)))
    return Study("s", images, ImageFile(label), named_convention("brats2023", "test")), inside


def recipe(spacing_mm=None):
    return Recipe(
        "r",
        "test",
        NetworkSpec("attention_resunet"),
        TRAINING,
        ("t1", "flair"),
        preprocessing=Preprocessing(spacing_mm=spacing_mm),
    )


def labelled(shape=(30, 34, 32)):
    classes = np.zeros(shape, np.uint8)
    classes[6:22, 6:26, 8:28] = 2
    classes[9:18, 10:20, 12:23] = 3
    return classes


def test_prepared_study_is_the_brains_box_with_its_classes(tmp_path):
    classes = labelled()
    classes[18:] = 0
    study, inside = write_study(tmp_path, classes)
    found, _ = prepare_study(study, recipe())
    box = (slice(3, -4), slice(2, -3), slice(4, -2))
    assert found.id == "s"
    assert found.images.dtype == np.float16
    assert found.images.shape == (2, *inside[box].shape)
    np.testing.assert_array_equal(found.classes, classes[box])
    assert [len(points) for points in found.tumour] == [(classes == 2).sum(), (classes == 3).sum()]
    for points, value in zip(found.tumour, (2, 3), strict=True):
        assert (found.classes[tuple(points.T)] == value).all()
    assert abs(float(found.images.astype(np.float32).mean())) < 1e-3


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.96, 1.96, 1.96), (2.5, 1.0, 1.2)])
def test_classes_are_resampled_with_the_images(tmp_path, spacing):
    classes = labelled()
    study, _ = write_study(tmp_path, classes, spacing)
    found, _ = prepare_study(study, recipe(2.0))
    assert found.classes.shape == found.images.shape[1:]
    voxel = np.prod(spacing)
    for value in (2, 3):
        assert (found.classes == value).sum() * 8 == pytest.approx((classes == value).sum() * voxel, rel=0.25)
    middle = (np.argwhere(found.classes == 3).mean(0) + 0.5) * 2
    wanted = (np.argwhere(classes == 3).mean(0) + 0.5 - (3, 2, 4)) * spacing
    np.testing.assert_allclose(middle, wanted, atol=0.8)  # ties on a voxel's edge


def test_tumour_points_are_limited_and_spread(tmp_path):
    classes = np.zeros((30, 34, 32), np.uint8)
    classes[4:24, 4:28, 6:28] = 2
    study, _ = write_study(tmp_path, classes)
    found, _ = prepare_study(replace(study, convention=Convention("x", ((2, 2),), "test")), recipe())
    (points,) = found.tumour
    assert 2500 <= len(points) <= 5000
    np.testing.assert_allclose(points.mean(0), np.argwhere(found.classes == 2).mean(0), atol=0.5)


def test_patches_lie_where_the_recipe_says_along_the_axial_direction():
    study = prepared("a", (40, 40, 40))
    slices = replace(TRAINING, patch_size=(1, 8, 8), foreground_share=0.0)
    assert len({int(z) for z, _, _ in starts(study, slices)}) > 20
    middle = starts(replace(study, middle=17), replace(slices, patch_place="middle"))
    assert set(middle[:, 0]) == {17}
    assert len(set(middle[:, 1])) > 10
    largest = starts(study, replace(slices, patch_place="largest_tumour"))
    assert set(largest[:, 0]) == {2}
    thick = starts(replace(study, middle=17), replace(slices, patch_size=(5, 8, 8), patch_place="middle"))
    assert set(thick[:, 0]) == {15}


@pytest.mark.parametrize(("spacing_mm", "expected"), [(None, 11), (2.0, 5)])
def test_the_middle_is_that_of_the_studys_own_grid(tmp_path, spacing_mm, expected):
    study, _ = write_study(tmp_path, labelled())
    found, _ = prepare_study(study, recipe(spacing_mm))  # 30 slices, of which the first three are air
    assert found.middle == expected


def test_a_truth_centred_study_is_cropped_with_its_classes(tmp_path):
    classes = labelled()
    study, _ = write_study(tmp_path, classes)
    settings = Preprocessing(crop="truth_centre", crop_size=(8, 8, 8))
    found, _ = prepare_study(study, replace(recipe(), preprocessing=settings))
    assert found.images.shape == (2, 8, 8, 8)
    middle = np.argwhere(found.classes > 0).mean(0)
    np.testing.assert_allclose(middle, 4, atol=2)


def test_studies_that_cannot_be_used_are_left_out_with_the_reason(tmp_path):
    good, _ = write_study(tmp_path / "good", labelled())
    found = prepare_studies([good, replace(good, id="x", label=None)], [replace(good, id="y", problem="broken")],
                            recipe(), quiet=True)  # fmt: skip
    assert [s.id for s in found.training] == ["s"]
    assert not found.validation
    assert "no label map" in found.failed["x"]
    assert found.failed["y"] == "broken"
    assert set(found.inputs_sha256["s"]) == {"t1", "flair", "seg"}
    with pytest.raises(InputError, match="none of the 1 training studies"):
        prepare_studies([replace(good, label=None)], [good], recipe(), quiet=True)
