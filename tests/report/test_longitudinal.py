import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import eventually, opened
from PIL import Image

from gliomap.classes import ED, ET, NCR, RC
from gliomap.data.examinations import ReadExamination
from gliomap.report.examination import examination_report, pane_of
from gliomap.report.lesion_table import find_lesions
from gliomap.report.longitudinal import (
    LongitudinalReport,
    TimePoint,
    in_one_box,
    longitudinal_page,
    most_tumour,
    on_one_grid,
    parts_over_time,
    signed,
    still_rows,
    whole_affine,
    with_an_image,
)
from gliomap.report.pictures import CLASS_COLOURS
from gliomap.report.volume_chart import TimeAxis
from gliomap.volume import Volume

PARTS = ("ET", "TC", "WT", "NCR", "ED")
GRID = (20, 24, 22)
AFFINE = np.array([[2.0, 0, 0, -20], [0, 2, 0, -30], [0, 0, 4, 10], [0, 0, 0, 1]])
BRAIN = np.s_[4:18, 3:21, 2:18]


def time_point(
    title: str,
    radius: float = 4.0,
    *,
    brain: Any = BRAIN,
    affine: np.ndarray = AFFINE,
    imaged: bool = True,
    parts: tuple[str, ...] = PARTS,
    when: str = "",
) -> TimePoint:
    """A brain that is a block, with a round tumour of a radius in voxels, 10 of them from the grid's corner."""
    d, h, w = (np.arange(size) - 10 for size in GRID)
    distance = np.sqrt(d[:, None, None] ** 2.0 + h[:, None] ** 2.0 + w**2.0)
    outside = RC if "RC" in parts else ED
    classes = np.select([distance < radius / 3, distance < radius / 2, distance < radius], [NCR, ET, outside], 0)
    images = np.zeros((2, *GRID), np.float32)
    images[(slice(None), *brain)] = np.random.default_rng(0).uniform(100, 200, images[(slice(None), *brain)].shape)
    volume = Volume(images, affine) if imaged else None
    modalities = ("t1c", "flair") if imaged else ()
    seen = ReadExamination(volume, modalities, Volume(classes.astype(np.uint8)[None], affine), parts, "values", ())
    study = examination_report(title, seen)
    count, lesions = find_lesions(study.classes, study.spacing_mm, study.regions)
    layers = pane_of(study)
    size = (GRID[2], GRID[1], GRID[0])
    return TimePoint(title, when, study.volumes_ml, count, lesions, layers, study.spacing_mm, size, study.facts)


def longitudinal(*points: TimePoint, warnings: tuple[str, ...] = ()) -> LongitudinalReport:
    places = tuple(map(float, range(1, len(points) + 1)))
    axis = TimeAxis(places, tuple(str(number + 1) for number in range(len(points))), "time point")
    return LongitudinalReport(f"{points[0].title} to {points[-1].title}", points, axis, warnings)


def test_everything_that_is_printed_is_escaped():
    report = longitudinal(
        time_point("<b>T0"), time_point("T1", 5, when="<i>week 3"), warnings=("<script>alert()</script>",)
    )
    page = longitudinal_page(report)
    assert "<b>T0" not in page
    assert "&lt;b&gt;T0" in page
    assert "<i>week" not in page
    assert "<script>alert" not in page


def test_region_that_a_time_point_does_not_tell_has_no_volume():
    report = longitudinal(
        time_point("T0"), time_point("T1", 3, parts=("WT",)), time_point("T2", 5, parts=(*PARTS, "RC"))
    )
    parts = {part.name: part for part in parts_over_time(report)}
    assert list(parts) == ["ET", "TC", "WT", "NCR", "ED", "RC"]
    assert [change.volume_ml is None for change in parts["ET"].changes] == [False, True, False]
    assert [change.volume_ml is None for change in parts["RC"].changes] == [True, True, False]
    assert parts["RC"].sentence == "Resection cavity is not told at the first or the last time point."
    page = longitudinal_page(report)
    assert page.count(">not told<") == 2 * 6 + 2  # in the table of all, in each region's own, and of the lesion
    assert "not told at" in page
    without = longitudinal(time_point("T0"), time_point("T1"))
    assert "RC" not in [part.name for part in parts_over_time(without)]


def test_a_time_point_without_a_tumour_is_a_time_point():
    report = longitudinal(time_point("T0"), time_point("T1", 0, imaged=False))
    page = longitudinal_page(report)
    assert "no lesion" in page
    assert "(\N{MINUS SIGN}100.0 %)" in page
    assert most_tumour(np.zeros((9, 2, 2), np.uint8)) == 4


def test_pictures_have_one_scale_in_mm():
    twice = AFFINE @ np.diag([2.0, 2.0, 2.0, 1.0])
    report = longitudinal(
        time_point("T0", 4.2), time_point("T1", 4.2, affine=twice), time_point("T2", 4.2, imaged=False)
    )
    rows = dict(still_rows(report))
    assert list(rows) == ["T1c", "FLAIR"]
    widths = []
    for still in rows["FLAIR"]:
        picture = Image.open(io.BytesIO(base64.b64decode(still.uri.partition(",")[2]))).convert("RGB")
        assert picture.size == (still.width, still.height)
        near = np.abs(np.asarray(picture).astype(int) - CLASS_COLOURS[ED]).max(axis=-1) < 20
        widths.append(np.ptp(np.flatnonzero(near.any(axis=0))) + 1)
    assert widths[1] == pytest.approx(2 * widths[0], abs=4)
    assert widths[2] == pytest.approx(widths[0], abs=3)
    assert len({(still.width, still.height) for stills in rows.values() for still in stills}) == 1
    assert rows["FLAIR"][0].detail == "axial slice 11 of 20"


def test_boxes_of_one_grid_become_one_and_stay_in_their_place():
    other = np.s_[2:16, 6:23, 4:20]
    points = [time_point("T0"), time_point("T1", 5, brain=other), time_point("T2", 2, imaged=False)]
    assert on_one_grid(points)
    boxes = in_one_box([point.layers._replace(crosshair=(n, n, n)) for n, point in enumerate(points)])
    for before, after in zip(points, boxes, strict=True):
        assert (after.start, after.classes.shape) == (boxes[0].start, boxes[0].classes.shape)
        np.testing.assert_allclose(after.affine @ [*(-np.array(after.start[::-1])), 1], AFFINE @ [0, 0, 0, 1])
        np.testing.assert_allclose(whole_affine(before), AFFINE)
        z, y, x = np.subtract(before.layers.start, after.start)
        d, h, w = before.layers.classes.shape
        np.testing.assert_array_equal(after.classes[z : z + d, y : y + h, x : x + w], before.layers.classes)
        assert np.count_nonzero(after.classes) == np.count_nonzero(before.layers.classes)
        assert after.crosshair == (1, 1, 1)  # of the largest tumour
    moved = AFFINE.copy()
    moved[0, 3] += 1
    assert not on_one_grid([points[0], time_point("T3", affine=moved)])


def test_label_map_first_does_not_hide_the_images_of_others():
    layers = [time_point("T0", imaged=False).layers, time_point("T1").layers]
    assert [one.modalities for one in with_an_image(layers)] == [("FLAIR",), ("T1c", "FLAIR")]
    assert [one.modalities for one in with_an_image(layers[:1])] == [("No image",)]


def test_signed_numbers():
    assert [signed(value) for value in (1.234, -1.0, 0.004, -0.004)] == ["+1.23", "\N{MINUS SIGN}1.00", "0.00", "0.00"]


def test_charts_say_in_words_what_they_show():
    page = longitudinal_page(longitudinal(time_point("T0"), time_point("T1", 5)))
    charts = re.findall(
        r'<svg class="chart (\w+)" role="img".*?<title>(.*?)</title>\s*<desc>(.*?)</desc>', page, re.DOTALL
    )
    assert [name for name, _, _ in charts] == ["et", "tc", "wt", "ncr", "ed"]
    for name, _, described in charts:
        volumes_ml = [point.volumes_ml[name.upper()] for point in (time_point("T0"), time_point("T1", 5))]
        assert described == f"time point 1: {volumes_ml[0]:.2f} ml; time point 2: {volumes_ml[1]:.2f} ml"


def test_crosshairs_of_one_grid_move_together_in_the_browser(browser: Any, tmp_path: Path):
    page = longitudinal_page(longitudinal(time_point("T0"), time_point("T1", 5, brain=np.s_[2:16, 6:23, 4:20])))
    found = opened(browser, tmp_path / "report.html", page)
    assert found.page.locator("#viewer canvas").count() == 2
    first, second = (found.page.locator(f"[data-at=slices][data-pane='{pane}']") for pane in (0, 1))
    eventually(lambda: first.inner_text() == second.inner_text() == "axial 11, coronal 11, sagittal 11")
    found.page.locator("#viewer canvas").first.focus()
    found.page.keyboard.press("PageUp")
    eventually(lambda: first.inner_text() == second.inner_text() == "axial 12, coronal 11, sagittal 11")
    assert found.complaints == []
    found.page.context.close()
