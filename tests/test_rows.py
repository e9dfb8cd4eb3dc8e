import csv
import io
from dataclasses import asdict, replace

import numpy as np
import pytest

from gliomap.metrics import measure
from gliomap.rows import DEFINITIONS, Row, failed_row, rows_csv, score_rows


def scored(prediction_class, truth_class):
    prediction, truth = np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)
    prediction[1, 1, 1], truth[1, 1, 1] = prediction_class, truth_class
    rows = score_rows('one, "two"', "model", measure(prediction, truth, (1.0, 1.0, 1.0), all_voxels=True))
    return {(r.region, r.metric): r for r in rows}


def test_both_empty_counts_as_perfect():
    rows = scored(2, 2)
    assert (rows["ET", "dice"].value, rows["ET", "hd95"].value) == (1.0, 0.0)
    assert rows["ET", "sensitivity"].value is None
    assert rows["ET", "specificity"].value == 1.0
    assert rows["ET", "dice"].status == "both_empty"
    assert (rows["WT", "dice"].value, rows["WT", "hd95"].value, rows["WT", "dice"].status) == (1.0, 0.0, "ok")


@pytest.mark.parametrize(("classes", "status"), [((0, 3), "prediction_empty"), ((3, 0), "truth_empty")])
def test_one_empty_is_dice_zero_without_a_distance(classes, status):
    rows = scored(*classes)
    for region in ("ET", "TC", "WT"):
        assert rows[region, "dice"].value == 0.0
        assert rows[region, "hd95"].value is None
        assert {rows[region, metric].status for metric in DEFINITIONS} == {status}


def test_every_region_and_metric_has_a_row_with_unit_definition_and_protocol():
    rows = scored(1, 2)
    assert set(rows) == {(region, metric) for region in ("ET", "TC", "WT") for metric in DEFINITIONS}
    for (_, metric), row in rows.items():
        assert (row.unit, row.definition) == DEFINITIONS[metric]
        assert row.protocol == "empty=plain"
        assert (row.study, row.model) == ('one, "two"', "model")


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


def test_failed_studies_have_a_row():
    row = failed_row("s", "m")
    assert (row.study, row.value, row.status) == ("s", None, "failed")
