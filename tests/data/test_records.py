import json
from pathlib import Path

import numpy as np
import pytest
from studies import MSD_JSON, brain_images, msd_dataset, nested_tumour, save, touch, write_study

from gliomap.classes import ED, ET, NCR, RC, named_convention
from gliomap.data.datasets import find_studies
from gliomap.data.records import convention_from_json
from gliomap.data.writing import dataset_json
from gliomap.errors import InputError
from gliomap.files import json_bytes, write_files


def refusal(path, **options):
    (found,) = find_studies(path, **options)
    with pytest.raises(InputError) as raised:
        found.read()
    assert raised.value.exit_code == 3
    return str(raised.value)


def test_decathlon_study_is_one_4d_file_whose_channels_the_json_names(tmp_path):
    images, classes = msd_dataset(tmp_path)
    (found,) = find_studies(tmp_path)
    assert (found.id, found.layout, found.convention.name) == ("BRATS_001", "msd", "msd")
    assert found.convention.evidence == "dataset.json"
    assert {m: f.channel for m, f in found.images.items()} == {"t1": 1, "t1c": 2, "t2": 3, "flair": 0}
    np.testing.assert_array_equal(found.read()[0].array, images.array)
    np.testing.assert_array_equal(found.read_classes()[0].array, classes.array)


def test_decathlon_images_alone_are_found(tmp_path):
    msd_dataset(tmp_path)
    (found,) = find_studies(tmp_path / "imagesTr")
    assert found.layout == "msd"
    assert found.label is None


def test_decathlon_channels_in_another_order_are_obeyed(tmp_path):
    images, _ = msd_dataset(tmp_path, MSD_JSON | {"modality": {"0": "T2w", "1": "t1gd", "2": "T1w", "3": "FLAIR"}})
    swapped = find_studies(tmp_path)[0].read(("t2", "t1c", "t1", "flair"))[0]
    np.testing.assert_array_equal(swapped.array, images.array[[3, 0, 1, 2]])


NNUNET_LABELS = {
    "flat": {"background": 0, "necrosis and non-enhancing core": 1, "oedema": 2, "enhancing tumour": 3},
    "nested": {"background": 0, "whole_tumor": [1, 2, 3], "tumor_core": [1, 3], "enhancing_tumor": [3]},
    "nested, one value bare": {"background": 0, "whole_tumor": [1, 2, 3], "tumor_core": [1, 3], "enhancing_tumor": 3},
    "value to name": {"0": "background", "1": "NCR", "2": "ED", "3": "ET"},
}


@pytest.mark.parametrize("labels", NNUNET_LABELS.values(), ids=NNUNET_LABELS)
@pytest.mark.parametrize("key", ["channel_names", "modality"])
def test_nnunet_study_is_numbered_files_whose_channels_the_json_names(tmp_path, labels, key):
    images, classes = write_study(tmp_path, "nnunet", "case_7")
    content = {key: {"0": "T1", "1": "T1c", "2": "T2", "3": "FLAIR"}, "labels": labels}
    (tmp_path / "dataset.json").write_bytes(json_bytes(content))
    (found,) = find_studies(tmp_path)
    assert (found.id, found.layout, found.convention.name) == ("case_7", "nnunet", "brats2023")
    np.testing.assert_array_equal(found.read()[0].array, images.array)
    np.testing.assert_array_equal(found.read_classes()[0].array, classes.array)


def test_nested_regions_with_other_values_are_read_as_the_json_says():
    labels = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]}
    assert dict(convention_from_json(labels, Path("dataset.json")).values) == {1: ED, 2: NCR, 3: ET}


def test_predictions_of_nnunet_are_label_maps_in_the_convention_of_their_json(tmp_path):
    save(tmp_path / "case_7.nii.gz", nested_tumour())
    content = {"channel_names": {"0": "T1", "1": "T1c", "2": "T2", "3": "FLAIR"}, "labels": NNUNET_LABELS["nested"]}
    (tmp_path / "dataset.json").write_bytes(json_bytes(content))
    (found,) = find_studies(tmp_path)
    assert (found.id, found.images) == ("case_7", {})
    np.testing.assert_array_equal(found.read_classes()[0].array[0], nested_tumour())


def test_missing_channel_of_nnunet_is_a_missing_modality(tmp_path):
    write_study(tmp_path, "nnunet", "case_7")
    write_files({tmp_path / name: content for name, content in dataset_json("nnunet", ["case_7"]).items()})
    (tmp_path / "imagesTr" / "case_7_0001.nii.gz").unlink()
    with pytest.raises(InputError, match="modality t1c is missing"):
        find_studies(tmp_path)[0].read()


@pytest.mark.parametrize(
    ("name", "tissue"),
    [
        ("edema", ED), ("Oedema", ED), ("ED", ED), ("SNFH", ED), ("peritumoral_edema", ED), ("peritumoural oedema", ED),
        ("surrounding non-enhancing FLAIR hyperintensity", ED),
        ("necrosis", NCR), ("non-enhancing tumor", NCR), ("non enhancing", NCR), ("nonenhancing_tumor", NCR), ("NCR", NCR),
        ("NETC", NCR), ("NCR/NET", NCR), ("non-contrast-enhancing core", NCR), ("necrotic core and enhancing-free", NCR),
        ("enhancing tumour", ET), ("ET", ET), ("gd_enhancing", ET), ("active tumor", ET),
        ("resection cavity", RC), ("RC", RC),
    ],
)  # fmt: skip
def test_tissue_names_of_a_json_are_understood(name, tissue):
    assert convention_from_json({"0": "background", "7": name}, Path("dataset.json")).values == ((7, tissue),)
    assert convention_from_json({"background": 0, name: 7}, Path("dataset.json")).values == ((7, tissue),)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"0": "background", "1": "liver"}, "calls a label 'liver'"),
        ({"background": 0, "whole tumor": 1}, "calls a label 'whole tumor'"),
        ({"1": "edema", "2": "oedema", "3": "ET"}, "one tissue two label values"),
        ({"background": 0, "a": [1, 2], "b": [2, 3], "c": [3]}, "expected whole tumour"),
        ({"background": 0, "a": [1, 2], "b": [2]}, "expected whole tumour"),
        ({"background": 0, "edema": None}, "labels that cannot be read"),
        ({"background": 0, "edema": "two"}, "labels that cannot be read"),
        (["background", "edema"], "labels that cannot be read"),
    ],
)
def test_labels_of_a_json_that_say_nothing_are_refused(labels, expected):
    with pytest.raises(InputError, match=expected) as raised:
        convention_from_json(labels, Path("dataset.json"))
    assert raised.value.exit_code == 3


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (["a", "list"], "does not say what its channels are"),
        ({"labels": {"0": "background"}}, "does not say what its channels are"),
        ({"modality": ["FLAIR", "T1w"]}, "does not say what its channels are"),
        ({"channel_names": {"first": "T1"}}, "does not say what its channels are"),
        ({"channel_names": {"0": "CT"}}, "calls a channel 'CT'"),
        ({"channel_names": {"0": "label"}}, "calls a channel 'label'"),
    ],
)
def test_json_that_does_not_name_mri_channels_is_refused(tmp_path, content, expected):
    touch(tmp_path, ["case_0000.nii.gz"])
    (tmp_path / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    assert expected in refusal(tmp_path)


def test_json_without_labels_leaves_the_values_to_decide(tmp_path):
    msd_dataset(tmp_path, {"modality": MSD_JSON["modality"]})
    (found,) = find_studies(tmp_path)
    assert found.convention is None
    with pytest.raises(InputError, match="Nothing is guessed"):
        found.read_classes()


def test_outputs_of_gliomap_are_read_in_the_convention_they_were_written_in(tmp_path):
    save(tmp_path / "anna" / "segmentation.nii.gz", named_convention("audit", "a test").encode(nested_tumour()))
    rows = [
        {"study": "anna", "status": "done", "segmentation": "anna/segmentation.nii.gz",
         "labels": {"1": "ET", "2": "NCR", "3": "ED"}},
        {"study": "ben", "status": "failed"},
    ]  # fmt: skip
    (tmp_path / "run.json").write_bytes(json_bytes({"verb": "segment", "studies": rows}))
    with pytest.raises(InputError, match="no study"):  # never taken for a truth
        find_studies(tmp_path)
    (found,) = find_studies(tmp_path, outputs=True)
    assert (found.id, found.layout, found.convention.evidence) == ("anna", "gliomap", "run.json")
    np.testing.assert_array_equal(found.read_classes()[0].array[0], nested_tumour())


def test_records_of_other_verbs_are_ignored(tmp_path):
    touch(tmp_path, ["t1.nii.gz"])
    (tmp_path / "run.json").write_bytes(json_bytes({"verb": "train", "studies": [{"study": "anna"}]}))
    assert find_studies(tmp_path)[0].layout == "loose"


def test_a_run_json_of_somebody_else_is_ignored(tmp_path):
    (tmp_path / "run.json").write_text("not JSON at all")
    save(tmp_path / "anna" / "t1.nii.gz", brain_images()[0])
    assert [s.id for s in find_studies(tmp_path)] == ["anna"]


def test_a_json_that_cannot_be_used_spoils_its_own_folder_only(tmp_path):
    touch(tmp_path / "ct" / "imagesTr", ["case_0000.nii.gz"])
    (tmp_path / "ct" / "dataset.json").write_bytes(json_bytes({"channel_names": {"0": "CT"}, "labels": {}}))
    write_study(tmp_path, "brats2021", "BraTS2021_00001")
    good, bad = find_studies(tmp_path)
    assert (good.id, good.problem) == ("BraTS2021_00001", "")
    assert "calls a channel 'CT'" in bad.problem
