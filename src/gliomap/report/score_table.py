"""The table of scores, models by regions: as cells for a page, as Markdown, and as LaTeX."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gliomap.report.answers import (
    ALPHA,
    Answer,
    Array,
    Scores,
    higher_is_better,
    metric_title,
    number,
    region_title,
)
from gliomap.rows import metric

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "`": r"\textasciigrave{}",
    "-": "{-}",
    "±": r"$\pm$",
    "≈": r"$\approx$",
} | {letter: f"\\{letter}" for letter in "#$%&_"}

_LETTERS = frozenset("äöüÄÖÜßáàâãåæçéèêëíìîïñóòôõøúùûÁÀÂÃÅÆÇÉÈÊËÍÌÎÏÑÓÒÔÕØÚÙÛ")
"""Letters beyond ASCII that LaTeX prints in any encoding of its fonts."""


class Cell(NamedTuple):
    """One model's scores in a column: the summary, and whether it is the best or not told apart from the best.

    ``near`` is None where the pair of the two was not asked.
    """

    summary: str
    studies: int
    missing: int
    best: bool
    near: bool | None


def summary_of(name: str) -> str:
    """How `cells` sums up a metric: distances are skewed."""
    return (
        "median [quartiles], what is missing counted as worst"
        if metric(name).unit == "mm"
        else "mean ± standard deviation"
    )


def cells(scores: Scores, answers: Sequence[Answer], name: str) -> list[list[Cell]]:
    """A list for each model with a cell for each region of a metric.

    No mean is called best where models miss different numbers of values; a median is, since it counts them.
    """
    columns = [_column(scores, answers, region, name) for region in scores.regions(name)]
    return [list(row) for row in zip(*columns, strict=True)]


def _column(scores: Scores, answers: Sequence[Answer], region: str, name: str) -> list[Cell]:
    values = scores.values[region, name]
    missing = np.isnan(values).sum(axis=0)
    levels = np.array([_level(values[:, k], name) for k in range(len(scores.models))])
    fair = metric(name).unit == "mm" or np.ptp(missing) == 0
    top = (
        (np.nanmax if higher_is_better(name) else np.nanmin)(levels) if fair and np.isfinite(levels).any() else math.nan
    )
    best = [model for model, level in zip(scores.models, levels, strict=True) if level == top]
    return [
        Cell(
            _summary(values[:, k], name),
            len(scores.studies) - int(missing[k]),
            int(missing[k]),
            model in best,
            _near(answers, (region, name), model, best),
        )
        for k, model in enumerate(scores.models)
    ]


def _level(values: Array, name: str) -> float:
    if metric(name).unit == "mm":
        return float(_quartiles(values)[1])
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def _quartiles(values: Array) -> Array:
    """Quartiles (3,), interpolated linearly, of distances with the missing ones as the largest; NaN where these reach."""
    ordered = np.sort(values)  # NaN comes last
    places = (len(values) - 1) * np.array([0.25, 0.5, 0.75])
    below, part = places.astype(int), places % 1
    return np.where(part > 0, ordered[below] * (1 - part) + ordered[np.ceil(places).astype(int)] * part, ordered[below])


def _summary(values: Array, name: str) -> str:
    unit = metric(name).unit
    known = values[~np.isnan(values)]
    if not known.size:
        return "-"
    if unit == "mm":
        low, median, high = ("missing" if math.isnan(q) else number(q, unit) for q in _quartiles(values))
        return f"{median} [{low} to {high}]"
    spread = float(known.std(ddof=1)) if known.size > 1 else math.nan
    return f"{number(float(known.mean()), unit)} ± {number(spread, unit)}"


def _near(answers: Sequence[Answer], column: tuple[str, str], model: str, best: Sequence[str]) -> bool | None:
    """Whether a model was asked about against a best one and not told apart; None if it was not asked, or is the best."""
    asked = [
        answer
        for answer in answers
        if (answer.region, answer.metric) == column
        and any({answer.pair.a, answer.pair.b} == {(model,), (other,)} for other in best)
    ]
    if model in best or not asked:
        return None
    return any(not answer.comparison.p_holm < ALPHA for answer in asked)


def markdown_tables(scores: Scores, answers: Sequence[Answer]) -> str:
    """A Markdown table per metric."""
    out = []
    for name in scores.metrics:
        regions = [region_title(region) for region in scores.regions(name)]
        lines = [["model", *regions], ["---"] * (1 + len(regions))]
        for model, row in zip(scores.models, cells(scores, answers, name), strict=True):
            lines.append([_markdown(model), *(_marked(cell, "**") for cell in row)])
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        out.append(f"{_caption(scores, name)}\n\n{table}\n")
    return "\n".join(out)


def latex_tables(scores: Scores, answers: Sequence[Answer]) -> str:
    r"""A LaTeX table per metric, to be \input; needs booktabs."""
    out = ["% \\usepackage{booktabs} is needed\n"]
    for name in scores.metrics:
        regions = [_latex(region_title(region)) for region in scores.regions(name)]
        lines = [
            " & ".join([_latex(model), *(_latex_cell(cell) for cell in row)]) + r" \\"
            for model, row in zip(scores.models, cells(scores, answers, name), strict=True)
        ]
        body = "\n".join([" & ".join(["model", *regions]) + r" \\", r"\midrule", *lines])
        label = re.sub(r"[^a-z0-9]+", "-", name)
        out.append(
            "\\begin{table}\n\\centering\n"
            f"\\caption{{{_latex(_caption(scores, name))}}}\n\\label{{tab:gliomap-{label}}}\n"
            f"\\begin{{tabular}}{{l{'c' * len(regions)}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
        )
    return "\n".join(out)


def _caption(scores: Scores, name: str) -> str:
    kind = metric(name)
    unit = "" if kind.unit == "1" else f" in {kind.unit}"
    way = "higher" if higher_is_better(name) else "lower"
    return (
        f"{metric_title(name)}{unit} ({kind.definition}; {way} is better), {summary_of(name)}, {len(scores.studies)} studies, "
        f"protocol {scores.protocol}. Bold: best; ≈: asked about and not told apart from it (Holm-adjusted p not below {ALPHA:g})."
    )


def _marked(cell: Cell, bold: str) -> str:
    missing = f" ({cell.studies}, {cell.missing} missing)" if cell.missing else f" ({cell.studies})"
    return (
        f"{bold}{cell.summary}{bold}{missing}" if cell.best else f"{cell.summary}{' ≈' if cell.near else ''}{missing}"
    )


def _latex_cell(cell: Cell) -> str:
    words = _latex(_marked(cell._replace(best=False), ""))
    return f"\\textbf{{{words}}}" if cell.best else words


def _markdown(name: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(name.split()))


def _latex(words: str) -> str:
    """Text that LaTeX prints as it is; what it may not have as its number."""
    return "".join(_LATEX.get(c) or (c if " " <= c < "\x7f" or c in _LETTERS else f"U+{ord(c):04X}") for c in words)
