import nibabel as nib
import numpy as np
import pytest
from studies import small_study, write_study

from gliomap.classes import RC
from gliomap.data.datasets import find_studies
from gliomap.data.names import DATASETS
from gliomap.data.writing import LAYOUTS, as_lps, dataset_json, phantom_id, study_files
from gliomap.errors import InputError
from gliomap.files import write_files
from gliomap.volume import Volume


@pytest.mark.parametrize("layout", LAYOUTS)
def test_study_of_every_layout_is_found_and_read_back(tmp_path, layout):
    study = phantom_id(layout, 1, 3)
    images, classes = write_study(tmp_path, layout, study)
    write_files({tmp_path / name: content for name, content in dataset_json(layout, [study]).items()})
    (found,) = find_studies(tmp_path)
    assert (found.id, found.layout) == (study, layout)
    volume, warnings = found.read()
    np.testing.assert_array_equal(volume.array, images.array)
    np.testing.assert_allclose(volume.affine, images.affine)
    labels, _, odd = found.read_classes(volume.with_array((volume.array != 0).any(0)))
    np.testing.assert_array_equal(labels.array, classes.array)
    assert warnings == []
    assert bool(odd) == (layout == "loose")  # nothing but the values says what 1, 2, 4 mean


@pytest.mark.parametrize("layout", LAYOUTS)
def test_phantom_id_says_version_and_number(layout):
    study = phantom_id(layout, 2, 31)
    assert "V2" in study
    assert "31" in study
    assert study != phantom_id(layout, 2, 32)


@pytest.mark.parametrize("layout", [n for n in LAYOUTS if n not in ("msd", "nnunet")])
def test_brats_files_are_stored_right_to_left(tmp_path, layout):
    files = study_files(layout, "study", *small_study())
    (tmp_path / "image.nii.gz").write_bytes(next(iter(files.values())))
    assert nib.aff2axcodes(nib.load(tmp_path / "image.nii.gz").affine) == ("L", "P", "S")


def test_lps_is_the_same_place_in_another_order():
    volume, _ = small_study()
    np.testing.assert_array_equal(as_lps(volume).to_ras().array, volume.array)
    np.testing.assert_allclose(as_lps(volume).to_ras().affine, volume.affine)


def test_same_study_gives_the_same_bytes():
    assert study_files("brats2023", "s", *small_study()) == study_files("brats2023", "s", *small_study())


def test_class_that_a_layout_has_no_value_for_is_refused():
    images, classes = small_study()
    with_cavity = classes.array.copy()
    with_cavity[0, 12, 16, 8] = RC
    with pytest.raises(InputError, match="no value for RC"):
        study_files("brats2021", "s", images, Volume(with_cavity, classes.affine))
    assert study_files("brats2024", "s", images, Volume(with_cavity, classes.affine))


def test_layouts_are_the_datasets_and_the_three_without_names():
    assert set(LAYOUTS) == {*DATASETS, "msd", "nnunet", "loose"}
