"""gliomap reproduce."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gliomap.cli import printing
from gliomap.cli.options import Debug, Device, Json, Labels, Quiet, Seed, names, seconds
from gliomap.errors import UsageError

if TYPE_CHECKING:
    from gliomap.budget import Estimate, ReproduceOptions
    from gliomap.report.reproduction import Reproduction


def reproduce(
    table: Annotated[str | None, typer.Argument(help="A paper's table, such as 002/table4, or leaderboard.")] = None,
    data: Annotated[Path | None, typer.Argument(help="A folder of labelled studies.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where the results go.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Print every table of the five papers.")] = False,
    rows: Annotated[str | None, typer.Option(help="Only these rows or recipes, with commas between.")] = None,
    max_time: Annotated[str | None, typer.Option(help="Time for all trainings together: 30m, 8h.")] = None,
    studies: Annotated[int | None, typer.Option(help="Use so many patients, drawn by the seed.", min=2)] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change every recipe: '*.training.patches=2000'.")
    ] = None,
    folds: Annotated[str | None, typer.Option(help="Of a cross-validation: how many, or a folds.json.")] = None,
    patches: Annotated[int | None, typer.Option(help="Of the leaderboard: what every row is trained on.")] = None,
    spacing: Annotated[
        float | None, typer.Option(help="Of the leaderboard: the voxel size in mm that networks work at.", min=1.0)
    ] = None,
    seed: Seed = 0,
    labels: Labels = None,
    device: Device = "auto",
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Train and score the rows of a paper's table, and print published beside measured with a verdict per claim.

    Example: `gliomap reproduce 002/table4 DATA -o OUT --max-time 8h --studies 40`

    The leaderboard trains all networks by one protocol on equal budgets, cross-validates and ranks them:
    `gliomap reproduce leaderboard DATA -o OUT --max-time 8h --spacing 2`
    """
    if list_:
        _print_tables(json=json)
        return 0
    if table is None or output is None:
        raise UsageError("reproducing needs a table and -o; gliomap reproduce --list prints the tables")
    from gliomap.budget import ReproduceOptions

    parts = int(folds) if folds and folds.isdigit() else Path(folds) if folds else None
    options = ReproduceOptions(
        table, output, data, names(rows), tuple(set_ or ()), studies, parts, seed, seconds(max_time), labels, device,
        quiet or json, patches, spacing,
    )  # fmt: skip
    return (_leaderboard if table == "leaderboard" else _table)(options, json=json)


def _table(options: ReproduceOptions, *, json: bool) -> int:
    from gliomap.reproduce import reproduce as run

    result = run(options)
    if json:
        printing.as_json(_plain(result.reproduction) | {"page": str(result.page), "failed": result.failed})
    elif not options.quiet:
        _print(result.reproduction)
        printing.lines(f"{result.page}")
    printing.failures(result.failed)
    return 5 if result.failed else 0


def _leaderboard(options: ReproduceOptions, *, json: bool) -> int:
    from gliomap.budget import estimate
    from gliomap.leaderboard import leaderboard
    from gliomap.report.leaderboard import board_rows, conclusions, sections

    known = estimate(options)
    if not options.quiet:
        _print_estimate(known)
    result = leaderboard(options)
    if json:
        told = {"statement": result.board.statement, "conclusions": conclusions(result.board)}
        printing.as_json(told | {"rows": board_rows(result.board), "page": str(result.page), "failed": result.failed})
    elif not options.quiet:
        printing.lines(*result.board.statement, *conclusions(result.board), *result.board.ablations)
        for section in sections(result.board):
            printing.lines("", section.title)
            printing.table(section.headers, section.rows)
        printing.lines(f"{result.page}")
    printing.failures(result.failed)
    return 5 if result.failed else 0


def _print_estimate(known: Estimate) -> None:
    headers = ["row, tried for a few steps", "s per patch", "s per study", "GB", "min in all"]
    rows = [
        [name, f"{t.patch_s:.2f}", f"{t.study_s:.1f}", f"{t.memory_gb:.1f}", f"{known.row_s(name) / 60:.0f}"]
        for name, t in known.trials.items()
    ]
    printing.table(headers, rows)
    total_s = sum(map(known.row_s, known.trials))
    printing.lines(
        f"Budget: {known.patches:,} patches for every row in each of {known.folds} folds of {known.studies} studies. All rows take "
        f"about {total_s / 60:.0f} min."
    )
    printing.failures(known.failed)


def _print_tables(*, json: bool) -> None:
    from gliomap.recipes.tables import TABLES

    if json:
        printing.as_json(
            [
                {"table": t.address, "title": t.title, "rows": len(t.rows), "runnable": len(t.runnable), "how": t.how}
                for t in TABLES.values()
            ]
        )
        return
    headers = ["table", "rows", "gliomap runs", "numbers are", "what it is"]
    rows = [[t.address, str(len(t.rows)), str(len(t.runnable)), ", ".join(t.how), t.title] for t in TABLES.values()]
    printing.table(headers, rows)


def _print(reproduction: Reproduction) -> None:
    from gliomap.report.reproduction import CLAIM_HEADERS, COLUMNS, cells, claim_cells

    printing.lines(f"{reproduction.table.address}: {reproduction.table.title}", *reproduction.statement)
    printing.table(COLUMNS, [cells(line)[: len(COLUMNS)] for line in reproduction.lines])
    if reproduction.judged:
        printing.lines("")
        printing.table(CLAIM_HEADERS, [claim_cells(judged) for judged in reproduction.judged])
    printing.lines(*(f"warning: {text}" for text in reproduction.warnings))


def _plain(reproduction: Reproduction) -> dict[str, object]:
    """The tables in types that JSON has."""
    from gliomap.report.reproduction import claim_rows, line_rows

    return {
        "table": reproduction.table.address,
        "statement": reproduction.statement,
        "numbers": line_rows(reproduction),
        "claims": claim_rows(reproduction),
    }
