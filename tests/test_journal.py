import json
import os
import subprocess
import sys

import pytest

from gliomap.errors import InputError
from gliomap.journal import Journal

QUESTION = {"asked": "what", "protocol": "plain"}


def parts_of(path, question=QUESTION):
    with Journal(path, question) as journal:
        return {key: journal[key] for key in ("a", "b", "c") if key in journal}


def test_what_was_added_is_there_for_the_same_question_only(tmp_path):
    path = tmp_path / "new" / "run.csv"
    with Journal(path, QUESTION) as journal:
        journal.add("a", {"value": 1.5, "text": 'ü\n"'})
        journal.add("b", [1, None])
        assert ("a" in journal, "c" in journal) == (True, False)
        assert journal["a"] == {"value": 1.5, "text": 'ü\n"'}
    found = {"a": {"value": 1.5, "text": 'ü\n"'}, "b": [1, None]}
    assert parts_of(path) == found
    assert parts_of(path, QUESTION | {"protocol": "brats2023"}) == {}
    assert parts_of(path) == found  # the other question did not touch it
    assert parts_of(path.with_name("other.csv")) == {}


def test_the_last_of_several_parts_of_a_key_counts(tmp_path):
    path = tmp_path / "run.csv"
    with Journal(path, QUESTION) as journal:
        journal.add("a", 1)
        journal.add("b", 2)
        journal.add("a", 3)
        assert journal["a"] == 3
    assert parts_of(path) == {"a": 3, "b": 2}


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_line_that_was_cut_off_is_dropped_and_writing_goes_on_after_the_whole_ones(tmp_path, cut):
    path = tmp_path / "run.csv"
    with Journal(path, QUESTION) as journal:
        journal.add("a", "first")
        journal.add("b", "second")
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-cut])
    assert parts_of(path) == {"a": "first"}
    with Journal(path, QUESTION) as journal:
        journal.add("b", "second")
        journal.add("c", "third")
    assert journal.path.read_bytes().startswith(whole)
    assert parts_of(path) == {"a": "first", "b": "second", "c": "third"}


def test_a_line_is_on_the_disk_as_soon_as_it_is_added_and_the_file_goes_when_it_is_not_needed(tmp_path):
    with Journal(tmp_path / "run.csv", QUESTION) as journal:
        journal.add("a", 1)
        assert json.loads(journal.path.read_text().splitlines()[-1]) == ["a", 1]
        journal.remove()
    assert not list(tmp_path.iterdir())
    with Journal(tmp_path / "run.csv", QUESTION):
        pass
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_an_error_with_the_path(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*file.*run\.csv"):
        Journal(tmp_path / "file" / "run.csv", QUESTION)


@pytest.mark.parametrize("where", ["write", "fsync"])
def test_a_part_that_does_not_fit_on_the_disk_leaves_the_others(tmp_path, monkeypatch, where):
    path, write = tmp_path / "run.csv", os.write

    def half(handle, line):
        if len(line) < 5:
            raise OSError(28, "No space left on device")
        return write(handle, line[:4])

    def full(_):
        raise OSError(28, "No space left on device")

    with Journal(path, QUESTION) as journal:
        journal.add("a", 1)
        with monkeypatch.context() as patch:
            patch.setattr("gliomap.journal.os." + where, half if where == "write" else full)
            with pytest.raises(InputError, match="What was finished is kept"):
                journal.add("b", 2)
        assert "b" not in journal
        journal.add("c", 3)
        assert journal["c"] == 3
    assert parts_of(path) == {"a": 1, "c": 3}


def test_two_processes_do_not_write_the_same_journal(tmp_path):
    pytest.importorskip("fcntl")
    code = f"""
from pathlib import Path
from gliomap.journal import Journal
with Journal(Path({str(tmp_path / "run.csv")!r}), {QUESTION!r}) as journal:
    print("begun", flush=True)
    input()
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "begun\n"
        with pytest.raises(InputError, match="another process is doing the same"):
            Journal(tmp_path / "run.csv", QUESTION)
    finally:
        other.communicate("\n")
    assert parts_of(tmp_path / "run.csv") == {}
