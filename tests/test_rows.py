import csv
import io
import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from gliomap.errors import InputError, UsageError
from gliomap.metrics import measure
from gliomap.rows import (
    COLUMNS,
    DEFAULT_METRICS,
    METRICS,
    PENALTY_MM,
    Row,
    failed_row,
    metric,
    nsd_tolerance_mm,
    read_rows,
    rows_csv,
    score_rows,
)

ASKED = (*DEFAULT_METRICS, "hd95_all_voxels", "precision", "nsd_1mm", "volume_error_relative", "mean_iou_of_classes")


def scored(prediction_class, truth_class, protocol="plain"):
    prediction, truth = np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)
    prediction[1, 1, 1], truth[1, 1, 1] = prediction_class, truth_class
    measured = measure(prediction, truth, (1.0, 1.0, 1.0), metrics=ASKED)
    return {(r.region, r.metric): r for r in score_rows('one, "two"', "model", measured, protocol)}


@pytest.mark.parametrize("protocol", PENALTY_MM)
def test_both_empty_counts_as_perfect(protocol):
    rows = scored(2, 2, protocol)
    for name, value in {"dice": 1.0, "hd95": 0.0, "hd95_all_voxels": 0.0, "nsd_1mm": 1.0, "specificity": 1.0}.items():
        assert (rows["ET", name].value, rows["ET", name].status) == (value, "both_empty")
    assert rows["ET", "volume"].value == 0
    for name in ("sensitivity", "precision", "volume_error_relative"):
        assert rows["ET", name].value is None
    assert (rows["WT", "dice"].value, rows["WT", "hd95"].value, rows["WT", "dice"].status) == (1.0, 0.0, "ok")


@pytest.mark.parametrize(("protocol", "distance"), [("plain", None), ("brats2023", 374.0), ("brats2025", 373.0)])
@pytest.mark.parametrize(("classes", "status"), [((0, 3), "prediction_empty"), ((3, 0), "truth_empty")])
def test_one_empty_is_dice_zero_and_a_distance_is_missing_or_the_protocols_penalty(classes, status, protocol, distance):
    rows = scored(*classes, protocol)
    for region in ("ET", "TC", "WT"):
        assert rows[region, "dice"].value == rows[region, "nsd_1mm"].value == 0.0
        assert rows[region, "hd95"].value == rows[region, "hd95_all_voxels"].value == distance
        assert {rows[region, name].status for name in ASKED if (region, name) in rows} == {status}
        undefined = "precision" if status == "prediction_empty" else "sensitivity"
        assert rows[region, undefined].value is None


def test_every_region_and_metric_has_a_row_with_unit_definition_and_protocol():
    rows = scored(1, 2, "brats2023")
    of_regions = {(region, name) for region in ("ET", "TC", "WT") for name in ASKED if name != "mean_iou_of_classes"}
    assert set(rows) == of_regions | {("", "mean_iou_of_classes")}
    for (_, name), row in rows.items():
        assert (row.unit, row.definition) == (metric(name).unit, metric(name).definition)
        assert row.protocol == "brats2023"
        assert (row.study, row.model) == ('one, "two"', "model")
    assert rows["", "mean_iou_of_classes"].status == "ok"


def test_every_metric_says_what_it_is():
    assert set(DEFAULT_METRICS) <= set(METRICS)
    for name in METRICS:
        assert metric(name) is METRICS[name]
        assert METRICS[name].unit in ("1", "mm", "ml")
        assert METRICS[name].definition
    distances = [kind for kind in METRICS.values() if kind.unit == "mm"]
    assert {kind.better for kind in distances} == {"lower"}


def test_surface_dice_has_its_tolerance_in_its_name():
    assert nsd_tolerance_mm("nsd_1mm") == nsd_tolerance_mm("nsd_1mm_area_weighted") == 1.0
    assert nsd_tolerance_mm("nsd_2.5mm") == 2.5
    assert metric("nsd_2.5mm").definition == "share of the surface voxels, of both masks within 2.5 mm of the other"
    assert metric("nsd_2.5mm_area_weighted").definition.startswith("surface area, as DeepMind")
    assert (metric("nsd_1mm").unit, metric("nsd_1mm").better, metric("nsd_1mm").both_empty) == ("1", "higher", 1.0)


@pytest.mark.parametrize("name", ["nsd_mm", "nsd_-1mm", "nsd_0mm", "nsd_1mm_", "xnsd_1mm", "Dice", ""])
def test_an_unknown_metric_is_refused(name):
    with pytest.raises(UsageError, match=f"no metric is called '{name}'"):
        metric(name)


def test_the_table_has_every_field_of_every_row():
    rows = [*scored(3, 1).values(), failed_row("broken", "model")]
    back = list(csv.DictReader(io.StringIO(rows_csv(rows).decode())))
    assert list(back[0]) == ["study", "model", "region", "metric", "value", "unit", "definition", "protocol", "status"]
    for row, line in zip(rows, back, strict=True):
        known = asdict(row)
        assert {k: v for k, v in line.items() if k != "value"} == {k: v for k, v in known.items() if k != "value"}
        assert line["value"] == ("" if row.value is None else f"{row.value:.6g}")


def test_values_keep_six_digits_and_missing_ones_are_empty():
    row = Row("s", "m", "ET", "dice", 1 / 3, "1", "d", "p", "ok")
    missing = replace(row, value=None, status="truth_empty")
    assert rows_csv([row, missing]).decode().splitlines()[1:] == [
        "s,m,ET,dice,0.333333,1,d,p,ok",
        "s,m,ET,dice,,1,d,p,truth_empty",
    ]


def test_a_table_is_read_back_as_it_was_written(tmp_path):
    rows = [*scored(3, 0).values(), failed_row("broken", "model")]
    path = tmp_path / "scores.csv"
    path.write_bytes(rows_csv(rows))
    rounded = [r if r.value is None else replace(r, value=float(f"{r.value:.6g}")) for r in rows]
    assert list(read_rows(path)) == rounded


HEADER = ",".join(COLUMNS) + "\n"
GOOD = "s,m,ET,dice,0.5,1,d,plain,ok\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no table of scores; expected the columns study, model"),
        ("study,dice\ns,1\n", "gliomap evaluate PREDICTIONS TRUTH -o scores.csv"),
        (HEADER + GOOD + "s,m,ET\n", "line 3 is no row of scores"),
        (HEADER + GOOD.replace("ok", "ok,more"), "line 2 is no row of scores"),
        (HEADER + GOOD.replace("ok", "fine"), "line 2 is no row of scores"),
        (HEADER + GOOD.replace("0.5", "half"), "line 2: the value 'half' is no number"),
        (HEADER + GOOD.replace("0.5", "nan"), "line 2: the value 'nan' is no number"),
        (HEADER + GOOD.replace("0.5", "inf"), "line 2: the value 'inf' is no number"),
        (HEADER + '"s,m', "is no table of scores"),
    ],
)
def test_a_broken_table_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "scores.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        list(read_rows(path))


def test_what_is_no_text_or_not_there_is_refused(tmp_path):
    path = tmp_path / "scores.csv"
    with pytest.raises(InputError, match="cannot read"):
        list(read_rows(path))
    path.write_bytes(HEADER.encode() + b"\xff\xfe")
    with pytest.raises(InputError, match="is no table of scores"):
        list(read_rows(path))


def test_failed_studies_have_a_row():
    row = failed_row("s", "m")
    assert (row.study, row.model, row.region, row.metric, row.value, row.status) == ("s", "m", "", "", None, "failed")


def test_what_is_undefined_has_no_value():
    measured = {("ET", "volume"): 1.0, ("ET", "volume_truth"): 1.0, ("ET", "sensitivity"): math.nan}
    assert [row.value for row in score_rows("s", "m", measured)] == [1.0, 1.0, None]
