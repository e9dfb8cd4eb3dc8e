import os
from dataclasses import replace

import grimp
import numpy as np
import pytest

from gliomap.classes import Convention, named_convention
from gliomap.data.cache import SUFFIX
from gliomap.data.images import volume_bytes
from gliomap.data.phantoms import GROWN_BY, phantom_studies
from gliomap.data.prepared import PREPARED_BY, prepare_studies, prepare_study
from gliomap.data.study import ImageFile, Study
from gliomap.errors import InputError
from gliomap.recipe import NetworkSpec, Preprocessing, Recipe, Training
from gliomap.volume import Volume

TRAINING = Training(patches=100, patch_size=(8, 6, 10), batch_size=2, learning_rate=1e-3, foreground_share=0.5)


@pytest.fixture(autouse=True)
def entries(tmp_path, monkeypatch):
    """A cache of the test's own; a function that lists the names of what is in it."""
    monkeypatch.setenv("GLIOMAP_CACHE", str(tmp_path / "cache"))
    return lambda: sorted(p.name for p in (tmp_path / "cache" / "studies").glob(f"*{SUFFIX}"))


def write_study(folder, classes, spacing=(1.0, 1.0, 1.0), seed=0):
    affine = np.diag([*spacing[::-1], 1.0])
    inside = np.zeros(classes.shape, bool)
    inside[3:-4, 2:-3, 4:-2] = True
    rng = np.random.default_rng(seed)
    images = {}
    folder.mkdir(exist_ok=True)
    for name in ("t1", "flair"):
        array = rng.normal(300, 30, classes.shape).astype(np.float32) * inside
        path = folder / f"{name}.nii.gz"
        path.write_bytes(volume_bytes(Volume(array[None], affine)))
        images[name] = ImageFile(path)
    label = folder / "seg.nii.gz"
    label.write_bytes(volume_bytes(Volume(classes[None], affine)))
    return Study(folder.name, images, ImageFile(label), named_convention("brats2023", "test")), inside


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
    found = prepare_study(study, recipe())
    box = (slice(3, -4), slice(2, -3), slice(4, -2))
    assert found.id == tmp_path.name
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
    found = prepare_study(study, recipe(2.0))
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
    found = prepare_study(replace(study, convention=Convention("x", ((2, 2),), "test")), recipe())
    (points,) = found.tumour
    assert 2500 <= len(points) <= 5000
    np.testing.assert_allclose(points.mean(0), np.argwhere(found.classes == 2).mean(0), atol=0.5)


@pytest.mark.parametrize(("spacing_mm", "expected"), [(None, 11), (2.0, 5)])
def test_the_middle_is_that_of_the_studys_own_grid(tmp_path, spacing_mm, expected):
    study, _ = write_study(tmp_path, labelled())
    found = prepare_study(study, recipe(spacing_mm))  # 30 slices, of which the first three are air
    assert found.middle == expected


def test_a_truth_centred_study_is_cropped_with_its_classes(tmp_path):
    classes = labelled()
    study, _ = write_study(tmp_path, classes)
    settings = Preprocessing(crop="truth_centre", crop_size=(8, 8, 8))
    found = prepare_study(study, replace(recipe(), preprocessing=settings))
    assert found.images.shape == (2, 8, 8, 8)
    middle = np.argwhere(found.classes > 0).mean(0)
    np.testing.assert_allclose(middle, 4, atol=2)


def test_studies_that_cannot_be_used_are_left_out_with_the_reason(tmp_path):
    good, _ = write_study(tmp_path / "good", labelled())
    found = prepare_studies([good, replace(good, id="x", label=None)], [replace(good, id="y", problem="broken")],
                            recipe(), quiet=True)  # fmt: skip
    assert [s.id for s in found.training] == ["good"]
    assert not found.validation
    assert "no label map" in found.failed["x"]
    assert found.failed["y"] == "broken"
    assert set(found.inputs_sha256["good"]) == {"t1", "flair", "seg"}
    with pytest.raises(InputError, match="none of the 1 training studies"):
        prepare_studies([replace(good, label=None)], [good], recipe(), quiet=True)


def same(first, second):
    arrays = [(s.images, s.classes, *s.tumour) for s in (first, second)]
    assert all(a.dtype == b.dtype for a, b in zip(*arrays, strict=True))
    equal = all(np.array_equal(a, b) for a, b in zip(*arrays, strict=True))
    return equal and (first.id, first.middle, first.warnings) == (second.id, second.middle, second.warnings)


def several(folder, count):
    return [write_study(folder / f"study_{n}", labelled(), seed=n)[0] for n in range(count)]


def test_the_second_training_reads_what_the_first_prepared_and_nothing_else(tmp_path, entries, monkeypatch):
    studies = several(tmp_path, 3)
    first = prepare_studies(studies[:2], studies[2:], recipe(), quiet=True)
    assert len(entries()) == 3
    monkeypatch.setattr(Study, "read", None)
    second = prepare_studies(studies[:2], studies[2:], recipe(), quiet=True)
    assert all(same(a, b) for a, b in zip(first.training, second.training, strict=True))
    assert second.validation == studies[2:]
    assert second.inputs_sha256 == first.inputs_sha256
    assert second.warnings == first.warnings
    assert any("hardly a brain" in text for text in second.warnings)


def test_out_of_the_cache_a_study_is_what_it_was(tmp_path, monkeypatch):
    (study,) = several(tmp_path, 1)
    (cached,) = prepare_studies([study], [], recipe(2.0), quiet=True).training
    assert not cached.images.flags.writeable
    assert not cached.images.flags.owndata
    monkeypatch.setenv("GLIOMAP_CACHE", "off")
    (kept,) = prepare_studies([study], [], recipe(2.0), quiet=True).training
    assert kept.images.flags.writeable
    assert same(cached, kept)


CHANGES = {
    "spacing": lambda r: replace(r, preprocessing=replace(r.preprocessing, spacing_mm=2.0)),
    "grid": lambda r: replace(r, preprocessing=replace(r.preprocessing, grid=(8, 8, 8))),
    "matching": lambda r: replace(r, preprocessing=replace(r.preprocessing, histogram_matching=True)),
    "normalisation": lambda r: replace(r, preprocessing=replace(r.preprocessing, normalisation="minmax")),
    "crop": lambda r: replace(r, preprocessing=replace(r.preprocessing, crop="truth_centre", crop_size=(8, 8, 8))),
    "modalities": lambda r: replace(r, modalities=("flair", "t1")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_preprocessing_never_reads_the_old_entry(change, tmp_path, entries):
    (study,) = several(tmp_path, 1)
    other = CHANGES[change](recipe())
    prepare_studies([study], [], recipe(), quiet=True)
    (found,) = prepare_studies([study], [], other, quiet=True).training
    assert len(entries()) == 2
    assert same(found, prepare_study(study, other))


def test_what_does_not_decide_the_voxels_needs_no_new_entry(tmp_path, entries):
    (study,) = several(tmp_path, 1)
    prepare_studies([study], [], recipe(), quiet=True)
    other = replace(recipe(), name="other", training=replace(TRAINING, learning_rate=1.0, patch_size=(16, 16, 16)))
    (found,) = prepare_studies([replace(study, id="renamed")], [], other, quiet=True).training
    assert found.id == "renamed"
    assert len(entries()) == 1


@pytest.mark.parametrize("name", ["t1", "flair", "seg"])
def test_a_file_that_changed_never_reads_the_old_entry(name, tmp_path, entries):
    (study,) = several(tmp_path, 1)
    prepare_studies([study], [], recipe(), quiet=True)
    path = (study.label if name == "seg" else study.images[name]).path
    content = bytearray(path.read_bytes())
    content[4] ^= 1  # the time in gzip's header, which changes no voxel
    path.write_bytes(content)
    prepare_studies([study], [], recipe(), quiet=True)
    assert len(entries()) == 2


def test_other_label_values_and_channels_never_read_the_old_entry(tmp_path, entries):
    (study,) = several(tmp_path, 1)
    swapped = replace(study, convention=Convention("swapped", ((2, 3), (3, 2)), "test"))
    plain, other = prepare_studies([study, swapped], [], recipe(), quiet=True).training
    np.testing.assert_array_equal(other.classes == 3, plain.classes == 2)
    four = tmp_path / "four.nii.gz"
    images = np.stack([study.images[m].read().array[0] for m in ("t1", "flair")])
    four.write_bytes(volume_bytes(Volume(images, study.images["t1"].read().affine)))
    channels = [{"t1": ImageFile(four, a), "flair": ImageFile(four, b)} for a, b in ((0, 1), (1, 0))]
    first, second = prepare_studies([replace(study, images=i) for i in channels], [], recipe(), quiet=True).training
    np.testing.assert_array_equal(first.images, second.images[::-1])
    assert len(entries()) == 4


def test_another_program_never_reads_the_old_entry(tmp_path, entries, monkeypatch):
    (study,) = several(tmp_path, 1)
    prepare_studies([study], [], recipe(), quiet=True)
    monkeypatch.setattr("gliomap.data.prepared.PREPARED_BY", PREPARED_BY[1:])
    prepare_studies([study], [], recipe(), quiet=True)
    monkeypatch.setattr(np, "__version__", "0.1")
    prepare_studies([study], [], recipe(), quiet=True)
    assert len(entries()) == 3


def test_the_key_covers_all_that_preparing_imports():
    graph = grimp.build_graph("gliomap")
    result_is_the_same_without = {
        "gliomap",
        "gliomap.data",
        "gliomap.data.names",
        "gliomap.errors",
        "gliomap.files",
        "gliomap.progress",
        "gliomap.recipe",  # its values are in the key
        "gliomap.workers",
    }
    needed = graph.find_upstream_modules("gliomap.data.prepared") | {"gliomap.data.prepared"}
    assert needed - result_is_the_same_without == {*PREPARED_BY, *GROWN_BY}


def test_a_damaged_entry_is_made_again(tmp_path, entries):
    (study,) = several(tmp_path, 1)
    (before,) = prepare_studies([study], [], recipe(), quiet=True).training
    path = tmp_path / "cache" / "studies" / entries()[0]
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1])
    (after,) = prepare_studies([study], [], recipe(), quiet=True).training
    assert same(before, after)
    assert path.read_bytes() == content


def test_files_that_change_while_they_are_read_are_no_study(tmp_path, entries, monkeypatch):
    good, other = several(tmp_path, 2)
    read = Study.read

    def read_and_change(study, *how):
        found = read(study, *how)
        if study.id == other.id:
            study.images["t1"].path.write_bytes(b"changed")
        return found

    monkeypatch.setattr(Study, "read", read_and_change)
    found = prepare_studies([good, other], [], recipe(), quiet=True)
    assert "changed while they were read" in found.failed[other.id]
    assert len(entries()) == 1


def test_studies_are_prepared_alike_by_any_number_of_workers_with_and_without_a_cache(tmp_path, monkeypatch):
    studies = several(tmp_path, 4)
    studies[2].images["t1"].path.write_bytes(b"no image")
    studies[3].images["flair"].path.unlink()
    bad = replace(studies[0], id="bad", label=None)
    found = []
    for workers, cache in ((0, "off"), (2, "off"), (2, str(tmp_path / "cache"))):
        monkeypatch.setenv("GLIOMAP_CACHE", cache)
        found.append(prepare_studies([*studies, bad], [studies[1]], recipe(), quiet=True, workers=workers))
    alone = found[0]
    assert [s.id for s in alone.training] == ["study_0", "study_1"]
    assert list(alone.failed) == ["study_2", "study_3", "bad"]
    assert "No such file" in alone.failed["study_3"]
    for together in found[1:]:
        assert all(same(a, b) for a, b in zip(alone.training, together.training, strict=True))
        for name in ("validation", "failed", "warnings", "inputs_sha256"):
            assert getattr(alone, name) == getattr(together, name)


class DeadlyStudy(Study):
    """A study whose reading kills the process, as the kernel does when memory is short."""

    def read(self, *_):
        os._exit(1)


def test_a_process_that_is_killed_is_an_error_that_says_what_to_do(tmp_path):
    good, _ = several(tmp_path, 2)
    deadly = DeadlyStudy("deadly", good.images, good.label)
    with pytest.raises(InputError, match="fewer --workers"):
        prepare_studies([good, deadly], [], recipe(), quiet=True, workers=2)


def test_what_does_not_fit_into_the_cache_stays_in_memory_and_says_so(tmp_path, entries, monkeypatch):
    studies = several(tmp_path, 3)
    prepare_studies(studies[:1], [], recipe(), quiet=True)
    (size,) = [(tmp_path / "cache" / "studies" / name).stat().st_size for name in entries()]
    monkeypatch.setenv("GLIOMAP_CACHE_GB", str(2.5 * size / 1e9))
    first = prepare_studies(studies, [], recipe(), quiet=True)
    assert [s.images.flags.writeable for s in first.training] == [False, False, True]
    (told,) = [text for text in first.warnings if "stay in memory" in text]
    assert told.startswith("1 prepared studies stay in memory: the cache")
    assert "GLIOMAP_CACHE_GB" in told
    kept = entries()
    assert len(kept) == 2
    prepare_studies(studies[::-1], [], recipe(), quiet=True)  # what is there is in use, and is not pushed out
    assert entries() == kept


def test_a_cache_that_cannot_be_written_is_told_once_and_done_without(tmp_path, monkeypatch):
    monkeypatch.setenv("GLIOMAP_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").write_bytes(b"")
    found = prepare_studies(several(tmp_path, 2), [], recipe(), quiet=True)
    assert len(found.training) == 2
    assert sum("cannot be written" in text for text in found.warnings) == 1
    assert not any("stay in memory" in text for text in found.warnings)


def test_an_entry_pushed_out_at_once_is_prepared_again(tmp_path, monkeypatch):
    (study,) = several(tmp_path, 1)
    monkeypatch.setattr("gliomap.data.prepared.load", lambda *_: None)
    found = prepare_studies([study], [], recipe(), quiet=True)
    assert same(found.training[0], prepare_study(study, recipe()))
    assert any("another run" in text for text in found.warnings)


def test_phantoms_train_beside_real_studies_and_are_not_grown_to_be_looked_at(tmp_path, monkeypatch):
    (study,) = several(tmp_path, 1)
    first, second, third = phantom_studies(3, 5, 24)
    monkeypatch.setattr("gliomap.data.phantoms.make_phantom", None)
    found = prepare_studies([first, study, second], [third], recipe(), quiet=True)
    assert [s.id for s in found.training] == [first.id, study.id, second.id]
    assert found.validation == [third]
    assert found.failed == {}
    assert found.inputs_sha256[third.id] == {"phantom": third.content_sha256()}


def test_a_phantom_that_was_grown_once_is_in_the_cache(entries, monkeypatch):
    def prepared(count):
        wanted = prepare_studies(phantom_studies(count, 5, 24), [], recipe(), quiet=True).training
        return [phantom.prepared() for phantom in wanted]

    (before,) = prepared(1)
    assert len(entries()) == 1
    monkeypatch.setattr("gliomap.data.phantoms.make_phantom", None)
    (after,) = prepared(1)
    assert same(before, after)
