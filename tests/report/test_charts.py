import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gliomap.report.charts import (
    MOST_HOVERED,
    MOST_POINTS,
    WIDTH,
    Curve,
    axis,
    box_chart,
    curve_chart,
    difference_chart,
    shortened,
    ticks,
)

STUDIES = tuple(f"study-{i}" for i in range(12))


def parts(chart, tag, cls=None):
    root = ElementTree.fromstring(str(chart))
    return [e for e in root.iter(tag) if cls is None or e.get("class") == cls]


def numbers(elements, *names):
    return np.array([[float(e.get(name)) for name in names] for e in elements])


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_ticks_are_round_inside_and_neither_few_nor_many(low, span):
    found = ticks(low, low + span)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-6 * span <= t <= low + span + 1e-6 * span for t in found)
    step = found[1] - found[0]
    assert step / 10 ** np.floor(np.log10(step) + 1e-6) == pytest.approx(
        round(step / 10 ** np.floor(np.log10(step) + 1e-6)), rel=1e-6
    )


def test_an_axis_has_room_for_every_value_and_for_none():
    found = axis([1.0, np.nan, 3.0], 10, 110)
    assert found.low < 1
    assert found.high > 3
    assert 10 < found.at(1) < found.at(3) < 110
    assert axis([2.0, 2.0], 0, 1).low < 2 < axis([2.0, 2.0], 0, 1).high
    assert axis([0.0], 0, 1).high > 0
    assert axis([np.nan], 0, 1).at(0.5) == pytest.approx(0.5)


def test_boxes_are_numpys_quartiles_and_whiskers_reach_the_last_value_in_1_5_boxes():
    values = np.array([[0.1], [0.5], [0.52], [0.55], [0.6], [0.61], [0.64], [0.7], [0.72], [0.75], [0.8], [0.9]])
    chart = box_chart("t", values, ("m",), STUDIES)
    across = axis(values.ravel(), 6, WIDTH - 6)
    low, median, high = np.percentile(values, (25, 50, 75))
    ((x, width),) = numbers(parts(chart, "rect", "box"), "x", "width")
    assert (x, x + width) == pytest.approx((across.at(low), across.at(high)), abs=0.11)
    assert numbers(parts(chart, "line", "median"), "x1")[0, 0] == pytest.approx(across.at(median), abs=0.06)
    whiskers = numbers(parts(chart, "line", "whisker"), "x1", "x2")
    assert whiskers.min() == pytest.approx(across.at(0.5), abs=0.06)
    assert whiskers.max() == pytest.approx(across.at(0.9), abs=0.06)
    dots = parts(chart, "circle", "dot")
    assert numbers(dots, "cx")[:, 0] == pytest.approx([across.at(v) for v in values.ravel()], abs=0.06)
    assert [dot.find("title").text for dot in dots][:2] == ["study-0: 0.1", "study-1: 0.5"]


def test_what_is_missing_has_a_lane_and_is_never_dropped():
    values = np.linspace(1, 2, 24).reshape(12, 2)
    values[3, 0] = values[7, 1] = values[8, 1] = np.nan
    chart = box_chart("t", values, ("one", "two"), STUDIES)
    ((lane,),) = numbers(parts(chart, "rect", "lane"), "x")
    dots = {dot.find("title").text: float(dot.get("cx")) for dot in parts(chart, "circle", "dot") if dot.get("class")}
    assert {name for name, x in dots.items() if x > lane} == {
        "study-3: missing",
        "study-7: missing",
        "study-8: missing",
    }
    assert len(parts(chart, "circle", "dot")) == 24
    assert "two: median" in parts(chart, "desc")[0].text
    assert "10 values, 2 missing" in parts(chart, "desc")[0].text
    assert not parts(box_chart("t", np.ones((12, 1)), ("one",), STUDIES), "rect", "lane")
    nothing = box_chart("t", np.full((12, 1), np.nan), ("one",), STUDIES)
    assert len(parts(nothing, "circle", "dot")) == 12
    assert "no value, 12 missing" in parts(nothing, "desc")[0].text


def test_what_is_correctly_empty_is_counted_and_not_drawn_as_missing():
    values = np.linspace(1, 2, 24).reshape(12, 2)
    empty = np.zeros(values.shape, bool)
    empty[:8, 1] = True
    values[empty] = np.nan
    chart = box_chart("t", values, ("one", "two"), STUDIES, empty)
    assert not parts(chart, "rect", "lane")
    assert len(parts(chart, "circle", "dot")) == 16
    assert [e.text for e in parts(chart, "text", "name")] == ["one", "two (8 correctly empty)"]
    assert "two: median" in parts(chart, "desc")[0].text
    assert "4 values, 0 missing, 8 correctly empty" in parts(chart, "desc")[0].text
    values[11, 1] = np.nan
    chart = box_chart("t", values, ("one", "two"), STUDIES, empty)
    ((lane,),) = numbers(parts(chart, "rect", "lane"), "x")
    dots = parts(chart, "circle", "dot")
    assert [dot.find("title").text for dot in dots if float(dot.get("cx")) > lane] == ["study-11: missing"]


def test_a_difference_that_nothing_is_missing_of_is_not_in_the_lane():
    differences = np.array([0.3, -0.1, np.nan, 0.2, np.nan])
    empty = np.array([False, False, True, True, False])
    chart = difference_chart("t", differences, STUDIES[:5], (-0.05, 0.2), ("up", "down"), empty)
    assert {d.find("title").text for d in parts(chart, "circle", "dot")} >= {"study-4: missing"}
    assert len(parts(chart, "circle", "dot")) == 4
    assert "missing 1" in [e.text for e in parts(chart, "text", "tick")]
    assert "3 values, 1 missing, 1 correctly empty" in parts(chart, "desc")[0].text


def test_few_values_are_dots_without_a_box():
    assert not parts(box_chart("t", np.arange(4.0)[:, None], ("m",), STUDIES[:4]), "rect", "box")
    assert parts(box_chart("t", np.arange(5.0)[:, None], ("m",), STUDIES[:5]), "rect", "box")


def test_rows_do_not_run_into_each_other():
    chart = box_chart("t", np.random.default_rng(0).normal(size=(200, 3)), ("a", "b", "c"), tuple(map(str, range(200))))
    labels = [float(e.get("y")) for e in parts(chart, "text", "name")]
    dots = numbers(parts(chart, "circle", "dot"), "cy")[:, 0].reshape(3, 200)
    for row in range(3):
        assert labels[row] + 4 < dots[row].min() - 3
    for row in range(2):
        assert dots[row].max() + 3 < labels[row + 1] - 8


def test_differences_are_sorted_about_0_with_the_mean_and_its_interval():
    differences = np.array([0.3, -0.1, np.nan, 0.2, 0.05, -0.4, 0.1, 0.0, 0.15, np.nan, 0.07, 0.02])
    chart = difference_chart("t", differences, STUDIES, (-0.05, 0.2), ("up", "down"))
    dots = parts(chart, "circle", "dot")
    known = [dot for dot in dots if "missing" not in dot.find("title").text]
    places = numbers(known, "cx", "cy")
    assert (np.diff(places[:, 0]) > 0).all()
    assert (np.diff(places[:, 1]) <= 0).all()
    assert known[0].find("title").text == "study-5: -0.4"
    assert known[-1].find("title").text == "study-0: +0.3"
    assert {dot.find("title").text for dot in dots} >= {"study-2: missing", "study-9: missing"}
    ((zero,),) = numbers(parts(chart, "line", "zero"), "y1")
    assert ((places[:, 1] < zero - 0.1) == (np.sort(differences[~np.isnan(differences)]) > 0)).all()
    ((top, height),) = numbers(parts(chart, "rect", "band"), "y", "height")
    ((mean,),) = numbers(parts(chart, "line", "mean"), "y1")
    assert top < mean < zero
    assert top < zero < top + height
    assert [e.text for e in parts(chart, "text", "tick")][-2:] == ["up", "down"]


def test_0_and_the_interval_are_on_the_chart_also_where_no_study_is():
    chart = difference_chart("t", np.linspace(5, 6, 12), STUDIES, (4.0, 8.0), ("up", "down"))
    ((zero,),) = numbers(parts(chart, "line", "zero"), "y1")
    ((top, height),) = numbers(parts(chart, "rect", "band"), "y", "height")
    bottom = float(chart.split('viewBox="0 0 420 ')[1].split('"')[0])
    assert 0 < top < top + height < zero < bottom


def test_no_difference_at_all_is_still_a_chart():
    chart = difference_chart("t", np.full(3, np.nan), STUDIES[:3], (np.nan, np.nan), ("up", "down"))
    assert not parts(chart, "rect", "band")
    assert len(parts(chart, "circle", "dot")) == 3


def test_many_studies_are_one_path_of_points_with_none_left_out():
    many = MOST_HOVERED + 1
    names = tuple(map(str, range(many)))
    values = np.random.default_rng(0).normal(size=(many, 1))
    for chart in (
        box_chart("t", values, ("m",), names),
        difference_chart("t", values[:, 0], names, (0.0, 1.0), ("", "")),
    ):
        assert not parts(chart, "circle", "dot")
        (path,) = parts(chart, "path", "dots")
        assert path.get("d").count("M") == many
        assert len(str(chart)) < 30 * many
    assert len(parts(box_chart("t", values[1:], ("m",), names[1:]), "circle", "dot")) == MOST_HOVERED


def test_charts_are_the_same_every_time_and_names_cannot_break_them():
    values = np.random.default_rng(1).normal(size=(12, 2))
    odd = ("<script>", 'a & "b"')
    chart = box_chart("<t>", values, odd, STUDIES)
    assert chart == box_chart("<t>", values, odd, STUDIES)
    assert [e.text for e in parts(chart, "text", "name")] == list(odd)
    assert "<script" not in chart
    assert parts(chart, "title")[0].text == "<t>"
    assert re.fullmatch(r"<svg .*</svg>", str(chart), re.DOTALL)


def test_long_names_keep_both_ends():
    assert shortened("short", 10) == "short"
    name = "network_" + 100 * "x" + "_seed_7"
    found = shortened(name, 40)
    assert len(found) == 40
    assert found.startswith("network_xxx")
    assert found.endswith("x_seed_7")


def lines_of(chart, style="plain"):
    """The points of each unbroken line of a style."""
    return [
        np.array([point.split() for point in line.split("L")], float)
        for path in parts(chart, "path", f"curve {style}")
        for line in path.get("d").split("M")[1:]
    ]


def curve(values, places=None, name="a", style="plain"):
    places = np.arange(1.0, len(values) + 1) if places is None else np.asarray(places, float)
    return Curve(name, places, np.asarray(values, float), style)


def test_a_curve_goes_through_its_values_from_0_to_the_last_place():
    (points,) = lines_of(curve_chart("t", [curve([1.0, 3.0, 2.0], [10, 20, 40])]))
    x, y = points.T
    assert (x[2] - x[0]) / (x[1] - x[0]) == pytest.approx(3, abs=0.02)
    assert (y[2] - y[0]) / (y[1] - y[0]) == pytest.approx(0.5, abs=0.01)
    assert y[1] < y[2] < y[0]
    chart = curve_chart("t", [curve([1.0, 2.0], [1500, 3000])])
    ticks_ = {e.text: float(e.get("x")) for e in parts(chart, "text", "tick") if e.get("text-anchor") == "middle"}
    assert ticks_["3k"] == pytest.approx(lines_of(chart)[0][1, 0], abs=0.1)
    assert ticks_["0"] < lines_of(chart)[0][0, 0] < ticks_["2k"]


def test_long_numbers_at_an_axis_stay_on_the_chart():
    chart = curve_chart("t", [curve([0.001998, 0.0019965, 0.001993])])
    for label in parts(chart, "text", "tick"):
        if label.get("text-anchor") == "end":
            assert float(label.get("x")) > 6 * len(label.text)
    (points,) = lines_of(chart)
    assert points[:, 0].min() > max(
        float(e.get("x")) for e in parts(chart, "text", "tick") if e.get("text-anchor") == "end"
    )


def test_a_logarithmic_curve_has_equal_steps_for_equal_ratios_and_leaves_out_what_has_no_logarithm():
    chart = curve_chart("t", [curve([100.0, 10.0, 1.0, 0.0, -1.0])], logarithmic=True)
    ((_, *y),) = (points.T for points in lines_of(chart))
    assert np.diff(y[0])[0] == pytest.approx(np.diff(y[0])[1], abs=0.2)
    assert len(y[0]) == 3
    levels = [float(e.text) for e in parts(chart, "text", "tick") if e.get("text-anchor") == "end"]
    assert levels == [1, 10, 100]
    assert "a: 1 after 3, from 1 to 100 in 3 values" in parts(chart, "desc")[0].text


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.05), (2.0, 7.0), (0.5, 30.0), (1e-9, 1e9), (3.0, 3.0)])
def test_a_logarithmic_axis_has_levels_whatever_its_range(low, high):
    chart = curve_chart("t", [curve([low, high])], logarithmic=True)
    levels = [float(e.text) for e in parts(chart, "text", "tick") if e.get("text-anchor") == "end"]
    assert 2 <= len(levels) <= 8
    assert levels == sorted(levels)
    assert low / 1.5 <= levels[0] <= levels[-1] <= high * 1.5


def test_a_gap_breaks_a_curve_and_a_value_alone_is_a_dot():
    chart = curve_chart("t", [curve([1.0, 2.0, np.nan, 3.0, np.nan, 1.0, 2.0] + 40 * [2.0])])
    assert [len(points) for points in lines_of(chart)] == [2, 42]
    (dots,) = parts(chart, "path", "points plain")
    assert dots.get("d").count("M") == 1
    (few,) = parts(curve_chart("t", [curve([1.0, 2.0, 3.0])]), "path", "points plain")
    assert few.get("d").count("M") == 3


def test_of_many_points_the_ends_and_every_extreme_are_drawn():
    values = np.random.default_rng(0).normal(size=50_000)
    values[[123, 40_001]] = 30.0, -30.0
    (points,) = lines_of(curve_chart("t", [curve(values)]))
    assert len(points) <= MOST_POINTS + 2
    assert (np.diff(points[:, 0]) >= 0).all()
    (whole,) = lines_of(curve_chart("t", [curve(values[[0, 123, 40_001, -1]], [1, 124, 40_002, 50_000])]))
    for place in whole:
        assert np.abs(points - place).max(1).min() < 0.15


@pytest.mark.parametrize("last", [0.0, 0.5, 1.0])
def test_names_stand_at_the_ends_of_their_curves_and_apart(last):
    crowd = [curve([0.5, last], name=str(i), style="s") for i in range(5)]
    chart = curve_chart("t", [*crowd, curve([0.0, 1.0])])
    labels = parts(chart, "text", "name s") + parts(chart, "text", "name plain")
    places = np.sort(numbers(labels, "y")[:, 0])
    assert len(places) == 6
    assert (np.diff(places) >= 12.9).all()
    assert 5 < places[0] < places[-1] < 195
    assert numbers(labels, "x").min() > max(points[-1, 0] for points in lines_of(chart, "s"))
    assert not parts(curve_chart("t", [curve([1.0, 2.0]), curve([1.0, 2.0], name="")]), "text", "name plain")


def test_the_best_place_is_marked():
    chart = curve_chart("t", [curve([1.0, 3.0, 2.0])], best=2.0)
    ((at,),) = numbers(parts(chart, "line", "best"), "x1")
    assert at == pytest.approx(lines_of(chart)[0][1, 0], abs=0.1)
    assert not parts(curve_chart("t", [curve([1.0, 3.0, 2.0])]), "line", "best")


@pytest.mark.parametrize("values", [[], [np.nan], [np.inf, -np.inf]])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_curves_without_a_value_are_an_empty_chart_that_says_so(values, logarithmic):
    chart = curve_chart("t", [curve(values)], logarithmic=logarithmic)
    assert not parts(chart, "path")
    assert "no value yet" in [e.text for e in parts(chart, "text", "tick")]
    assert parts(chart, "desc")[0].text == "no value yet"


@given(st.floats(1e-7, 1e6))
def test_equal_values_however_small_are_in_the_middle_of_an_axis_of_their_size(value):
    found = axis([value, value], 0, 100)
    assert found.at(value) == pytest.approx(50)
    assert 0.8 * value < found.low < found.high < 1.2 * value


def test_names_cannot_break_a_curve_chart():
    chart = curve_chart("<t>", [curve([1.0, 2.0], name="<script>"), curve([1.0, 3.0], name="&")], "<u>")
    assert "<script" not in chart
    assert [e.text for e in parts(chart, "text", "name plain")] == ["<script>", "&"]
