from dataclasses import replace

import numpy as np
import pytest
from studies import SHAPE, brain_images, brain_mask, loose_study, nested_tumour, save, small_affine

from gliomap.classes import CONVENTIONS, ED, NCR, RC, named_convention
from gliomap.data.images import map_bytes
from gliomap.data.study import MODALITIES, ImageFile, Study
from gliomap.data.writing import as_lps
from gliomap.errors import InputError
from gliomap.volume import Volume


def shifted(millimetres):
    affine = small_affine()
    affine[0, 3] += millimetres
    return affine


def file_values(convention, classes=None):
    return named_convention(convention, "the test").encode(nested_tumour() if classes is None else classes)


def refusal(study, **options):
    with pytest.raises(InputError) as raised:
        study.read(**options)
    assert raised.value.exit_code == 3
    return str(raised.value)


def label_refusal(study, **options):
    with pytest.raises(InputError) as raised:
        study.read_classes(**options)
    assert raised.value.exit_code == 3
    return str(raised.value)


def test_study_is_read_in_the_order_of_its_modalities(tmp_path):
    images = brain_images()
    volume, warnings = loose_study(tmp_path, images).read(("flair", "t1"))
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, images[[3, 0]])
    np.testing.assert_array_equal(volume.affine, small_affine())
    assert warnings == []


def test_lps_study_comes_out_in_ras(tmp_path):
    images = Volume(brain_images(), small_affine())
    stored = as_lps(images)
    study = loose_study(tmp_path, stored.array, nested_tumour()[:, ::-1, ::-1], stored.affine)
    study = replace(study, convention=named_convention("brats2024", "the test"))
    volume, _ = study.read()
    np.testing.assert_array_equal(volume.array, images.array)
    np.testing.assert_allclose(volume.affine, small_affine())
    labels, _, _ = study.read_classes(Volume(brain_mask()[None], small_affine()))
    np.testing.assert_array_equal(labels.array[0], nested_tumour())


def test_missing_modality_is_refused(tmp_path):
    study = loose_study(tmp_path)
    del study.images["t1c"]
    message = refusal(study)
    assert "the modality t1c is missing" in message
    assert "this study has t1, t2, flair" in message
    assert "--t1c" in message


def test_modality_that_the_model_does_not_need_may_be_missing(tmp_path):
    study = loose_study(tmp_path)
    del study.images["t1c"]
    assert study.read(("t1", "t2", "flair"))[0].array.shape[0] == 3


def test_problem_found_while_looking_is_raised(tmp_path):
    study = replace(loose_study(tmp_path, labels=nested_tumour()), problem="it is there twice")
    assert refusal(study) == "it is there twice"
    assert label_refusal(study) == "it is there twice"


@pytest.mark.parametrize("millimetres", [1e-5, 0.05])
def test_grids_that_differ_by_rounding_are_one_grid(tmp_path, millimetres):
    study = loose_study(tmp_path)
    save(tmp_path / "t2.nii", brain_images()[2], shifted(millimetres))
    assert study.read()[0].shape == SHAPE


def test_modalities_on_shifted_grids_are_refused(tmp_path):
    study = loose_study(tmp_path)
    save(tmp_path / "t2.nii", brain_images()[2], shifted(1.0))
    message = refusal(study)
    assert "t1 and t2 are on different grids (1.0 mm apart)" in message
    assert "resample" in message


def test_modalities_with_other_voxel_sizes_are_refused(tmp_path):
    study = loose_study(tmp_path)
    save(tmp_path / "flair.nii", brain_images()[3], small_affine(6.1))
    assert "t1 and flair are on different grids" in refusal(study)


def test_modalities_of_different_shapes_are_refused(tmp_path):
    study = loose_study(tmp_path)
    save(tmp_path / "t1c.nii", brain_images()[1][:-1])
    assert "shapes (32, 32, 24) and (32, 32, 23)" in refusal(study)


def test_4d_modality_is_refused(tmp_path):
    study = loose_study(tmp_path)
    save(tmp_path / "t1c.nii", brain_images())
    assert "4-D" in refusal(study)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda image: image * np.float32(np.nan), "t2 has .* NaN"),
        (lambda image: image * 0, "t2 is all zero"),
        (lambda image: image * 0 + 5, r"t2 is constant \(5\)"),
    ],
)
def test_voxels_are_looked_at(tmp_path, spoil, expected):
    study = loose_study(tmp_path)
    save(tmp_path / "t2.nii", spoil(brain_images()[2]))
    with pytest.raises(InputError, match=expected):
        study.read()


def test_one_file_given_as_two_modalities_is_refused(tmp_path):
    study = loose_study(tmp_path)
    study.images["t1c"] = study.images["t1"]
    assert "t1 and t1c are the same image" in refusal(study)


def test_head_with_its_skull_is_refused_or_continued_with_a_warning(tmp_path):
    images = np.random.default_rng(0).integers(1, 400, (4, *SHAPE)).astype(np.int16)
    study = loose_study(tmp_path, images)
    assert "--skull-on-anyway" in refusal(study)
    _, warnings = study.read(skull_on_anyway=True)
    assert len(warnings) == 1
    assert "skull" in warnings[0]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_labels_of_every_convention_come_back_as_they_were(tmp_path, convention):
    classes = nested_tumour()
    if convention == "brats2024":
        classes[13, 14, 23] = RC
    study = loose_study(tmp_path, labels=file_values(convention, classes))
    study = replace(study, convention=named_convention(convention, "the test"))
    found, known, warnings = study.read_classes(Volume(brain_mask()[None], small_affine()))
    np.testing.assert_array_equal(found.array[0], classes)
    assert warnings == []
    (tmp_path / "again.nii.gz").write_bytes(
        map_bytes(found.with_array(known.encode(found.array[0])), study.images["t1"].path)
    )
    again = replace(study, label=ImageFile(tmp_path / "again.nii.gz"))
    np.testing.assert_array_equal(again.label.read().array, study.label.read().array)
    np.testing.assert_array_equal(again.read_classes()[0].array[0], classes)


def test_labels_1_2_4_are_read_by_their_values(tmp_path):
    found, convention, odd = loose_study(tmp_path, labels=file_values("brats2021")).read_classes()
    np.testing.assert_array_equal(found.array[0], nested_tumour())
    assert (convention.name, convention.evidence) == ("brats2021", "its values (1, 2, 4)")
    assert "--labels brats2024" in "".join(odd)


def test_images_of_one_grid_in_another_axis_order_are_one_grid(tmp_path):
    study = loose_study(tmp_path)
    expected = study.read()[0].array
    flipped = as_lps(study.images["t2"].read())
    save(study.images["t2"].path, flipped.array[0], flipped.affine)
    np.testing.assert_array_equal(study.read()[0].array, expected)


@pytest.mark.parametrize(("convention", "oedema"), [("brats2023", 2), ("msd", 1), ("audit", 3)])
def test_labels_1_2_3_are_refused_with_candidates_and_a_hint(tmp_path, convention, oedema):
    study = loose_study(tmp_path, labels=file_values(convention))
    message = label_refusal(study, brain=Volume(brain_mask()[None], small_affine()))
    for candidate in ("brats2023 (1 NCR, 2 ED, 3 ET)", "msd (1 ED, 2 NCR, 3 ET)", "audit (1 ET, 2 NCR, 3 ED)"):
        assert candidate in message
    assert f"{oedema} looks like oedema" in message
    assert "--labels" in message


@pytest.mark.parametrize("values", [(1,), (2,), (3,), (1, 2), (2, 3)])
def test_fewer_values_are_no_less_ambiguous(tmp_path, values):
    labels = file_values("brats2023")
    assert "Nothing is guessed" in label_refusal(loose_study(tmp_path, labels=labels * np.isin(labels, values)))


def test_empty_label_map_is_not_ambiguous(tmp_path):
    found, _, warnings = loose_study(tmp_path, labels=np.zeros(SHAPE, np.uint8)).read_classes()
    assert not found.array.any()
    assert warnings == []


def test_implausible_convention_is_warned_about_and_obeyed(tmp_path):
    study = loose_study(tmp_path, labels=file_values("audit"))
    study = replace(study, convention=named_convention("brats2023", "the brats2023 naming"))
    found, convention, warnings = study.read_classes(Volume(brain_mask()[None], small_affine()))
    assert convention.name == "brats2023"
    assert len(warnings) == 1
    assert "taken from the brats2023 naming, looks implausible" in warnings[0]
    assert found.array[0][nested_tumour() == NCR].tolist() == [ED] * int((nested_tumour() == NCR).sum())


def test_label_value_outside_the_convention_is_refused(tmp_path):
    study = replace(
        loose_study(tmp_path, labels=file_values("brats2021")), convention=named_convention("msd", "a test")
    )
    message = label_refusal(study)
    assert "label values 4 are outside the convention msd (1 ED, 2 NCR, 3 ET)" in message


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda labels: labels * np.float32(0.5), "not whole numbers"),
        (lambda labels: np.where(labels == 4, np.float32(np.nan), labels), "not whole numbers"),
        (lambda labels: np.where(labels == 4, np.float32(np.inf), labels), "not whole numbers"),
        (lambda labels: np.where(labels == 4, np.int16(-1), labels), "values from -1 to 2"),
        (lambda labels: np.where(labels == 4, np.int16(260), labels), "values from 0 to 260"),
    ],
)
def test_values_that_are_no_labels_are_refused(tmp_path, spoil, expected):
    labels = file_values("brats2021").astype(np.int16)
    message = label_refusal(loose_study(tmp_path, labels=spoil(labels)))
    assert expected in message
    assert "seg.nii" in message


def test_whole_numbers_stored_as_real_numbers_are_labels(tmp_path):
    study = loose_study(tmp_path, labels=file_values("brats2021").astype(np.float64))
    np.testing.assert_array_equal(study.read_classes()[0].array[0], nested_tumour())


def test_label_map_on_another_grid_is_refused(tmp_path):
    study = loose_study(tmp_path, labels=file_values("brats2021"), label_affine=shifted(6.0))
    message = label_refusal(study, brain=Volume(brain_mask()[None], small_affine()))
    assert "the images and the label map are on different grids (6.0 mm apart)" in message


def test_study_without_a_label_says_so(tmp_path):
    assert "has no label map" in label_refusal(loose_study(tmp_path))


@pytest.mark.parametrize(
    ("study", "patient"),
    [
        ("BraTS-GLI-00046-101", "BraTS-GLI-00046"),
        ("BraTS-SSA-00002-000", "BraTS-SSA-00002"),
        ("BraTS20_Training_001", "BraTS20_Training_001"),
        ("BraTS2021_00006", "BraTS2021_00006"),
        ("Brats17_TCIA_628_1", "TCIA_628_1"),
        ("Brats18_TCIA10_628_1", "TCIA_628_1"),
        ("BraTS19_TCIA10_628_1", "TCIA_628_1"),
        ("Brats17_CBICA_AAB_1", "CBICA_AAB_1"),
        ("Brats18_CBICA_AAB_1", "CBICA_AAB_1"),
        ("BraTS19_CBICA_AAB_1", "CBICA_AAB_1"),
        ("Brats18_2013_3_1", "2013_3_1"),
        ("BraTS19_TMC_06290_1", "TMC_06290_1"),
        ("brats18_", "brats18_"),
        ("patient-007", "patient-007"),
        ("sub-01_ses-2_anat", "sub-01"),
    ],
)
def test_patient_is_the_id_without_the_time_point_and_the_years_that_name_alike(study, patient):
    assert Study(study, {}).patient == patient


def test_modalities_are_the_four():
    assert MODALITIES == ("t1", "t1c", "t2", "flair")


def test_a_tumour_that_fills_its_box_is_looked_at_with_what_lies_around_it(tmp_path):
    labels = np.zeros((24, 32, 32), np.uint8)
    labels[8:16, 10:20, 10:20], labels[11:13, 13:17, 13:17] = 2, 1
    study = loose_study(tmp_path / "study", labels=labels)
    convention = named_convention("brats2023", "the test")
    assert replace(study, convention=convention).read_classes()[2] == []  # oedema touches the brain most
    swapped = np.array([0, 2, 1], np.uint8)[labels]
    study = loose_study(tmp_path / "other", labels=swapped)
    assert "looks implausible" in replace(study, convention=convention).read_classes()[2][0]
