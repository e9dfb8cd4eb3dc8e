import numpy as np
import pytest

from gliomap.voting import majority, staple


def test_a_vote_takes_the_class_of_most_maps_and_of_the_first_where_all_differ():
    maps = [np.array(values, np.uint8) for values in ([1, 1, 1, 0], [1, 2, 2, 3], [0, 2, 3, 3])]
    assert majority(maps).tolist() == [1, 2, 1, 3]
    assert majority([*maps, np.array([0, 1, 2, 0], np.uint8)]).tolist() == [1, 1, 2, 0]


def maps_of(truth, rates, rng):
    """What raters say who err at those rates, each way alike."""
    found = []
    for rate in rates:
        one, wrong = truth.copy(), rng.random(truth.shape) < rate
        one[wrong] = rng.integers(0, 4, wrong.sum())
        found.append(one)
    return found


def ball():
    z, y, x = np.mgrid[:24, :24, :24] - 12
    radius = np.sqrt(z**2 + y**2 + x**2)
    return np.select([radius < 3, radius < 6, radius < 9], [3, 1, 2], 0).astype(np.uint8)


def test_staple_is_simpleitks_and_better_than_a_vote_where_raters_differ():
    sitk = pytest.importorskip("SimpleITK")
    truth = ball()
    maps = maps_of(truth, (0.02, 0.05, 0.1, 0.4, 0.4), np.random.default_rng(0))
    theirs = sitk.MultiLabelSTAPLEImageFilter()
    theirs.SetLabelForUndecidedPixels(9)
    expected = sitk.GetArrayFromImage(theirs.Execute([sitk.GetImageFromArray(one) for one in maps]))
    found = staple(maps)
    assert (found == expected).mean() > 0.9999
    assert (found == truth).mean() > (majority(maps) == truth).mean()


def test_staple_of_maps_that_agree_is_what_they_say():
    truth = ball()
    np.testing.assert_array_equal(staple([truth, truth.copy(), truth.copy()]), truth)
    np.testing.assert_array_equal(staple([truth]), truth)
    assert staple([truth, truth]) is not truth
