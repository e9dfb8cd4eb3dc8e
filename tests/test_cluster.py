"""What a cluster is asked to do, with a stand-in for Ray that works in this process; a real one is in programs/two_nodes.py."""

import os
import sys
import types
from pathlib import Path

import pytest

from gliomap import cluster
from gliomap.cluster import kept, on_cluster
from gliomap.errors import InputError, UsageError


class DiedError(Exception):
    """Ray's error for a machine that is gone."""


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Two machines with 4 and 8 cores, and one without; items are done when they are waited for, the last given first."""
    module = types.ModuleType("ray")
    module.most, module.told, module.ended = 0, {}, 0

    def init(address, **_):
        if address == "nowhere":
            raise ConnectionError("nobody answers\nat all")
        module.told["telemetry"] = os.environ["RAY_USAGE_STATS_ENABLED"]

    def remote(**limits):
        module.told |= limits
        return lambda function: types.SimpleNamespace(remote=lambda *given: (function, given))

    def wait(running):
        module.most = max(module.most, len(running))
        return [running[-1]], running[:-1]

    def get(task):
        function, (asked, item) = task
        if item == "dies":
            raise DiedError("its machine is gone\nand more")
        return function(asked, item)

    def shutdown():
        module.ended += 1

    nodes = [{"Alive": True, "Resources": {"CPU": c}} for c in (4, 8)] + [{"Alive": True, "Resources": {}}]
    vars(module).update(
        init=init, put=lambda value: value, remote=remote, wait=wait, get=get, shutdown=shutdown,
        nodes=lambda: [*nodes, {"Alive": False, "Resources": {"CPU": 1}}],
        exceptions=types.SimpleNamespace(RayError=DiedError),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.setattr(cluster, "_kept", {})
    return module


def joined(shared: str, item: str) -> str:
    if item == "bad":
        raise ValueError("bad item")
    return shared + item


def test_every_item_is_done_and_an_error_comes_in_place_of_a_result(ray) -> None:
    items = [*"abcdefgh", "bad", "dies"]
    found = dict(on_cluster("there", joined, "x", items))
    assert {item: found.pop(item) for item in "abcdefgh"} == {item: "x" + item for item in "abcdefgh"}
    assert isinstance(found["bad"], ValueError)
    assert isinstance(found["dies"], InputError)
    assert "died, 4 times: its machine is gone" in str(found["dies"])
    assert ray.ended == 1


def test_items_wait_with_the_driver_and_a_machine_as_large_as_two_works_at_two(ray) -> None:
    list(on_cluster("there", joined, "x", [str(n) for n in range(30)]))
    assert ray.told == {"telemetry": "0", "num_cpus": 4, "max_retries": 3}
    assert ray.most == 2 * (4 + 8) // 4


def test_no_cluster_or_no_ray_says_what_to_do(ray, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InputError, match=r"no Ray cluster can be used at 'nowhere' \(nobody answers\); begin one with: ray"
    ):
        list(on_cluster("nowhere", joined, "x", ["a"]))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"gliomap\[cluster\]"):
        list(on_cluster("there", joined, "x", ["a"]))


def test_a_machine_with_another_version_or_without_the_folder_is_refused(
    ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    given = on_cluster("there", joined, "x", ["a", "b", "c"])
    assert next(given) == ("c", "xc")
    monkeypatch.chdir(tmp_path)
    folder.rmdir()
    _, error = next(given)
    assert "has no folder" in str(error)
    folder.mkdir()
    monkeypatch.setattr(cluster, "__version__", "9.9")
    _, error = next(given)
    assert "has gliomap 9.9; expected" in str(error)


def test_paths_mean_what_they_mean_where_the_work_was_asked_for(
    ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = on_cluster("there", lambda _, item: Path(item).resolve(), None, ["a", "b"])
    next(given)
    monkeypatch.chdir("/")
    assert next(given) == ("a", tmp_path / "a")


def test_what_was_made_for_an_item_serves_the_next_and_only_one_is_kept(ray) -> None:
    made = []
    for key in ("a", "a", "b", "b", "a"):
        assert kept(key, lambda key=key: made.append(key) or key) == key
    assert made == ["a", "b", "a"]
