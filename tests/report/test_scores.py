from dataclasses import replace

import numpy as np
import pytest
from score_tables import made_rows, random_values, write_table

from gliomap.compare import CompareOptions, compare
from gliomap.errors import InputError
from gliomap.files import write_file
from gliomap.report.scores import rows_by_key
from gliomap.rows import Row, rows_csv


def run(tmp_path, rows, failed=None):
    return compare(CompareOptions((write_table(tmp_path / "scores.csv", rows, failed),), tmp_path / "out"))


@pytest.mark.parametrize("protocol", ["plain", "brats2023", "brats2025", "brats2025, middle axial slice"])
def test_a_failed_study_counts_as_the_worst_where_the_protocol_says_so(tmp_path, protocol):
    values = random_values(("a", "b"))
    rows = [r for r in made_rows(values, protocol=protocol) if (r.model, r.study) != ("a", "s07")]
    result = run(tmp_path, rows, failed={"a": ["s07"]})
    found = {(line["region"], line["metric"]): line for line in result.table}
    if protocol == "plain":
        assert {line["missing"] for line in found.values()} == {1}
        assert result.warnings[0] == "a failed in 1 of 12 studies: s07"
        return
    assert {line["missing"] for line in found.values()} == {0}
    worst_mm = 374 if protocol == "brats2023" else 373
    for name, worst in (("dice", 0.0), ("hd95", worst_mm)):
        filled = np.array(values["a"]["ET", name])
        filled[7] = worst
        expected = np.mean(filled - values["b"]["ET", name])
        assert found["ET", name]["difference"] == pytest.approx(expected)
    assert result.warnings == [
        f"a failed in 1 of 12 studies: s07; by {protocol} such a study counts as Dice 0, HD95 {worst_mm} mm"
    ]
    assert f"such a study counts as Dice 0, HD95 {worst_mm} mm." in result.page.read_text()


def test_several_studies_of_a_patient_are_said(tmp_path):
    rows = made_rows(random_values(("a", "b"), studies=4))
    names = {f"s0{i}": f"BraTS-GLI-0000{i // 2}-10{i % 2}" for i in range(4)}
    result = run(tmp_path, [replace(row, study=names[row.study]) for row in rows])
    said = "4 studies of 2 patients: studies of one patient are not independent"
    assert said in result.warnings[0]
    assert said in result.page.read_text()
    assert run(tmp_path, rows).warnings == []


def test_a_table_with_what_gliomap_does_not_know_is_wrong_input(tmp_path):
    row = made_rows(random_values(("a", "b")))[0]
    for changes in ({"metric": "dise"}, {"protocol": "brats2019"}):
        with pytest.raises(InputError, match=r"scores\.csv.*is not known"):
            run(tmp_path, [replace(row, **changes)])


def test_a_table_without_rows_and_tables_of_two_protocols_are_refused_before_anything_else(tmp_path):
    one, other, empty = tmp_path / "one.csv", tmp_path / "other.csv", tmp_path / "empty.csv"
    rows = [Row("s", "m", "ET", "dice", 0.5, "1", "d", "plain", "ok")]
    write_file(one, rows_csv(rows))
    write_file(other, rows_csv([replace(row, protocol="brats2023") for row in rows]))
    write_file(empty, rows_csv([]))
    with pytest.raises(InputError, match=r"empty\.csv has no rows"):
        rows_by_key([one, empty])
    with pytest.raises(InputError, match=r"by the protocol brats2023, and .*one\.csv by plain"):
        rows_by_key([one, other])
