import json
import math
from dataclasses import dataclass
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from gliomap import machine
from gliomap.manifest import RunRecord, plain


@dataclass(frozen=True)
class Options:
    path: Path
    sizes: tuple[int, ...] = (1, 2)
    limit: float = math.inf


def test_paths_tuples_and_numbers_that_are_not_finite_become_plain():
    value = {"a": Path("some") / "file", 3: (1, (2.5, math.nan)), "b": [math.inf, -math.inf, None, True, "x"]}
    assert plain(value) == {"a": str(Path("some/file")), "3": [1, [2.5, None]], "b": [None, None, None, True, "x"]}


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.builds(Path, st.just("a/b"))
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(values)
def test_plain_values_survive_json(value):
    found = plain(value)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_record_holds_the_run_and_what_came_of_it():
    record = RunRecord("segment", Options(Path("study")))
    content = record.content(studies=[{"id": "a", "dice": math.nan}], model=None)
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["verb"] == "segment"
    assert content["options"] == {"path": "study", "sizes": [1, 2], "limit": None}
    assert content["studies"] == [{"id": "a", "dice": None}]
    assert content["time_s"] >= 0
    assert content["peak_memory_mb"] > 0
    assert content["cores"] >= 1
    assert content["versions"] == machine.versions()


def test_options_may_be_a_plain_mapping():
    assert RunRecord("view", {"a": (1,)}).content()["options"] == {"a": [1]}
