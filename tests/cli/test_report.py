import json
import re
from pathlib import Path

import numpy as np
import pytest
from studies import nested_tumour, save

from gliomap.cli.report import report
from gliomap.errors import UsageError

LABELS = np.array([0, 1, 2, 4], np.uint8)[nested_tumour()]


@pytest.fixture
def time_points(tmp_path: Path) -> list[Path]:
    smaller = LABELS * (np.arange(LABELS.shape[2]) < 20)
    return [save(tmp_path / "T0.nii.gz", LABELS), save(tmp_path / "T1.nii.gz", smaller.astype(np.uint8))]


def test_volumes_are_printed_with_what_changed(time_points: list[Path], tmp_path: Path, capsys) -> None:
    report(time_points, tmp_path / "out", weeks="0,6.5", labels="brats2021")
    lines = capsys.readouterr().out.splitlines()
    heads, first, second = (re.split(" {2,}", line) for line in lines[:3])
    assert heads == ["volume in ml (since the first)", "ET", "TC", "WT", "NCR", "ED"]
    whole, left = (np.count_nonzero(labels) * 6**3 / 1000 for labels in (LABELS, LABELS[:, :, :20]))
    assert (first[0], first[3]) == ("T0 week 0", f"{whole:.1f}")
    assert (second[0], second[3]) == ("T1 week 6.5", f"{left:.1f} ({100 * (left / whole - 1):+.0f} %)")
    assert lines[-1] == str(tmp_path / "out" / "report.html")


def test_result_is_printed_as_json(time_points: list[Path], tmp_path: Path, capsys) -> None:
    report(time_points, tmp_path / "out", dates="2024-01-05, 2024-03-01", labels="brats2021", json=True)
    told = json.loads(capsys.readouterr().out)
    assert {line["when"] for line in told["volumes"]} == {"2024-01-05", "2024-03-01"}
    assert told["lesions"][0]["measured"] == "TC"
    report(time_points, tmp_path / "out", labels="brats2021", quiet=True)
    assert capsys.readouterr().out == ""


def test_weeks_that_are_no_numbers_are_refused(time_points: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--weeks '0,six'"):
        report(time_points, tmp_path / "out", weeks="0,six")
