import json
from pathlib import Path

import numpy as np
import pytest
from studies import brain_images, loose_study, msd_dataset, nested_tumour, save, small_affine, write_study

from gliomap.classes import RC, named_convention
from gliomap.data.examinations import find_examinations, read_examination
from gliomap.errors import InputError
from gliomap.files import sha256

AUDIT = named_convention("audit", "--labels")


def segmented(folder, source, *, regions=("ET", "TC", "WT"), name="run.json", study="case"):
    """What `gliomap segment` leaves of a study of loose files: a label map in the values of BraTS 2023, and a record."""
    label = save(folder / "segmentation.nii.gz", nested_tumour())
    inputs = {m: {"path": str(file.path), "sha256": sha256(file.path)} for m, file in source.images.items()}
    labels = {"1": "NCR", "2": "ED", "3": "ET"}
    row = {"study": study, "status": "done", "segmentation": label.name, "labels": labels, "inputs": inputs}
    content = {"verb": "segment", "model": {"regions": list(regions)}, "studies": [row]}
    (folder / name).write_text(json.dumps(content))
    return folder


def test_output_of_segment_is_shown_on_the_images_that_it_was_made_of(tmp_path: Path) -> None:
    out = segmented(tmp_path / "out", loose_study(tmp_path / "in"))
    for path in (out, out / "segmentation.nii.gz", tmp_path / "out"):
        (one,) = find_examinations(path, AUDIT)  # the record knows better than --labels
        seen = read_examination(one)
        np.testing.assert_array_equal(seen.classes.array[0], nested_tumour())
        np.testing.assert_array_equal(seen.images.array, brain_images())
        assert seen.modalities == ("t1", "t1c", "t2", "flair")
        assert seen.parts == ("ET", "TC", "WT", "NCR", "ED")
        assert seen.warnings == ()
    assert read_examination(one, ("flair",)).images.array.shape[0] == 1


def test_images_that_changed_or_are_gone_are_left_out_and_told(tmp_path: Path) -> None:
    source = loose_study(tmp_path / "in")
    out = segmented(tmp_path / "out", source)
    save(source.images["t1"].path, brain_images(1)[0])
    source.images["t2"].path.unlink()
    seen = read_examination(find_examinations(out)[0])
    assert seen.modalities == ("t1c", "flair")
    np.testing.assert_array_equal(seen.images.array, brain_images()[[1, 3]])
    assert [text.split(":")[0] for text in seen.warnings] == ["t1 is not shown", "t2 is not shown"]
    assert "has changed" in seen.warnings[0]
    assert "no longer there" in seen.warnings[1]


def test_images_that_cannot_be_used_leave_the_label_map(tmp_path: Path) -> None:
    images = brain_images()
    images[2] = images[0]
    folder = tmp_path / "case"
    loose_study(folder, images, nested_tumour() * np.uint8(1))
    seen = read_examination(find_examinations(folder, named_convention("brats2023", "--labels"))[0])
    assert seen.images is None
    assert seen.classes.array.any()
    assert "shown without images: t1 and t2 are the same image" in seen.warnings[0]
    (folder / "seg.nii").unlink()
    with pytest.raises(InputError, match="same image"):
        read_examination(find_examinations(folder)[0])


def test_record_of_a_study_of_a_folder_and_a_folder_of_them(tmp_path: Path) -> None:
    source = loose_study(tmp_path / "in")
    for name in ("a", "b"):
        segmented(tmp_path / "out" / name, source, name="record.json", study=name)
    assert [len(one.digests) for one in find_examinations(tmp_path / "out" / "a")] == [4]
    found = find_examinations(tmp_path / "out", AUDIT)
    assert [(one.study.id, len(one.study.images)) for one in found] == [("a", 4), ("b", 4)]
    assert read_examination(found[0]).parts == ("ET", "TC", "WT", "NCR", "ED")


def test_regions_that_are_not_told_are_not_claimed(tmp_path: Path) -> None:
    out = segmented(tmp_path / "out", loose_study(tmp_path / "in"), regions=("WT",))
    assert read_examination(find_examinations(out)[0]).parts == ("WT",)
    label = save(tmp_path / "seg.nii.gz", np.where(nested_tumour(), RC, 0), dtype=np.uint8)
    for name, parts in (("brats2024", ("ET", "TC", "WT", "NCR", "ED", "RC")), ("audit", None)):
        one = find_examinations(label, named_convention(name, ""))[0]
        if parts is None:
            with pytest.raises(InputError, match="outside the convention audit"):
                read_examination(one)
        else:
            assert read_examination(one).parts == parts


def test_label_map_by_itself_is_read_as_its_name_its_dataset_or_the_option_says(tmp_path: Path) -> None:
    labels = nested_tumour()  # 1, 2 and 3, which mean three things
    ambiguous = save(tmp_path / "week-3.nii.gz", labels)
    with pytest.raises(InputError, match="--labels"):
        read_examination(find_examinations(ambiguous)[0])
    seen = read_examination(find_examinations(ambiguous, AUDIT)[0])
    assert seen.images is None
    np.testing.assert_array_equal(seen.classes.array[0], np.array([0, 3, 1, 2])[labels])
    named = save(tmp_path / "BraTS-GLI-00001-000-seg.nii.gz", labels)
    np.testing.assert_array_equal(read_examination(find_examinations(named)[0]).classes.array[0], labels)
    (tmp_path / "predicted").mkdir()
    (tmp_path / "predicted" / "dataset.json").write_text(
        json.dumps(
            {"channel_names": {"0": "T1"}, "labels": {"background": 0, "edema": 1, "necrosis": 2, "enhancing": 3}}
        )
    )
    beside = save(tmp_path / "predicted" / "case.nii.gz", labels)
    expected = np.array([0, 2, 1, 3])[labels]
    np.testing.assert_array_equal(read_examination(find_examinations(beside)[0]).classes.array[0], expected)


def test_studies_of_datasets_are_found_with_their_images(tmp_path: Path) -> None:
    images, classes = write_study(tmp_path / "brats", "brats2021", "BraTS2021_00001")
    seen = read_examination(find_examinations(tmp_path / "brats")[0])
    np.testing.assert_array_equal(seen.classes.array, classes.array)
    np.testing.assert_array_equal(seen.images.array, images.array)
    msd_dataset(tmp_path / "msd")
    assert find_examinations(tmp_path / "msd")[0].study.convention.name == "msd"


def test_another_grid_and_what_is_no_study_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "case"
    loose_study(folder, labels=nested_tumour(), label_affine=small_affine(5.0))
    with pytest.raises(InputError, match="different grids"):
        read_examination(find_examinations(folder, named_convention("brats2023", ""))[0])
    (tmp_path / "notes.txt").touch()
    for name, words in (("notes.txt", "no image"), ("nothing.nii.gz", "does not exist")):
        with pytest.raises(InputError, match=words):
            find_examinations(tmp_path / name)
