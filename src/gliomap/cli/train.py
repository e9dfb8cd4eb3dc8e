"""gliomap train."""

from pathlib import Path
from typing import Annotated

import typer

from gliomap.cli import printing
from gliomap.cli.options import Debug, Device, Json, Labels, Output, Quiet, Seed, seconds


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a recipe.json.")],
    data: Annotated[Path, typer.Argument(help="A folder of labelled studies.")],
    output: Output,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change the recipe: training.patches=2000.")] = None,
    folds: Annotated[Path | None, typer.Option(help="folds.json of gliomap split; else a fifth validates.")] = None,
    fold: Annotated[int, typer.Option(help="Which fold validates.", min=0)] = 0,
    seed: Seed = 0,
    max_time: Annotated[str | None, typer.Option(help="End training after this time: 90s, 20m, 8h.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted training.")] = False,
    labels: Labels = None,
    device: Device = "auto",
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Train a recipe on labelled studies; leaves model.safetensors, a log and what is needed to resume.

    Example: `gliomap train attention_resunet_small DATA -o runs/first --max-time 20m`
    """
    from gliomap.train import TrainOptions
    from gliomap.train import train as run

    options = TrainOptions(
        recipe, data, output, set_ or [], folds, fold, seed, seconds(max_time), resume, labels, device, quiet or json
    )
    result = run(options)
    if json:
        printing.as_json(vars(result) | {"model": str(result.model)})
    elif not quiet:
        printing.counts(result.layouts)
        printing.lines(f"{result.ended} after {result.patches} patches")
        if result.validation_dice:
            best = "  ".join(f"{region} {value:.3f}" for region, value in result.validation_dice.items())
            printing.lines(f"best validation Dice  {best}")
        printing.lines(f"{result.model}")
        printing.lines(*(f"warning: {text}" for text in result.warnings))
    printing.failures(result.failed)
    return 5 if result.failed else 0
