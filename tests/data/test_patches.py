import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gliomap.data.patches import PatchSampler, batches, cut, patch_start
from gliomap.data.phantoms import phantom_studies
from gliomap.data.prepared import LatePhantom, PreparedStudy, prepare_studies
from gliomap.data.synthetic import make_phantom
from gliomap.errors import InputError
from gliomap.recipe import NetworkSpec, Recipe, Training

TRAINING = Training(patches=100, patch_size=(8, 6, 10), batch_size=2, learning_rate=1e-3, foreground_share=0.5)
RECIPE = Recipe("r", "test", NetworkSpec("attention_resunet"), TRAINING)


def prepared(name, shape, tumour=True, seed=0):
    classes = np.zeros(shape, np.uint8)
    if tumour:
        classes[2:4, 3:5, 4:6] = 1
        classes[4, 3, 4] = 3
    images = np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float16)
    points = tuple(np.argwhere(classes == v) for v in np.unique(classes[classes != 0]))
    return PreparedStudy(name, images, classes, points, shape[0] // 2)


STUDIES = [prepared("a", (12, 14, 16)), prepared("b", (5, 20, 9), seed=1), prepared("c", (8, 6, 10), tumour=False)]
STUDY_OF_FOUR = replace(prepared("d", (9, 9, 9)), images=np.ones((4, 9, 9, 9), np.float16))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_cut_is_a_window_of_the_zero_padded_array(data):
    shape = tuple(data.draw(st.integers(1, 6)) for _ in range(3))
    start = tuple(data.draw(st.integers(-9, 9)) for _ in range(3))
    size = tuple(data.draw(st.integers(1, 7)) for _ in range(3))
    array = np.arange(1, 2 * np.prod(shape) + 1, dtype=np.float32).reshape(2, *shape)
    padded = np.pad(array, [(0, 0)] + [(20, 20)] * 3)
    expected = padded[(slice(None), *(slice(20 + a, 20 + a + n) for a, n in zip(start, size, strict=True)))]
    found, halves = np.zeros((2, 2, *size), np.float32)
    cut(array, start, found)
    np.testing.assert_array_equal(found, expected)
    cut(array.astype(np.float16), start, halves)
    np.testing.assert_array_equal(halves, expected)


def test_every_finite_number_of_16_bits_is_widened_exactly():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)].reshape(1, 8, 62, 128)
    found = np.zeros(finite.shape, np.float32)
    cut(finite, (0, 0, 0), found)
    np.testing.assert_array_equal(found.view(np.int32), finite.astype(np.float32).view(np.int32))


def one(sampler, index):
    """A sample: images, classes, id and the next number of its generator."""
    batch = sampler.batch([index])
    return batch.images[0], batch.classes[0], batch.ids[0], batch.generators[0].random()


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_sample_is_a_pure_function_of_seed_and_index():
    sampler = PatchSampler(STUDIES, TRAINING, 5)
    forwards = [one(sampler, n) for n in range(12)]
    backwards = [one(PatchSampler(STUDIES, TRAINING, 5), n) for n in reversed(range(12))][::-1]
    assert all(same(a, b) for a, b in zip(forwards, backwards, strict=True))
    others = [one(PatchSampler(STUDIES, TRAINING, 6), n) for n in range(12)]
    assert not any(same(a, b) for a, b in zip(forwards, others, strict=True))


def test_every_study_is_seen_once_per_pass_in_changing_order():
    sampler = PatchSampler(STUDIES, TRAINING, 0)
    assert sampler.ids == ["a", "b", "c"]
    passes = [sampler.batch(range(3 * turn, 3 * turn + 3)).ids for turn in range(12)]
    assert all(sorted(ids) == ["a", "b", "c"] for ids in passes)
    assert len({tuple(ids) for ids in passes}) > 1


def test_patches_always_have_the_recipes_shape():
    batch = PatchSampler(STUDIES, TRAINING, 1).batch(range(30))
    assert batch.images.shape == (30, 2, 8, 6, 10)
    assert batch.images.dtype == np.float32
    assert batch.classes.shape == (30, 8, 6, 10)
    assert batch.classes.dtype == np.uint8


def test_images_and_classes_are_cut_at_the_same_place():
    study = prepared("a", (12, 14, 16))
    alike = replace(study, images=np.stack([study.classes] * 2).astype(np.float16))
    batch = PatchSampler([alike], TRAINING, 1).batch(range(20))
    np.testing.assert_array_equal(batch.images[:, 0], batch.classes)
    assert batch.classes.any()


def test_a_batch_is_its_samples_in_their_order_wherever_they_lie():
    sampler = PatchSampler(STUDIES, TRAINING, 1)
    batch = sampler.batch([7, 2, 11])
    for place, index in enumerate((7, 2, 11)):
        whole = batch.images[place], batch.classes[place], batch.ids[place], batch.generators[place].random()
        assert same(whole, one(sampler, index))


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_the_same_in_the_same_order_for_any_number_of_workers(workers):
    sampler = PatchSampler(STUDIES, TRAINING, 2)
    samples = [range(n, n + 2) for n in range(0, 40, 2)]
    for found, expected in zip(batches(sampler, samples, workers), map(sampler.batch, samples), strict=True):
        assert same((found.images, found.classes, found.ids), (expected.images, expected.classes, expected.ids))
        assert [g.random() for g in found.generators] == [g.random() for g in expected.generators]


@pytest.mark.parametrize(("workers", "ahead"), [(0, 0), (1, 1), (3, 5)])
def test_a_bounded_number_of_batches_is_cut_ahead(workers, ahead):
    taken = []

    def samples():
        for n in range(100):
            taken.append(n)
            yield [n]

    coming = batches(PatchSampler(STUDIES, TRAINING, 2), samples(), workers)
    for used in range(1, 6):
        next(coming)
        assert len(taken) == used + ahead
    coming.close()
    assert len(taken) == 5 + ahead


def test_closing_batches_ends_their_threads():
    before = threading.active_count()
    coming = batches(PatchSampler(STUDIES, TRAINING, 2), ([n] for n in range(100)), 3)
    next(coming)
    assert threading.active_count() > before
    coming.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_what_goes_wrong_while_a_batch_is_cut_is_raised_where_it_is_used(workers):
    broken = replace(STUDIES[0], images=STUDIES[0].images[:1])
    sampler = PatchSampler([*STUDIES[1:], broken], TRAINING, 2)
    coming = batches(sampler, ([0, 1, 2] for _ in range(9)), workers)
    with pytest.raises(IndexError):
        next(coming)


def late_phantoms(count, size=24):
    return prepare_studies(phantom_studies(count, 7, size), [], RECIPE, quiet=True).training


def test_phantoms_are_grown_when_they_are_used_and_alike_for_any_number_of_workers(tmp_path, monkeypatch):
    found = []
    for workers, cache in ((0, "off"), (1, str(tmp_path))):
        monkeypatch.setenv("GLIOMAP_CACHE", cache)
        if workers:
            monkeypatch.setattr("gliomap.data.phantoms.make_phantom", None)  # in this process
        phantoms = late_phantoms(3)
        sampler = PatchSampler([*phantoms, STUDY_OF_FOUR], TRAINING, 3)
        assert len(sampler.ids) == 4
        assert not any(p.grown for p in phantoms)
        coming = batches(sampler, ([n, n + 1] for n in range(0, 99, 2)), workers)
        found.append([next(coming) for _ in range(2)])
        coming.close()
        assert all(p.grown for p in phantoms)
    for first, second in zip(*found, strict=True):
        assert same((first.images, first.classes, first.ids), (second.images, second.classes, second.ids))


def test_no_more_phantoms_are_grown_than_are_needed_soon(monkeypatch):
    monkeypatch.setattr("gliomap.data.patches.preparing_pool", lambda _: nullcontext())
    phantoms = late_phantoms(12)
    coming = batches(PatchSampler(phantoms, TRAINING, 3), ([n] for n in range(99)), 1)
    next(coming)
    coming.close()
    assert sum(p.grown for p in phantoms) <= 2


def test_a_phantom_is_grown_once_whichever_thread_comes_first(monkeypatch):
    made = []

    def slowly(seed, **how):
        made.append(seed)
        time.sleep(0.2)
        return make_phantom(seed, **how)

    monkeypatch.setattr("gliomap.data.phantoms.make_phantom", slowly)
    monkeypatch.setenv("GLIOMAP_CACHE", "off")
    (phantom,) = prepare_studies(phantom_studies(1, 8, 26), [], RECIPE, quiet=True).training
    with ThreadPoolExecutor(4) as threads:
        found = [thread.result() for thread in [threads.submit(phantom.prepared) for _ in range(4)]]
    assert len(made) == 1
    assert all(study is found[0] for study in found)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_phantom_that_cannot_be_grown_is_named(workers):
    (phantom,) = late_phantoms(1, size=4)
    assert isinstance(phantom, LatePhantom)
    with pytest.raises(InputError, match=f"{phantom.id} cannot be grown: a phantom of size 4"):
        next(batches(PatchSampler([phantom], TRAINING, 3), [[0]], workers))


def window(classes, start, size):
    out = np.zeros((1, *size), np.uint8)
    cut(classes[None], start, out)
    return out


def starts(study, training, count=400):
    return np.array([patch_start(study, training, np.random.default_rng([9, n])) for n in range(count)])


def test_foreground_share_of_the_patches_hold_the_voxel_they_are_centred_on():
    study = prepared("a", (40, 40, 40))
    small = replace(TRAINING, patch_size=(4, 4, 4))

    def share_with_tumour(foreground_share):
        places = starts(study, replace(small, foreground_share=foreground_share))
        return np.mean([window(study.classes, p, (4, 4, 4)).any() for p in places])

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
        patch = window(small.classes + 1, start, TRAINING.patch_size)
        assert np.count_nonzero(patch) == small.classes.size


def test_positions_without_foreground_cover_the_whole_study():
    study = prepared("a", (12, 14, 16), tumour=False)
    places = starts(study, replace(TRAINING, foreground_share=1.0), 1000)
    assert places.min(0).tolist() == [0, 0, 0]
    assert places.max(0).tolist() == [4, 8, 6]


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
