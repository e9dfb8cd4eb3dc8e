"""gliomap evaluate."""

from pathlib import Path
from typing import Annotated

import typer

from gliomap.cli import printing
from gliomap.cli.options import Debug, Device, Json, Labels, Output, Quiet


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="A folder of label maps, one label map, or a model file.")],
    truth: Annotated[Path, typer.Argument(help="A folder of labelled studies.")],
    output: Output,
    labels: Labels = None,
    truth_labels: Annotated[str | None, typer.Option(help="The same for the truth's label values.")] = None,
    hd_all_voxels: Annotated[
        bool, typer.Option("--hd-all-voxels", help="Add the Hausdorff distance of all voxels, as some papers report.")
    ] = False,
    device: Device = "auto",
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Score predictions, or a model, against the truth: one row per study, region and metric.

    Example: `gliomap evaluate out/ DATA -o scores.csv`
    """
    from gliomap.evaluate import EvaluateOptions, summarise
    from gliomap.evaluate import evaluate as run

    result = run(
        EvaluateOptions(predictions, truth, output, labels, truth_labels, hd_all_voxels, device, quiet or json)
    )
    if json:
        printing.as_json(
            {"rows": [vars(row) for row in result.rows], "failed": result.failed, "warnings": result.warnings}
        )
    elif not quiet:
        for metric in ("dice", "hd95"):
            found = summarise(result.rows, metric)
            rows = [
                [r, *(f"{v:.4g}" if n else "-" for v in (m, median)), str(n), str(gone)]
                for r, (m, median, n, gone) in found.items()
            ]
            printing.table([metric, "mean", "median", "studies", "missing"], rows)
        printing.lines(*(f"warning: {text}" for text in result.warnings))
        printing.lines(f"{output}")
    printing.failures(result.failed)
    return 5 if result.failed else 0
