"""The page, the table and the text that `gliomap reproduce leaderboard` leaves: finished rows ranked, all others listed."""

import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from gliomap.ranking import Ranking, ranking
from gliomap.report.answers import Answer, Pair, outcome
from gliomap.report.score_table import cells, marks_of, summary_of
from gliomap.report.scores import Column, Scores
from gliomap.report.templating import pages
from gliomap.report.wording import higher_is_better, metric_title, number, precise, region_title
from gliomap.rows import metric, table_csv
from gliomap.statistics import bca_interval


@dataclass(frozen=True)
class Cost:
    """What a row costs; NaN where it was not measured.

    Attributes:
        parameters_m: 10^6 numbers, frozen ones and those of all parts included.
        gmac: 10^9 multiply-accumulates of one training patch, forward.
        patch: What that patch is, in voxels.
        training_s: Seconds of training, all folds and all that the row starts from, validation included.
        training_gb: Peak memory of a process that takes a few steps and validates one study, in 10^9 bytes.
        study_s: Seconds to read and segment one study on a CPU, with one trained network.
        study_gb: Peak memory of a process that does.
    """

    parameters_m: float = math.nan
    gmac: float = math.nan
    patch: str = ""
    training_s: float = math.nan
    training_gb: float = math.nan
    study_s: float = math.nan
    study_gb: float = math.nan


@dataclass(frozen=True)
class Entry:
    """One row. ``share`` of the budget was seen; ``remark`` is why it is not ranked, and empty where it is."""

    name: str
    kind: str
    share: float
    remark: str
    cost: Cost


@dataclass(frozen=True)
class Leaderboard:
    """All that is shown.

    Attributes:
        statement: What to know before any number.
        scores: Of the finished rows; None where there are fewer than two.
        answers: All pairs of them.
        ablations: Sentences about networks with and without a part, corrected among themselves.
        facts: How it was made.
    """

    statement: tuple[str, ...]
    entries: tuple[Entry, ...]
    scores: Scores | None = None
    answers: tuple[Answer, ...] = ()
    ablations: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)
    seed: int = 0

    @cached_property
    def ranking(self) -> Ranking | None:
        """The finished rows ranked over all regions and metrics, as in the page of `gliomap compare`."""
        if self.scores is None:
            return None
        values = np.stack([self.scores.ranked(column) for column in self.scores.values], axis=2)
        return ranking(values, [higher_is_better(name) for _, name in self.scores.values], self.seed)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The names of the finished rows, best rank first."""
        if self.scores is None or self.ranking is None:
            return ()
        return tuple(self.scores.models[k] for k in np.argsort(self.ranking.mean_ranks, kind="stable"))


class Section(NamedTuple):
    """A table with what has to be said of it."""

    name: str
    title: str
    note: str
    headers: tuple[str, ...]
    rows: list[list[str]]


def page(board: Leaderboard) -> str:
    """The page as HTML text, one file that opens offline; every value in it is escaped."""
    template = pages().get_template("leaderboard.html.j2")
    return template.render(board=board, conclusions=conclusions(board), sections=sections(board))


def markdown(board: Leaderboard) -> str:
    """The same as Markdown."""
    out = ["# Leaderboard", "", *(f"- {text}" for text in (*board.statement, *board.warnings)), ""]
    if found := conclusions(board):
        out += ["## What can be concluded", "", *(f"- {text}" for text in found), ""]
    if board.ablations:
        out += ["## With and without a part", "", *(f"- {text}" for text in board.ablations), ""]
    for section in sections(board):
        lines = [section.headers, ["---"] * len(section.headers), *section.rows]
        table = ["| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines]
        out += [f"## {section.title}", "", section.note, "", *table, ""]
    out += ["## How it was made", "", *(f"- {name}: {value}" for name, value in board.facts.items())]
    return "\n".join(out) + "\n"


def sections(board: Leaderboard) -> list[Section]:
    """The tables, those without a line left out."""
    found = [*_ranked(board), *_scored(board), _costs(board), _unfinished(board)]
    return [section for section in found if section.rows]


def conclusions(board: Leaderboard) -> list[str]:
    """What so many studies say, and what they cannot say, in plain words."""
    scores, ranks = board.scores, board.ranking
    if scores is None or ranks is None:
        return ["Fewer than two rows are finished: nothing is ranked, and nothing can be concluded."]
    best = scores.models.index(board.order[0])
    first, low, high = ranks.place_shares[best, 0], ranks.rank_low[best], ranks.rank_high[best]
    out = [
        f"{board.order[0]} has the best mean rank, {ranks.mean_ranks[best]:.2f} of {len(scores.models)} (95 % {low:.2f} to "
        f"{high:.2f}); drawn again, the studies put it first in {100 * first:.0f} of 100 cases."
    ]
    out += [_told(board, name) for name in scores.metrics]
    return [
        *out,
        "A difference that was not shown may be there all the same: undecided is no proof that two rows are equal.",
    ]


def _told(board: Leaderboard, name: str) -> str:
    """How much of a metric is decided, and the differences that these studies can show."""
    answers = [answer for answer in board.answers if answer.metric == name]
    decided = sum(outcome(answer) in ("better", "worse") for answer in answers)
    text = f"{_title(name)}: {decided} of {len(answers)} comparisons of two rows are decided."
    if not any(answer.reachable for answer in answers):
        return f"{text} No scores of so few studies could have decided one, after Holm's correction."
    unit, shown = metric(name).unit, []
    for region in dict.fromkeys(answer.region for answer in answers):
        sizes = [answer.comparison.detectable for answer in answers if answer.region == region]
        if known := [size for size in sizes if size > 0]:
            size = precise(float(np.median(known)), unit)
            shown.append(f"{size}{'' if unit == '1' else f' {unit}'} in {region_title(region)}")
    if not shown:
        return text
    studies = len(board.scores.studies) if board.scores else 0
    return (
        f"{text} {studies} studies can show a difference of about {', '.join(shown)}: the median over pairs (80 % power, one test "
        "alone, before Holm)."
    )


def _title(name: str) -> str:
    title = metric_title(name)
    return title[0].upper() + title[1:]


def _ranked(board: Leaderboard) -> list[Section]:
    scores, ranks = board.scores, board.ranking
    if scores is None or ranks is None:
        return []
    kinds = {entry.name: entry.kind for entry in board.entries}
    rows = []
    for name in board.order:
        k = scores.models.index(name)
        rows.append(
            [
                str(ranks.places[k]),
                name,
                kinds.get(name, ""),
                f"{ranks.mean_ranks[k]:.2f} [{ranks.rank_low[k]:.2f} to {ranks.rank_high[k]:.2f}]",
                f"{100 * ranks.place_shares[k, 0]:.0f} %",
                _behind(board, name),
                *(_mean_text(scores, (region, "dice"), k) for region in scores.regions("dice")),
            ]
        )
    dice = [f"Dice {region_title(region)} [95 %]" for region in scores.regions("dice")]
    note = (
        f"As in the BraTS challenges: in every study the rows are ranked in each of {len(scores.values)} columns (regions and "
        "metrics), ranks are averaged in the study and then over studies. First: how often a row comes first when the studies are "
        "drawn again. Worse than the first: in how many columns the answers say so. Intervals of a mean are BCa bootstraps over "
        "studies."
    )
    headers = ("Place", "Row", "What it is", "Mean rank [95 %]", "First", "Worse than the first in", *dice)
    return [Section("ranking", "Ranking", note, headers, rows)]


def _behind(board: Leaderboard, name: str) -> str:
    """In how many columns a row is shown to be worse than the one that ranks first."""
    first = board.order[0]
    if board.scores is None or name == first:
        return ""
    worse = {Pair((name,), (first,)): "worse", Pair((first,), (name,)): "better"}
    count = sum(outcome(a) == worse[a.pair] for a in board.answers if a.pair in worse)
    return f"{count} of {len(board.scores.values)}"


def _scored(board: Leaderboard) -> list[Section]:
    """The tables of `gliomap compare`, in the order of the ranks."""
    scores, found = board.scores, list[Section]()
    if scores is None:
        return found
    for name in scores.metrics:
        kind = metric(name)
        by_model = dict(zip(scores.models, cells(scores, board.answers, name), strict=True))
        rows = [
            [model, *(f"{cell.summary} {'(best)' if cell.mark == 'best' else cell.mark}".strip() for cell in row)]
            for model, row in ((model, by_model[model]) for model in board.order)
        ]
        note = (
            f"{kind.definition}; {kind.better} is better; {summary_of(name)}; protocol {scores.protocol}. {marks_of()}."
        )
        title = _title(name) + ("" if kind.unit == "1" else f" in {kind.unit}")
        headers = ("Row", *(region_title(region) for region in scores.regions(name)))
        found.append(Section(name, title, note, headers, rows))
    return found


def _costs(board: Leaderboard) -> Section:
    headers = (
        *("Row", "Parameters, 10^6", "GMAC per patch", "Patch, voxels", "Training, h", "Training, GB"),
        *("Study on a CPU, s", "Study on a CPU, GB"),
    )
    rows = [
        [
            entry.name,
            _text(entry.cost.parameters_m, ".2f"),
            _text(entry.cost.gmac, ".1f"),
            entry.cost.patch,
            _text(entry.cost.training_s / 3600, ".2f"),
            _text(entry.cost.training_gb, ".1f"),
            _text(entry.cost.study_s, ".1f"),
            _text(entry.cost.study_gb, ".1f"),
        ]
        for entry in board.entries
    ]
    note = (
        "Parameters and multiply-accumulates are counted, the rest is measured on this machine and depends on what else it did. "
        "Training: all folds together, with what a row starts from. A study is read and segmented by one network of the row."
    )
    return Section("costs", "Costs", note, headers, rows)


def _unfinished(board: Leaderboard) -> Section:
    rows = [
        [entry.name, entry.kind, f"{100 * entry.share:.3g} %", entry.remark] for entry in board.entries if entry.remark
    ]
    note = "In no ranking, table of scores or comparison. The same command goes on with them."
    return Section("unfinished", "Not finished", note, ("Row", "What it is", "Patches seen", "Why"), rows)


def board_csv(board: Leaderboard) -> bytes:
    """A line per row: its place, its mean in every column with the 95 % interval, its costs, and why it is not ranked."""
    return table_csv(lines := board_rows(board), list(lines[0]))


def board_rows(board: Leaderboard) -> list[dict[str, str | float | None]]:
    """`board_csv` as values, None where there is none."""
    return [_line(board, entry) for entry in board.entries]


def _line(board: Leaderboard, entry: Entry) -> dict[str, str | float | None]:
    scores, ranks = board.scores, board.ranking
    line: dict[str, str | float | None] = {"row": entry.name, "kind": entry.kind, "share_of_budget": entry.share}
    line |= {"remark": entry.remark, "place": None, "mean_rank": None, "rank_low": None, "rank_high": None}
    if scores is not None and ranks is not None:
        k = scores.models.index(entry.name) if entry.name in scores.models else None
        if k is not None:
            line |= {"place": int(ranks.places[k]), "mean_rank": _value(ranks.mean_ranks[k])}
            line |= {"rank_low": _value(ranks.rank_low[k]), "rank_high": _value(ranks.rank_high[k])}
        for region, name in scores.values:
            found = (math.nan,) * 3 if k is None else mean_interval(scores, (region, name), k)
            ends = ("", "_low", "_high")
            line |= {f"{name}_{region}{end}": _value(value) for end, value in zip(ends, found, strict=True)}
    costs = asdict(entry.cost)
    return line | {name: _value(value) if isinstance(value, float) else value for name, value in costs.items()}


def mean_interval(scores: Scores, column: Column, k: int) -> tuple[float, float, float]:
    """The mean of a model's values in a column and its BCa 95 % interval over studies; NaN without values."""
    values = scores.values[column][:, k]
    known = values[~np.isnan(values)]
    if not known.size:
        return math.nan, math.nan, math.nan
    return float(known.mean()), *bca_interval(known)


def _mean_text(scores: Scores, column: Column, k: int) -> str:
    mean, low, high = (number(value, metric(column[1]).unit) for value in mean_interval(scores, column, k))
    return f"{mean} [{low} to {high}]"


def _text(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _value(value: float) -> float | None:
    """With six significant digits; None for NaN, which JSON does not have."""
    return None if math.isnan(value) else float(f"{float(value):.6g}")
