"""gliomap split."""

from pathlib import Path
from typing import Annotated

import typer

from gliomap.cli import printing
from gliomap.cli.options import Debug, Json, Output, Quiet, Seed


def split(
    data: Annotated[Path, typer.Argument(help="A folder of labelled studies.")],
    output: Output,
    folds: Annotated[int, typer.Option(help="Number of folds.", min=2)] = 5,
    seed: Seed = 0,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Divide labelled studies into folds by patient, each sub-folder spread over all folds.

    Example: `gliomap split DATA -o folds.json`
    """
    from gliomap.split import SplitOptions
    from gliomap.split import split as run

    result = run(SplitOptions(data, output, folds, seed))
    if json:
        printing.as_json(vars(result))
    elif not quiet:
        printing.counts(result.layouts)
        printing.lines(f"{output}: {folds} folds of {', '.join(str(len(f)) for f in result.folds)} studies")
