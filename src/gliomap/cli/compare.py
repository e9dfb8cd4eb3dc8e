"""gliomap compare."""

from pathlib import Path
from typing import Annotated

import typer

from gliomap.cli import printing
from gliomap.cli.options import Debug, Json, Output, Quiet, Seed, names

FEW = 12
"""Sentences that are printed where nobody asked for a pair; of more only those that decide."""


def compare(
    scores: Annotated[list[Path], typer.Argument(help="Tables of scores that gliomap evaluate wrote.")],
    output: Output,
    metrics: Annotated[str | None, typer.Option(help="Such as dice,hd95; else both, where they are there.")] = None,
    regions: Annotated[str | None, typer.Option(help="Such as ET,WT; else all.")] = None,
    baseline: Annotated[str | None, typer.Option(help="Compare every other model with this one.")] = None,
    pair: Annotated[
        list[str] | None, typer.Option(help="Compare A:B; a side may be the mean of several, as A+B:C+D. Repeatable.")
    ] = None,
    common: Annotated[
        bool, typer.Option("--common", help="Compare on what all models have, and say what is left out.")
    ] = False,
    test: Annotated[str, typer.Option(help="wilcoxon, t or permutation.")] = "wilcoxon",
    seed: Seed = 0,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Say which of several models is better, how sure that is, and what so many studies can show.

    Example: `gliomap compare a.csv b.csv -o compare/`
    """
    from gliomap.compare import CompareOptions
    from gliomap.compare import compare as run

    options = CompareOptions(
        tuple(scores), output, names(metrics), names(regions), baseline, tuple(pair or ()), common, test, seed
    )
    result = run(options)
    if json:
        printing.as_json({"comparisons": result.table, "warnings": result.warnings, "page": str(result.page)})
    elif not quiet:
        printing.lines(*(f"warning: {text}" for text in result.warnings))
        asked = baseline is not None or pair
        printing.lines(*(result.sentences if asked or len(result.sentences) <= FEW else result.decided))
        printing.lines(f"{len(result.decided)} of {len(result.sentences)} comparisons decide; all are on the page")
        printing.lines(f"{result.page}")
