"""Folders of studies: read ahead and written behind, left in the middle and continued."""

import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from models import small_model_file

from gliomap import segment as module
from gliomap.data.study import Study
from gliomap.errors import InputError, Interrupted
from gliomap.evaluate import EvaluateOptions, evaluate
from gliomap.files import read_json, sha256
from gliomap.model_file import load_model, save_model
from gliomap.phantom import PhantomOptions, phantom
from gliomap.segment import SegmentOptions, SegmentResult, segment
from gliomap.segmenting import read_study, segment_study, study_files

pytestmark = pytest.mark.usefixtures("no_cache")

PROGRAM = Path(__file__).parent / "programs" / "killed_segment.py"


@pytest.fixture(scope="module", autouse=True)
def short_pages() -> Iterator[None]:
    """A report's pictures take longer than everything else of a small study, and have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gliomap.report.study.study_page", lambda report: repr(report.facts))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model_file(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("three")
    phantom(PhantomOptions(data, studies=3, size=32, quiet=True))
    return data


@pytest.fixture(scope="module")
def whole(three: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of the three studies leaves, with scores."""
    output = tmp_path_factory.mktemp("whole")
    result = run(three, output, model, score=True)
    assert len({one.volumes_ml["WT"] for one in result.done} - {0.0}) == 3, "no study can be taken for another"
    return output


def run(data: Path, output: Path, model: Path, **changes: object) -> SegmentResult:
    return segment(SegmentOptions(data, output, model=model, device="cpu", engine="torch", quiet=True, **changes))  # pyright: ignore


def studies_of(data: Path) -> list[str]:
    return sorted(path.name for path in data.iterdir() if path.is_dir())


def files_of(output: Path) -> dict[str, str]:
    return {path.relative_to(output).as_posix(): sha256(path) for path in output.rglob("*") if path.is_file()}


def maps_of(output: Path) -> dict[str, str]:
    return {name: digest for name, digest in files_of(output).items() if name.endswith((".nii.gz", ".csv"))}


def copy_study(data: Path, number: int, to: Path) -> None:
    """A study under another name."""
    source = data / studies_of(data)[number]
    to.mkdir(parents=True)
    for path in source.iterdir():
        shutil.copy(path, to / path.name.replace(source.name, to.name))


def test_a_folder_killed_again_and_again_and_continued_is_as_one_that_never_was(
    three: Path, model: Path, tmp_path: Path
) -> None:
    data, seed = tmp_path / "data", random.randrange(1000)
    for number in range(12):
        copy_study(three, number % 3, data / f"BraTS2021_{number:05}")
    run(data, tmp_path / "whole", model)
    program = [sys.executable, PROGRAM, data, tmp_path / "killed", model, str(seed)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    whole, killed = files_of(tmp_path / "whole"), files_of(tmp_path / "killed")
    assert whole.keys() == killed.keys(), f"seed {seed}"
    assert len(whole) == 12 * 3 + 2
    assert maps_of(tmp_path / "whole") == maps_of(tmp_path / "killed")
    rows = [read_json(tmp_path / name / "run.json")["studies"] for name in ("whole", "killed")]
    for one, other in zip(*rows, strict=True):
        maps = [row["outputs"][row["segmentation"]] for row in (one, other)]
        assert maps[0] == maps[1] == whole[one["segmentation"]]
        assert {name: killed[name] for name in other["outputs"]} == other["outputs"]
    assert read_json(tmp_path / "killed" / "run.json")["continued"] >= 6


def test_the_files_that_a_killed_run_was_writing_are_removed_and_no_others(
    three: Path, model: Path, whole: Path, tmp_path: Path
) -> None:
    first, *_ = studies_of(three)
    output = shutil.copytree(whole, tmp_path / "out")
    left = [output / first / ".report.html.x1_y2.part", output / ".run.json.abc.part"]
    others = [output / first / ".notes.txt.x1_y2.part", output / first / "report.html.part", output / ".x.part"]
    for path in left + others:
        path.write_text("cut off")
    run(three, output, model, score=True, resume=True)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)


def test_what_is_whole_is_left_as_it_is_and_tables_are_the_same(
    three: Path, model: Path, whole: Path, tmp_path: Path
) -> None:
    output = shutil.copytree(whole, tmp_path / "out")
    again = run(three, output, model, score=True, resume=True)
    assert (again.continued, again.again) == (3, {})
    before, after = files_of(whole), files_of(output)
    assert {name for name in before if before[name] != after[name]} == {"run.json"}
    records = [read_json(place / "run.json") for place in (whole, output)]
    assert records[0]["studies"] == records[1]["studies"] == [r.record for r in again.done]
    assert {row.study for r in again.done for row in r.scores} == set(studies_of(three))


def test_a_single_study_is_continued_too(three: Path, model: Path, tmp_path: Path) -> None:
    study = three / studies_of(three)[0]
    run(study, tmp_path, model)
    before = files_of(tmp_path)
    assert run(study, tmp_path, model, resume=True).continued == 1
    assert files_of(tmp_path) == before
    (tmp_path / "report.html").unlink()
    result = run(study, tmp_path, model, resume=True)
    assert (result.continued, result.again) == (0, {study.name: "report.html is not as it was written"})


@pytest.mark.parametrize("name", ["segmentation.nii.gz", "report.html", "scores.csv", "record.json"])
@pytest.mark.parametrize("damage", ["cut off", "removed"])
def test_a_study_with_a_file_that_is_not_as_it_was_written_is_done_again(
    name: str, damage: str, three: Path, model: Path, whole: Path, tmp_path: Path
) -> None:
    study, *_ = studies_of(three)
    output = shutil.copytree(whole, tmp_path / "out")
    path = output / study / name
    path.write_bytes(path.read_bytes()[:-2]) if damage == "cut off" else path.unlink()
    again = run(three, output, model, score=True, resume=True)
    assert again.continued == 2
    assert list(again.again) == ([] if (name, damage) == ("record.json", "removed") else [study])
    assert maps_of(output) == maps_of(whole)
    assert [r.study for r in again.done] == studies_of(three)


def test_results_of_another_question_are_done_again_and_that_is_said(three: Path, model: Path, tmp_path: Path) -> None:
    ids = studies_of(three)
    run(three, tmp_path / "out", model)

    def reasons(**changes: object) -> set[str]:
        result = run(three, tmp_path / "out", changes.pop("model", model), resume=True, **changes)  # pyright: ignore
        assert list(result.again) == ids
        assert result.continued == 0
        return set(result.again.values())

    assert reasons(output_labels="msd") == {"results of other options (output_labels)"}
    assert reasons() == {"results of other options (output_labels)"}
    loaded = load_model(model)
    other = tmp_path / "other.safetensors"  # of the same weights
    recipe = replace(loaded.recipe, inference=replace(loaded.recipe.inference, views=("identity", "flip_left_right")))
    save_model(other, recipe, loaded.weights, loaded.card)
    assert reasons(model=other) == {"results of another model"}
    for study in ids:
        record = tmp_path / "out" / study / "record.json"
        record.write_text(record.read_text().replace('"gliomap": "', '"gliomap": "0.0.'))
    (reason,) = reasons(model=other)
    assert reason.startswith("results of gliomap 0.0.")


def test_where_files_lie_is_no_other_question(three: Path, model: Path, whole: Path, tmp_path: Path) -> None:
    data, output = (shutil.copytree(place, tmp_path / place.name) for place in (three, whole))
    moved = shutil.copy(model, tmp_path / "moved.safetensors")
    assert run(data, output, moved, score=True, resume=True).continued == 3


@pytest.mark.parametrize("name", ["t1", "t1ce", "t2", "flair", "seg"])
def test_a_study_with_another_image_or_label_map_is_done_again(
    name: str, three: Path, model: Path, whole: Path, tmp_path: Path
) -> None:
    data, output = (shutil.copytree(place, tmp_path / place.name) for place in (three, whole))
    first, second, _ = (data / study for study in studies_of(data))
    other = (second / f"{second.name}_{name}.nii.gz").read_bytes()
    (first / f"{first.name}_{name}.nii.gz").write_bytes(other)
    result = run(data, output, model, score=True, resume=True)
    assert result.again == {first.name: "results of other images or labels"}
    assert result.continued == 2


def test_a_study_that_failed_is_tried_again(three: Path, model: Path, tmp_path: Path) -> None:
    data = shutil.copytree(three, tmp_path / "data")
    first = data / studies_of(data)[0]
    missing = first / f"{first.name}_t2.nii.gz"
    content = missing.read_bytes()
    missing.unlink()
    before = run(data, tmp_path / "out", model)
    assert list(before.failed) == [first.name]
    missing.write_bytes(content)
    after = run(data, tmp_path / "out", model, resume=True)
    assert (after.failed, after.continued, after.again) == ({}, 2, {})
    run(data, tmp_path / "whole", model)
    assert maps_of(tmp_path / "out") == maps_of(tmp_path / "whole")


@pytest.mark.parametrize("stage", ["read_study", "segment_study", "study_files"])
def test_wherever_a_study_fails_the_others_are_done_in_order(
    stage: str, three: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = studies_of(three)
    original = getattr(module, stage)

    def fails_for_the_second(what, *others, **more):
        study = what if isinstance(what, Study) else getattr(what, "read", what).study
        if study.id == second:
            raise ZeroDivisionError(stage)
        return original(what, *others, **more)

    monkeypatch.setattr(module, stage, fails_for_the_second)
    result = run(three, tmp_path, model)
    assert [r.study for r in result.done] == [first, third]
    assert result.failed == {second: f"unexpected ZeroDivisionError({stage!r})"}
    assert [row["study"] for row in read_json(tmp_path / "run.json")["studies"]] == [first, third, second]
    assert not (tmp_path / second).exists()


def test_the_next_is_read_and_the_last_written_while_one_is_computed_and_no_more(
    three: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = {"read": 0, "computed": 0, "written": 0}
    read_ahead, written_behind, lead = threading.Event(), threading.Event(), []

    def read(study, asked):
        begun["read"] += 1
        if begun["read"] == 2:
            read_ahead.set()
        return read_study(study, asked)

    def compute(read, segmenter, **more):
        begun["computed"] += 1
        lead.append(begun["read"] - begun["computed"])
        assert read_ahead.wait(20), "the second study is read while the first is computed"
        if begun["computed"] == 2:
            assert written_behind.wait(20), "the first study is written while the second is computed"
        return segment_study(read, segmenter, **more)

    def write(segmented, asked):
        begun["written"] += 1
        lead.append(begun["computed"] - begun["written"])
        written_behind.set()
        return study_files(segmented, asked)

    for name, function in (("read_study", read), ("segment_study", compute), ("study_files", write)):
        monkeypatch.setattr(module, name, function)
    assert len(run(three, tmp_path, model).done) == 3
    assert max(lead) <= 1


def test_ctrl_c_ends_what_is_computed_and_keeps_what_is_written(
    three: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = studies_of(three)
    begun = threading.Event()

    def compute(read, segmenter, **more):
        if read.study.id == second:
            assert begun.wait(20)  # the first is being written
            raise KeyboardInterrupt
        return segment_study(read, segmenter, **more)

    def write(segmented, asked):
        begun.set()
        return study_files(segmented, asked)

    monkeypatch.setattr(module, "segment_study", compute)
    monkeypatch.setattr(module, "study_files", write)
    with pytest.raises(Interrupted, match=r"1 of 3 studies are done .*--continue"):
        run(three, tmp_path, model)
    assert [row["study"] for row in read_json(tmp_path / "run.json")["studies"]] == [first]
    monkeypatch.undo()
    assert run(three, tmp_path, model, resume=True).continued == 1


def test_a_record_that_is_none_is_no_result(three: Path, model: Path, tmp_path: Path) -> None:
    first, *_ = studies_of(three)
    (tmp_path / first).mkdir()
    (tmp_path / first / "record.json").write_text("[]")
    (tmp_path / "run.json").write_text('{"verb": "segment", "tables": []}')
    result = run(three, tmp_path, model, resume=True)
    assert (result.continued, list(result.again)) == (0, [first])
    assert "cannot be used" in result.again[first]


def test_a_disk_that_is_full_for_one_study_costs_that_study(
    three: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, second, _ = studies_of(three)
    original = module.write_files

    def full(contents):
        if any(path.parent.name == second for path in contents):
            raise InputError("No space left")
        original(contents)

    monkeypatch.setattr(module, "write_files", full)
    result = run(three, tmp_path, model)
    assert result.failed == {second: "No space left"}
    assert len(result.done) == 2
    assert os.listdir(tmp_path)


def test_a_cluster_leaves_what_one_machine_leaves_whatever_ends_first(
    three: Path, model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = studies_of(three)

    def there(address, function, shared, items):
        assert address == "there"
        assert not list(tmp_path.glob("out/*"))
        for item in reversed(items):  # as it comes from another process
            yield item, pickle.loads(pickle.dumps(function(shared, item)))

    monkeypatch.setattr(module, "on_cluster", there)
    run(three, tmp_path / "out", model, score=True, ray="there")
    assert maps_of(tmp_path / "out") == maps_of(whole)
    assert files_of(tmp_path / "out").keys() == files_of(whole).keys()
    assert [row["study"] for row in read_json(tmp_path / "out" / "run.json")["studies"]] == [first, second, third]
    assert run(three, tmp_path / "out", model, score=True, resume=True).continued == 3

    def one_dies(address, function, shared, items):
        for item in items:
            yield item, InputError("died") if item.id == second else function(shared, item)

    monkeypatch.setattr(module, "on_cluster", one_dies)
    result = run(three, tmp_path / "other", model, ray="there")
    assert (len(result.done), result.failed) == (2, {second: "died"})


@pytest.mark.parametrize("of_model", [True, False])
def test_a_cluster_scores_as_one_machine(
    of_model: bool, three: Path, model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *_ = studies_of(three)

    def there(address, function, shared, items):
        for item in reversed(items):
            yield item, pickle.loads(pickle.dumps(function(shared, item)))

    def one_dies(address, function, shared, items):
        for item in items:
            yield item, InputError("died") if item.truth.id == first else function(shared, item)

    maps = tmp_path / "maps"
    maps.mkdir()
    for study in studies_of(three):
        shutil.copy(whole / study / "segmentation.nii.gz", maps / f"{study}.nii.gz")
    options = EvaluateOptions(model if of_model else maps, three, tmp_path / "here.csv", labels="brats2021", quiet=True)
    evaluate(options)
    monkeypatch.setattr("gliomap.evaluate.on_cluster", there)
    evaluate(replace(options, output=tmp_path / "there.csv", ray="there"))
    assert (tmp_path / "there.csv").read_bytes() == (tmp_path / "here.csv").read_bytes()
    monkeypatch.setattr("gliomap.evaluate.on_cluster", one_dies)
    result = evaluate(replace(options, output=tmp_path / "died.csv", ray="there"))
    assert result.failed == {first: "died"}
    assert [row.status for row in result.rows if row.study == first] == ["failed"]


def test_where_memory_is_limited_no_study_is_read_ahead_and_the_maps_are_the_same(
    three: Path, model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    for name in ("read_study", "segment_study", "study_files"):
        original = getattr(module, name)
        noted = lambda *a, name=name, original=original, **k: (order.append(name), original(*a, **k))[1]  # noqa: E731
        monkeypatch.setattr(module, name, noted)
    run(three, tmp_path / "out", model, score=True, max_memory_gb=64.0)
    assert order == ["read_study", "segment_study", "study_files"] * 3
    assert maps_of(tmp_path / "out") == maps_of(whole)
