import itertools
import re

from gliomap.report.volume_chart import BOTTOM, HEIGHT, INSET, LEFT, LETTER_PX, RIGHT, WIDTH, TimeAxis, volume_chart

WEEKS = TimeAxis((0.0, 10.0, 40.0), ("0", "10", "40"), "week")


def test_dots_lie_in_proportion_on_axes_that_begin_at_nothing():
    first, second, third = volume_chart([0.0, 30.0, 60.0], WEEKS).dots
    assert (first.x, third.x) == (LEFT + INSET, WIDTH - RIGHT)
    assert abs((second.x - first.x) / (third.x - first.x) - 0.25) < 1e-6
    assert first.y == HEIGHT - BOTTOM
    assert abs((first.y - second.y) / (first.y - third.y) - 0.5) < 1e-6
    assert [dot.words for dot in (first, second, third)] == ["0.0", "30.0", "60.0"]


def test_what_is_not_known_is_a_gap():
    chart = volume_chart([1.0, None, 2.0], WEEKS)
    assert re.findall("[ML]", chart.line) == ["M", "M"]
    assert len(chart.dots) == 2
    assert chart.described == "week 0: 1.00 ml; week 10: not told; week 40: 2.00 ml"
    assert re.findall("[ML]", volume_chart([1.0, 3.0, 2.0], WEEKS).line) == ["M", "L", "L"]


def test_texts_do_not_lie_on_each_other():
    time = TimeAxis((0.0, 0.5, 1.0, 1.5, 30.0), tuple(f"2024-0{month}-01" for month in range(1, 6)), "date")
    chart = volume_chart([50.0, 50.5, 51.0, 50.0, 10.0], time)
    for one, other in itertools.combinations([dot for dot in chart.dots if dot.label_y is not None], 2):
        apart = abs(one.x - other.x) >= LETTER_PX * (len(one.words) + len(other.words)) / 2
        assert apart or abs(one.label_y - other.label_y) >= 12
    named = [tick for tick in chart.across if tick.words]
    assert (named[0].words, named[-1].words, len(chart.across)) == ("2024-01-01", "2024-05-01", 5)
    assert len(named) == 2
    assert all(dot.label_y is not None for dot in volume_chart([3.0, 1.0, 2.0], WEEKS).dots)


def test_nothing_at_all_and_one_day_are_drawn():
    chart = volume_chart([0.0, 0.0], TimeAxis((3.0, 3.0), ("3", "3"), "week"))
    assert {dot.x for dot in chart.dots} == {LEFT + INSET}
    assert chart.up[0].words == "0"
