import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from gliomap.data.cache import SUFFIX, Cache, Entry, entry_key, find_cache, load, sources_sha256, store
from gliomap.errors import InputError, UsageError

ENTRY = Entry(
    {
        "images": np.random.default_rng(0).normal(size=(2, 3, 5, 7)).astype(np.float16),
        "classes": np.arange(105, dtype=np.uint8).reshape(3, 5, 7),
        "points": np.arange(-3, 6, dtype=np.int16).reshape(3, 3),
    },
    {"middle": -3, "warnings": ["ödd"]},
)


def cache_in(folder, limit_bytes=10**6, since_s=0.0):
    return Cache(folder, limit_bytes, since_s=since_s)


def names(folder):
    return sorted(p.name.removesuffix(SUFFIX) for p in folder.iterdir())


def is_entry(found):
    equal = all(
        np.array_equal(found.arrays[n], a) and found.arrays[n].dtype == a.dtype for n, a in ENTRY.arrays.items()
    )
    return equal and found.arrays.keys() == ENTRY.arrays.keys() and found.about == ENTRY.about


def test_an_entry_is_read_back_as_it_was_as_memory_maps(tmp_path):
    cache = cache_in(tmp_path)
    assert load(cache, "a") is None
    assert store(cache, "a", ENTRY) == ""
    found = load(cache, "a")
    assert is_entry(found)
    for array in found.arrays.values():
        base = array
        while isinstance(base.base, np.ndarray):
            base = base.base
        assert isinstance(base, np.memmap)
        assert not array.flags.writeable


def test_entries_are_safetensors_files_that_anything_can_read(tmp_path):
    store(cache_in(tmp_path), "a", ENTRY)
    content = load_file(tmp_path / f"a{SUFFIX}")
    assert all(np.array_equal(content[name], array) for name, array in ENTRY.arrays.items())


def test_views_are_stored_as_what_they_show(tmp_path):
    flipped = ENTRY.arrays["classes"][::-1, :, ::2]
    store(cache_in(tmp_path), "a", Entry({"classes": flipped}, {}))
    np.testing.assert_array_equal(load(cache_in(tmp_path), "a").arrays["classes"], flipped)


@pytest.mark.parametrize("length", [0, 3, 8, 40, -105, -1])
def test_an_entry_that_was_cut_off_is_none(length, tmp_path):
    cache = cache_in(tmp_path)
    store(cache, "a", ENTRY)
    path = tmp_path / f"a{SUFFIX}"
    path.write_bytes(path.read_bytes()[:length])
    assert load(cache, "a") is None
    assert store(cache, "a", ENTRY) == ""
    assert is_entry(load(cache, "a"))


@pytest.mark.parametrize("content", [b"\xff" * 500, b"\x02" + bytes(7) + b"[]" + bytes(9), bytes(500)])
def test_what_is_no_entry_is_none(content, tmp_path):
    (tmp_path / f"a{SUFFIX}").write_bytes(content)
    assert load(cache_in(tmp_path), "a") is None


def test_keys_differ_with_any_fact_and_not_with_their_order():
    facts = {"a": 1, "b": [1, 2]}
    assert entry_key(facts) == entry_key(dict(reversed(facts.items())))
    others = [{"a": 1}, {"a": 1, "b": [2, 1]}, {"a": 1, "b": [1, 2], "c": None}, {"a": "1", "b": [1, 2]}]
    assert len({entry_key(f) for f in [facts, *others]}) == 5


def test_the_source_text_of_every_module_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "first_source.py").write_text("A = 1\n")
    (tmp_path / "second_source.py").write_text("B = 1\n")
    modules = ("first_source", "second_source")
    before = sources_sha256(modules)
    assert sources_sha256(modules[:1]) != before
    (tmp_path / "second_source.py").write_text("B = 1 \n")
    sources_sha256.cache_clear()
    assert sources_sha256(modules) != before


def sized(count):
    return Entry({"classes": np.zeros(count, np.uint8)}, {})


def filled(folder, ages_s, **settings):
    """A cache with entries of 1,000 voxels by name, each last used so many seconds ago, with room for three."""
    for name, age_s in ages_s.items():
        store(cache_in(folder), name, sized(1000))
        then = time.time() - age_s
        os.utime(folder / f"{name}{SUFFIX}", (then, then))
    size = max(p.stat().st_size for p in folder.iterdir())
    return Cache(folder, 3 * size + 50, **settings)


@pytest.mark.parametrize("order", ["abc", "cba", "bca"])
def test_what_was_not_used_for_longest_makes_room(order, tmp_path):
    cache = filled(tmp_path, dict(zip(order, (300, 200, 100), strict=True)))
    assert store(cache, "d", sized(1000)) == ""
    assert names(tmp_path) == sorted([*order[1:], "d"])


def test_loading_is_using(tmp_path):
    cache = filled(tmp_path, {"a": 200, "b": 300, "c": 100})
    assert load(cache, "b")
    assert store(cache, "d", sized(1000)) == ""
    assert names(tmp_path) == ["b", "c", "d"]
    assert store(replace(cache, since_s=time.time()), "e", sized(2000)) == ""
    assert len(names(tmp_path)) == 2
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= cache.limit_bytes


def test_nothing_is_removed_where_there_is_room_or_where_it_would_not_help(tmp_path):
    cache = filled(tmp_path, {"a": 200, "b": 100})
    assert store(cache, "c", sized(1000)) == ""
    assert names(tmp_path) == ["a", "b", "c"]
    assert "full" in store(cache, "d", sized(9000))
    assert names(tmp_path) == ["a", "b", "c"]


def test_what_this_run_uses_makes_no_room(tmp_path):
    cache = filled(tmp_path, {"a": 200, "b": 300, "c": 100}, since_s=time.time() - 150)
    load(cache, "b")
    assert store(cache, "d", sized(1000)) == ""
    assert "full" in store(cache, "e", sized(1000))
    assert names(tmp_path) == ["b", "c", "d"]


def test_making_an_entry_again_needs_no_more_room(tmp_path):
    cache = filled(tmp_path, {"a": 0, "b": 0, "c": 0}, since_s=time.time() - 100)
    assert store(cache, "a", sized(1000)) == ""
    assert names(tmp_path) == ["a", "b", "c"]


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed there")
def test_what_was_loaded_stays_readable_when_another_run_removes_it(tmp_path):
    cache = cache_in(tmp_path)
    store(cache, "a", ENTRY)
    found = load(cache, "a")
    assert store(Cache(tmp_path, 1200), "b", sized(900)) == ""
    assert names(tmp_path) == ["b"]
    assert is_entry(found)


def keep_storing(folder, count):
    big = Entry({"classes": np.zeros(2_000_000, np.uint8)}, {})
    for _ in range(count):
        store(cache_in(folder, 10**8), "shared", big)


def test_two_processes_make_the_same_entry_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=keep_storing, args=(tmp_path, 40)) for _ in range(2)]
    for process in others:
        process.start()
    seen = 0
    while any(p.is_alive() for p in others):
        found = load(cache_in(tmp_path), "shared")
        if found is not None:
            assert found.arrays["classes"].shape == (2_000_000,)
            seen += 1
    for process in others:
        process.join()
        assert process.exitcode == 0
    assert seen
    assert names(tmp_path) == ["shared"]


KILLED = """
import os, sys
import numpy as np
from pathlib import Path
from gliomap.data.cache import Cache, Entry, store
def stop(*_):
    print(sorted(p.suffix for p in Path(sys.argv[1]).iterdir()), flush=True)
    os.kill(os.getpid(), 9)
os.fsync = stop
store(Cache(Path(sys.argv[1]), 10**8), "a", Entry({"classes": np.zeros(1_000_000, np.uint8)}, {}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_run_that_is_killed_while_it_writes_leaves_no_entry(tmp_path, monkeypatch):
    monkeypatch.setenv("GLIOMAP_CACHE", str(tmp_path))
    folder = tmp_path / "studies"
    folder.mkdir()
    ended = subprocess.run([sys.executable, "-c", KILLED, folder], capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert ended.stdout.strip() == "['.part']"
    assert load(cache_in(folder), "a") is None
    (left,) = folder.iterdir()
    find_cache("studies")
    assert left.exists()  # somebody may be writing it
    os.utime(left, (0, 0))
    find_cache("studies")
    assert not left.exists()


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.setenv("GLIOMAP_CACHE", str(tmp_path / "told"))
    monkeypatch.setenv("GLIOMAP_CACHE_GB", "0.5")
    assert find_cache("studies") == Cache(
        tmp_path / "told" / "studies", 500_000_000, since_s=pytest.approx(time.time())
    )
    monkeypatch.delenv("GLIOMAP_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    for platform, name in (("linux", "XDG_CACHE_HOME"), ("win32", "LOCALAPPDATA")):
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.setenv(name, str(tmp_path / platform))
        assert find_cache("studies").folder == tmp_path / platform / "gliomap" / "studies"
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "platform", "linux")
    assert find_cache("studies").folder == tmp_path / ".cache" / "gliomap" / "studies"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert find_cache("studies").folder == tmp_path / "Library" / "Caches" / "gliomap" / "studies"


@pytest.mark.skipif(sys.platform == "win32", reason="no such permissions there")
def test_only_its_owner_may_look_into_a_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GLIOMAP_CACHE", str(tmp_path / "told"))
    assert find_cache("studies").folder.stat().st_mode & 0o077 == 0


def test_without_a_cache_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("GLIOMAP_CACHE", "off")
    monkeypatch.chdir(tmp_path)
    cache = find_cache("studies")
    assert (cache.folder, cache.problem) == (None, "")
    assert "off" in store(cache, "a", ENTRY)
    assert load(cache, "a") is None
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_a_problem_and_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("GLIOMAP_CACHE", str(tmp_path / "file"))
    cache = find_cache("studies")
    assert cache.folder is None
    assert "cannot be written" in cache.problem
    assert store(cache, "a", ENTRY) == cache.problem


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left" in store(cache_in(tmp_path), "a", ENTRY)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", ["much", "-1", "nan", "inf"])
def test_a_size_that_is_none_is_refused(size, monkeypatch):
    monkeypatch.setenv("GLIOMAP_CACHE_GB", size)
    with pytest.raises(UsageError, match="GLIOMAP_CACHE_GB"):
        find_cache("studies")


MANY = """
import resource, sys
from pathlib import Path
import numpy as np
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (40, int(sys.argv[2]) if len(sys.argv) > 2 else hard))
from gliomap.data.cache import Entry, find_cache, load, store
cache = find_cache("studies")
store(cache, "a", Entry({"classes": np.zeros(10, np.uint8)}, {}))
held = [load(cache, "a") for _ in range(200)]
print(sum(entry is not None for entry in held))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
def test_more_studies_are_open_than_a_process_begins_with(tmp_path, monkeypatch):
    monkeypatch.setenv("GLIOMAP_CACHE", str(tmp_path))
    ended = subprocess.run([sys.executable, "-c", MANY], capture_output=True, text=True, check=False)
    assert ended.stdout.strip() == "200", ended.stderr
    ended = subprocess.run([sys.executable, "-c", MANY, "", "60"], capture_output=True, text=True, check=False)
    assert f"{InputError.__name__}: the system lets a process open fewer files" in ended.stderr
    assert (tmp_path / "studies" / f"a{SUFFIX}").exists()


def test_the_tests_have_a_cache_of_their_own():
    assert "pytest" in os.environ["GLIOMAP_CACHE"]
    assert Path(os.environ["GLIOMAP_CACHE"]) in find_cache("studies").folder.parents
