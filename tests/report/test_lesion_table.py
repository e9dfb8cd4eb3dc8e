import numpy as np
import pytest
from scipy.spatial.distance import pdist

from gliomap.classes import ED, ET, NCR, RC
from gliomap.report.lesion_table import MOST_LESIONS, diameters_of, find_lesions, largest_cross_section

REGIONS = ("ET", "TC", "WT")
SPACING_MM = (1.0, 1.0, 1.0)


def ellipse(semiaxes_mm, angle, pixel_mm=(1.0, 1.0)):
    rows, columns = (np.arange(-60, 61) * mm for mm in pixel_mm)
    along = np.cos(angle) * columns + np.sin(angle) * rows[:, None]
    across = np.cos(angle) * rows[:, None] - np.sin(angle) * columns
    return (along / semiaxes_mm[0]) ** 2 + (across / semiaxes_mm[1]) ** 2 <= 1


@pytest.mark.parametrize("angle", [0, 0.4, 1.2, 2.5])
@pytest.mark.parametrize("pixel_mm", [(1.0, 1.0), (2.0, 0.8)])
def test_diameters_of_an_ellipse_are_its_axes(angle, pixel_mm):
    measured = diameters_of(ellipse((40, 15), angle, pixel_mm), pixel_mm)
    assert measured.largest_mm == pytest.approx(80, abs=max(pixel_mm))
    assert measured.perpendicular_mm == pytest.approx(30, abs=1.5 * max(pixel_mm))
    assert measured.product_mm2 == measured.largest_mm * measured.perpendicular_mm
    assert measured.centre == pytest.approx((60, 60), abs=1)


def test_diameters_of_single_pixels_and_bars():
    assert diameters_of(np.ones((1, 1), bool), (1.0, 1.0))[:2] == pytest.approx((1, 1))
    assert diameters_of(np.ones((1, 9), bool), (1.0, 2.0)).largest_mm == pytest.approx(18)
    assert diameters_of(np.ones((9, 1), bool), (2.0, 1.0)).largest_mm == pytest.approx(18)


def test_largest_diameter_is_that_of_all_pairs_of_edge_middles():
    rng = np.random.default_rng(0)
    for _ in range(20):
        section = rng.random((9, 12)) < 0.3
        section[4, 5] = True
        middles = [np.argwhere(section) + step for step in ([0.5, 0], [-0.5, 0], [0, 0.5], [0, -0.5])]
        expected = pdist(np.concatenate(middles) * (1.5, 0.7)).max()
        assert diameters_of(section, (1.5, 0.7)).largest_mm == pytest.approx(expected)


def test_perpendicular_diameter_is_a_chord_and_not_the_whole_width():
    section = np.zeros((12, 40), bool)
    section[6, :] = True
    section[2:6, 5:10] = True
    section[7:11, 30:35] = True
    measured = diameters_of(section, (1.0, 1.0))
    assert measured.largest_mm == pytest.approx(40, abs=0.5)
    assert 4 < measured.perpendicular_mm < 8  # both sides together are 9


def test_largest_cross_section_is_found_in_its_slice_and_is_one_piece():
    mask = np.zeros((8, 60, 60), bool)
    mask[2, 5:10, 5:10] = mask[2, 50:55, 50:55] = True  # far apart, but each is small
    mask[5, 20:40, 30] = True
    mask[4, 17:20, 30] = True  # touches it at a corner, in the slice below
    index, measured = largest_cross_section(mask, (5.0, 1.0, 2.0))
    assert index == 5
    assert measured.largest_mm == pytest.approx(20, abs=0.2)
    assert measured.centre == pytest.approx((29.5, 30), abs=0.6)


def test_lesions_are_counted_and_measured_largest_first():
    classes = np.zeros((20, 40, 40), np.uint8)
    classes[2:8, 2:12, 2:12] = ED
    classes[4, 4:10, 5] = ET
    classes[4, 6, 6] = NCR
    classes[8, 12, 12] = ED  # touches at a corner
    classes[15:17, 30:33, 30:33] = ED
    classes[0, 39, 39] = RC  # in no region
    count, lesions = find_lesions(classes, (2.0, 1.0, 1.0), REGIONS)
    assert count == len(lesions) == 2
    assert lesions[0].volumes_ml == pytest.approx({"ET": 0.012, "TC": 0.014, "WT": 1.202})
    assert (lesions[0].measured, lesions[0].centre[0]) == ("TC", 4)
    assert lesions[0].diameters.largest_mm == pytest.approx(6, abs=0.2)
    assert classes[lesions[0].centre] in (ET, NCR)
    assert lesions[1].measured == "WT"
    assert lesions[1].volumes_ml == pytest.approx({"ET": 0, "TC": 0, "WT": 0.036})
    assert classes[lesions[1].centre] == ED


def test_only_regions_that_are_told_are_measured():
    classes = np.zeros((4, 20, 20), np.uint8)
    classes[1, 2:18, 2:18] = ED
    classes[1, 8:12, 8:12] = ET
    (lesion,) = find_lesions(classes, SPACING_MM, ("WT",))[1]
    assert (lesion.measured, list(lesion.volumes_ml)) == ("WT", ["WT"])
    (lesion,) = find_lesions(classes, SPACING_MM, ("ET", "WT"))[1]
    assert lesion.measured == "ET"
    assert find_lesions(classes, SPACING_MM, ()) == (0, [])


def test_no_lesion_and_many_lesions():
    classes = np.zeros((3, 40, 40), np.uint8)
    assert find_lesions(classes, SPACING_MM, REGIONS) == (0, [])
    classes[1, ::3, ::3] = ED
    count, lesions = find_lesions(classes, SPACING_MM, REGIONS)
    assert (count, len(lesions)) == (14 * 14, MOST_LESIONS)
