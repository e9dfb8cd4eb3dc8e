import json
from pathlib import Path

import pytest

from gliomap.errors import UsageError
from gliomap.phantom import PhantomOptions, phantom
from gliomap.split import SplitOptions, split


def test_every_labelled_study_is_in_exactly_one_fold(tmp_path: Path) -> None:
    ids = phantom(PhantomOptions(tmp_path / "data", studies=5, size=32, quiet=True))
    result = split(SplitOptions(tmp_path / "data", tmp_path / "folds.json", folds=3))
    assert sorted(i for fold in result.folds for i in fold) == ids
    written = json.loads((tmp_path / "folds.json").read_text())
    assert written["folds"] == result.folds
    assert sorted(len(fold) for fold in result.folds) == [1, 2, 2]


def test_the_seed_decides_the_folds(tmp_path: Path) -> None:
    phantom(PhantomOptions(tmp_path / "data", studies=6, size=32, quiet=True))
    folds = [split(SplitOptions(tmp_path / "data", tmp_path / "f.json", folds=2, seed=s)).folds for s in (0, 0, 1)]
    assert folds[0] == folds[1] != folds[2]


def test_more_folds_than_patients_are_refused(tmp_path: Path) -> None:
    phantom(PhantomOptions(tmp_path / "data", studies=2, size=32, quiet=True))
    with pytest.raises(UsageError, match="2 patients"):
        split(SplitOptions(tmp_path / "data", tmp_path / "folds.json", folds=3))
