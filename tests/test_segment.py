import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from measured import peak_memory_gb
from models import small_model_file

from gliomap.data.datasets import find_studies
from gliomap.data.study import Study
from gliomap.data.writing import LAYOUTS
from gliomap.errors import InputError, Interrupted, UsageError
from gliomap.model_file import load_model
from gliomap.phantom import PhantomOptions, phantom
from gliomap.preprocess import brain_box
from gliomap.recipe import Preprocessing
from gliomap.segment import SegmentOptions, segment
from gliomap.segmenting import (
    Asked,
    build_segmenter,
    read_study,
    segment_study,
    study_files,
    study_report,
    without_surroundings,
)


def _phantom(folder: Path, layout: str = "brats2021", studies: int = 1) -> list[str]:
    return phantom(PhantomOptions(folder, studies=studies, layout=layout, size=48, quiet=True))


@pytest.fixture(scope="module", name="model")
def _model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model_file(tmp_path_factory.mktemp("model") / "model.safetensors")


def _segment(model: Path | None, study: Path, output: Path, **changes: object):
    engine = "auto" if model is None else "torch"
    return segment(SegmentOptions(study, output, model=model, device="cpu", engine=engine, quiet=True, **changes))  # pyright: ignore


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_segmented_on_its_own_grid_in_its_own_convention(
    model: Path, layout: str, tmp_path: Path
) -> None:
    (study,) = _phantom(tmp_path / "data", layout)
    result = _segment(model, tmp_path / "data", tmp_path / "out", score=True)
    assert [r.study for r in result.done] == [study]
    (found,) = find_studies(tmp_path / "data")
    source = nib.load(found.images["flair"].path)
    written = nib.load(tmp_path / "out" / study / "segmentation.nii.gz")
    assert written.shape == source.shape[:3]
    np.testing.assert_array_equal(written.affine, source.affine)
    for code in ("qform_code", "sform_code"):
        assert written.header[code] == source.header[code]
    record = json.loads((tmp_path / "out" / "run.json").read_text())["studies"][0]
    assert set(np.unique(written.dataobj)) <= {0, *map(int, record["labels"])}
    expected = found.convention.values if found.convention else ((1, 1), (2, 2), (4, 3))
    assert record["labels"] == {str(v): {1: "NCR", 2: "ED", 3: "ET", 4: "RC"}[c] for v, c in expected}


def test_a_single_study_leaves_its_files_in_the_output_itself(model: Path, tmp_path: Path) -> None:
    (study,) = _phantom(tmp_path / "data")
    result = _segment(model, tmp_path / "data" / study, tmp_path / "out", score=True)
    assert set(os.listdir(tmp_path / "out")) == {"segmentation.nii.gz", "report.html", "scores.csv", "run.json"}
    record = json.loads((tmp_path / "out" / "run.json").read_text())["studies"][0]
    assert record["volumes_ml"] == result.done[0].volumes_ml
    voxel_ml = (240 / 48) ** 3 / 1000
    labels = np.asarray(nib.load(tmp_path / "out" / "segmentation.nii.gz").dataobj)
    assert result.done[0].volumes_ml["WT"] == pytest.approx(np.count_nonzero(labels) * voxel_ml, rel=1e-3)
    assert result.done[0].volumes_ml["ET"] == pytest.approx((labels == 4).sum() * voxel_ml, rel=1e-3)


def test_the_result_is_the_same_from_files_given_one_by_one(model: Path, tmp_path: Path) -> None:
    (study,) = _phantom(tmp_path / "data")
    folder = tmp_path / "data" / study
    files = {
        m: folder / f"{study}_{word}.nii.gz"
        for m, word in zip(("t1", "t1c", "t2", "flair"), ("t1", "t1ce", "t2", "flair"), strict=True)
    }
    _segment(model, folder, tmp_path / "a")
    segment(SegmentOptions(None, tmp_path / "b", files, model=model, device="cpu", engine="torch", quiet=True))
    whole, single = ((tmp_path / name / "segmentation.nii.gz").read_bytes() for name in "ab")
    assert whole == single


def test_output_labels_change_the_values_and_not_the_tissue(model: Path, tmp_path: Path) -> None:
    (study,) = _phantom(tmp_path / "data")
    _segment(model, tmp_path / "data" / study, tmp_path / "a")
    _segment(model, tmp_path / "data" / study, tmp_path / "b", output_labels="msd")
    a, b = (np.asarray(nib.load(tmp_path / n / "segmentation.nii.gz").dataobj) for n in "ab")
    np.testing.assert_array_equal(np.array([0, 2, 1, 0, 3])[a], b)


def test_the_same_study_gives_the_same_bytes_with_the_shipped_model(tmp_path: Path) -> None:
    (study,) = _phantom(tmp_path / "data")
    for name in "ab":
        _segment(None, tmp_path / "data" / study, tmp_path / name)
    a, b = ((tmp_path / n / "segmentation.nii.gz").read_bytes() for n in "ab")
    assert a == b


def test_a_bad_study_alone_is_refused_and_nothing_is_written(model: Path, tmp_path: Path) -> None:
    (study,) = _phantom(tmp_path / "data")
    (tmp_path / "data" / study / f"{study}_t1.nii.gz").unlink()
    with pytest.raises(InputError, match="t1 is missing"):
        _segment(model, tmp_path / "data" / study, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (study,) = _phantom(tmp_path / "data")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        _segment(model, tmp_path / "data" / study, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_segment_wrote_is_never_taken_for_the_truth(model: Path, tmp_path: Path) -> None:
    (study,) = _phantom(tmp_path / "data")
    (tmp_path / "data" / study / f"{study}_seg.nii.gz").unlink()
    inside = tmp_path / "data" / study / "out"
    _segment(model, tmp_path / "data" / study, inside)
    first = (inside / "segmentation.nii.gz").read_bytes()
    again = _segment(model, tmp_path / "data" / study, inside, score=True)
    assert again.done[0].scores == []
    assert any("no label map" in text for text in again.done[0].warnings)
    assert (inside / "segmentation.nii.gz").read_bytes() == first
    assert [s.label for s in find_studies(tmp_path / "data")] == [None]


def test_what_a_killed_run_left_is_never_taken_for_the_truth(model: Path, tmp_path: Path) -> None:
    studies = _phantom(tmp_path / "data", studies=2)
    for study in studies:
        (tmp_path / "data" / study / f"{study}_seg.nii.gz").unlink()
    out = tmp_path / "data" / "out"
    _segment(model, tmp_path / "data", out, uncertainty=True)
    whole = find_studies(tmp_path / "data", outputs=True)
    (out / "run.json").unlink()  # written last
    assert [(s.id, s.label) for s in find_studies(tmp_path / "data")] == [(study, None) for study in sorted(studies)]
    assert find_studies(tmp_path / "data", outputs=True) == whole
    inside = out / sorted(studies)[0]
    assert [s.id for s in find_studies(inside, outputs=True)] == [inside.name]
    renamed = inside.rename(out / "renamed")
    assert [s.label for s in find_studies(tmp_path / "data")] == [None, None]
    renamed.rename(inside)
    assert [s.label.path for s in whole if s.label] == [
        out / study / "segmentation.nii.gz" for study in sorted(studies)
    ]


def test_a_folder_in_which_every_study_fails_is_refused_and_nothing_is_written(model: Path, tmp_path: Path) -> None:
    for study in _phantom(tmp_path / "data", studies=2):
        (tmp_path / "data" / study / f"{study}_t1.nii.gz").unlink()
    with pytest.raises(InputError, match="none of the 2 studies"):
        _segment(model, tmp_path / "data", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_label_map_does_not_cost_the_segmentation(model: Path, tmp_path: Path) -> None:
    (study,) = _phantom(tmp_path / "data", "loose")
    (tmp_path / "data" / study / "seg.nii.gz").write_bytes(b"not an image")
    (result,) = _segment(model, tmp_path / "data" / study, tmp_path / "out").done
    assert any("its own label map was not used" in text for text in result.warnings)


def test_scores_of_another_run_are_not_left_beside_a_new_map(model: Path, tmp_path: Path) -> None:
    first, second = _phantom(tmp_path / "data", studies=2)
    _segment(model, tmp_path / "data" / first, tmp_path / "out", score=True)
    _segment(model, tmp_path / "data" / second, tmp_path / "out")
    assert not (tmp_path / "out" / "scores.csv").exists()


def test_without_a_report_no_page_is_made_and_that_of_an_earlier_run_goes(model: Path, tmp_path: Path) -> None:
    (study,) = _phantom(tmp_path / "data")
    _segment(model, tmp_path / "data" / study, tmp_path / "out", uncertainty=True)
    page = (tmp_path / "out" / "report.html").read_bytes()
    _segment(model, tmp_path / "data" / study, tmp_path / "out", report=False)
    assert set(os.listdir(tmp_path / "out")) == {"segmentation.nii.gz", "run.json"}
    (tmp_path / "out" / "report.html").write_bytes(page)  # no longer this study's
    _segment(model, tmp_path / "data" / study, tmp_path / "out", report=False)
    assert (tmp_path / "out" / "report.html").read_bytes() == page


def test_a_table_of_somebody_else_is_never_removed(model: Path, tmp_path: Path) -> None:
    (study,) = _phantom(tmp_path / "data")
    _segment(model, tmp_path / "data" / study, tmp_path / "out", score=True)
    (tmp_path / "out" / "scores.csv").write_text("my own table")
    (tmp_path / "out" / "volumes.csv").write_text("another")
    _segment(model, tmp_path / "data" / study, tmp_path / "out")
    assert (tmp_path / "out" / "scores.csv").read_text() == "my own table"
    assert (tmp_path / "out" / "volumes.csv").read_text() == "another"


def test_an_interrupted_folder_keeps_and_records_what_is_done(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = _phantom(tmp_path / "data", studies=2)
    original = Study.read

    def read(study: Study, *arguments: object, **options: object) -> object:
        if study.id == second:
            raise KeyboardInterrupt
        return original(study, *arguments, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Study, "read", read)
    with pytest.raises(Interrupted, match="1 of 2 studies are done"):
        _segment(model, tmp_path / "data", tmp_path / "out")
    assert [s.id for s in find_studies(tmp_path / "out", outputs=True)] == [first]


def test_nothing_to_segment_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to segment"):
        segment(SegmentOptions(None, tmp_path / "out"))
    with pytest.raises(UsageError, match="not both"):
        segment(SegmentOptions(tmp_path, tmp_path / "out", {"t1": tmp_path}))


def test_a_study_named_as_markup_is_text_in_the_report(model: Path, tmp_path: Path) -> None:
    (study,) = _phantom(tmp_path / "data", "loose")
    hostile = tmp_path / "data" / "<script>alert(1)<script>"
    (tmp_path / "data" / study).rename(hostile)
    _segment(model, hostile, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_where_it_is_in_doubt_is_written_on_the_studys_grid_if_asked(tmp_path: Path) -> None:
    (study,) = _phantom(tmp_path / "data")
    result = _segment(None, tmp_path / "data" / study, tmp_path / "out", preset="accurate", uncertainty=True)
    source = nib.load(tmp_path / "out" / "segmentation.nii.gz")
    entropy, disagreement = (nib.load(tmp_path / "out" / f"{n}.nii.gz") for n in ("entropy", "disagreement"))
    for image in (entropy, disagreement):
        assert image.shape == source.shape
        np.testing.assert_array_equal(image.affine, source.affine)
        assert 0 < image.get_fdata().max() <= 1
    assert np.isin(np.round(disagreement.get_fdata() * 8, 1), range(8)).all(), "eight flips have an opinion"
    (record,) = json.loads((tmp_path / "out" / "run.json").read_text())["studies"]
    assert {"entropy.nii.gz", "disagreement.nii.gz"} <= set(record["outputs"])
    for region, (low, high) in record["volume_ranges_ml"].items():
        assert low <= high
        assert low <= result.done[0].volumes_ml[region] * 1.1
    _segment(None, tmp_path / "data" / study, tmp_path / "plain")
    assert not (tmp_path / "plain" / "entropy.nii.gz").exists()


def test_what_post_processing_changed_is_recorded_and_shown(tmp_path: Path) -> None:
    (study,) = _phantom(tmp_path / "data")
    strict = small_model_file(
        tmp_path / "strict.safetensors",
        'postprocessing=[{"name":"remove_small_components","settings":{"min_ml":3000}}]',
    )
    _segment(strict, tmp_path / "data" / study, tmp_path / "out")
    (record,) = json.loads((tmp_path / "out" / "run.json").read_text())["studies"]
    assert {change["step"] for change in record["postprocessing"]} == {"remove_small_components"}
    assert record["volumes_ml"]["WT"] == 0
    assert "was removed" in (tmp_path / "out" / "report.html").read_text()


def test_an_unknown_preset_is_wrong_usage(model: Path, tmp_path: Path) -> None:
    _phantom(tmp_path / "data")
    with pytest.raises(UsageError, match="fast, balanced, accurate"):
        _segment(model, tmp_path / "data", tmp_path / "out", preset="best")


def test_a_study_of_usual_size_is_segmented_within_the_memory_that_is_allowed(tmp_path: Path) -> None:
    (study,) = phantom(PhantomOptions(tmp_path / "data", studies=1, size=240, quiet=True))
    model = small_model_file(tmp_path / "model.safetensors", "postprocessing=[]")
    peaks_gb = []
    for limit in (["--max-memory", "0.9"], []):
        options = ["-o", tmp_path / "out", "-m", model, "--engine", "torch", "--quiet", *limit]
        command = [sys.executable, "-m", "gliomap", "segment", tmp_path / "data" / study, *options]
        peaks_gb.append(peak_memory_gb(command))
    assert peaks_gb[0] < 0.9 < peaks_gb[1]


@pytest.mark.parametrize("uncertainty", [False, True])
def test_what_surrounds_the_brain_is_not_kept_and_changes_nothing(
    model: Path, tmp_path: Path, *, uncertainty: bool
) -> None:
    _phantom(tmp_path / "data")
    (study,) = find_studies(tmp_path / "data")
    options = SegmentOptions(None, tmp_path, engine="torch", device="cpu", uncertainty=uncertainty, report=False)
    asked = Asked(load_model(model), "", options, single=True)
    whole = read_study(study, asked)
    brain = without_surroundings(whole, asked.model.recipe)
    assert brain.volume.shape == brain_box(whole.volume).shape != whole.volume.shape
    reports = []
    for read in (whole, brain):
        segmented = segment_study(read, build_segmenter(asked.model, options), uncertainty=uncertainty)
        result, files = study_files(segmented, asked)
        reports.append((study_report(result, segmented, asked), files))
    (one, its_files), (other, other_files) = reports
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.classes, other.classes)
    np.testing.assert_array_equal(one.affine, other.affine)
    assert one.volumes_ml == other.volumes_ml
    assert all(its_files[path] == other_files[path] for path in its_files if path.name.endswith(".nii.gz"))
    for name, doubt in one.uncertainty.items():
        np.testing.assert_array_equal(doubt, other.uncertainty[name])


def test_all_of_a_study_is_kept_for_recipes_that_are_shown_more_than_the_brain(model: Path, tmp_path: Path) -> None:
    _phantom(tmp_path / "data")
    (study,) = find_studies(tmp_path / "data")
    asked = Asked(load_model(model), "", SegmentOptions(None, tmp_path), single=True)
    read = read_study(study, asked)
    recipe = asked.model.recipe
    assert without_surroundings(read, replace(recipe, preprocessing=Preprocessing(grid=(32, 32, 32)))) is read


def test_segmenting_without_a_page_or_scores_imports_nothing_that_only_these_need() -> None:
    code = "import sys, gliomap.segment; print([m for m in ('jinja2', 'PIL', 'scipy.spatial') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"
