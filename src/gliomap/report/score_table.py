"""The table of scores, models by regions: as cells for a page, as Markdown, and as LaTeX."""

import math
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from gliomap.report.answers import Answer, Pair, outcome
from gliomap.report.scores import Array, Column, Scores
from gliomap.report.wording import decimals, higher_is_better, metric_title, number, region_title
from gliomap.rows import metric

Mark = Literal["best", "≈", "·", ""]
"""Of a cell: the best of its column; asked about and not shown to be worse than the best; not asked about; worse."""

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
    "·": r"$\cdot$",
} | {letter: f"\\{letter}" for letter in "#$%&_"}

_LETTERS = frozenset("äöüÄÖÜßáàâãåæçéèêëíìîïñóòôõøúùûÁÀÂÃÅÆÇÉÈÊËÍÌÎÏÑÓÒÔÕØÚÙÛ")
"""Letters beyond ASCII that LaTeX prints in any encoding of its fonts."""


class Cell(NamedTuple):
    """One model's scores in a column: how many studies have a value, miss it, or are correctly empty."""

    summary: str
    studies: int
    missing: int
    empty: int
    mark: Mark


def summary_of(name: str) -> str:
    """How `cells` sums up a metric, and what is best by: distances are skewed."""
    if metric(name).unit == "mm":
        return "median [quartiles], what is missing counted as worst; best is the best median, while ≈ is about means"
    return "mean ± standard deviation"


def marks_of() -> str:
    """What the marks of cells say."""
    return (
        "≈: asked about, and not shown to be worse than the best. ·: not asked about against the best. Without a mark: "
        "shown to be worse. Where a model with more missing values has the best mean, none is called best"
    )


def cells(scores: Scores, answers: Sequence[Answer], name: str) -> list[list[Cell]]:
    """A list for each model with a cell for each region of a metric.

    What is correctly empty is left out. A mean is best only where no model misses fewer values; a median counts them.
    """
    columns = [_column(scores, answers, (region, name)) for region in scores.regions(name)]
    return [list(row) for row in zip(*columns, strict=True)]


def _column(scores: Scores, answers: Sequence[Answer], column: Column) -> list[Cell]:
    name, models = column[1], scores.models
    empty = [scores.empty((model,), column) for model in models]
    missing = [int(scores.gone((model,), column).sum()) for model in models]
    values = [scores.values[column][~flags, k] for k, flags in enumerate(empty)]
    levels = np.array([_level(of_model, name) for of_model in values])
    top = (max if higher_is_better(name) else min)(levels[np.isfinite(levels)], default=math.nan)
    fewest = len(scores.studies) if metric(name).unit == "mm" else min(missing)
    best = [
        model for model, level, gone in zip(models, levels, missing, strict=True) if level == top and gone <= fewest
    ]
    digits = decimals(levels, metric(name).unit)
    return [
        Cell(
            _summary(values[k], name, digits),
            len(values[k]) - missing[k],
            missing[k],
            int(empty[k].sum()),
            _mark(answers, column, model, best),
        )
        for k, model in enumerate(models)
    ]


def _level(values: Array, name: str) -> float:
    known = values[~np.isnan(values)]
    if not known.size:
        return math.nan
    return float(_quartiles(values)[1] if metric(name).unit == "mm" else known.mean())


def _quartiles(values: Array) -> Array:
    """Quartiles (3,), interpolated linearly, of distances with the missing ones as the largest; NaN where these reach."""
    ordered = np.sort(values)  # NaN comes last
    places = (len(values) - 1) * np.array([0.25, 0.5, 0.75])
    below, part = places.astype(int), places % 1
    return np.where(part > 0, ordered[below] * (1 - part) + ordered[np.ceil(places).astype(int)] * part, ordered[below])


def _summary(values: Array, name: str, digits: int) -> str:
    unit = metric(name).unit
    known = values[~np.isnan(values)]
    if not known.size:
        return "-"
    if unit == "mm":
        low, median, high = ("missing" if math.isnan(q) else number(q, unit, digits) for q in _quartiles(values))
        return f"{median} [{low} to {high}]"
    spread = float(known.std(ddof=1)) if known.size > 1 else math.nan
    return f"{number(float(known.mean()), unit, digits)} ± {number(spread, unit, digits)}"


def _mark(answers: Sequence[Answer], column: Column, model: str, best: Sequence[str]) -> Mark:
    """No mark where the best is shown to be better than this model, or where there is no best."""
    if model in best:
        return "best"
    worse = {Pair((model,), (other,)): "worse" for other in best} | {
        Pair((other,), (model,)): "better" for other in best
    }
    found = [
        outcome(answer) == worse[answer.pair]
        for answer in answers
        if (answer.region, answer.metric) == column and answer.pair in worse
    ]
    if not found:
        return "·" if best else ""
    return "" if all(found) else "≈"


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
        f"protocol {scores.protocol}. Bold: best. {marks_of()}."
    )


def _marked(cell: Cell, bold: str) -> str:
    more = [f", {n} {what}" for n, what in ((cell.missing, "missing"), (cell.empty, "correctly empty")) if n]
    counts = f"({cell.studies}{''.join(more)})"
    return (
        f"{bold}{cell.summary}{bold} {counts}" if cell.mark == "best" else " ".join([cell.summary, *cell.mark, counts])
    )


def _latex_cell(cell: Cell) -> str:
    words = _latex(_marked(cell, ""))
    return f"\\textbf{{{words}}}" if cell.mark == "best" else words


def _markdown(name: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(name.split()))


def _latex(words: str) -> str:
    """Text that LaTeX prints as it is; what it may not have as its number."""
    return "".join(_LATEX.get(c) or (c if " " <= c < "\x7f" or c in _LETTERS else f"U+{ord(c):04X}") for c in words)
