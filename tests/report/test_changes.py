import pytest
from hypothesis import given
from hypothesis import strategies as st

from gliomap.report.changes import Difference, changes_of, difference


def test_changes_by_hand():
    first, second, third, fourth = changes_of([40.0, 10.0, 25.0, 5.0])
    assert (first.since_first, first.since_previous, first.since_smallest) == (None, None, None)
    assert second[1:4] == (Difference(-30.0, -75.0),) * 3
    assert third.since_first == (-15.0, pytest.approx(-37.5))
    assert third.since_previous == third.since_smallest == (15.0, pytest.approx(150.0))
    assert fourth.since_previous == (-20.0, pytest.approx(-80.0))
    assert fourth.since_smallest == (
        -5.0,
        pytest.approx(-50.0),
    )  # of the earlier ones: it is the smallest so far itself


def test_from_nothing_there_is_no_percentage_and_what_is_new_or_gone_is_said():
    changes = changes_of([0.0, 3.0, 0.0, 0.0])
    assert [change.note for change in changes] == ["", "new", "gone", ""]
    assert changes[1].since_first == (3.0, None)
    assert changes[2].since_previous == (-3.0, pytest.approx(-100.0))
    assert changes[3].since_smallest == (0.0, None)


def test_volumes_that_are_not_told_are_no_zeros():
    changes = changes_of([None, 8.0, None, 4.0])
    assert [change.note for change in changes] == ["", "", "", ""]
    assert changes[1][1:4] == (None, None, None)
    assert changes[3].since_first is None
    assert changes[3].since_previous is None
    assert changes[3].since_smallest == (-4.0, pytest.approx(-50.0))


@given(st.lists(st.floats(0.001, 1e4), min_size=2, max_size=8))
def test_differences_add_up(volumes_ml):
    changes = changes_of(volumes_ml)
    assert sum(change.since_previous.ml for change in changes[1:]) == pytest.approx(
        changes[-1].since_first.ml, abs=1e-6
    )
    for number, change in enumerate(changes[1:], start=1):
        assert change.since_smallest == difference(min(volumes_ml[:number]), volumes_ml[number])
        assert volumes_ml[0] * (1 + change.since_first.percent / 100) == pytest.approx(volumes_ml[number])
