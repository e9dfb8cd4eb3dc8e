"""The real studies beside the repository, or where GLIOMAP_REAL_DATA says; each test is skipped by name without them."""

import os
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from gliomap.classes import RC
from gliomap.data.datasets import find_studies, study_from_files
from gliomap.data.images import map_bytes, read_image
from gliomap.errors import InputError
from gliomap.volume import Volume

REAL_DATA = Path(os.environ.get("GLIOMAP_REAL_DATA") or Path(__file__).parents[2] / "shared" / "data")


def real(name):
    folder = REAL_DATA / name
    if not folder.is_dir():
        pytest.skip(f"the real studies {name} are not there; say where with GLIOMAP_REAL_DATA")
    return folder


def only_study(name):
    (study,) = find_studies(real(name))
    return study


def brain_of(volume):
    return volume.with_array((volume.array != 0).any(0))


def assert_upright(volume):
    """x, y, z run right, anterior, superior."""
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
    assert (np.diag(volume.affine)[:3] > 0).all()


def test_training_studies_are_counted_by_their_layout():
    studies = find_studies(real("training"))
    assert Counter(s.layout for s in studies) == {"brats2018": 29, "brats2019": 1, "brats2021": 10, "brats2023": 2}
    assert len({s.patient for s in studies}) == 42
    for study in studies:
        assert (study.problem, len(study.images), study.label is not None) == ("", 4, True)
        assert study.stratum == study.layout
        assert study.convention.name == ("brats2023" if study.layout == "brats2023" else "brats2021")


@pytest.mark.parametrize("number", range(0, 42, 7))
def test_training_study_reads_without_a_contradiction(number):
    study = find_studies(real("training"))[number]
    volume, _ = study.read()
    assert_upright(volume)
    classes, _, warnings = study.read_classes(brain_of(volume))
    assert warnings == []
    assert classes.shape == volume.shape
    assert classes.array.any()


@pytest.mark.parametrize(
    ("name", "layout", "convention", "axes"),
    [
        ("brats2020", "brats2020", "brats2021", ("L", "P", "S")),
        ("brats2021", "brats2021", "brats2021", ("L", "P", "S")),
        ("brats2023", "brats2023", "brats2023", ("L", "P", "S")),
        ("brats2024_ssa", "brats2023", "brats2023", ("R", "A", "S")),
        ("loose", "loose", "brats2021", ("L", "P", "S")),
    ],
)
def test_full_grid_study_goes_through_classes_and_back_to_the_same_file_values(
    tmp_path, name, layout, convention, axes
):
    study = only_study(name)
    stored = study.label.read()
    assert study.layout == layout
    assert nib.aff2axcodes(stored.affine) == axes
    volume, warnings = study.read()
    assert_upright(volume)
    assert volume.array.shape == (4, 155, 240, 240)
    classes, known, odd = study.read_classes(brain_of(volume))
    assert known.name == convention
    assert warnings == []
    assert bool(odd) == (layout == "loose")
    written = tmp_path / "seg.nii.gz"
    written.write_bytes(map_bytes(classes.with_array(known.encode(classes.array)), study.images["t1"].path))
    again = read_image(written)
    np.testing.assert_array_equal(again.array, stored.array)
    np.testing.assert_array_equal(again.affine, study.images["t1"].read().affine)


def test_study_without_t1_is_refused():
    study = only_study("missing_modality")
    with pytest.raises(InputError, match="the modality t1 is missing") as raised:
        study.read()
    assert raised.value.exit_code == 3


def test_trap_of_label_values_is_not_walked_into():
    study = only_study("missing_modality")
    with pytest.raises(InputError) as raised:
        study.read_classes()
    message = str(raised.value)
    assert "label values 1, 2, 3 with nothing that says what they mean" in message
    assert "3 looks like oedema, 2 like necrosis" in message
    for candidate in ("brats2023", "msd", "audit"):
        assert candidate in message


def test_trap_of_label_grid_is_not_walked_into():
    study = only_study("missing_modality")
    volume, _ = study.read(("t1c", "t2", "flair"))
    with pytest.raises(InputError, match=r"the images and the label map are on different grids \(239\.0 mm apart\)"):
        study.read_classes(brain_of(volume))


def test_study_as_acquired_is_refused():
    with pytest.raises(InputError, match="t1 and t2 are on different grids") as raised:
        only_study("raw_native").read()
    assert raised.value.exit_code == 3
    assert "Register and resample" in str(raised.value)


def test_head_as_acquired_is_known_by_its_skull():
    with pytest.raises(InputError, match="the skull looks still on"):
        study_from_files({"t1": real("raw_native") / "TCGA-FG-6692" / "t1.nii.gz"}).read(("t1",))


def test_post_treatment_labels_have_their_resection_cavity():
    studies = {s.id: s for s in find_studies(real("predictions/brats24_gli_seg_only"))}
    conventions = {i: s.convention.name for i, s in studies.items()}
    assert conventions == {
        "BraTS-GLI-00017-001": "brats2023",
        "BraTS-GLI-00046-101": "brats2024",
        "BraTS-GLI-00060-100": "brats2024",
    }
    for study in studies.values():
        classes, convention, warnings = study.read_classes()
        assert warnings == []
        assert (classes.array == RC).any() == (convention.name == "brats2024")
        np.testing.assert_array_equal(convention.encode(classes.array), study.label.read().to_ras().array)


def test_unlabelled_studies_are_read():
    for study in find_studies(real("unlabelled")):
        assert study.label is None
        volume, warnings = study.read(("t1", "flair"))
        assert_upright(volume)
        assert isinstance(volume, Volume)
        assert warnings == []
