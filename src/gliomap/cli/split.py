"""gliomap split."""

from pathlib import Path
from typing import Annotated

import typer

from gliomap.cli import printing
from gliomap.cli.options import Debug, Json, Labels, Output, Quiet, Seed


def split(
    data: Annotated[Path, typer.Argument(help="A folder of labelled studies.")],
    output: Output,
    folds: Annotated[int, typer.Option(help="Number of folds.", min=2)] = 5,
    seed: Seed = 0,
    mapping: Annotated[
        list[Path] | None, typer.Option(help="A CSV of the names a patient has in several datasets; may be repeated.")
    ] = None,
    labels: Labels = None,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Divide labelled studies into folds by patient, alike in sub-folder, enhancement and tumour size.

    Example: `gliomap split DATA -o folds.json --mapping name_mapping.csv`
    """
    from dataclasses import asdict

    from gliomap.split import SplitOptions
    from gliomap.split import split as run

    result = run(SplitOptions(data, output, folds, seed, tuple(mapping or ()), labels, quiet or json))
    if json:
        printing.as_json(asdict(result))
    elif not quiet:
        printing.counts(result.layouts)
        printing.lines(*result.mappings)
        rows = [
            [str(number), str(f.patients), str(f.enhancing), f"{f.median_volume_ml:.1f}", str(f.studies)]
            for number, f in enumerate(result.summary)
        ]
        printing.table(["fold", "patients", "with ET", "median WT in ml", "studies"], rows)
        printing.lines(*(f"warning: {text}" for text in result.warnings))
        printing.lines(f"{output}")
    printing.failures(result.failed)
    return 5 if result.failed else 0
