import json

import pytest

from gliomap.errors import InputError
from gliomap.journal import Journal

QUESTION = {"asked": "what", "protocol": "plain"}


def parts_of(path, question):
    with Journal(path, question) as journal:
        return {key: journal[key] for key in ("a", "b", "c") if key in journal}


def test_what_was_added_is_there_for_the_same_question_only(tmp_path):
    path = tmp_path / "new" / "run.jsonl"
    with Journal(path, QUESTION) as journal:
        journal.add("a", {"value": 1.5, "text": 'ü\n"'})
        journal.add("b", [1, None])
        assert ("a" in journal, "c" in journal) == (True, False)
        assert journal["a"] == {"value": 1.5, "text": 'ü\n"'}
    assert parts_of(path, QUESTION) == {"a": {"value": 1.5, "text": 'ü\n"'}, "b": [1, None]}
    assert parts_of(path, QUESTION | {"protocol": "brats2023"}) == {}
    assert parts_of(path, QUESTION) == {}  # the other question began it anew


def test_the_last_of_several_parts_of_a_key_counts(tmp_path):
    path = tmp_path / "run.jsonl"
    with Journal(path, QUESTION) as journal:
        journal.add("a", 1)
        journal.add("b", 2)
        journal.add("a", 3)
        assert journal["a"] == 3
    assert parts_of(path, QUESTION) == {"a": 3, "b": 2}


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_line_that_was_cut_off_is_dropped_and_writing_goes_on_after_the_whole_ones(tmp_path, cut):
    path = tmp_path / "run.jsonl"
    with Journal(path, QUESTION) as journal:
        journal.add("a", "first")
        journal.add("b", "second")
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert parts_of(path, QUESTION) == {"a": "first"}
    with Journal(path, QUESTION) as journal:
        journal.add("b", "second")
        journal.add("c", "third")
    assert path.read_bytes().startswith(whole)
    assert parts_of(path, QUESTION) == {"a": "first", "b": "second", "c": "third"}


def test_a_line_is_on_the_disk_as_soon_as_it_is_added(tmp_path):
    path = tmp_path / "run.jsonl"
    with Journal(path, QUESTION) as journal:
        journal.add("a", 1)
        assert json.loads(path.read_text().splitlines()[-1]) == ["a", 1]
        journal.remove()
    assert not path.exists()


def test_a_place_that_cannot_be_written_is_an_error_with_the_path(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*file.*run\.jsonl"):
        Journal(tmp_path / "file" / "run.jsonl", QUESTION)


def test_a_part_that_does_not_fit_on_the_disk_leaves_the_others(tmp_path, monkeypatch):
    path = tmp_path / "run.jsonl"
    with Journal(path, QUESTION) as journal:
        journal.add("a", 1)
        with monkeypatch.context() as patch:
            patch.setattr("gliomap.journal.os.fsync", full_disk)
            with pytest.raises(InputError, match="What was finished is kept"):
                journal.add("b", 2)
        assert "b" not in journal
        journal.add("c", 3)
    assert parts_of(path, QUESTION) == {"a": 1, "c": 3}


def full_disk(_):
    raise OSError(28, "No space left on device")
