"""A model that knows missing modalities, from the files to the page."""

import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from models import tiny_model
from studies import brain_images, loose_study

from gliomap.data.study import MODALITIES
from gliomap.errors import InputError
from gliomap.evaluate import EvaluateOptions, evaluate
from gliomap.model_file import save_model
from gliomap.phantom import PhantomOptions, phantom
from gliomap.segment import SegmentOptions, segment

pytestmark = pytest.mark.usefixtures("no_cache")

ONE_OF = ("t1c", "flair")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    made = tiny_model("attention_resunet")
    save_model(tmp_path / "model.safetensors", replace(made.recipe, needs_one_of=ONE_OF), made.weights, {})
    return tmp_path / "model.safetensors"


def study_without(folder: Path, *missing: str) -> Path:
    (study,) = phantom(PhantomOptions(folder, studies=1, layout="loose", size=32, quiet=True))
    for modality in missing:
        (folder / study / f"{modality}.nii.gz").unlink()
    return folder / study


@pytest.mark.parametrize("missing", [("t1",), ("t1", "t2"), ("t1", "t2", "flair"), ("t1", "t1c", "t2")])
def test_what_is_missing_is_zero_and_told(tmp_path, missing):
    images = brain_images()
    study = loose_study(tmp_path, images)
    for modality in missing:
        del study.images[modality]
    volume, warnings = study.read(MODALITIES, ONE_OF)
    there = [modality not in missing for modality in MODALITIES]
    np.testing.assert_array_equal(volume.array[there], images[there])
    assert not volume.array[[not here for here in there]].any()
    assert [w for w in warnings if f"{', '.join(missing)} is missing" in w]


def test_a_study_without_any_of_those_is_refused(tmp_path):
    study = loose_study(tmp_path)
    for modality in ONE_OF:
        del study.images[modality]
    with pytest.raises(
        InputError, match="t1c, flair is missing: the model needs t1c or flair at least and this study has t1, t2"
    ):
        study.read(MODALITIES, ONE_OF)


def test_complete_studies_are_read_without_a_warning(tmp_path):
    assert loose_study(tmp_path).read(MODALITIES, ONE_OF)[1] == []


def test_segmenting_without_the_first_modality(tmp_path, model):
    study = study_without(tmp_path / "data", "t1")
    result = segment(SegmentOptions(study, tmp_path / "out", model=model, device="cpu", engine="torch", quiet=True))
    assert any("t1 is missing" in warning for warning in result.done[0].warnings)
    source, made = nib.load(study / "t1c.nii.gz"), nib.load(tmp_path / "out" / "segmentation.nii.gz")
    assert made.shape == source.shape
    np.testing.assert_array_equal(made.affine, source.affine)
    page = (tmp_path / "out" / "report.html").read_text()
    assert len(re.findall(r'data-volume="0-image-\d"', page)) == 3
    assert sorted(result.done[0].record["inputs"]) == ["flair", "label map", "t1c", "t2"]


def test_what_a_missing_modality_costs_is_told_from_the_card(tmp_path, model):
    def dice(value: float) -> dict[str, dict[str, float]]:
        return {region: {"dice": value, "studies": 43} for region in ("ET", "TC", "WT")}

    made = tiny_model("attention_resunet")
    card = {"scores": {"all": dice(0.8), "without_t1": dice(0.7), "without_t2": dice(0.6)}}
    save_model(model, replace(made.recipe, needs_one_of=ONE_OF), made.weights, card)
    study = study_without(tmp_path / "data", "t1")
    options = SegmentOptions(
        study, tmp_path / "out", model=model, device="cpu", engine="torch", report=False, quiet=True
    )
    (told,) = [w for w in segment(options).done[0].warnings if "instead of" in w]
    assert told == (
        "without t1 this model's mean Dice on 43 unseen studies was "
        "ET 0.70 instead of 0.80, TC 0.70 instead of 0.80, WT 0.70 instead of 0.80"
    )


def test_the_map_depends_on_what_is_there(tmp_path, model):
    maps = []
    for name, missing in (("whole", ()), ("less", ("t2",))):
        study = study_without(tmp_path / name, *missing)
        result = segment(
            SegmentOptions(study, tmp_path / f"{name}_out", model=model, device="cpu", engine="torch", quiet=True)
        )
        maps.append(result.done[0].volumes_ml)
    assert maps[0] != maps[1]


def test_evaluating_a_model_reads_such_studies_too(tmp_path, model):
    study_without(tmp_path / "data", "t1")
    result = evaluate(EvaluateOptions(model, tmp_path / "data", tmp_path / "scores.csv", device="cpu", quiet=True))
    assert not result.failed
    assert any("t1 is missing" in warning for warning in result.warnings)
