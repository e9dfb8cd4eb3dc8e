import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import psutil
import pytest
from models import small_model_file
from studies import small_pairs, write_study

from gliomap import scoring
from gliomap.calibration import calibrate
from gliomap.classes import region_mask
from gliomap.cli.evaluate import evaluate as command
from gliomap.data.datasets import find_studies
from gliomap.engines import load_engines
from gliomap.errors import InputError, UsageError
from gliomap.evaluate import EvaluateOptions, evaluate, summarise
from gliomap.files import json_bytes, read_json, sha256, write_file
from gliomap.model_file import load_model, save_model
from gliomap.phantom import PhantomOptions, phantom
from gliomap.rows import CALIBRATION_METRICS, PROTOCOL_METRICS
from gliomap.segment import SegmentOptions, segment
from gliomap.segmenter import Segmenter

pytestmark = pytest.mark.usefixtures("no_cache")

DEFAULT = Path(scoring.__file__).parent / "weights" / "default.safetensors"


def _phantoms(folder: Path, layout: str = "brats2021", studies: int = 2, kind: str | None = None) -> list[str]:
    return phantom(PhantomOptions(folder, studies=studies, layout=layout, size=48, kind=kind, quiet=True))


def _evaluate(predictions: Path, truth: Path, output: Path, **changes: object):
    options = EvaluateOptions(predictions, truth, output, device="cpu", quiet=True, **changes)  # pyright: ignore
    return evaluate(options)


def _values(rows: list, metric: str) -> list[float | None]:
    return [r.value for r in rows if r.metric == metric]


@pytest.mark.parametrize("layout", ["brats2021", "brats2023", "msd", "nnunet"])
def test_a_truth_against_itself_has_dice_1_and_hd95_0_everywhere(layout: str, tmp_path: Path) -> None:
    _phantoms(tmp_path / "data", layout)
    rows = list(_evaluate(tmp_path / "data", tmp_path / "data", tmp_path / "scores.csv").rows)
    assert _values(rows, "dice") == [1.0] * 6
    assert _values(rows, "hd95") == [0.0] * 6


def test_conventions_of_prediction_and_truth_may_differ(tmp_path: Path) -> None:
    (study,) = _phantoms(tmp_path / "data", studies=1)
    truth = nib.load(tmp_path / "data" / study / f"{study}_seg.nii.gz")
    values = np.array([0, 2, 1, 0, 3], np.uint8)[np.asarray(truth.dataobj).astype(int)]
    (tmp_path / "predictions").mkdir()
    nib.save(nib.Nifti1Image(values, truth.affine), tmp_path / "predictions" / f"{study}.nii.gz")
    with pytest.raises(InputError, match="Nothing is guessed"):
        _evaluate(tmp_path / "predictions", tmp_path / "data", tmp_path / "scores.csv")
    rows = list(_evaluate(tmp_path / "predictions", tmp_path / "data", tmp_path / "scores.csv", labels="msd").rows)
    assert _values(rows, "dice") == [1.0] * 3


def test_what_segment_wrote_is_found_with_its_convention(tmp_path: Path) -> None:
    _phantoms(tmp_path / "data")
    segment(
        SegmentOptions(tmp_path / "data", tmp_path / "out", output_labels="msd", device="cpu", quiet=True, score=True)
    )
    rows = list(_evaluate(tmp_path / "out", tmp_path / "data", tmp_path / "scores.csv").rows)
    lines = (tmp_path / "out" / "scores.csv").read_text().splitlines()[1:]
    assert [line.split(",")[4] for line in lines] == ["" if r.value is None else f"{r.value:.6g}" for r in rows]


def test_a_missing_prediction_is_counted_and_shown(tmp_path: Path) -> None:
    first, second = _phantoms(tmp_path / "data")
    segment(SegmentOptions(tmp_path / "data" / first, tmp_path / "out", device="cpu", quiet=True))
    result = _evaluate(tmp_path / "out", tmp_path / "data", tmp_path / "scores.csv")
    assert list(result.failed) == [second]
    assert [r.study for r in result.rows if r.status == "failed"] == [second]
    assert summarise(result.rows, "dice")[result.models[0], "WT"][2:] == (1, 1)


def test_a_prediction_on_another_grid_is_refused(tmp_path: Path) -> None:
    (study,) = _phantoms(tmp_path / "data", studies=1)
    truth = nib.load(tmp_path / "data" / study / f"{study}_seg.nii.gz")
    moved = truth.affine.copy()
    moved[0, 3] += 5
    (tmp_path / "predictions").mkdir()
    nib.save(nib.Nifti1Image(np.asarray(truth.dataobj), moved), tmp_path / "predictions" / f"{study}_seg.nii.gz")
    with pytest.raises(InputError, match=r"5\.0 mm apart"):
        _evaluate(tmp_path / "predictions", tmp_path / "data", tmp_path / "scores.csv")
    assert not (tmp_path / "scores.csv").exists()


def test_a_flipped_array_with_its_affine_is_the_same_prediction(tmp_path: Path) -> None:
    (study,) = _phantoms(tmp_path / "data", studies=1)
    truth = nib.load(tmp_path / "data" / study / f"{study}_seg.nii.gz")
    flipped = nib.as_closest_canonical(truth)
    assert not np.array_equal(flipped.affine, truth.affine)
    (tmp_path / "predictions").mkdir()
    nib.save(flipped, tmp_path / "predictions" / f"{study}_seg.nii.gz")
    rows = list(_evaluate(tmp_path / "predictions", tmp_path / "data", tmp_path / "scores.csv").rows)
    assert _values(rows, "dice") == [1.0] * 3


def test_two_files_for_one_prediction_are_refused(tmp_path: Path) -> None:
    (study,) = _phantoms(tmp_path / "data", studies=1)
    truth = tmp_path / "data" / study / f"{study}_seg.nii.gz"
    for model in ("a", "b"):
        (tmp_path / "predictions" / model).mkdir(parents=True)
        (tmp_path / "predictions" / model / f"{study}.nii.gz").write_bytes(truth.read_bytes())
    with pytest.raises(InputError, match="2 files could be its label map"):
        _evaluate(tmp_path / "predictions", tmp_path / "data", tmp_path / "scores.csv")


def test_a_single_label_map_is_not_assumed_to_share_the_truths_convention(tmp_path: Path) -> None:
    (study,) = _phantoms(tmp_path / "data", "brats2023", studies=1)
    prediction = tmp_path / "prediction.nii.gz"
    prediction.write_bytes((tmp_path / "data" / study / f"{study}-seg.nii.gz").read_bytes())
    with pytest.raises(InputError, match="Nothing is guessed"):
        _evaluate(prediction, tmp_path / "data" / study, tmp_path / "scores.csv")
    rows = list(_evaluate(prediction, tmp_path / "data" / study, tmp_path / "scores.csv", labels="brats2023").rows)
    assert _values(rows, "dice") == [1.0] * 3


def test_an_implausible_convention_is_warned_of(tmp_path: Path) -> None:
    (study,) = _phantoms(tmp_path / "data", "nnunet", studies=1)
    result = _evaluate(tmp_path / "data", tmp_path / "data", tmp_path / "scores.csv", truth_labels="msd", labels="msd")
    assert any("looks implausible" in text for text in result.warnings)
    assert study in result.warnings[0]


def test_the_table_needs_a_file_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        _evaluate(tmp_path, tmp_path, tmp_path)


def test_a_region_that_both_lack_scores_1_and_0(tmp_path: Path) -> None:
    _phantoms(tmp_path / "data", studies=1, kind="no_enhancement")
    rows = list(_evaluate(tmp_path / "data", tmp_path / "data", tmp_path / "scores.csv").rows)
    et = {r.metric: r for r in rows if r.region == "ET"}
    assert (et["dice"].value, et["hd95"].value, et["dice"].status) == (1.0, 0.0, "both_empty")


def _table(folder: Path, output: Path, **changes: object) -> bytes:
    _evaluate(folder, folder, output, match="{study}/pred_{model}.nii.gz", **changes)
    return output.read_bytes()


def test_a_pattern_scores_every_model_and_counts_what_one_lacks(tmp_path: Path) -> None:
    first, *_ = small_pairs(tmp_path / "data", 3, models=("a", "b_c"))
    (tmp_path / "data" / first / "pred_b_c.nii.gz").unlink()
    result = _evaluate(tmp_path / "data", tmp_path / "data", tmp_path / "s.csv", match="{study}/pred_{model}.nii.gz")
    assert result.models == ("a", "b_c")
    assert list(result.failed) == [f"{first}, b_c"]
    rows = list(result.rows)
    assert {(r.study, r.model) for r in rows if r.status == "failed"} == {(first, "b_c")}
    assert [s.studies for s in summarise(rows, "dice").values()] == [3, 3, 3, 2, 2, 2]
    with pytest.raises(UsageError, match="leave out --name"):
        _table(tmp_path / "data", tmp_path / "s.csv", name="mine")


def test_truths_and_studies_may_be_chosen(tmp_path: Path) -> None:
    ids = small_pairs(tmp_path / "data", 3)
    changes = {"match": "{study}/pred_{model}.nii.gz", "match_truth": "{study}/truth.nii.gz"}
    data = tmp_path / "data"
    rows = list(_evaluate(data, data, tmp_path / "s.csv", studies=(ids[1],), **changes).rows)
    assert {r.study for r in rows} == {ids[1]}
    folds = tmp_path / "folds.json"
    write_file(folds, json_bytes({"folds": [ids[:1], ids[1:]]}))
    rows = list(_evaluate(data, data, tmp_path / "s.csv", folds=folds, fold=1, **changes).rows)
    assert {r.study for r in rows} == set(ids[1:])
    with pytest.raises(UsageError, match="not both"):
        _evaluate(data, data, tmp_path / "s.csv", folds=folds, fold=1, studies=(ids[0],), **changes)
    with pytest.raises(UsageError, match="no labelled study nobody; it has 3, such as "):
        _evaluate(data, data, tmp_path / "s.csv", studies=("nobody",), **changes)


def test_what_is_measured_is_what_is_asked_with_the_volumes(tmp_path: Path) -> None:
    small_pairs(tmp_path / "data", 1)
    match = "{study}/pred_{model}.nii.gz"
    data = tmp_path / "data"
    asked = ("iou", "nsd_2mm", "mean_iou_of_classes")
    result = _evaluate(data, data, tmp_path / "s.csv", match=match, metrics=asked, regions=("TC", "NCR"), name=None)
    assert {(r.region, r.metric) for r in result.rows} == {
        *((region, m) for region in ("TC", "NCR") for m in ("iou", "nsd_2mm", "volume", "volume_truth")),
        ("", "mean_iou_of_classes"),
    }
    assert {r.protocol for r in result.rows} == {"plain"}


@pytest.mark.parametrize("protocol", ["brats2023", "brats2025"])
def test_a_challenges_protocol_adds_lesions_and_its_penalties(tmp_path: Path, protocol: str) -> None:
    (study,) = small_pairs(tmp_path / "data", 1, models=("a",))
    empty = nib.load(tmp_path / "data" / study / "truth.nii.gz")
    path = tmp_path / "data" / study / "pred_a.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros(empty.shape, np.uint8), empty.affine), path)
    data = tmp_path / "data"
    rows = list(_evaluate(data, data, tmp_path / "s.csv", match="{study}/pred_{model}.nii.gz", protocol=protocol).rows)
    assert {r.metric for r in rows} == set(PROTOCOL_METRICS[protocol])
    worst = {"brats2023": 374.0, "brats2025": 373.0}[protocol]
    assert {r.value for r in rows if r.metric in ("hd95", "lesion_hd95")} == {worst}
    assert {r.value for r in rows if r.metric in ("dice", "lesion_dice")} == {0.0}
    assert {r.protocol for r in rows} == {protocol}


def test_the_middle_slice_alone_can_be_scored(tmp_path: Path) -> None:
    (study,) = small_pairs(tmp_path / "data", 1, models=("a",))
    truth = nib.load(tmp_path / "data" / study / "truth.nii.gz")
    classes = np.asarray(truth.dataobj)
    middle = (classes.shape[2] - 1) // 2
    assert classes[:, :, middle].any()
    wrong = np.zeros_like(classes)
    wrong[:, :, middle] = classes[:, :, middle]
    nib.save(nib.Nifti1Image(wrong, truth.affine), tmp_path / "data" / study / "pred_a.nii.gz")
    data, match = tmp_path / "data", "{study}/pred_{model}.nii.gz"
    whole = list(_evaluate(data, data, tmp_path / "all.csv", match=match).rows)
    rows = list(_evaluate(data, data, tmp_path / "middle.csv", match=match, slices="middle").rows)
    assert max(v for v in _values(whole, "dice") if v is not None) < 1
    assert _values(rows, "dice") == [1.0] * 3
    assert {r.protocol for r in rows} == {"plain, middle axial slice"}
    assert {r.metric for r in rows} == {"dice", "sensitivity", "specificity", "volume", "volume_truth"}
    voxels = np.isin(classes[:, :, middle], (1, 2, 4)).sum()
    assert _values(rows, "volume_truth")[2] == pytest.approx(voxels / 1000, rel=1e-5)


def test_a_models_probabilities_are_measured_too(tmp_path: Path) -> None:
    _phantoms(tmp_path / "data", studies=1)
    result = _evaluate(
        DEFAULT, tmp_path / "data", tmp_path / "s.csv", metrics=("dice", *CALIBRATION_METRICS), name="it"
    )
    values = {(r.region, r.metric): r.value for r in result.rows}
    model, (study,) = load_model(DEFAULT), find_studies(tmp_path / "data")
    volume, truth = study.read(model.recipe.modalities)[0], study.read_classes()[0]
    shown = Segmenter(model.recipe, load_engines(model, "cpu")).with_probabilities(volume)[1]
    brain = volume.with_array((volume.array != 0).any(0)).placed_on(shown).array[0]
    for region in ("ET", "TC", "WT"):
        probability = model.recipe.target.region_probability(shown.array, region)
        expected = calibrate(probability, region_mask(truth.placed_on(shown).array[0], region), brain)
        assert {m: values[region, m] for m in CALIBRATION_METRICS} == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert {r.model for r in result.rows} == {"it"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ("dise",)}, "near it are dice"),
        ({"regions": ("XX",)}, "no region is called XX"),
        ({"regions": ()}, "expected some of ET"),
        ({"metrics": ("ece",)}, "give a model file"),
        ({"metrics": ("ece",), "predictions": Path("m.safetensors"), "slices": "middle"}, "leave out --slices"),
        ({"metrics": ("dice", "hd95", "nsd_1mm"), "slices": "middle"}, "hd95, nsd_1mm: of whole volumes only"),
        ({"metrics": ("lesion_dice",)}, "--protocol brats2023 defines lesion_dice"),
        ({"metrics": ("lesion_nsd_1mm",), "protocol": "brats2023"}, "--protocol brats2025 defines"),
        ({"predictions": Path("model.safetensors"), "jobs": 2}, "leave out --jobs"),
        ({"predictions": Path("model.safetensors"), "match": "{study}"}, "--match"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_read(tmp_path: Path, changes: dict, message: str) -> None:
    options = {"predictions": tmp_path / "p", "truth": tmp_path / "t", "output": tmp_path / "s.csv"} | changes
    with pytest.raises(UsageError, match=message):
        evaluate(EvaluateOptions(**options))
    assert not list(tmp_path.iterdir())


def test_several_processes_give_the_same_table(tmp_path: Path) -> None:
    small_pairs(tmp_path / "data", 5, models=("a", "b"))
    (tmp_path / "data" / "case_3" / "truth.nii.gz").write_bytes(b"broken")
    assert _table(tmp_path / "data", tmp_path / "1.csv") == _table(tmp_path / "data", tmp_path / "2.csv", jobs=3)


def test_a_run_that_was_cut_short_continues_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = small_pairs(tmp_path / "data", 5)
    data, match = tmp_path / "data", "{study}/pred_{model}.nii.gz"
    whole = _table(data, tmp_path / "whole.csv")
    with monkeypatch.context() as patch:
        seen = _interrupted_in(4, patch)
        with pytest.raises(KeyboardInterrupt):
            _table(data, tmp_path / "s.csv")
        assert not (tmp_path / "s.csv").exists()
        changed = data / ids[1] / "pred_a.nii.gz"
        changed.write_bytes((data / ids[1] / "truth.nii.gz").read_bytes())
        seen.clear()
        seen += ["-"] * 10
        result = _evaluate(data, data, tmp_path / "s.csv", match=match)
    assert seen[10:] == [ids[1], ids[3], ids[4]]  # what was finished on the very same files is not done again
    assert (result.continued, result.studies) == (2, 5)
    lines = zip(whole.splitlines(), (tmp_path / "s.csv").read_bytes().splitlines(), strict=True)
    assert {line.split(b",")[0] for line, again in lines if line != again} == {ids[1].encode()}
    assert not list(tmp_path.glob("*.jsonl"))
    assert read_json(tmp_path / "s.run.json")["continued"] == 2


def test_another_question_is_not_answered_with_what_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_pairs(tmp_path / "data", 3)
    with monkeypatch.context() as patch:
        _cut_short(tmp_path, patch)
    result = _evaluate(
        tmp_path / "data", tmp_path / "data", tmp_path / "s.csv", match="{study}/pred_{model}.nii.gz", metrics=("iou",)
    )
    assert result.continued == 0
    assert {r.metric for r in result.rows} == {"iou", "volume", "volume_truth"}


def _interrupted_in(number: int, patch: pytest.MonkeyPatch) -> list[str]:
    """Let Ctrl-C come in the study of that number; returns what is begun, as it is."""
    honest, begun = scoring.score, []

    def until(task, *others, **more):
        begun.append(task.truth.id)
        if len(begun) == number:
            raise KeyboardInterrupt
        return honest(task, *others, **more)

    patch.setattr(scoring, "score", until)
    return begun


def _cut_short(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Evaluate, and be interrupted in the third study."""
    _interrupted_in(3, patch)
    with pytest.raises(KeyboardInterrupt):
        _table(folder / "data", folder / "s.csv")


def test_what_failed_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_pairs(tmp_path / "data", 3)
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "measure", None)
        _cut_short(tmp_path, patch)
    result = _evaluate(tmp_path / "data", tmp_path / "data", tmp_path / "s.csv", match="{study}/pred_{model}.nii.gz")
    assert (result.continued, result.failed) == (0, {})


def _lines(folder: Path) -> int:
    """How many studies the journal in a folder has."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("s.csv.*.part.jsonl"))


def _wait_for_lines(run: subprocess.Popen, folder: Path, count: int) -> None:
    while run.poll() is None and _lines(folder) < count:
        time.sleep(0.002)


COMMAND = [sys.executable, "-m", "gliomap", "evaluate", "data", "data", "--match", "{study}/pred_{model}.nii.gz", "-o"]


def test_a_hundred_pairs_take_no_more_memory_than_ten_and_a_kill_loses_no_finished_row(tmp_path: Path) -> None:
    small_pairs(tmp_path / "data", 100, models=("a",), repeat=10)
    small_pairs(tmp_path / "few" / "data", 10, models=("a",))
    how = ["--jobs", "1"]
    run = subprocess.Popen([*COMMAND, "s.csv", *how], cwd=tmp_path, stdout=subprocess.DEVNULL)
    _wait_for_lines(run, tmp_path, 30)
    run.kill()
    run.wait()
    finished = _lines(tmp_path)
    assert 30 <= finished < 100
    subprocess.run([*COMMAND, "s.csv", *how], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    assert read_json(tmp_path / "s.run.json")["continued"] == finished
    subprocess.run([*COMMAND, "again.csv", *how], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    assert (tmp_path / "s.csv").read_bytes() == (tmp_path / "again.csv").read_bytes()
    subprocess.run([*COMMAND, "s.csv", *how], cwd=tmp_path / "few", check=True, stdout=subprocess.DEVNULL)
    many, few = (read_json(p)["peak_memory_mb"] for p in (tmp_path / "again.run.json", tmp_path / "few" / "s.run.json"))
    assert many < few + 15  # the pairs have 44 MB of voxels


def test_label_maps_are_scored_without_torch(tmp_path: Path) -> None:
    small_pairs(tmp_path / "data", 1)
    code = f"""
import sys
from gliomap.cli import app
sys.argv = {["gliomap", *COMMAND[3:], "s.csv", "--jobs", "1"]!r}
try:
    app()
finally:
    print("HEAVY", [m for m in ("torch", "monai", "lightning_fabric") if m in sys.modules])
"""
    shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "HEAVY []" in shown.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for another process")
def test_ctrl_c_keeps_what_several_processes_have_finished_and_says_one_line(tmp_path: Path) -> None:
    small_pairs(tmp_path / "data", 100, models=("a",), repeat=10)
    command = [*COMMAND, "s.csv", "--jobs", "2"]
    run = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    _wait_for_lines(run, tmp_path, 4)
    os.killpg(run.pid, signal.SIGINT)
    _, told = run.communicate(timeout=60)
    assert run.returncode == 130
    assert told.decode().count("\n") == 1
    assert 4 <= _lines(tmp_path) < 100


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are counted in /proc")
def test_no_process_outlives_the_one_that_asked(tmp_path: Path) -> None:
    small_pairs(tmp_path / "data", 100, models=("a",), repeat=10)
    run = subprocess.Popen([*COMMAND, "s.csv", "--jobs", "2"], cwd=tmp_path, stdout=subprocess.DEVNULL)
    _wait_for_lines(run, tmp_path, 2)
    workers = psutil.Process(run.pid).children(recursive=True)
    assert len(workers) >= 2
    run.kill()
    run.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []


def test_what_is_recorded_is_what_was_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (study,) = small_pairs(tmp_path / "data", 1, models=("a",))
    prediction = tmp_path / "data" / study / "pred_a.nii.gz"
    before, honest = sha256(prediction), scoring._measure

    def changed(*others):
        rows = honest(*others)
        prediction.write_bytes(b"other")
        return rows

    monkeypatch.setattr(scoring, "_measure", changed)
    _table(tmp_path / "data", tmp_path / "s.csv", labels="brats2021")
    inputs = read_json(tmp_path / "s.run.json")["inputs"][study]
    assert inputs["prediction of a"] == before
    assert inputs["labels of the prediction of a"].startswith("brats2021")


def test_a_truth_that_cannot_be_understood_is_not_blamed_on_the_prediction(tmp_path: Path) -> None:
    _phantoms(tmp_path / "data", "brats2023", studies=1)
    (truth,) = (tmp_path / "data").rglob("*seg.nii.gz")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "x_seg.nii.gz").write_bytes(truth.read_bytes())
    (tmp_path / "labels" / "x_pred.nii.gz").write_bytes(truth.read_bytes())
    patterns = {"match": "{study}_pred.nii.gz", "match_truth": "{study}_seg.nii.gz"}
    folder = tmp_path / "labels"
    with pytest.raises(InputError, match=r"x: truth: .*--truth-labels NAME"):
        _evaluate(folder, folder, tmp_path / "s.csv", labels="brats2023", **patterns)
    _evaluate(folder, folder, tmp_path / "s.csv", labels="brats2023", truth_labels="brats2023", **patterns)


def test_a_class_that_the_label_values_do_not_have_is_not_scored(tmp_path: Path) -> None:
    small_pairs(tmp_path / "data", 1, models=("a",))
    data, match = tmp_path / "data", "{study}/pred_{model}.nii.gz"
    result = _evaluate(data, data, tmp_path / "s.csv", match=match, regions=("ET", "RC"))
    assert {r.region for r in result.rows} == {"ET"}
    assert any("RC is not scored" in text for text in result.warnings)
    changes = {"labels": "1=NCR,2=ED,4=RC", "truth_labels": "1=NCR,2=ED,4=RC"}
    rows = list(_evaluate(data, data, tmp_path / "s.csv", match=match, regions=("RC",), **changes).rows)
    assert {r.status for r in rows} == {"ok"}


def test_the_truth_scored_against_itself_is_said(tmp_path: Path) -> None:
    small_pairs(tmp_path / "data", 2)
    data = tmp_path / "data"
    assert any("is the truth itself" in text for text in _evaluate(data, data, tmp_path / "t.csv").warnings)


def _model_of(path: Path, trained: list[str], validated: list[str] | None = None) -> Path:
    """An untrained model whose card says that these studies trained it and chose its weights."""
    model = load_model(small_model_file(path))
    card = {"training_studies": trained, "validation_studies": validated or []}
    save_model(path, model.recipe, model.weights, card)
    return path


def test_studies_that_trained_the_model_are_refused_and_those_that_chose_its_weights_said(tmp_path: Path) -> None:
    ids = [f"BraTS-GLI-9000{n}-000" for n in range(3)]
    for study in ids:
        write_study(tmp_path / "data", "brats2023", study)
    visits = [f"{name.removesuffix('-000')}-001" for name in ids]
    model = _model_of(tmp_path / "m.safetensors", visits[:1], [visits[1], "elsewhere"])
    scores = partial(_evaluate, model, tmp_path / "data", tmp_path / "s.csv")
    with pytest.raises(UsageError, match=rf"1 of 3 .*: {ids[0]}\. .* leave them out with .*--studies, or .*--seen-too"):
        scores()
    assert not list(tmp_path.glob("s.csv*"))
    chose = f"{ids[1]} of {{}} chose its weights: their scores are no test of it"
    assert scores(studies=tuple(ids[1:])).warnings == [chose.format(2)]
    trained = f"{ids[0]} of 3 trained this model: their scores are no test of it"
    assert scores(seen_too=True).warnings == [trained, chose.format(3)]
    with pytest.raises(UsageError, match="no test of it: give others, or"):
        scores(studies=(ids[0],))


def test_of_many_that_trained_the_model_some_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [f"BraTS20_Training_{n:03d}" for n in range(4)]
    for study in ids:
        write_study(tmp_path / "data", "brats2020", study)
    monkeypatch.setattr("gliomap.evaluate.MOST_NAMED", 2)
    with pytest.raises(UsageError, match=f": {ids[1]}, {ids[2]} and 1 more"):
        _evaluate(_model_of(tmp_path / "m.safetensors", ids[1:]), tmp_path / "data", tmp_path / "s.csv")


def test_years_that_name_a_patient_otherwise_are_told_and_a_table_joins_them(tmp_path: Path) -> None:
    for study in ("BraTS20_Training_901", "BraTS20_Training_902"):
        write_study(tmp_path / "data", "brats2020", study)
    scores = partial(_evaluate, _model_of(tmp_path / "m.safetensors", ["Brats18_X_1_1"]), tmp_path / "data")
    (warning,) = scores(tmp_path / "s.csv").warnings
    assert warning.startswith("these studies and those that trained this model are of brats2018, brats2020, and")
    mapping = tmp_path / "names.csv"
    mapping.write_text("BraTS_2019_subject_ID,BraTS_2020_subject_ID\nBraTS19_Y_1_1,BraTS20_Training_999\n")
    assert scores(tmp_path / "s.csv", mapping=(mapping,)).warnings == [warning]
    mapping.write_text("BraTS_2019_subject_ID,BraTS_2020_subject_ID\nBraTS19_X_1_1,BraTS20_Training_902\n")
    with pytest.raises(UsageError, match=r"1 of 2 studies.*: BraTS20_Training_902\."):
        scores(tmp_path / "s.csv", mapping=(mapping,))
    assert not scores(tmp_path / "s.csv", mapping=(mapping,), studies=("BraTS20_Training_901",)).warnings
    write_study(tmp_path / "data", "brats2021", "BraTS2021_90001")
    of_nobody = _model_of(tmp_path / "nobody.safetensors", ["BraTS2021_PhantomV2_00000"])
    assert not _evaluate(of_nobody, tmp_path / "data", tmp_path / "u.csv").warnings
    same_years = _model_of(tmp_path / "same.safetensors", ["BraTS20_Training_903"])
    chosen = ("BraTS20_Training_901", "BraTS20_Training_902")
    assert not _evaluate(same_years, tmp_path / "data", tmp_path / "t.csv", studies=chosen).warnings


def test_the_command_passes_on_which_studies_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Mock(return_value=Mock(failed={}))
    monkeypatch.setattr("gliomap.evaluate.evaluate", run)
    model, data, output, folds, names = map(Path, ("m.safetensors", "data", "s.csv", "f.json", "n.csv"))
    assert command(model, data, output, studies="a, b", seen_too=True, mapping=[names], quiet=True) == 0
    chosen = EvaluateOptions(
        model, data, output, studies=("a", "b"), seen_too=True, mapping=(names,), jobs=None, quiet=True
    )
    assert command(model, data, output, folds=folds, fold=1, quiet=True) == 0
    fold = EvaluateOptions(model, data, output, folds=folds, fold=1, jobs=None, quiet=True)
    assert [call.args[0] for call in run.call_args_list] == [chosen, fold]


def test_label_maps_do_not_say_who_trained_what_made_them(tmp_path: Path) -> None:
    small_pairs(tmp_path / "data", 1)
    with pytest.raises(UsageError, match="--mapping and --seen-too are about the studies that trained a model"):
        _evaluate(tmp_path / "data", tmp_path / "data", tmp_path / "s.csv", seen_too=True)


def test_another_model_of_the_same_name_is_not_answered_with_the_first_ones_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _phantoms(tmp_path / "data", studies=3)
    path = small_model_file(tmp_path / "m.safetensors")
    model = load_model(path)
    with monkeypatch.context() as patch:
        _interrupted_in(3, patch)
        with pytest.raises(KeyboardInterrupt):
            _evaluate(path, tmp_path / "data", tmp_path / "s.csv", name="it")
    save_model(path, model.recipe, {name: array * 0 for name, array in model.weights.items()}, model.card)
    result = _evaluate(path, tmp_path / "data", tmp_path / "s.csv", name="it")
    assert result.continued == 0
    assert read_json(tmp_path / "s.run.json")["predictions_sha256"] == sha256(path)


def test_label_maps_of_a_model_that_knows_one_region_are_scored_by_it_alone(tmp_path: Path) -> None:
    (study,) = small_pairs(tmp_path / "data", 1, models=("a",))
    write_file(tmp_path / "maps" / f"{study}.nii.gz", (tmp_path / "data" / study / "pred_a.nii.gz").read_bytes())
    write_file(tmp_path / "maps" / "run.json", json_bytes({"verb": "other", "model": {"regions": ["WT"]}}))
    rows = _evaluate(tmp_path / "maps", tmp_path / "data", tmp_path / "s.csv").rows
    assert {r.region for r in rows} == {"WT"}
