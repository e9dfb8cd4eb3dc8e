"""What the leaderboard shows: only finished rows in ranks and tables, the numbers of the comparison, and all others listed."""

import csv

import pytest
from score_tables import made_rows, random_values, write_table

from gliomap.compare import CompareOptions, compare
from gliomap.report.comparison import ComparisonReport, comparison_page
from gliomap.report.leaderboard import (
    Cost,
    Entry,
    Leaderboard,
    board_csv,
    board_rows,
    conclusions,
    markdown,
    page,
    sections,
)
from gliomap.report.scores import rows_by_key, scores_of
from gliomap.statistics import bca_interval

NAMES = ("a", "b", "c")


def made(tmp_path, studies=12, seed=0):
    """Three finished rows, one that was cut and one that failed."""
    table = write_table(
        tmp_path / "scores.csv", made_rows(random_values(NAMES, studies, seed=seed), protocol="brats2023")
    )
    scores, _ = scores_of(rows_by_key([table]))
    compared = compare(CompareOptions((table,), tmp_path / "compare"))
    costs = {name: Cost(1.5, 20.25, "64 x 64 x 64", 7200.0, 3.5, 4.25, 1.75) for name in NAMES}
    entries = [Entry(name, "baseline", 1.0, "", costs[name]) for name in NAMES]
    entries += [Entry("cut", "baseline", 0.4, "interrupted", Cost(2.5, 30.0, "64 x 64 x 64"))]
    entries += [Entry("<bad>", "baseline", 0.0, "no memory", Cost())]
    return Leaderboard(
        ("said first",),
        tuple(entries),
        scores,
        tuple(compared.answers),
        ("a has more <em> than b.",),
        (),
        {"Seed": "0"},
    )


def section(board, name):
    return next(one for one in sections(board) if one.name == name)


def test_only_finished_rows_are_ranked_and_scored_and_the_others_are_listed_with_the_reason(tmp_path):
    board = made(tmp_path)
    for one in sections(board):
        names = {row[one.headers.index("Row")] for row in one.rows}
        if one.name == "unfinished":
            assert names == {"cut", "<bad>"}
            assert [row[2:] for row in one.rows] == [["40 %", "interrupted"], ["0 %", "no memory"]]
        elif one.name == "costs":
            assert names == {*NAMES, "cut", "<bad>"}
        else:
            assert names == set(NAMES), one.name
    places = {line["row"]: line["place"] for line in board_rows(board)}
    assert places["cut"] is None
    assert places["<bad>"] is None
    assert {places[name] for name in NAMES} == {1, 2, 3}


def test_ranks_are_those_on_the_page_of_the_comparison(tmp_path):
    board = made(tmp_path)
    assert board.scores is not None
    assert board.ranking is not None
    shown = comparison_page(ComparisonReport(board.scores, board.answers, "wilcoxon", 0, (), {}))
    for row in section(board, "ranking").rows:
        mean, low, high = row[3].replace(" to ", " ").replace("[", "").replace("]", "").split()
        assert f"{mean} [{low}–{high}]" in shown  # noqa: RUF001 - as the page writes it
    ranks = dict(zip(NAMES, board.ranking.mean_ranks, strict=True))
    assert list(board.order) == sorted(NAMES, key=lambda name: ranks[name])


def test_tables_of_scores_are_those_of_the_comparison(tmp_path):
    board = made(tmp_path)
    written = (tmp_path / "compare" / "table.md").read_text()
    assert board.scores is not None
    for name in board.scores.metrics:
        for row in section(board, name).rows:
            for cell in row[1:]:
                assert cell.removesuffix(" (best)").removesuffix(" ≈") in written
    best = [row for row in section(board, "dice").rows if "(best)" in row[1]]
    assert len(best) == 1


def test_the_table_has_each_mean_with_its_interval_over_studies(tmp_path):
    board = made(tmp_path)
    (tmp_path / "board.csv").write_bytes(board_csv(board))
    with (tmp_path / "board.csv").open(newline="") as stream:
        lines = {line["row"]: line for line in csv.DictReader(stream)}
    assert board.scores is not None
    values = board.scores.values["ET", "dice"][:, 1]
    found = [float(lines["b"][f"dice_ET{end}"]) for end in ("", "_low", "_high")]
    assert found == pytest.approx([values.mean(), *bca_interval(values)], rel=1e-5)
    assert lines["cut"]["dice_ET"] == ""
    assert (lines["a"]["training_s"], lines["cut"]["training_s"], lines["cut"]["gmac"]) == ("7200.0", "", "30.0")


def test_it_says_how_many_comparisons_are_decided_and_what_so_many_studies_can_show(tmp_path):
    board = made(tmp_path, studies=40)
    found = conclusions(board)
    assert found[0].startswith(f"{board.order[0]} has the best mean rank")
    dice = next(text for text in found if text.startswith("Dice"))
    assert "of 6 comparisons of two rows are decided. 40 studies can show a difference of about 0." in dice
    assert "before Holm" in dice


def test_so_few_studies_that_nothing_can_be_decided_are_told(tmp_path):
    found = conclusions(made(tmp_path, studies=4))
    assert "0 of 6" in found[1]
    assert "No scores of so few studies could have decided one" in found[1]


def test_with_fewer_than_two_finished_rows_nothing_is_ranked():
    board = Leaderboard((), (Entry("alone", "baseline", 1.0, "", Cost()), Entry("cut", "baseline", 0.5, "cut", Cost())))
    assert "nothing can be concluded" in conclusions(board)[0]
    assert [one.name for one in sections(board)] == ["costs", "unfinished"]
    assert board_rows(board)[0]["place"] is None
    assert "nothing can be concluded" in page(board)


def test_the_page_escapes_what_it_prints_and_loads_nothing(tmp_path):
    text = page(made(tmp_path))
    assert "&lt;bad&gt;" in text
    assert "<bad>" not in text
    assert "&lt;em&gt;" in text
    assert "http" not in text.replace("http-equiv", "")
    assert "<script" not in text


def test_markdown_has_a_table_for_every_section(tmp_path):
    board = made(tmp_path)
    text = markdown(board)
    for one in sections(board):
        assert f"## {one.title}\n" in text
        assert f"| {' | '.join(one.headers)} |" in text
    assert text.index("said first") < text.index("## Ranking")


def test_what_was_not_measured_is_a_dash_and_no_number(tmp_path):
    board = made(tmp_path)
    costs = {row[0]: row for row in section(board, "costs").rows}
    assert costs["<bad>"][1:] == ["-", "-", "", "-", "-", "-", "-"]
    assert costs["a"][4] == "2.00"
    assert board_rows(board)[4]["gmac"] is None
