"""gliomap train."""

from pathlib import Path
from typing import Annotated

import typer

from gliomap.cli import printing
from gliomap.cli.options import Debug, Device, Json, Labels, Quiet, Seed, seconds
from gliomap.errors import UsageError


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a recipe.json.")],
    data: Annotated[Path | None, typer.Argument(help="A folder of labelled studies.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where the results go.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change the recipe: training.patches=2000.")] = None,
    folds: Annotated[
        Path | None, typer.Option(help="folds.json of gliomap split; else the recipe's share validates.")
    ] = None,
    fold: Annotated[int, typer.Option(help="Which fold validates.", min=0)] = 0,
    seed: Seed = 0,
    max_time: Annotated[str | None, typer.Option(help="End training after this time: 90s, 20m, 8h.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted training.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and train nothing.")] = False,
    labels: Labels = None,
    device: Device = "auto",
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Train a recipe on labelled studies; leaves model.safetensors, a log and what is needed to resume.

    Example: `gliomap train attention_resunet_small DATA -o runs/first --max-time 20m`
    """
    if dry_run:
        _print_plan(recipe, set_ or [], device, json=json)
        return 0
    if data is None or output is None:
        raise UsageError("training needs DATA and -o; with --dry-run neither")
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


def _print_plan(recipe: str, settings: list[str], device: str, *, json: bool) -> None:
    from json import loads

    from gliomap.plan import check, plan
    from gliomap.recipe import cautions, recipe_json, with_settings
    from gliomap.recipes import find_recipe

    found = with_settings(find_recipe(recipe), settings)
    check(found)
    stages = plan(found, device)
    if json:
        printing.as_json({"recipe": loads(recipe_json(found)), "stages": [vars(stage) for stage in stages]})
        return
    printing.lines(recipe_json(found))
    rows = [
        [
            s.recipe,
            f"{s.patches:,}",
            f"{s.steps:,}",
            str(s.validations),
            f"{s.memory_bytes / 1e9:.1f}",
            _hours(s.time_s),
        ]
        for s in stages
    ]
    printing.table(["training", "patches", "steps", "validations", "memory in GB", "time of the steps"], rows)
    printing.lines(*(f"reproduction: {text}" for text in cautions(found)))
    printing.lines(*(f"here it would be refused: {stage.refused}" for stage in stages if stage.refused))


def _hours(time_s: float) -> str:
    if time_s >= 3 * 86400:
        return f"{time_s / 86400:.0f} days"
    return f"{time_s / 3600:.1f} h" if time_s >= 3600 else f"{time_s / 60:.0f} min"
