import csv
import io
import json
import re
from dataclasses import replace

import pytest

from gliomap.recipes.claims import claims_of
from gliomap.recipes.tables import find_table
from gliomap.report.reproduction import (
    Judged,
    Line,
    Reproduction,
    cells,
    claim_cells,
    claim_rows,
    claims_csv,
    gain_text,
    line_rows,
    lines_csv,
    markdown,
    number_text,
    page,
    sentence,
    share_text,
)
from gliomap.statistics import compare_paired

TABLE = find_table("002/table4")


def example(**changes):
    number = TABLE.numbers[0]
    line = Line(number, "remark <b>", "mean <i>", 71.234, 70.1, 72.9, 20, 1, 400, 134_000)
    claim = claims_of("002/table4")[0]
    comparison = compare_paired([3.0, 2.0, 4.0, 5.0], [1.0, 1.5, 1.0, 2.0], "permutation")
    judged = (
        Judged(claim, "undecided", comparison, tested=3, share=0.5),
        Judged(claim, "not tested", reason="why | not"),
    )
    values = {"statement": ("This is <no> experiment.",), "lines": (line, Line(TABLE.numbers[1], "never run")),
              "judged": judged, "facts": {"Data": "<script>"}, "warnings": ("odd <b>",)} | changes  # fmt: skip
    return Reproduction(TABLE, **values)


def test_everything_from_outside_is_escaped_and_nothing_is_loaded():
    text = page(example())
    assert "<script" not in text
    assert not re.search(r"<(b|i|no)>(?!For research)", text)
    assert "&lt;no&gt;" in text
    assert "&lt;script&gt;" in text
    assert not re.search(r"://|@import|\ssrc=", text)
    assert "default-src 'none'" in text
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', text))


def test_the_page_shows_statement_claims_and_numbers_in_that_order():
    text = page(example())
    parts = ("This is", "odd", "Of 2 claims", "Gain +", "71.23", 'facts-title">How it was made')
    places = [text.index(words) for words in parts]
    assert places == sorted(places)
    assert "Of 2 claims 0 are supported by this run" in " ".join(text.split())
    assert page(example(judged=())).count("<section") == 2
    assert text.count("<th scope=") == text.count("<th ")
    assert all(query in text for query in ("prefers-color-scheme: dark", "@media print"))


def test_a_line_in_cells():
    first, second = example().lines
    assert cells(first) == (
        "Baseline", "ET dice", "%", "74.47", "71.23", "70.10 to 72.90", "-3.24", "20", "1", "400 of 134,000", "mean <i>",
        "remark <b>",
    )  # fmt: skip
    assert cells(second)[3:] == (f"{second.number.value:g}", "", "", "", "", "", "", "", "never run")


def test_a_second_definition_is_told_apart_and_a_whole_share_is_100_percent():
    assert cells(replace(example().lines[0], beside="as hd95_all_voxels"))[1] == "ET dice as hd95_all_voxels"
    assert [share_text(share) for share in (1.0, 4 / 134_000)] == ["100 %", "0.00299 %"]


def test_a_claim_in_cells_and_in_a_sentence():
    first, second = example().judged
    shown = dict(zip(("text", "number", "verdict", "unit", "print", "here"), claim_cells(first)[:6], strict=True))
    assert shown["here"] == "+2.12"
    assert (shown["print"], shown["verdict"]) == ("+4.13", "undecided")
    assert claim_cells(first)[7:] == ("", "4", "")  # not yet adjusted
    assert claim_cells(second)[5:] == ("", "", "", "", "")
    assert sentence(second).endswith("not tested; why | not.")


def test_tables_are_read_back():
    report = example()
    lines = list(csv.DictReader(io.StringIO(lines_csv(report).decode())))
    assert [line["published"] for line in lines] == ["74.47", f"{TABLE.numbers[1].value}"]
    assert (lines[0]["measured"], lines[0]["measured_minus_published"], lines[0]["patches_trained"]) == (
        "71.234",
        "-3.236",
        "400",
    )
    assert (lines[1]["measured"], lines[1]["low"], lines[1]["patches_trained"]) == ("", "", "")
    claims = list(csv.DictReader(io.StringIO(claims_csv(report).decode())))
    assert (claims[0]["gain"], claims[0]["published_gain"], claims[0]["verdict"]) == ("2.125", "4.13", "undecided")
    assert claims[1]["gain"] == claims[1]["p"] == ""
    assert claims_csv(replace(report, judged=())).decode().count("\n") == 1


def test_rows_are_what_json_has():
    report = example()
    assert json.loads(json.dumps(line_rows(report) + claim_rows(report), allow_nan=False))
    assert (line_rows(report)[0]["measured"], line_rows(report)[1]["measured"]) == (71.234, None)
    assert (claim_rows(report)[0]["p_holm"], claim_rows(report)[0]["gain"]) == (None, 2.125)


def test_markdown_keeps_its_tables_whole():
    lines = markdown(example()).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + 2
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {13}
    assert lines[0] == f"# 002/table4: {TABLE.title}"
    assert any(line.startswith("- + Intra beats the baseline, ET dice: undecided") for line in lines)
    bar = example(lines=(replace(example().lines[0], remark="a|b"),))
    assert r"a\|b" in markdown(bar)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.76543, "", "0.7654"),
        (76.543, "%", "76.54"),
        (3.14159, "mm", "3.14"),
        (4.768616, "M", "4.7686"),
        (float("nan"), "%", ""),
    ],
)
def test_numbers_have_the_decimals_of_their_unit(value, unit, text):
    assert number_text(value, unit) == text


def test_gains_have_three_digits_and_a_sign():
    assert [gain_text(v) for v in (0.041349, -11.687, -0.0, float("nan"))] == ["+0.0413", "-11.7", "+0", ""]
