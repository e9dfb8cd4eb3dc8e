"""gliomap demo."""

from pathlib import Path
from typing import Annotated

import typer

from gliomap.cli import printing
from gliomap.cli.options import Debug, Json, Quiet, Seed


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the study and the results go.")] = Path("demo"),
    seed: Seed = 0,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a synthetic study, segment it with the shipped model, and score it against its known truth.

    Example: `gliomap demo -o demo`
    """
    from gliomap.demo import DemoOptions
    from gliomap.demo import demo as run

    (result,) = run(DemoOptions(output, seed, quiet or json)).done
    if json:
        printing.as_json(result.record)
    if quiet or json:
        return
    printing.scores(result.scores)
    for name in ("study/", "segmentation.nii.gz", "report.html", "scores.csv", "run.json"):
        printing.lines(f"{output / name}")
