"""What verbs print: small tables and lines on standard output, paths always whole."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from gliomap.evaluate import Summary
    from gliomap.report.repeats import Spread
    from gliomap.rows import Row


def console() -> Console:
    """Standard output; lines are never folded and columns never cut, so that a path or a name can be copied."""
    return Console(soft_wrap=True, highlight=False, width=10_000)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table with the first column left and the others right."""
    grid = Table(box=None, pad_edge=False)
    for number, header in enumerate(headers):
        grid.add_column(header, justify="left" if number == 0 else "right")
    for row in rows:
        grid.add_row(*map(escape, row))
    console().print(grid)


def lines(*texts: str) -> None:
    """Plain lines, whatever they contain."""
    for text in texts:
        console().print(text, markup=False)


def scores(rows: Iterable[Row]) -> None:
    """Dice and HD95 per study and region, from rows of scores."""
    shown = {(r.study, r.region, r.metric): "missing" if r.value is None else f"{r.value:.3f}" for r in rows}
    found = dict.fromkeys((study, region) for study, region, _ in shown)
    lined = [[study, region, shown[study, region, "dice"], shown[study, region, "hd95"]] for study, region in found]
    table(["study", "region", "Dice", "HD95 in mm"], lined)


def summary(metric: str, found: Mapping[tuple[str, str], Summary]) -> None:
    """A metric's mean and median by region, and by model where there are several."""
    several = len({model for model, _ in found}) > 1
    rows = [
        [
            f"{model}, {region}" if several and region else region or model,
            *(f"{v:.4g}" if s.studies else "-" for v in (s.mean, s.median)),
            str(s.studies),
            str(s.missing),
        ]
        for (model, region), s in found.items()
    ]
    table([metric, "mean", "median", "studies", "missing"], rows)


def spreads(found: Sequence[Spread]) -> None:
    """A table for each metric: the means of repeated trainings, and what they are uncertain by."""
    from gliomap.report.repeats import spread_table

    for name in dict.fromkeys(one.metric for one in found):
        table(*spread_table(found, name))


def counts(layouts: Mapping[str, int]) -> None:
    """How many studies were found, by layout."""
    lines(*(f"found {count} {'study' if count == 1 else 'studies'}: {layout}" for layout, count in layouts.items()))


def failures(failed: Mapping[str, str]) -> None:
    """The studies that failed and why, on standard error."""
    out = Console(stderr=True, soft_wrap=True)
    for study, reason in failed.items():
        out.print(f"failed: {study}: {reason}", style="red", markup=False, highlight=False)


def as_json(value: Any) -> None:
    """A value as JSON on standard output."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
