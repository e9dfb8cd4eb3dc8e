"""gliomap evaluate."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from gliomap.cli import printing
from gliomap.cli.options import Debug, Device, Jobs, Json, Labels, Metrics, Output, Quiet, Regions, names


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="A folder of label maps, one label map, or a model file.")],
    truth: Annotated[Path, typer.Argument(help="A folder of labelled studies.")],
    output: Output,
    protocol: Annotated[
        Literal["plain", "brats2023", "brats2025"],
        typer.Option(help="What empty regions count as; the challenges' own add lesion-wise scores."),
    ] = "plain",
    metrics: Metrics = None,
    regions: Regions = "ET,TC,WT",
    name: Annotated[str | None, typer.Option(help="The model's name in the rows.")] = None,
    match: Annotated[
        str | None, typer.Option(help="Where predictions lie in their folder, such as '{study}/pred_{model}.nii.gz'.")
    ] = None,
    match_truth: Annotated[
        str | None, typer.Option(help="The same for the truth, such as '{study}/truth.nii.gz'.")
    ] = None,
    studies: Annotated[str | None, typer.Option(help="The ids of the studies to score, such as a,b,c.")] = None,
    folds: Annotated[Path | None, typer.Option(help="A folds.json; with --fold.")] = None,
    fold: Annotated[int | None, typer.Option(help="The fold whose studies are scored.", min=0)] = None,
    seen_too: Annotated[
        bool, typer.Option("--seen-too", help="Score a model also on studies that it was trained on.")
    ] = False,
    mapping: Annotated[
        list[Path] | None,
        typer.Option(help="A CSV of names, by which a model's studies are known in other datasets; may be repeated."),
    ] = None,
    slices: Annotated[
        Literal["all", "middle"], typer.Option(help="Score whole volumes, or their middle axial slice only.")
    ] = "all",
    labels: Labels = None,
    truth_labels: Annotated[str | None, typer.Option(help="The same for the truth's label values.")] = None,
    jobs: Jobs = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Work on the machines of a Ray cluster; auto is the one here.")
    ] = None,
    device: Device = "auto",
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Score predictions, or a model, against the truth: one row per study, region and metric.

    A run that was cut short continues where it stopped when it is started again.

    Example: `gliomap evaluate out/ DATA -o scores.csv`
    """
    from gliomap.evaluate import EvaluateOptions, summarise
    from gliomap.evaluate import evaluate as run

    options = EvaluateOptions(
        predictions, truth, output, protocol, names(metrics), names(regions), name, match, match_truth, names(studies),
        folds, fold, seen_too, tuple(mapping or ()), slices, labels, truth_labels, jobs, device, quiet or json, ray,
    )  # fmt: skip
    result = run(options)
    if json:
        rows = [vars(row) for row in result.rows]
        printing.as_json({"rows": rows, "failed": result.failed, "warnings": result.warnings})
    elif not quiet:
        for metric in ("dice", "hd95", "lesion_dice", "lesion_hd95") if metrics is None else names(metrics):
            if found := summarise(result.rows, metric):
                printing.summary(metric, found)
        printing.lines(*(f"warning: {text}" for text in result.warnings))
        if result.continued:
            printing.lines(f"continued: {result.continued} of {result.studies} studies had been scored before")
        printing.lines(f"{output}")
    printing.failures(result.failed)
    return 5 if result.failed else 0
