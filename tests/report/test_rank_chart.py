import itertools
from xml.etree import ElementTree

import numpy as np
import pytest

from gliomap.report.rank_chart import WIDTH, rank_chart

RANKS = np.array([2.5, 1.0, 3.0, 3.5])
MODELS = ("second", "best", "third", "last")


def parts(chart, tag, cls=None):
    root = ElementTree.fromstring(str(chart))
    return [e for e in root.iter(tag) if cls is None or e.get("class") == cls]


def bars(chart):
    """Each bar's height, ends, and the models at its dots."""
    dots = [(float(e.get("cx")), float(e.get("cy")), e.find("title").text) for e in parts(chart, "circle", "rank")]
    found = []
    for e in parts(chart, "line", "group"):
        x1, x2, y = (float(e.get(name)) for name in ("x1", "x2", "y1"))
        found.append((y, x1, x2, [name for _, cy, name in dots if cy == y and "mean rank" not in name]))
    return found


def on_axis(chart):
    dots = parts(chart, "circle", "rank")
    return {e.find("title").text.split(":")[0]: float(e.get("cx")) for e in dots if "mean rank" in e.find("title").text}


def test_models_lie_at_their_mean_ranks_on_the_axis():
    chart = rank_chart("t", RANKS, MODELS, [])
    marks = {e.text: float(e.get("x")) for e in parts(chart, "text", "tick") if e.text.isdigit()}
    assert [*marks] == ["1", "2", "3", "4"]
    step = (marks["4"] - marks["1"]) / 3
    assert marks["2"] == pytest.approx(marks["1"] + step, abs=0.2)
    for model, rank in zip(MODELS, RANKS, strict=True):
        assert on_axis(chart)[model] == pytest.approx(marks["1"] + (rank - 1) * step, abs=0.2)


def test_the_better_half_stands_on_the_left_from_the_best_and_the_rest_on_the_right_from_the_worst():
    chart = rank_chart("t", RANKS, MODELS, [])
    names = parts(chart, "text", "name")
    assert [(e.text, e.get("text-anchor")) for e in names] == [
        ("best 1.00", "end"),
        ("second 2.50", "end"),
        ("3.50 last", "start"),
        ("3.00 third", "start"),
    ]
    heights = [float(e.get("y")) for e in names]
    assert heights[0] < heights[1]
    assert heights[2] < heights[3]
    ends = [
        [float(v) for v in e.get("d").replace("M", "").replace("V", " ").replace("H", " ").split()]
        for e in parts(chart, "path", "elbow")
    ]
    xs, _, ys, sides = zip(*ends, strict=True)
    assert list(xs) == pytest.approx([on_axis(chart)[m] for m in ("best", "second", "last", "third")], abs=0.1)
    assert [y + 4 for y in ys] == pytest.approx(heights)
    assert all(side < min(xs) for side in sides[:2])
    assert all(side > max(xs) for side in sides[2:])


def test_a_bar_spans_its_group_and_has_a_dot_at_each_member_alone():
    chart = rank_chart("t", RANKS, MODELS, [(1, 2), (0, 2, 3)])  # the first passes over "second"
    at = on_axis(chart)
    (y1, left1, right1, members1), (y2, left2, right2, members2) = bars(chart)
    assert (set(members1), set(members2)) == ({"best", "third"}, {"second", "third", "last"})
    assert left1 < at["best"] < at["third"] < right1
    assert left2 < at["second"] < at["last"] < right2
    assert at["third"] < right1 < at["last"]
    assert at["best"] < left2
    assert y1 != y2
    names = [float(e.get("y")) for e in parts(chart, "text", "name")]
    assert max(y1, y2) < min(names) - 8
    assert "Not told apart: best, third; second, third, last" in parts(chart, "desc")[0].text


def test_bars_that_do_not_meet_share_a_line():
    ranks = np.array([1.0, 1.5, 5.0, 5.5, 6.0, 6.5])
    chart = rank_chart("t", ranks, tuple("abcdef"), [(0, 1), (2, 3), (3, 4), (4, 5)])
    heights = [y for y, *_ in bars(chart)]
    assert heights[0] == heights[1] < heights[2]
    assert len(set(heights)) == 2 or len(set(heights)) == 3
    spans = sorted(bars(chart))
    for first, second in itertools.pairwise(spans):
        assert first[0] != second[0] or first[2] < second[1]


def test_models_that_tie_have_a_bar_that_can_be_seen_and_a_name_each():
    chart = rank_chart("t", np.array([1.5, 1.5]), ("a", "b"), [(0, 1)])
    ((_, left, right, members),) = bars(chart)
    assert (members, right - left) == (["a", "b"], pytest.approx(10, abs=0.2))
    assert {e.text for e in parts(chart, "text", "name")} == {"a 1.50", "1.50 b"}


def test_without_groups_there_are_no_bars_and_nothing_is_said_of_them():
    chart = rank_chart("t", RANKS, MODELS, None)
    assert not bars(chart)
    assert "told apart" not in parts(chart, "desc")[0].text
    assert "Not told apart: none" in parts(rank_chart("t", RANKS, MODELS, []), "desc")[0].text


@pytest.mark.parametrize("count", [2, 3, 5, 12])
def test_two_to_twelve_models_with_long_names_stay_inside_and_apart(count):
    names = tuple(f"a_network_with_a_very_long_name_{k}" for k in range(count))
    ranks = np.linspace(1, count, count)
    chart = rank_chart("t", ranks, names, [tuple(range(count))])
    root = ElementTree.fromstring(str(chart))
    height = float(root.get("viewBox").split()[3])
    texts = parts(chart, "text", "name")
    assert len(texts) == count
    for side in ("start", "end"):
        own = [e for e in texts if e.get("text-anchor") == side]
        rows = sorted(float(e.get("y")) for e in own)
        assert (np.diff(rows) >= 14).all()
        assert all(0 < y < height for y in rows)
        for e in own:
            wide, x = 6.9 * len(e.text), float(e.get("x"))
            assert 0 <= (x - wide if side == "end" else x) <= (x if side == "end" else x + wide) <= WIDTH
    assert all(name in parts(chart, "desc")[0].text for name in names)


def test_names_cannot_break_it():
    chart = rank_chart("<t>", np.array([1.0, 2.0]), ("<script>", "&"), [(0, 1)])
    assert "<script" not in chart
    assert parts(chart, "title")[0].text == "<t>"
