"""gliomap demo."""

from pathlib import Path
from typing import Annotated

import typer

from gliomap.cli import printing
from gliomap.cli.options import Debug, Quiet, Seed


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the study and the results go.")] = Path("demo"),
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Make a synthetic study, segment it with the shipped model, and score it against its known truth.

    Example: `gliomap demo -o demo`
    """
    from gliomap.demo import DemoOptions
    from gliomap.demo import demo as run

    (result,) = run(DemoOptions(output, seed, quiet)).done
    if quiet:
        return
    scores = {(r.region, r.metric): r for r in result.scores}
    rows = []
    for region, title in printing.REGION_TITLES.items():
        values = [scores[region, metric].value for metric in ("dice", "hd95")]
        shown = ["missing" if v is None else f"{v:.3f}" for v in values]
        rows.append([f"{region} {title}", *shown, f"{result.volumes_ml[region]:.1f}"])
    printing.table(["region", "Dice", "HD95 in mm", "volume in ml"], rows)
    for name in ("study/", "segmentation.nii.gz", "report.html", "scores.csv", "run.json"):
        printing.lines(f"{output / name}")
