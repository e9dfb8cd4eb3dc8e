import errno
import json
import os
import stat
import tempfile
from pathlib import Path

import pytest

from gliomap.errors import InputError
from gliomap.files import json_bytes, read_json, sha256, write_file, write_files


def everything_below(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def full_disk(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullStream:
    def __init__(self, handle, _mode):
        self.handle = handle

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.handle)

    writelines = full_disk


def fill_disk(monkeypatch, where):
    if where == "open":
        monkeypatch.setattr(tempfile, "mkstemp", full_disk)
    elif where == "write":
        monkeypatch.setattr(os, "fdopen", FullStream)
    else:
        monkeypatch.setattr(os, where, full_disk)


def test_files_and_their_folders_are_written(tmp_path):
    write_files({tmp_path / "a" / "b" / "one": b"1", tmp_path / "two": b"22"})
    assert (tmp_path / "a" / "b" / "one").read_bytes() == b"1"
    assert (tmp_path / "two").read_bytes() == b"22"
    assert everything_below(tmp_path) == ["a", "a/b", "a/b/one", "two"]


def test_a_content_may_come_in_parts_and_one_that_breaks_off_is_not_written(tmp_path):
    write_files({tmp_path / "whole": (part for part in (b"one ", b"two"))})
    assert (tmp_path / "whole").read_bytes() == b"one two"

    def broken():
        yield b"begun"
        raise KeyError("no more")

    with pytest.raises(KeyError):
        write_files({tmp_path / "other": b"x", tmp_path / "broken": broken()})
    assert everything_below(tmp_path) == ["whole"]


def test_written_file_has_the_permissions_of_an_ordinary_new_file(tmp_path):
    (tmp_path / "ordinary").write_bytes(b"")
    write_file(tmp_path / "ours", b"")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)


@pytest.mark.parametrize("where", ["open", "write", "fsync", "replace"])
def test_full_disk_leaves_nothing_and_keeps_the_previous_file(tmp_path, monkeypatch, where):
    kept = tmp_path / "kept"
    kept.write_bytes(b"previous")
    fill_disk(monkeypatch, where)
    with pytest.raises(InputError, match=r"cannot write .*No space left.*Nothing was written") as raised:
        write_files({kept: b"new", tmp_path / "new" / "folder" / "file": b"content"})
    assert raised.value.exit_code == 3
    monkeypatch.undo()
    assert kept.read_bytes() == b"previous"
    assert everything_below(tmp_path) == ["kept"]


def test_disk_that_fills_at_the_last_file_leaves_none_of_them(tmp_path, monkeypatch):
    synced = []

    def fill_at_second(handle):
        synced.append(handle)
        if len(synced) == 2:
            full_disk()

    monkeypatch.setattr(os, "fsync", fill_at_second)
    with pytest.raises(InputError, match="No space left"):
        write_files({tmp_path / "x" / "one": b"1", tmp_path / "y" / "two": b"2"})
    assert everything_below(tmp_path) == []


def test_every_content_is_on_the_disk_before_any_is_renamed(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b))[1])
    write_files({tmp_path / "one": b"1", tmp_path / "two": b"2"})
    assert order == ["fsync", "fsync", "replace", "replace"]


def test_folders_made_before_one_that_cannot_be_made_are_removed(tmp_path, monkeypatch):
    mkdir = Path.mkdir

    def fill_at_inner(self, *args, **kwargs):
        if self.name == "inner":
            full_disk()
        mkdir(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", fill_at_inner)
    with pytest.raises(InputError, match="No space left"):
        write_file(tmp_path / "outer" / "inner" / "file", b"")
    assert everything_below(tmp_path) == []


def test_interrupted_writing_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(_handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "new" / "file", b"content")
    assert everything_below(tmp_path) == []


def test_place_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot write"):
        write_file(tmp_path / "file" / "below", b"content")
    assert everything_below(tmp_path) == ["file"]


def test_folder_without_permission_is_refused(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(InputError, match="Permission denied"):
        write_file(tmp_path / "file", b"content")


def test_json_is_readable_and_comes_back(tmp_path):
    value = {"volume_ml": 1.5, "name": "Gliom ö"}
    write_file(tmp_path / "record.json", json_bytes(value))
    assert "ö" in (tmp_path / "record.json").read_text(encoding="utf-8")
    assert read_json(tmp_path / "record.json") == value
    assert json.loads(json_bytes(value)) == value


def test_json_never_holds_nan():
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_bytes({"value": float("nan")})


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b""])
def test_file_that_is_not_json_is_refused(tmp_path, content):
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(InputError, match="is not JSON"):
        read_json(tmp_path / "record.json")


def test_json_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"cannot read .*No such file"):
        read_json(tmp_path / "absent.json")

    def refuse(_self):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InputError, match=r"cannot read .*Permission denied"):
        read_json(tmp_path / "record.json")


def test_sha256_of_a_known_content(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_nothing_is_written_where_one_destination_is_a_folder(tmp_path):
    (tmp_path / "b").mkdir()
    with pytest.raises(InputError, match=r"cannot write .*b: Is a directory"):
        write_files({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
