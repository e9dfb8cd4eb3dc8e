"""gliomap tune."""

from pathlib import Path
from typing import Annotated

import typer

from gliomap.cli import printing
from gliomap.cli.options import Debug, Device, Engine, Json, Labels, Output, Quiet, names


def tune(
    model: Annotated[Path, typer.Argument(help="A model file.")],
    data: Annotated[Path, typer.Argument(help="A folder of labelled studies.")],
    output: Output,
    folds: Annotated[Path | None, typer.Option(help="A folds.json; with --fold.")] = None,
    fold: Annotated[
        int | None, typer.Option(help="The fold whose studies are used, as in its training.", min=0)
    ] = None,
    studies: Annotated[str | None, typer.Option(help="The ids of the studies to use, such as a,b,c.")] = None,
    label_maps: Annotated[
        Path | None, typer.Option(help="A folder of the network's label maps, so that the model is not run.")
    ] = None,
    labels: Labels = None,
    device: Device = "auto",
    engine: Engine = "auto",
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Find the component size and the ET volume below which a model is better not believed, and write it with them.

    Example: `gliomap tune model.safetensors DATA -o tuned.safetensors --folds folds.json --fold 0`
    """
    from dataclasses import asdict

    from gliomap.tune import TuneOptions, limit_text
    from gliomap.tune import tune as run

    options = TuneOptions(
        model, data, output, folds, fold, names(studies), label_maps, labels, device, engine, quiet or json
    )
    result = run(options)
    if json:
        facts = {"steps": [asdict(step) for step in result.steps], "kept": asdict(result.kept)}
        facts |= {"statement": result.statement, "failed": result.failed, "warnings": result.warnings}
        printing.as_json(facts | {"model": str(result.model), "table": str(result.table)})
    elif not quiet:
        best = result.best
        shown = [c for c in result.candidates if c.components == best.components or c.little_et == best.little_et]
        rows = [
            [
                limit_text(one.components),
                limit_text(one.little_et),
                *(f"{value:.4f}" for value in (*one.dice.values(), one.mean_dice)),
                "kept" if one is result.kept else "best" if one is best else "",
            ]
            for one in shown
        ]
        printing.table(["components under", "ET under", *(f"Dice {r}" for r in best.dice), "mean", ""], rows)
        printing.lines(*result.statement, *(f"warning: {text}" for text in result.warnings))
        printing.lines(f"{result.model}", f"{result.table}")
    printing.failures(result.failed)
    return 5 if result.failed else 0
