import re

import numpy as np
import pytest
from score_tables import made_rows, write_table
from studies import SHAPE, nested_tumour, save, write_study

from gliomap.classes import ED
from gliomap.data.datasets import find_studies
from gliomap.evaluate import EvaluateOptions, evaluate
from gliomap.report.extremes import (
    BEST,
    DIFFERENT,
    MARGIN_MM,
    SIDE_MM,
    WORST,
    choose,
    extremes,
    most_different,
    surroundings,
)
from gliomap.report.scores import rows_by_key, scores_of


def scores_from(folder, values, **options):
    table = write_table(folder / "scores.csv", made_rows(values))
    return scores_of(rows_by_key([table]), **options)[0]


ET = [0.9, 0.1, 0.5, 0.8, 0.2, 0.6, 0.7, 0.95]
OTHER = [0.9, 0.1, 0.9, 0.2, 0.2, 0.6, 0.7, 0.95]


def test_the_studies_where_models_differ_most_come_first_then_the_worst_and_the_best(tmp_path):
    found = choose(scores_from(tmp_path, {"a": {("ET", "dice"): ET}, "b": {("ET", "dice"): OTHER}}))
    assert list(found.items()) == [
        ("s03", DIFFERENT),
        ("s02", DIFFERENT),
        ("s01", WORST),
        ("s04", WORST),
        ("s07", BEST),
    ]


def test_of_distances_the_largest_are_worst(tmp_path):
    values = {name: {("ET", "hd95"): [10 * (1 - v) for v in column]} for name, column in (("a", ET), ("b", OTHER))}
    assert list(choose(scores_from(tmp_path, values)).values()) == [DIFFERENT] * 2 + [WORST] * 2 + [BEST]
    assert list(choose(scores_from(tmp_path, values)))[2:] == ["s01", "s04", "s07"]


def test_the_mean_over_regions_counts_and_a_study_that_a_model_has_no_value_for_is_left_out(tmp_path):
    values = {
        name: {("ET", "dice"): [None, 0.5, 0.9, None], ("WT", "dice"): [0.75, 0.6, 0.7, None if name == "b" else 0.1]}
        for name in ("a", "b")
    }
    found = choose(scores_from(tmp_path, values))
    assert list(found.items()) == [("s01", WORST), ("s00", WORST), ("s02", BEST)]


def test_models_that_agree_differ_nowhere(tmp_path):
    found = choose(scores_from(tmp_path, {"a": {("ET", "dice"): ET}, "b": {("ET", "dice"): ET}}))
    assert list(found.items()) == [("s01", WORST), ("s04", WORST), ("s07", BEST)]


def test_the_slice_is_the_one_with_most_of_what_it_is_shown_for():
    truth, a, b = (np.zeros((6, 8, 8), np.uint8) for _ in range(3))
    truth[1, :4] = truth[3, :2] = ED  # both models miss much of slice 1, and differ in slices 3 and 4
    a[3, :2], b[4, 0, :3] = ED, ED
    assert most_different(truth, [a, b], WORST) == 1
    assert most_different(truth, [a, b], DIFFERENT) == 3
    assert most_different(truth, [a], DIFFERENT) == 1
    assert most_different(truth, [truth, truth], BEST) == 1
    assert most_different(truth, [a, a], DIFFERENT) == 1
    assert most_different(0 * truth, [0 * truth], BEST) == 0


def test_the_square_about_the_outlines_has_a_margin_and_stays_on_the_grid():
    mask = np.zeros((200, 100), bool)
    mask[100:110, 40:60] = True  # 10 x 40 mm
    rows, columns = surroundings(mask, (1.0, 2.0))
    assert ((rows.stop - rows.start) * 1.0, (columns.stop - columns.start) * 2.0) == (SIDE_MM, SIDE_MM)
    assert (rows.start + rows.stop, columns.start + columns.stop) == pytest.approx((210, 100), abs=1)
    mask[20:110, 0] = True
    rows, columns = surroundings(mask, (1.0, 2.0))
    assert (columns.start, (columns.stop - columns.start) * 2.0) == (0, 120 + 2 * MARGIN_MM)
    assert rows == slice(0, 144)
    assert surroundings(0 * mask, (1.0, 2.0)) == (slice(None), slice(None))
    corner = np.zeros((40, 40), bool)
    corner[39, 39] = True
    assert surroundings(corner, (1.0, 1.0)) == (slice(0, 40), slice(0, 40))


def made(folder, *, images=True):
    """Three studies, scored for a good model and one that sees the tumour elsewhere in one study."""
    data, tables = folder / "data", []
    for seed in range(3):
        write_study(data, "brats2021", f"BraTS2021_0000{seed}", seed)
    studies = find_studies(data)
    for model, moved in (("good", 1), ("poor", 3)):
        for number, study in enumerate(studies):
            classes = np.roll(nested_tumour(), moved if number == 1 else 1, 0)
            values = np.array([0, 1, 2, 4], np.uint8)[classes]
            save(folder / model / f"{study.id}.nii.gz", values, study.read_classes()[0].affine)
        options = EvaluateOptions(folder / model, data, folder / f"{model}.csv", metrics=("dice",), quiet=True)
        tables.append(evaluate(options).scores)
    if not images:
        for file in data.rglob("*"):
            if file.is_file() and "_seg" not in file.name:
                file.unlink()
    return scores_of(rows_by_key(tables))[0], tables


def test_reference_and_models_stand_beside_each_other_over_flair_with_their_scores(tmp_path):
    scores, tables = made(tmp_path)
    found, reasons = extremes(scores, tables)
    assert reasons == []
    assert {one.study: one.why for one in found} == {
        "BraTS2021_00001": DIFFERENT,
        "BraTS2021_00000": WORST,
        "BraTS2021_00002": WORST,
    }
    first = found[0]
    assert [picture.title for picture in first.pictures] == ["FLAIR", "Reference", "good", "poor"]
    assert re.fullmatch(rf"axial slice \d+ of {SHAPE[0]}", first.place)
    for model, picture in zip(scores.models, first.pictures[2:], strict=True):
        value = scores.values["ET", "dice"][scores.studies.index(first.study), scores.models.index(model)]
        assert picture.detail.startswith(f"Dice ET {value:.3f}, TC ")
        assert picture.alt == f"{first.study}, FLAIR, outlines of {model}"
    assert len({picture.uri for picture in first.pictures}) == 4
    same = found[1].pictures
    assert same[2].uri == same[3].uri != same[1].uri


def test_where_the_truth_has_no_images_the_outlines_stand_alone(tmp_path):
    scores, tables = made(tmp_path, images=False)
    found, reasons = extremes(scores, tables)
    assert reasons == []
    assert [picture.title for picture in found[0].pictures] == ["Reference", "good", "poor"]


def test_what_is_gone_has_no_picture_and_is_told(tmp_path):
    scores, tables = made(tmp_path)
    for file in (tmp_path / "poor").iterdir():
        file.unlink()
    found, reasons = extremes(scores, tables)
    assert [picture.title for picture in found[0].pictures] == ["FLAIR", "Reference", "good"]
    assert len(reasons) == 1
    assert reasons[0].startswith("poor.csv: ")
    assert extremes(scores, tables[1:])[0] == []


@pytest.mark.parametrize("count", [1, 2])
def test_few_studies_are_each_shown_once(tmp_path, count):
    found = choose(scores_from(tmp_path, {"a": {("ET", "dice"): ET[:count]}, "b": {("ET", "dice"): OTHER[:count]}}))
    assert list(found) == [f"s0{i}" for i in ((0,), (1, 0))[count - 1]]
