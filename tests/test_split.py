import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from studies import SHAPE, loose_study, nested_tumour, write_study

from gliomap.classes import ED, ET, NCR
from gliomap.data.datasets import find_studies
from gliomap.data.folds import read_fold, shared_patients
from gliomap.errors import InputError, UsageError
from gliomap.phantom import PhantomOptions, phantom
from gliomap.split import SplitOptions, split

YEARS = "Grade,BraTS_2018_subject_ID,BraTS_2020_subject_ID\n"


def two_years(folder: Path, patients: int = 4) -> Path:
    """Patients with a study in BraTS 2018 and one in 2020 each; returns the table of their names."""
    for n in range(patients):
        write_study(folder / "old", "brats2018", f"Brats18_X_{n}_1", seed=n)
        write_study(folder / "new", "brats2020", f"BraTS20_Training_{n:03d}", seed=n)
    mapping = folder / "name_mapping.csv"
    mapping.write_text(YEARS + "".join(f"HGG,Brats18_X_{n}_1,BraTS20_Training_{n:03d}\n" for n in range(patients)))
    return mapping


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_every_labelled_study_is_in_exactly_one_fold(tmp_path: Path) -> None:
    ids = phantom(PhantomOptions(tmp_path / "data", studies=5, size=32, quiet=True))
    result = split(SplitOptions(tmp_path / "data", tmp_path / "folds.json", folds=3, quiet=True))
    assert sorted(i for fold in result.folds for i in fold) == ids
    written = read(tmp_path / "folds.json")
    assert written["folds"] == result.folds
    assert sorted(len(fold) for fold in result.folds) == [1, 2, 2]
    assert [s.patients for s in result.summary] == [len(fold) for fold in result.folds]
    assert (result.failed, result.warnings) == ({}, [])
    found = find_studies(tmp_path / "data")
    training, validation = read_fold(tmp_path / "folds.json", 1, found)
    assert sorted(s.id for s in [*training, *validation]) == ids


def test_the_seed_decides_the_folds(tmp_path: Path) -> None:
    phantom(PhantomOptions(tmp_path / "data", studies=6, size=32, quiet=True))
    folds = [split(SplitOptions(tmp_path / "data", tmp_path / "f.json", folds=2, seed=s)).folds for s in (0, 0, 1)]
    assert folds[0] == folds[1] != folds[2]


def test_more_folds_than_patients_are_refused(tmp_path: Path) -> None:
    phantom(PhantomOptions(tmp_path / "data", studies=2, size=32, quiet=True))
    with pytest.raises(UsageError, match="2 patients"):
        split(SplitOptions(tmp_path / "data", tmp_path / "folds.json", folds=3))
    assert not (tmp_path / "folds.json").exists()


def test_the_file_says_what_the_folds_were_made_of(tmp_path: Path) -> None:
    no_tumour = np.zeros(SHAPE, np.uint8)
    oedema = np.where(nested_tumour() > 0, ED, 0).astype(np.uint8)
    oedema[12, 14, 20] = NCR
    for name, labels in {"none": no_tumour, "oedema": oedema, "nested": nested_tumour()}.items():
        loose_study(tmp_path / "data" / "HGG" / name, labels=labels)
    split(SplitOptions(tmp_path / "data", tmp_path / "folds.json", 3, seed=7, labels="brats2023", quiet=True))
    written = read(tmp_path / "folds.json")
    ml = int((nested_tumour() > 0).sum()) * 6.0**3 / 1000
    assert written["studies"]["none"]["volume_ml"] == 0
    assert written["studies"]["oedema"]["volume_ml"] == pytest.approx(ml, abs=1e-3)
    assert written["studies"]["nested"]["volume_ml"] == pytest.approx(ml, abs=1e-3)
    assert {i: s["enhancing"] for i, s in written["studies"].items()} == {
        "none": False,
        "oedema": False,
        "nested": True,
    }
    assert {s["stratum"] for s in written["studies"].values()} == {"HGG"}
    file = tmp_path / "data" / "HGG" / "nested" / "seg.nii"
    assert written["studies"]["nested"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (written["seed"], written["left_out"], written["mappings"]) == (7, {}, [])
    assert written["patients"] == {i: i for i in ("none", "oedema", "nested")}
    assert [s["studies"] for s in written["summary"]] == [1, 1, 1]


def test_folds_are_alike_in_enhancement_and_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for n in range(24):
        labels = np.where(nested_tumour() > 0, ED, 0).astype(np.uint8)
        labels[tuple(rng.integers(0, 20, (3, 50 * (n // 8))))] = ED
        labels[12, 14, 20] = ET if n % 2 else ED
        loose_study(tmp_path / "data" / f"s{n:02d}", labels=labels)
    result = split(SplitOptions(tmp_path / "data", tmp_path / "folds.json", 4, labels="brats2023", quiet=True))
    assert [s.enhancing for s in result.summary] == [3, 3, 3, 3]
    for fold in result.folds:
        assert Counter(int(i[1:]) // 8 for i in fold) == {0: 2, 1: 2, 2: 2}
    volumes = {i: s["volume_ml"] for i, s in read(tmp_path / "folds.json")["studies"].items()}
    for fold, summary in zip(result.folds, result.summary, strict=True):
        assert summary.median_volume_ml == pytest.approx(np.median([volumes[i] for i in fold]), abs=1e-3)


def test_every_sub_folder_is_spread_over_the_folds(tmp_path: Path) -> None:
    for n in range(12):
        loose_study(tmp_path / "data" / ("HGG" if n % 2 else "LGG") / f"s{n:02d}", labels=nested_tumour())
    for seed in range(3):
        options = SplitOptions(tmp_path / "data", tmp_path / "f.json", 6, seed, labels="brats2023", quiet=True)
        assert [sum(int(i[1:]) % 2 for i in fold) for fold in split(options).folds] == [1] * 6


def test_one_patients_studies_of_two_years_are_in_one_fold_with_the_names(tmp_path: Path) -> None:
    mapping = two_years(tmp_path / "data")
    blind = split(SplitOptions(tmp_path / "data", tmp_path / "blind.json", 4, quiet=True))
    assert any("brats2018, brats2020" in text and "--mapping" in text for text in blind.warnings)
    result = split(SplitOptions(tmp_path / "data", tmp_path / "folds.json", 4, mapping=(mapping,), quiet=True))
    same = {f"Brats18_X_{n}_1": f"BraTS20_Training_{n:03d}" for n in range(4)}
    assert shared_patients(blind.folds, {i: same.get(i, i) for fold in blind.folds for i in fold})
    assert not shared_patients(result.folds, {i: same.get(i, i) for fold in result.folds for i in fold})
    assert [(s.patients, s.studies) for s in result.summary] == [(1, 2)] * 4
    assert result.warnings == []
    assert result.mappings == [
        f"{mapping} names 8 of 8 studies, by BraTS_2018_subject_ID, BraTS_2020_subject_ID; not for names: Grade"
    ]
    written = read(tmp_path / "folds.json")
    assert written["patients"] == {i: same.get(i, i) for fold in result.folds for i in fold}
    (told,) = written["mappings"]
    assert told["path"] == str(mapping)
    assert told["sha256"] == hashlib.sha256(mapping.read_bytes()).hexdigest()
    assert "rows" not in told


def test_2018_and_2019_name_a_patient_alike(tmp_path: Path) -> None:
    for n in range(4):
        write_study(tmp_path / "data" / "old", "brats2018", f"Brats18_X_{n}_1", seed=n)
        write_study(tmp_path / "data" / "new", "brats2019", f"BraTS19_X_{n}_1", seed=n)
    result = split(SplitOptions(tmp_path / "data", tmp_path / "folds.json", 4, quiet=True))
    assert [sorted(i[:7] for i in fold) for fold in result.folds] == [["BraTS19", "Brats18"]] * 4
    assert [(s.patients, s.studies) for s in result.summary] == [(1, 2)] * 4
    assert result.warnings == []


def test_a_patient_is_enhancing_if_a_study_is_and_as_large_as_its_studies_median(tmp_path: Path) -> None:
    for n in range(3):
        labels = np.zeros(SHAPE, np.uint8)
        labels[10, 10, : 4 + n] = ET if n == 2 else ED
        loose_study(tmp_path / "data" / f"sub-1_ses-{n}", labels=labels)
    loose_study(tmp_path / "data" / "sub-2", labels=np.zeros(SHAPE, np.uint8))
    result = split(SplitOptions(tmp_path / "data", tmp_path / "folds.json", 2, labels="brats2023", quiet=True))
    three, one = sorted(result.summary, key=lambda s: -s.studies)
    assert (three.patients, three.studies, three.enhancing) == (1, 3, 1)
    assert three.median_volume_ml == pytest.approx(5 * 0.216)
    assert (one.patients, one.studies, one.enhancing, one.median_volume_ml) == (1, 1, 0, 0)
    assert any("the patient sub-1 has 3 of 4 studies" in text for text in result.warnings)


def test_tables_that_reach_none_or_not_all_are_told(tmp_path: Path) -> None:
    two_years(tmp_path / "data", patients=3)
    other = tmp_path / "other.csv"
    other.write_text(YEARS + "HGG,Brats18_Y_1_1,NA\n")
    some = tmp_path / "some.csv"
    some.write_text(YEARS + "HGG,Brats18_X_0_1,BraTS20_Training_000\n")
    options = SplitOptions(tmp_path / "data", tmp_path / "folds.json", 2, mapping=(other, some), quiet=True)
    first, second = split(options).warnings
    assert first.startswith(f"{other} names none of the studies")
    assert second.startswith("4 studies, such as BraTS20_Training_001, are in no mapping")
    assert read(tmp_path / "folds.json")["warnings"] == [first, second]


def test_a_value_in_too_many_rows_is_told(tmp_path: Path) -> None:
    two_years(tmp_path / "data", patients=2)
    mapping = tmp_path / "m.csv"
    mapping.write_text("study_id,patient_id\n" + "".join(f"BraTS20_Training_{n:03d},Site1\n" for n in range(40)))
    warnings = split(SplitOptions(tmp_path / "data", tmp_path / "f.json", 2, mapping=(mapping,), quiet=True)).warnings
    assert f"{mapping} has 'site1' in 40 rows, more than a patient can have; it is not taken for a name" in warnings


def test_a_label_that_cannot_be_read_is_reported_and_in_no_fold(tmp_path: Path) -> None:
    ids = phantom(PhantomOptions(tmp_path / "data", studies=4, size=32, quiet=True))
    (tmp_path / "data" / ids[0] / f"{ids[0]}_seg.nii.gz").write_bytes(b"no image")
    (tmp_path / "data" / ids[1] / f"{ids[1]}_seg.nii.gz").unlink()
    command = [sys.executable, "-m", "gliomap", "split", str(tmp_path / "data"), "-o", str(tmp_path / "folds.json")]
    done = subprocess.run([*command, "--folds", "2", "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert f"failed: {ids[0]}: " in done.stderr
    told = json.loads(done.stdout)
    assert sorted(i for fold in told["folds"] for i in fold) == ids[2:]
    assert list(told["failed"]) == ids[:1]
    assert told["warnings"] == ["1 studies have no label map and are in no fold"]
    assert list(read(tmp_path / "folds.json")["left_out"]) == ids[:2]


def test_a_folder_that_cannot_be_understood_is_reported(tmp_path: Path) -> None:
    ids = phantom(PhantomOptions(tmp_path / "data", studies=2, size=32, quiet=True))
    loose_study(tmp_path / "data" / "theirs")
    (tmp_path / "data" / "theirs" / "dataset.json").write_text("{")
    result = split(SplitOptions(tmp_path / "data", tmp_path / "folds.json", 2, quiet=True))
    assert sorted(i for fold in result.folds for i in fold) == ids
    assert list(result.failed) == ["theirs"]


def test_the_table_of_folds_is_printed(tmp_path: Path) -> None:
    mapping = two_years(tmp_path / "data", patients=3)
    command = [sys.executable, "-m", "gliomap", "split", str(tmp_path / "data"), "-o", str(tmp_path / "folds.json")]
    arguments = ["--folds", "3", "--mapping", str(mapping), "--labels", "brats2021"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[:3] + line[4:] for line in lines[-4:-1]] == [[str(n), "1", "1", "2"] for n in range(3)]
    assert f"{mapping} names 6 of 6 studies" in done.stdout
    quiet = subprocess.run([*command, *arguments, "--quiet"], capture_output=True, text=True, check=True)
    assert quiet.stdout == ""


def test_labels_that_could_mean_several_things_need_to_be_told(tmp_path: Path) -> None:
    for name in "ab":
        loose_study(tmp_path / "data" / name, labels=nested_tumour())
    with pytest.raises(InputError, match=r"none of the 2 labels can be read; the first, a: "):
        split(SplitOptions(tmp_path / "data", tmp_path / "folds.json", quiet=True))
    command = [sys.executable, "-m", "gliomap", "split", str(tmp_path / "data"), "-o", str(tmp_path / "folds.json")]
    subprocess.run([*command, "--folds", "2", "--labels", "brats2023"], capture_output=True, check=True)
    assert sorted(map(len, read(tmp_path / "folds.json")["folds"])) == [1, 1]


def test_studies_without_labels_are_bad_input(tmp_path: Path) -> None:
    loose_study(tmp_path / "data" / "a")
    with pytest.raises(InputError, match="has no study with a label map"):
        split(SplitOptions(tmp_path / "data", tmp_path / "folds.json"))


def test_what_is_odd_about_many_labels_is_said_once(tmp_path: Path) -> None:
    loose = np.where(nested_tumour() == ET, 4, nested_tumour())
    for name in "abc":
        loose_study(tmp_path / "data" / name, labels=loose)
    (warning,) = split(SplitOptions(tmp_path / "data", tmp_path / "folds.json", 2, quiet=True)).warnings
    assert warning.startswith("3 studies, such as a: ")
