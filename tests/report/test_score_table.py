import re
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest

from gliomap.report.answers import Pair, answers_to
from gliomap.report.score_table import cells, latex_tables, markdown_tables, marks_of, summary_of
from gliomap.report.scores import Scores

RNG = np.random.default_rng(0)
HARD = RNG.normal(0, 0.08, 20)
WOBBLE = np.tile([1.0, -1.1], 10) * np.linspace(0.5, 1, 20)
DICE = np.stack([0.8 + HARD, 0.8 + HARD + 0.05 * WOBBLE, 0.6 + HARD + 0.02 * WOBBLE], axis=1)
HD95 = np.stack([6 + 20 * HARD, 6.1 + 20 * HARD + WOBBLE, 25 + 20 * HARD], axis=1)
MODELS = ("a_1", "b|2 & 50 %", "c")


def made(dice=DICE, hd95=HD95, models=MODELS, status="ok"):
    """Scores with this status wherever there is no value."""
    values = {("ET", "dice"): dice, ("ET", "hd95"): hd95}
    why = {column: np.where(np.isnan(table), status, "ok") for column, table in values.items()}
    return Scores(tuple(map(str, range(len(dice)))), models, values, why, "plain")


def asked(scores, pairs=((0, 1), (0, 2), (1, 2))):
    return answers_to([Pair((scores.models[i],), (scores.models[j],)) for i, j in pairs], scores, "wilcoxon", 0)


def test_fractions_are_means_and_distances_medians_with_the_best_and_what_is_near_it():
    scores = made()
    for name, values in (("dice", DICE), ("hd95", HD95)):
        rows = [row[0] for row in cells(scores, asked(scores), name)]
        assert [cell.mark for cell in rows] == ["best", "≈", ""]
        turned = asked(scores, [(1, 0), (2, 0), (2, 1)])
        assert [row[0].mark for row in cells(scores, turned, name)] == ["best", "≈", ""]
        for k, cell in enumerate(rows):
            found = [float(text) for text in re.findall(r"[\d.]+", cell.summary)]
            column = values[:, k]
            expected = [column.mean(), column.std(ddof=1)] if name == "dice" else np.percentile(column, (50, 25, 75))
            assert found == pytest.approx(list(expected), abs=0.051 if name == "hd95" else 5.1e-4)
            assert (cell.studies, cell.missing, cell.empty) == (20, 0, 0)
    assert "best is the best median" in summary_of("hd95")
    assert "Without a mark: shown to be worse" in marks_of()
    assert "mean" in summary_of("dice")


def test_the_best_distance_is_the_lowest_also_where_the_mean_is_not():
    outlier = HD95.copy()
    outlier[0, 0] = 1000.0
    assert [row[0].mark for row in cells(made(hd95=outlier), (), "hd95")] == ["best", "·", "·"]


def test_a_missing_distance_counts_as_worst():
    values = np.array([[1.0, 2.0], [1.0, 2.0], [np.nan, 2.0], [np.nan, 2.0], [np.nan, 9.0]])
    rows = [row[0] for row in cells(made(values / 10, values, ("a", "b")), (), "hd95")]
    assert rows[0].summary == "missing [1.00 to missing]"
    assert rows[1].summary == "2.00 [2.00 to 2.00]"
    assert [cell.mark for cell in rows] == ["·", "best"]
    assert (rows[0].studies, rows[0].missing) == (2, 3)
    values[:, 0], values[:, 1] = [1.0, 1.0, 1.0, np.nan, np.nan], [2.0, 2.0, 2.0, 2.0, np.nan]
    rows = [row[0] for row in cells(made(values / 10, values, ("a", "b")), (), "hd95")]
    assert [cell.missing for cell in rows] == [2, 1]
    assert [cell.mark for cell in rows] == ["best", "·"]


def test_no_mean_is_best_that_leaves_out_more_than_another():
    dice = DICE.copy()
    dice[0, 0] = np.nan
    assert [row[0].mark for row in cells(made(dice), asked(made(dice)), "dice")] == ["", "", ""]
    dice[0] = np.nan
    assert [row[0].mark for row in cells(made(dice), (), "dice")] == ["best", "·", "·"]
    dice = DICE.copy()
    dice[0, 1] = np.nan
    assert cells(made(dice), (), "dice")[0][0].mark == "best"


def test_what_is_correctly_empty_is_left_out_of_means_and_medians_and_no_failure():
    dice, hd95 = DICE.copy(), HD95.copy()
    dice[:12, 0] = hd95[:12, 0] = np.nan
    scores = made(dice + np.array([0.1, 0, 0]), hd95, status="both_empty")
    first = cells(scores, (), "dice")[0][0]
    assert (first.mark, first.studies, first.missing, first.empty) == ("best", 8, 0, 12)
    assert first.summary.startswith(f"{DICE[12:, 0].mean() + 0.1:.3f} ± ")
    first = cells(scores, (), "hd95")[0][0]
    assert first.summary.startswith(f"{np.median(HD95[12:, 0]):.2f} [")
    assert "(8, 12 correctly empty)" in markdown_tables(scores, ())


def test_a_cell_is_unmarked_only_where_the_answer_says_it_is_worse():
    step = np.linspace(0.01, 0.02, 20)
    table = np.stack([DICE[:, 0], DICE[:, 0] - step, DICE[:, 0] - 2 * step], axis=1)
    table[0, 1] += 0.6  # most studies favour the first, one makes the second's mean
    scores = made(table, HD95)
    marks = [row[0].mark for row in cells(scores, asked(scores), "dice")]
    answers = [one for one in asked(scores) if one.metric == "dice"]
    assert answers[0].comparison.p_holm < 0.05
    assert marks[:2] == ["≈", "best"]  # the corrected p is small, but the mean is not decided


def test_values_that_differ_look_different():
    near = np.stack([np.full(20, 0.99987), np.full(20, 0.99991), np.full(20, 0.99991)], axis=1)
    rows = [row[0].summary for row in cells(made(near), (), "dice")]
    assert rows == ["0.99987 ± 0.00000", "0.99991 ± 0.00000", "0.99991 ± 0.00000"]
    far = [row[0].summary for row in cells(made(), (), "dice")]
    assert all(re.fullmatch(r"0\.\d{3} ± 0\.\d{3}", text) for text in far)


def test_nothing_at_all_is_a_dash_and_never_a_warning():
    nothing = np.full((3, 2), np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("dice", "hd95"):
            assert [row[0].summary for row in cells(made(nothing, nothing, ("a", "b")), (), name)] == ["-", "-"]
        alone = cells(made(np.array([[0.5, 0.6]]), np.array([[1.0, 2.0]]), ("a", "b")), (), "dice")
    assert alone[0][0].summary == "0.500 ± -"


def test_equal_means_are_both_best_and_pairs_that_nobody_asked_have_a_mark_of_their_own():
    same = np.stack([DICE[:, 0], DICE[:, 0], DICE[:, 2]], axis=1)
    rows = [row[0] for row in cells(made(same), asked(made(same)), "dice")]
    assert [cell.mark for cell in rows] == ["best", "best", ""]
    assert [row[0].mark for row in cells(made(), asked(made(), [(1, 2)]), "dice")] == ["best", "·", "·"]


def test_markdown_has_a_row_per_model_and_names_that_cannot_break_it():
    text = markdown_tables(made(), asked(made()))
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len(tables) == 2 * (2 + 3)
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in tables)
    assert tables[2].startswith(r"| a\_1 | **0.7")
    assert re.search(r"\| b\\\|2 & 50 % \| 0\.\d+ ± 0\.\d+ ≈ \(20\) \|", text)
    assert "protocol plain" in text


def test_latex_is_balanced_and_escaped_with_every_cell():
    models = ("a_1", r"50 % & more #1 ^~\ {x} $ü$", "Δ→c`d")
    missing = DICE.copy()
    missing[:2, 1] = np.nan
    text = latex_tables(made(missing, HD95, models), asked(made(missing, HD95, models)))
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(rule) == 2
    assert r"50 \% \& more \#1 \textasciicircum{}\textasciitilde{}\textbackslash{} \{x\} \$ü\$" in text
    assert r"U+0394U+2192c\textasciigrave{}d" in text
    assert "(18, 2 missing)" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 2 * 4
    assert all(len(re.findall(r"(?<!\\)&", row)) == 1 for row in rows)
    assert r"$\pm$" in text
    assert r"$\approx$" in text
    assert r"$\cdot$" in text
    bare = text.replace(r"\{", "").replace(r"\}", "")
    assert bare.count("{") == bare.count("}")
    assert text.isascii() or set(re.findall(r"[^\x00-\x7f]", text)) == {"ü"}


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex: compiles the table")
def test_latex_compiles(tmp_path: Path):
    models = ("a_1", r"50 % & more #1 ^~\ {x} $ü$ <a>|\"b\"", "Δ→c`d--eđ")
    text = latex_tables(made(models=models), asked(made(models=models)))
    head = r"\documentclass{article}\usepackage{booktabs}\begin{document}"
    (tmp_path / "page.tex").write_text(f"{head}\n{text}\n\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0
