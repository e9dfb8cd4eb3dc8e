import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from models import small_model_file
from studies import brain_mask, nested_tumour, save, small_affine, write_study

from gliomap.errors import InputError, UsageError
from gliomap.files import sha256
from gliomap.longitudinal import MODALITIES, ReportOptions, report, time_axis, titles_of
from gliomap.phantom import PhantomOptions, phantom
from gliomap.report.changes import difference
from gliomap.segment import SegmentOptions, segment

REAL_DATA = Path(os.environ.get("GLIOMAP_REAL_DATA") or Path(__file__).parents[2] / "shared" / "data")
WEEKS = (0, 3, 21, 37, 40, 47)


def label_map(path: Path, ncr: int = 0, ed: int = 0, et: int = 0, rc: int = 0, spacing_mm: float = 10.0) -> Path:
    """So many voxels of each class, in the values of BraTS 2024, on a grid of 1 ml per voxel."""
    labels = np.zeros((12, 12, 12), np.uint8)
    labels.ravel()[200 : 200 + ncr + ed + et + rc] = np.repeat([1, 2, 3, 4], [ncr, ed, et, rc])
    return save(path, labels, small_affine(spacing_mm))


def run(folder: Path, paths: list[Path], labels: str | None = "brats2024", **options: object):
    return report(ReportOptions(tuple(paths), folder, labels=labels, quiet=True, **options))  # pyright: ignore


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_volumes_and_changes_are_those_of_the_label_maps(tmp_path: Path) -> None:
    voxels = [{"ed": 10, "et": 4}, {"ed": 6, "rc": 3}, {"ncr": 1, "ed": 6, "et": 5, "rc": 2}]
    paths = [label_map(tmp_path / f"T{number}.nii.gz", **counts) for number, counts in enumerate(voxels)]
    result = run(tmp_path / "out", paths, weeks=(0.0, 6.0, 12.5))
    lines = {(line["title"], line["region"]): line for line in table(tmp_path / "out" / "volumes.csv")}
    assert [region for title, region in lines if title == "T0"] == ["ET", "TC", "WT", "NCR", "ED", "RC"]
    assert [float(lines[f"T{n}", "WT"]["volume_ml"]) for n in range(3)] == [14.0, 6.0, 12.0]
    assert [float(lines[f"T{n}", "RC"]["volume_ml"]) for n in range(3)] == [0.0, 3.0, 2.0]
    last = lines["T2", "WT"]
    assert (last["since_first_ml"], last["since_first_percent"]) == ("-2.0", "-14.3")
    assert last["since_previous_ml"] == last["since_smallest_ml"] == "6.0"
    assert (last["when"], last["time_point"]) == ("week 12.5", "3")
    assert [lines[f"T{n}", "ET"]["note"] for n in range(3)] == ["", "gone", "new"]
    assert lines["T2", "ET"]["since_previous_percent"] == ""
    assert result.volumes == json.loads((tmp_path / "out" / "run.json").read_text())["volumes"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Whole tumour: from 14.00 ml at week 0 to 12.00 ml at week 12.5, -2.00 ml (-14.3 %)." in page.replace(
        "\N{MINUS SIGN}", "-"
    )
    lesions = table(tmp_path / "out" / "lesions.csv")
    assert float(lesions[0]["WT_ml"]) == sum(float(line["WT_ml"]) for line in lesions if line["title"] == "T0") == 14.0
    assert float(lesions[0]["product_mm2"]) == pytest.approx(
        float(lesions[0]["largest_diameter_mm"]) * float(lesions[0]["perpendicular_diameter_mm"]), rel=0.01
    )


def test_time_points_on_different_grids_are_compared_in_ml(tmp_path: Path) -> None:
    coarse = label_map(tmp_path / "coarse.nii.gz", et=2, spacing_mm=20.0)
    fine = label_map(tmp_path / "fine.nii.gz", et=16)
    run(tmp_path / "out", [coarse, fine])
    assert {line["volume_ml"] for line in table(tmp_path / "out" / "volumes.csv") if line["region"] == "ET"} == {"16.0"}
    assert "different grids and nothing was registered" in (tmp_path / "out" / "report.html").read_text()
    again = run(tmp_path / "again", [fine, label_map(tmp_path / "other.nii.gz", et=3)]).page.read_text()
    assert "the same grid, and their crosshairs move together" in again


def test_a_segmentation_a_labelled_study_and_a_label_map_make_one_report(tmp_path: Path) -> None:
    (study,) = phantom(PhantomOptions(tmp_path / "data", size=48, quiet=True))
    model = small_model_file(tmp_path / "model.safetensors")
    done = segment(
        SegmentOptions(
            tmp_path / "data" / study, tmp_path / "T0", model=model, engine="torch", device="cpu", quiet=True
        )
    ).done[0]
    folder = tmp_path / "data" / study
    paths = [tmp_path / "T0", folder, folder / f"{study}_seg.nii.gz"]
    result = run(tmp_path / "out", paths, labels=None)
    volumes_ml = {line["region"]: line["volume_ml"] for line in result.volumes if line["time_point"] == 1}
    assert volumes_ml == {name: pytest.approx(ml, abs=2e-3) for name, ml in done.volumes_ml.items()}
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert [list(point["inputs"]) for point in record["time_points"]] == [
        ["t1c", "flair", "label map"], ["t1c", "flair", "label map"], ["label map"]
    ]  # fmt: skip
    for point in record["time_points"]:
        assert all(sha256(Path(file["path"])) == file["sha256"] for file in point["inputs"].values())
    assert result.warnings == [f"{study}_seg has the same label map as {study}, byte for byte: is it the right file?"]
    page = result.page.read_text()
    assert len(re.findall(r'data-volume="\d-(?:image|classes)', page)) == 3 + 2 + 2 + 1  # the last has a black image
    assert set(MODALITIES) == {"flair", "t1c"}


def test_axis_of_time_is_in_dates_weeks_or_one_after_the_other(tmp_path: Path) -> None:
    paths = (Path("a"), Path("b"), Path("c"))
    options = ReportOptions(paths, tmp_path, dates=("2023-12-29", "2024-01-05", "2024-01-05"))
    assert time_axis(options).places == (0.0, 1.0, 1.0)
    assert time_axis(ReportOptions(paths, tmp_path, weeks=(-2.0, 0.0, 3.5))).words == ("-2", "0", "3.5")
    assert time_axis(ReportOptions(paths, tmp_path)) == ((1.0, 2.0, 3.0), ("1", "2", "3"), "time point")
    for wrong, words in (
        ({"dates": ("2024-01-05", "2024-01-06")}, "2 entries and there are 3"),
        ({"dates": ("2024-01-05", "5.3.2024", "2024-04-01")}, "cannot read the date '5.3.2024'"),
        ({"weeks": (0.0, 3.0, 2.0)}, "back in time"),
        ({"weeks": (0.0, 3.0, float("nan"))}, "back in time"),
        ({"weeks": (0.0, 1.0, 2.0), "dates": ("2024-01-05",) * 3}, "give one"),
    ):
        with pytest.raises(UsageError, match=words):
            time_axis(ReportOptions(paths, tmp_path, **wrong))


def test_titles_are_names_with_as_much_of_the_path_as_tells_them_apart() -> None:
    assert titles_of([Path("out/T0"), Path("out/T1/")]) == ["T0", "T1"]
    assert titles_of([Path("T0/seg.nii.gz"), Path("T1/seg.nii.gz")]) == ["T0/seg", "T1/seg"]
    assert titles_of([Path("a"), Path("b"), Path("a")]) == ["a (1)", "b (2)", "a (3)"]


def test_errors_name_the_time_point_and_what_to_do(tmp_path: Path) -> None:
    good = label_map(tmp_path / "T0.nii.gz", ncr=1, ed=1, rc=1)  # values that leave no choice
    write_study(tmp_path / "both", "brats2021", "BraTS2021_00001")
    write_study(tmp_path / "both", "brats2021", "BraTS2021_00002")
    unlabelled = tmp_path / "unlabelled"
    for name in ("t1", "flair"):
        save(unlabelled / f"{name}.nii.gz", brain_mask().astype(np.int16))
    ambiguous = save(tmp_path / "T9.nii.gz", nested_tumour())
    for path, words in (
        (tmp_path / "nowhere", "time point 2, .*nowhere.*does not exist"),
        (tmp_path / "both", "holds 2 studies, such as BraTS2021_00001.*give the folder of one"),
        (unlabelled, "no label map; segment it first"),
        (ambiguous, "time point 2, .*T9.*--labels NAME"),
    ):
        with pytest.raises(InputError, match=words):
            run(tmp_path / "out", [good, path], labels=None if path == ambiguous else "brats2024")
    with pytest.raises(UsageError, match="two time points"):
        run(tmp_path / "out", [good])
    assert not (tmp_path / "out").exists()


def test_patients_that_names_tell_apart_are_told(tmp_path: Path) -> None:
    names = ("BraTS-GLI-00005-100-seg", "BraTS-GLI-00005-101-seg", "BraTS-GLI-00006-100-seg")
    paths = [label_map(tmp_path / f"{name}.nii.gz", et=number) for number, name in enumerate(names, start=1)]
    assert run(tmp_path / "one", paths[:2]).warnings == []
    (warning,) = run(tmp_path / "two", paths[1:]).warnings
    assert "several patients, " in warning


def test_outputs_of_other_commands_are_not_written_over(tmp_path: Path) -> None:
    paths = [label_map(tmp_path / f"T{number}.nii.gz", et=3 + number) for number in range(2)]
    run(tmp_path / "out", paths)
    run(tmp_path / "out", paths)
    (tmp_path / "out" / "run.json").write_text('{"verb": "segment"}')
    with pytest.raises(InputError, match="output of another command"):
        run(tmp_path / "out", paths)


def test_six_real_examinations_have_the_volumes_that_their_authors_counted(tmp_path: Path) -> None:
    folder = REAL_DATA / "predictions" / "AUDIT"
    if not folder.is_dir():
        pytest.skip("the real label maps predictions/AUDIT are not there; say where with GLIOMAP_REAL_DATA")
    rows = table(folder / "extracted_information_LUMIERE.csv")
    paths = [folder / f"LUMIERE__Patient-002-week-{week:03d}_pred__SegResNet.nii.gz" for week in WEEKS]
    result = run(tmp_path / "out", paths, labels="audit", weeks=tuple(map(float, WEEKS)))
    found = {(line["when"], line["region"]): line for line in result.volumes}
    for row in (row for row in rows if row["model"] == "SegResNet" and row["ID"].startswith("Patient-002-")):
        week, name = int(row["ID"][-3:]), {"ENH": "ET", "NEC": "NCR", "EDE": "ED"}[row["region"]]
        line = found[f"week {week}", name]
        assert line["volume_ml"] == pytest.approx(float(row["SIZE"]) / 1000, abs=1e-9)
        first = found["week 0", name]["volume_ml"]
        if week:
            assert line["since_first_percent"] == round(difference(first, line["volume_ml"]).percent, 1)
    assert len(found) == len(WEEKS) * 5
    parts = [found["week 47", name]["volume_ml"] for name in ("ET", "NCR", "ED")]
    assert found["week 47", "WT"]["volume_ml"] == pytest.approx(sum(parts), abs=1e-9)
