from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from gliomap.errors import InputError, UsageError
from gliomap.evaluate import EvaluateOptions, evaluate, summarise
from gliomap.phantom import PhantomOptions, phantom
from gliomap.segment import SegmentOptions, segment


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
    rows = _evaluate(tmp_path / "data", tmp_path / "data", tmp_path / "scores.csv").rows
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
    rows = _evaluate(tmp_path / "predictions", tmp_path / "data", tmp_path / "scores.csv", labels="msd").rows
    assert _values(rows, "dice") == [1.0] * 3


def test_what_segment_wrote_is_found_with_its_convention(tmp_path: Path) -> None:
    _phantoms(tmp_path / "data")
    segment(
        SegmentOptions(tmp_path / "data", tmp_path / "out", output_labels="msd", device="cpu", quiet=True, score=True)
    )
    rows = _evaluate(tmp_path / "out", tmp_path / "data", tmp_path / "scores.csv").rows
    lines = (tmp_path / "out" / "scores.csv").read_text().splitlines()[1:]
    assert [line.split(",")[4] for line in lines] == ["" if r.value is None else f"{r.value:.6g}" for r in rows]


def test_a_missing_prediction_is_counted_and_shown(tmp_path: Path) -> None:
    first, second = _phantoms(tmp_path / "data")
    segment(SegmentOptions(tmp_path / "data" / first, tmp_path / "out", device="cpu", quiet=True))
    result = _evaluate(tmp_path / "out", tmp_path / "data", tmp_path / "scores.csv")
    assert list(result.failed) == [second]
    assert [r.study for r in result.rows if r.status == "failed"] == [second]
    assert summarise(result.rows, "dice")["WT"][2:] == (1, 1)


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
    rows = _evaluate(tmp_path / "predictions", tmp_path / "data", tmp_path / "scores.csv").rows
    assert _values(rows, "dice") == [1.0] * 3


def test_two_files_for_one_prediction_are_refused(tmp_path: Path) -> None:
    (study,) = _phantoms(tmp_path / "data", studies=1)
    truth = tmp_path / "data" / study / f"{study}_seg.nii.gz"
    for model in ("a", "b"):
        (tmp_path / "predictions" / model).mkdir(parents=True)
        (tmp_path / "predictions" / model / f"{study}.nii.gz").write_bytes(truth.read_bytes())
    with pytest.raises(InputError, match="2 files could be the prediction"):
        _evaluate(tmp_path / "predictions", tmp_path / "data", tmp_path / "scores.csv")


def test_a_single_label_map_is_not_assumed_to_share_the_truths_convention(tmp_path: Path) -> None:
    (study,) = _phantoms(tmp_path / "data", "brats2023", studies=1)
    prediction = tmp_path / "prediction.nii.gz"
    prediction.write_bytes((tmp_path / "data" / study / f"{study}-seg.nii.gz").read_bytes())
    with pytest.raises(InputError, match="Nothing is guessed"):
        _evaluate(prediction, tmp_path / "data" / study, tmp_path / "scores.csv")
    rows = _evaluate(prediction, tmp_path / "data" / study, tmp_path / "scores.csv", labels="brats2023").rows
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
    rows = _evaluate(tmp_path / "data", tmp_path / "data", tmp_path / "scores.csv").rows
    et = {r.metric: r for r in rows if r.region == "ET"}
    assert (et["dice"].value, et["hd95"].value, et["dice"].status) == (1.0, 0.0, "both_empty")
