import bz2
import errno
import gzip
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from studies import MSD_JSON, SHAPE, brain_images, msd_dataset, nested_tumour, save, small_study, touch, write_study

from gliomap.classes import CONVENTIONS, ED, ET, NCR, RC, named_convention
from gliomap.data.datasets import count_layouts, find_studies, parse_labels, study_from_files
from gliomap.data.names import DATASETS
from gliomap.data.study import MODALITIES
from gliomap.data.writing import dataset_json
from gliomap.errors import InputError, UsageError
from gliomap.files import json_bytes, write_files

OLD_NAMES = ("flair", "t1", "t1ce", "t2", "seg")
NEW_NAMES = ("t1n", "t1c", "t2w", "t2f", "seg")


def refusal(path, **options):
    with pytest.raises(InputError) as raised:
        find_studies(path, **options)
    assert raised.value.exit_code == 3
    return str(raised.value)


def modality_files(study):
    return {m: f.path.name for m, f in study.images.items()}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nii.bz2", ".NII.GZ"])
@pytest.mark.parametrize(
    ("study", "layout"),
    [
        ("Brats17_CBICA_AAB_1", "brats2018"),
        ("Brats18_2013_20_1", "brats2018"),
        ("Brats18_TCIA10_628_1", "brats2018"),
        ("BraTS19_CBICA_ANK_1", "brats2019"),
        ("BraTS20_Training_001", "brats2020"),
        ("BraTS2021_00006", "brats2021"),
    ],
)
def test_brats_2017_to_2021_are_found_by_their_names(tmp_path, study, layout, suffix):
    touch(tmp_path / study, [f"{study}_{name}{suffix}" for name in OLD_NAMES])
    (found,) = find_studies(tmp_path)
    assert (found.id, found.layout, found.convention.name) == (study, layout, "brats2021")
    assert found.convention.evidence == f"the {layout} naming"
    assert modality_files(found) == {
        "t1": f"{study}_t1{suffix}", "t1c": f"{study}_t1ce{suffix}", "t2": f"{study}_t2{suffix}",
        "flair": f"{study}_flair{suffix}",
    }  # fmt: skip
    assert found.label.path.name == f"{study}_seg{suffix}"


@pytest.mark.parametrize(
    ("study", "layout"),
    [
        ("BraTS-GLI-00000-000", "brats2023"),
        ("BraTS-GLI-00017-001", "brats2023"),
        ("BraTS-SSA-00002-000", "brats2023"),
        ("BraTS-MET-00110-000", "brats2023"),
        ("BraTS-GLI-00046-101", "brats2024"),
        ("BraTS-GLI-00060-100", "brats2024"),
    ],
)
def test_brats_2023_and_2024_are_told_apart_by_their_time_point(tmp_path, study, layout):
    touch(tmp_path / study, [f"{study}-{name}.nii.gz" for name in NEW_NAMES])
    (found,) = find_studies(tmp_path)
    assert (found.id, found.layout, found.convention.name) == (study, layout, layout)
    assert modality_files(found) == {
        "t1": f"{study}-t1n.nii.gz", "t1c": f"{study}-t1c.nii.gz", "t2": f"{study}-t2w.nii.gz",
        "flair": f"{study}-t2f.nii.gz",
    }  # fmt: skip


def test_paediatric_names_say_nothing_about_their_labels(tmp_path):
    study = "BraTS-PED-00001-000"
    touch(tmp_path / study, [f"{study}-{name}.nii.gz" for name in NEW_NAMES])
    (found,) = find_studies(tmp_path)
    assert found.convention is None
    assert set(found.images) == set(MODALITIES)


@pytest.mark.parametrize("convention", ["brats2021", "brats2023", "brats2024"])
def test_labels_of_a_layout_mean_what_its_year_says(tmp_path, convention):
    layout = convention
    study = DATASETS[layout].phantom_id.format(version="V1", number=1)
    _, classes = write_study(tmp_path, layout, study)
    (found,) = find_studies(tmp_path)
    read, known, warnings = found.read_classes()
    np.testing.assert_array_equal(read.array, classes.array)
    assert known.name == convention
    assert warnings == []


def test_resection_cavity_is_read_in_2024_and_refused_in_2023(tmp_path):
    labels = nested_tumour()
    labels[13, 14, 23] = 4
    for study in ("BraTS-GLI-00001-100", "BraTS-GLI-00002-000"):
        save(tmp_path / f"{study}-seg.nii.gz", labels)
    before, after = sorted(find_studies(tmp_path), key=lambda s: s.layout)
    assert (after.read_classes()[0].array == RC).sum() == 1
    with pytest.raises(InputError, match="label values 4 are outside the convention brats2023"):
        before.read_classes()


def test_compressed_with_bzip2_is_read(tmp_path):
    images, classes = write_study(tmp_path, "brats2018", "Brats18_A_1")
    for file in list(tmp_path.rglob("*.nii.gz")):
        file.with_suffix("").with_suffix(".nii.bz2").write_bytes(bz2.compress(gzip.decompress(file.read_bytes())))
        file.unlink()
    (found,) = find_studies(tmp_path)
    np.testing.assert_array_equal(found.read()[0].array, images.array)
    np.testing.assert_array_equal(found.read_classes()[0].array, classes.array)


def test_grade_folders_become_strata(tmp_path):
    for grade, study in (("HGG", "Brats18_A_1"), ("LGG", "Brats18_B_1")):
        touch(tmp_path / grade / study, [f"{study}_{name}.nii.gz" for name in OLD_NAMES])
    assert [(s.id, s.stratum) for s in find_studies(tmp_path)] == [("Brats18_A_1", "HGG"), ("Brats18_B_1", "LGG")]


def test_one_study_folder_is_itself_a_folder_of_studies(tmp_path):
    touch(tmp_path / "BraTS2021_00006", [f"BraTS2021_00006_{name}.nii.gz" for name in OLD_NAMES])
    (found,) = find_studies(tmp_path / "BraTS2021_00006")
    assert (found.id, found.stratum) == ("BraTS2021_00006", "")


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        *[(n, "t1") for n in ("t1", "T1", "t1w", "T1n", "T1-weighted", "T1_pre", "t1_pre_contrast", "T1w_without_contrast",
                              "p_T1_native", "t1pre", "sub-01_T1w")],
        *[(n, "t1c") for n in ("t1c", "T1ce", "T1CE", "t1Gd", "T1_Gd", "T1wCE", "t1-post", "T1_post_contrast", "T1+C",
                               "T1_KM", "t1ca", "T1w_gad", "sub-01_ce-gd_T1w", "t1_contrast_enhanced")],
        *[(n, "t2") for n in ("t2", "T2", "T2w", "t2_tse", "axial_T2_weighted")],
        *[(n, "flair") for n in ("flair", "FLAIR", "T2_FLAIR", "t2f", "T2Flair", "t2-flair", "fla", "sub-01_FLAIR")],
        *[(n, "seg") for n in ("seg", "Segmentation", "tumor_mask", "label", "truth", "ground_truth_gt", "OT_annotation")],
    ],
)  # fmt: skip
def test_usual_names_of_modalities_are_known(tmp_path, name, modality):
    touch(tmp_path / "case", [f"{name}.nii.gz"])
    (found,) = find_studies(tmp_path)
    assert (found.id, found.layout, found.convention) == ("case", "loose", None)
    assert ["seg"] * (found.label is not None) + list(found.images) == [modality]


@pytest.mark.parametrize("name", ["brain_mask", "t1_brain_mask", "dwi", "adc", "notes", "t10", "subt1"])
def test_other_images_are_not_taken(tmp_path, name):
    touch(tmp_path / "case", [f"{name}.nii.gz", "t1.nii.gz"])
    (found,) = find_studies(tmp_path)
    assert modality_files(found) == {"t1": "t1.nii.gz"}
    assert found.label is None
    assert not found.problem


def test_loose_files_of_several_studies_in_one_folder_are_told_apart(tmp_path):
    names = ("T1_pre", "T1_post", "T2", "FLAIR")
    touch(tmp_path, [f"{patient}_{name}.nii.gz" for patient in ("anna", "ben") for name in names])
    found = find_studies(tmp_path)
    assert [s.id for s in found] == ["anna", "ben"]
    assert all(set(s.images) == set(MODALITIES) for s in found)


def test_hidden_files_are_not_images(tmp_path):
    touch(tmp_path / "case", ["t1.nii.gz", "._t1.nii.gz", ".t2.nii.gz"])
    (found,) = find_studies(tmp_path)
    assert modality_files(found) == {"t1": "t1.nii.gz"}


def test_the_current_folder_gives_its_name(tmp_path, monkeypatch):
    touch(tmp_path / "case", ["t1.nii.gz"])
    monkeypatch.chdir(tmp_path / "case")
    assert find_studies(Path("."))[0].id == "case"


def test_two_files_for_one_modality_are_refused(tmp_path):
    touch(tmp_path / "case", ["t1.nii.gz", "T1w.nii", "t1c.nii.gz", "t2.nii.gz", "flair.nii.gz"])
    (found,) = find_studies(tmp_path)
    with pytest.raises(
        InputError, match=r"2 files could be its t1: T1w\.nii, t1\.nii\.gz\. Keep one of them"
    ) as raised:
        found.read()
    assert raised.value.exit_code == 3


def test_two_files_for_one_modality_are_refused_in_a_named_layout(tmp_path):
    study = "BraTS2021_00006"
    touch(tmp_path, [f"{study}_t1.nii.gz", f"{study}_t1.nii", f"{study}_t2.nii.gz"])
    with pytest.raises(InputError, match="2 files could be its t1"):
        find_studies(tmp_path)[0].read()


def test_study_that_is_there_twice_is_refused(tmp_path):
    study = "BraTS2021_00006"
    for folder in ("one", "two"):
        touch(tmp_path / folder / study, [f"{study}_{name}.nii.gz" for name in OLD_NAMES])
    (found,) = find_studies(tmp_path)
    for read in (found.read, found.read_classes):
        with pytest.raises(InputError, match=r"study BraTS2021_00006 is there twice: .*one.*two.*Keep one"):
            read()


def test_second_label_of_a_study_is_refused(tmp_path):
    study = "BraTS2021_00006"
    touch(tmp_path / "data", [f"{study}_{name}.nii.gz" for name in OLD_NAMES])
    touch(tmp_path / "more", [f"{study}_seg.nii.gz"])
    assert "is there twice" in find_studies(tmp_path)[0].problem


def test_labels_apart_from_their_images_are_joined(tmp_path):
    study = "BraTS2021_00006"
    touch(tmp_path / "images", [f"{study}_{name}.nii.gz" for name in OLD_NAMES[:-1]])
    touch(tmp_path / "labels", [f"{study}_seg.nii.gz"])
    touch(tmp_path / "images" / "case", ["t1.nii.gz"])
    touch(tmp_path / "labels" / "case", ["seg.nii.gz"])
    found = find_studies(tmp_path)
    assert [(s.id, len(s.images), s.label is not None, s.problem) for s in found] == [
        (study, 4, True, ""),
        ("case", 1, True, ""),
    ]


def test_images_of_two_folders_that_merely_share_a_name_are_not_joined(tmp_path):
    touch(tmp_path / "anna" / "mri", ["t1.nii.gz", "t2.nii.gz"])
    touch(tmp_path / "ben" / "mri", ["t1c.nii.gz", "flair.nii.gz"])
    assert {s.id: set(s.images) for s in find_studies(tmp_path)} == {
        "anna_mri": {"t1", "t2"},
        "ben_mri": {"t1c", "flair"},
    }


def test_folders_of_one_name_are_told_apart_by_their_path(tmp_path):
    for subject in ("sub-01", "sub-02"):
        names = [f"{subject}_{w}.nii.gz" for w in ("T1w", "ce-gd_T1w", "T2w", "FLAIR")]
        touch(tmp_path / subject / "anat", names)
    found = find_studies(tmp_path)
    assert [(s.id, len(s.images), s.problem) for s in found] == [("sub-01_anat", 4, ""), ("sub-02_anat", 4, "")]


def test_folder_that_mixes_layouts_is_read_study_by_study(tmp_path):
    write_study(tmp_path, "brats2021", "BraTS2021_00001", 1)
    write_study(tmp_path, "brats2023", "BraTS-GLI-00002-000", 2)
    write_study(tmp_path, "loose", "somebody", 3)
    for layout, study in (("msd", "BRATS_001"), ("nnunet", "case_4")):
        write_study(tmp_path / layout, layout, study, 4)
        write_files({tmp_path / layout / n: c for n, c in dataset_json(layout, [study]).items()})
    found = find_studies(tmp_path)
    assert {s.id: s.layout for s in found} == {
        "BraTS2021_00001": "brats2021", "BraTS-GLI-00002-000": "brats2023", "somebody": "loose", "BRATS_001": "msd",
        "case_4": "nnunet",
    }  # fmt: skip
    known = {s.id: s.read_classes() for s in found}
    assert {i: convention.name for i, (_, convention, _) in known.items()} == {
        "BraTS2021_00001": "brats2021", "BraTS-GLI-00002-000": "brats2023", "somebody": "brats2021", "BRATS_001": "msd",
        "case_4": "brats2023",
    }  # fmt: skip
    for classes, _, _ in known.values():
        np.testing.assert_array_equal(classes.array[0], nested_tumour())
    assert sum(count_layouts(found).values()) == 5
    assert count_layouts(found)["loose, labels read by their values"] == 1


def test_names_of_two_layouts_in_one_folder_are_told_apart(tmp_path):
    touch(tmp_path, [f"BraTS2021_1_{name}.nii.gz" for name in OLD_NAMES])
    touch(tmp_path, [f"BraTS-GLI-00002-000-{name}.nii.gz" for name in NEW_NAMES])
    assert [s.convention.name for s in find_studies(tmp_path)] == ["brats2023", "brats2021"]


def test_linked_folders_are_followed_and_counted_once(tmp_path):
    touch(tmp_path / "elsewhere" / "BraTS2021_00006", [f"BraTS2021_00006_{name}.nii.gz" for name in OLD_NAMES])
    data = tmp_path / "data"
    data.mkdir()
    for link in ("first", "second"):
        (data / link).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (data / "loop").symlink_to(data, target_is_directory=True)
    (found,) = find_studies(data)
    assert (found.id, found.problem) == ("BraTS2021_00006", "")
    assert found.images["t1"].path.is_relative_to(data / "first")


def test_linked_study_folder_is_a_study(tmp_path):
    touch(tmp_path / "store" / "x1", ["t1.nii.gz"])
    (tmp_path / "case").symlink_to(tmp_path / "store" / "x1", target_is_directory=True)
    assert [s.id for s in find_studies(tmp_path / "case")] == ["case"]


def test_broken_link_is_refused_when_it_is_read(tmp_path):
    (tmp_path / "t1.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    with pytest.raises(InputError, match=r"cannot read .*No such file"):
        find_studies(tmp_path)[0].read(("t1",))


def test_folder_without_studies_is_refused(tmp_path):
    touch(tmp_path, ["notes.txt", "dwi.nii.gz"])
    assert "holds no study gliomap recognises" in refusal(tmp_path)


def test_path_that_is_no_folder_is_refused(tmp_path):
    assert "does not exist" in refusal(tmp_path / "absent")
    touch(tmp_path, ["t1.nii.gz"])
    assert "is not a folder" in refusal(tmp_path / "t1.nii.gz")


def lock(monkeypatch, locked):
    scandir = os.scandir

    def refuse(folder):
        if Path(folder) == locked:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)


def test_folder_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    touch(tmp_path, ["t1.nii.gz"])
    lock(monkeypatch, tmp_path)
    assert "Permission denied" in refusal(tmp_path)


def test_inner_folder_that_cannot_be_read_is_reported_beside_the_others(tmp_path, monkeypatch):
    for study in ("anna", "ben"):
        touch(tmp_path / study, ["t1.nii.gz"])
    lock(monkeypatch, tmp_path / "ben")
    anna, ben = find_studies(tmp_path)
    assert (anna.id, anna.problem) == ("anna", "")
    assert ben.id == "ben"
    with pytest.raises(InputError, match=r"cannot read the folder .*ben: Permission denied"):
        ben.read()


def test_files_given_one_by_one_are_a_study(tmp_path):
    images, classes = small_study()
    names = {"flair": "a", "t1": "b", "t2": "c", "t1c": "d"}
    files = {m: save(tmp_path / "anna" / f"{n}.nii", images.array[MODALITIES.index(m)]) for m, n in names.items()}
    label = save(tmp_path / "e.nii", classes.array[0])
    study = study_from_files(files, label, named_convention("brats2023", "--labels"))
    assert (study.id, study.layout, tuple(study.images)) == ("anna", "files", MODALITIES)
    np.testing.assert_array_equal(study.read()[0].array, images.array)
    np.testing.assert_array_equal(study.read_classes()[0].array, classes.array)
    assert study_from_files(files).label is None


def test_files_given_one_by_one_keep_what_their_names_say(tmp_path):
    study = "BraTS-GLI-00046-101"
    files = {"t1": tmp_path / f"{study}-t1n.nii.gz", "t1c": tmp_path / f"{study}-t1c.nii.gz"}
    found = study_from_files(files)
    assert (found.id, found.layout, found.convention.name) == (study, "brats2024", "brats2024")
    assert study_from_files(files, labels=parse_labels("audit")).convention.name == "audit"


def test_files_of_two_named_studies_say_nothing_about_the_labels(tmp_path):
    files = {"t1": tmp_path / "BraTS-GLI-00046-101-t1n.nii.gz", "t1c": tmp_path / "BraTS-GLI-00046-000-t1c.nii.gz"}
    assert study_from_files(files).convention is None


def test_what_the_person_says_comes_before_the_json(tmp_path):
    _, classes = msd_dataset(tmp_path, MSD_JSON | {"labels": {"1": "NCR", "2": "ED", "3": "ET"}})
    (found,) = find_studies(tmp_path)
    assert (found.convention.name, found.convention.evidence) == ("brats2023", "dataset.json")
    (found,) = find_studies(tmp_path, parse_labels("1=ED,2=NCR,3=ET"))
    assert (found.convention.name, found.convention.evidence) == ("msd", "--labels")
    np.testing.assert_array_equal(found.read_classes()[0].array, classes.array)


def test_what_the_person_says_comes_before_the_layout(tmp_path):
    touch(tmp_path, [f"BraTS2021_00006_{name}.nii.gz" for name in OLD_NAMES])
    assert find_studies(tmp_path, parse_labels("audit"))[0].convention.name == "audit"


def test_the_json_comes_before_the_layout_of_the_names(tmp_path):
    study = "BraTS-GLI-00002-000"
    touch(tmp_path / "labelsTr", [f"{study}-seg.nii.gz"])
    (tmp_path / "dataset.json").write_bytes(json_bytes(MSD_JSON))
    assert find_studies(tmp_path)[0].convention.name == "msd"


def test_the_layout_comes_before_the_values(tmp_path):
    labels = np.zeros(SHAPE, np.uint8)
    labels[13, 14, 18:21] = 1, 2, 4
    for study in ("BraTS-GLI-00001-100", "loose_study"):
        save(tmp_path / study / f"{study}-seg.nii.gz", labels)
    by_layout = {s.layout: s.read_classes()[0].array[0, 13, 14, 20] for s in find_studies(tmp_path)}
    assert by_layout == {"brats2024": RC, "loose": ET}


def test_nothing_said_is_no_convention():
    assert parse_labels(None) is None
    with pytest.raises(UsageError, match="no label convention is called 'nonsense'"):
        parse_labels("nonsense")


def test_moving_a_study_changes_nothing_about_it(tmp_path):
    images, _ = write_study(tmp_path / "a", "loose", "case")
    shutil.move(tmp_path / "a" / "case", tmp_path / "case")
    np.testing.assert_array_equal(find_studies(tmp_path)[0].read()[0].array, images.array)
    np.testing.assert_array_equal(images.array, brain_images())


@given(st.data())
def test_file_labels_to_classes_and_back_is_the_identity(data):
    convention = named_convention(data.draw(st.sampled_from(sorted(CONVENTIONS))), "a test")
    values = st.sampled_from([0, *dict(convention.values)])
    labels = np.array(data.draw(st.lists(values, min_size=8, max_size=8)), np.uint8).reshape(2, 2, 2)
    np.testing.assert_array_equal(convention.encode(convention.decode(labels)), labels)
    np.testing.assert_array_equal(convention.decode(labels.astype(np.float32)), convention.decode(labels))


@given(st.permutations([NCR, ED, ET, RC]), st.lists(st.integers(1, 255), min_size=4, max_size=4, unique=True))
def test_pairs_given_by_hand_go_there_and_back(tissues, values):
    names = {NCR: "NCR", ED: "ED", ET: "ET", RC: "RC"}
    convention = parse_labels(",".join(f"{v}={names[t]}" for v, t in zip(values, tissues, strict=True)))
    assert dict(convention.values) == dict(zip(values, tissues, strict=True))
    labels = np.array([0, *values])
    np.testing.assert_array_equal(convention.decode(labels), [0, *tissues])
    np.testing.assert_array_equal(convention.encode(convention.decode(labels)), labels)
