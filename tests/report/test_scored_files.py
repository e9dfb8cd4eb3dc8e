import json
from pathlib import Path

import pytest
from studies import small_pairs

from gliomap.evaluate import EvaluateOptions, evaluate
from gliomap.report.scored_files import scored_files

PATTERNS = {"match": "{study}/pred_{model}.nii.gz", "match_truth": "{study}/truth.nii.gz"}
LABELS = {"labels": "brats2021", "truth_labels": "brats2021"}


def scored(folder: Path, count=3, **changes) -> Path:
    """A table of the models a and b on some studies, with its record."""
    small_pairs(folder / "pairs", count)
    return rescored(folder, **changes)


def rescored(folder: Path, table="scores.csv", **changes) -> Path:
    options = {"predictions": folder / "pairs", "truth": folder / "pairs", **PATTERNS, **LABELS} | changes
    asked = EvaluateOptions(output=folder / table, metrics=("dice",), quiet=True, **options)
    return evaluate(asked).scores


def test_the_files_that_were_scored_are_found_again_by_study_and_model(tmp_path):
    found, reasons = scored_files([scored(tmp_path)], ["case_1", "case_2", "no_such_case"])
    assert reasons == []
    assert list(found) == ["case_1", "case_2"]
    assert found["case_1"].truth.label.path == tmp_path / "pairs" / "case_1" / "truth.nii.gz"
    maps = found["case_1"].label_maps
    assert {model: study.label.path.name for model, study in maps.items()} == {
        "a": "pred_a.nii.gz",
        "b": "pred_b.nii.gz",
    }
    assert maps["a"].read_classes()[1].name == "brats2021"


def test_tables_of_one_model_each_are_joined_by_study(tmp_path):
    scored(tmp_path, 2)
    tables = [
        rescored(tmp_path, f"{model}.csv", match=f"{{study}}/pred_{model}.nii.gz", name=model) for model in ("b", "a")
    ]
    found, reasons = scored_files(tables, ["case_0"])
    assert reasons == []
    assert {model: study.label.path.name for model, study in found["case_0"].label_maps.items()} == {
        "b": "pred_b.nii.gz",
        "a": "pred_a.nii.gz",
    }


def test_label_maps_that_are_named_by_their_studies_are_found_too(tmp_path):
    scored(tmp_path, 2)
    predictions = tmp_path / "theirs"
    predictions.mkdir()
    for study in ("case_0", "case_1"):
        (tmp_path / "pairs" / study / "pred_a.nii.gz").rename(predictions / f"{study}.nii.gz")
    found, reasons = scored_files([rescored(tmp_path, predictions=predictions, match=None)], ["case_1"])
    assert reasons == []
    assert {m: s.label.path.name for m, s in found["case_1"].label_maps.items()} == {"theirs": "case_1.nii.gz"}


def test_a_file_that_changed_since_it_was_scored_is_never_taken(tmp_path):
    table = scored(tmp_path)
    pairs = tmp_path / "pairs"
    (pairs / "case_0" / "pred_a.nii.gz").write_bytes((pairs / "case_0" / "pred_b.nii.gz").read_bytes())
    (pairs / "case_1" / "truth.nii.gz").write_bytes((pairs / "case_1" / "pred_b.nii.gz").read_bytes())
    found, reasons = scored_files([table], ["case_0", "case_1"])
    assert {study: list(task.label_maps) for study, task in found.items()} == {"case_0": ["b"]}
    assert reasons == [
        "the prediction of a of case_0 is no longer the file that was scored",
        "the truth of case_1 is no longer the file that was scored",
    ]


def test_why_nothing_is_found_is_said_for_each_table(tmp_path):
    table = scored(tmp_path, 1)
    record = tmp_path / "scores.run.json"
    content = json.loads(record.read_text())

    def reason(**options):
        record.write_text(json.dumps(content | {"options": content["options"] | options}))
        found, (told,) = scored_files([table], ["case_0"])
        assert found == {}
        return told

    assert "is no folder" in reason(truth=str(tmp_path / "gone"))
    assert "no label maps were kept" in reason(predictions="model.safetensors")
    record.write_text("[]")
    assert "is not what gliomap evaluate writes" in scored_files([table], ["case_0"])[1][0]
    record.write_text("no json")
    assert "is not JSON" in scored_files([table], ["case_0"])[1][0]
    record.unlink()
    assert scored_files([table], ["case_0"])[1] == [
        "scores.csv: there is no scores.run.json beside it, which says where its label maps are"
    ]


@pytest.mark.parametrize("part", ["options", "models", "inputs"])
def test_a_record_without_a_part_is_told(tmp_path, part):
    table = scored(tmp_path, 1)
    record = tmp_path / "scores.run.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps({name: value for name, value in content.items() if name != part}))
    found, (told,) = scored_files([table], ["case_0"])
    assert found == {}
    assert "is not what gliomap evaluate writes" in told
