"""gliomap phantom."""

from typing import Annotated

import typer

from gliomap.cli import printing
from gliomap.cli.options import Debug, Json, Output, Quiet, Seed


def phantom(
    output: Output,
    studies: Annotated[int, typer.Option(help="How many.", min=1)] = 1,
    layout: Annotated[str, typer.Option(help="brats2018 to brats2024, msd, nnunet or loose.")] = "brats2021",
    seed: Seed = 0,
    size: Annotated[int, typer.Option(help="Voxels left to right; 240 is 1 mm.")] = 240,
    randomise: Annotated[float, typer.Option(help="0 realistic contrast to 1 domain-randomised.")] = 0.0,
    kind: Annotated[str | None, typer.Option(help="Grow only this kind of tumour.")] = None,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write synthetic studies with a known truth, in the naming of a dataset.

    Example: `gliomap phantom -o phantoms --studies 8 --layout brats2021`
    """
    from gliomap.phantom import PhantomOptions
    from gliomap.phantom import phantom as run

    ids = run(PhantomOptions(output, studies, layout, seed, size, randomise, kind, quiet or json))
    if json:
        printing.as_json(ids)
    elif not quiet:
        printing.lines(f"{output}: {len(ids)} {'study' if len(ids) == 1 else 'studies'}, {ids[0]} to {ids[-1]}")
