"""gliomap train."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gliomap.cli import printing
from gliomap.cli.options import Debug, Device, Json, Labels, Quiet, Seed, number, numbers, seconds
from gliomap.errors import UsageError

if TYPE_CHECKING:
    from gliomap.train import TrainOptions, TrainResult


def train(
    recipe: Annotated[
        str, typer.Argument(help="A recipe's name, a recipe.json, or a run.json without DATA to run again.")
    ],
    data: Annotated[Path | None, typer.Argument(help="A folder of labelled studies.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where the results go.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change the recipe, may be repeated: training.patches=2000.")
    ] = None,
    folds: Annotated[
        Path | None, typer.Option(help="folds.json of gliomap split; else the recipe's share validates.")
    ] = None,
    fold: Annotated[str, typer.Option(help="Which fold validates: 0, 1 ..., or all, one after the other.")] = "0",
    seed: Seed = 0,
    seeds: Annotated[str | None, typer.Option(help="Several trainings that differ in the seed only: 1,2,3.")] = None,
    begin_with: Annotated[
        Path | None, typer.Option("--from", help="Begin with the weights of this model file.")
    ] = None,
    phantoms: Annotated[int, typer.Option(help="Train on so many phantoms, besides DATA or alone.", min=0)] = 0,
    phantom_size: Annotated[
        int, typer.Option(help="Voxels of a phantom from left to right; 240 is 1 mm, 120 is 2 mm.", min=24)
    ] = 240,
    max_time: Annotated[
        str | None, typer.Option(help="End training after this time, all resumed parts together: 90s, 20m, 8h.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted training, with the same command.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the recipe and what it would take, and train nothing.")
    ] = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Only algorithms whose results never differ between runs.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that prepare studies, and threads that cut patches ahead; on a CPU 0 if not given.", min=0
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            help="Threads that compute, in each process; all cores if not given. Results depend on it in rounding.",
            min=1,
        ),
    ] = None,
    processes: Annotated[int, typer.Option(help="GPUs, or processes on a CPU, that train together.", min=1)] = 1,
    precision: Annotated[str, typer.Option(help="auto (bfloat16 on a GPU that can), 32-true or bf16-mixed.")] = "auto",
    mlflow: Annotated[str | None, typer.Option(help="Log to this MLflow server or folder, too.")] = None,
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
    if output is None:
        raise UsageError("training needs -o, where the results go; with --dry-run it does not")
    from gliomap.train import TrainOptions, again
    from gliomap.train import train as run

    options = TrainOptions(
        recipe=recipe,
        data=data,
        output=output,
        settings=set_ or [],
        folds=folds,
        fold=0 if fold == "all" else number(fold, "--fold", "a fold such as 0, or all"),
        seed=seed,
        max_time_s=seconds(max_time),
        resume=resume,
        labels=labels,
        device=device,
        quiet=quiet or json,
        begin_with=begin_with,
        phantoms=phantoms,
        phantom_size=phantom_size,
        workers=workers,
        threads=threads,
        processes=processes,
        precision=precision,
        deterministic=deterministic,
        mlflow=mlflow,
    )
    if data is None and not phantoms and Path(recipe).name == "run.json":
        options = again(options)
    if fold == "all" or seeds:
        return _repeat(options, numbers(seeds, "--seeds"), all_folds=fold == "all", json=json)
    result = run(options)
    return _print_result(result, quiet=quiet, json=json)


def _print_result(result: TrainResult, *, quiet: bool, json: bool) -> int:
    """What a training has left; printed by one of its processes."""
    from gliomap.distribution import is_first_process

    if not is_first_process():
        return 0
    if json:
        printing.as_json(vars(result) | {"model": str(result.model)})
    elif not quiet:
        printing.counts(result.layouts)
        printing.lines(f"{result.ended} after {result.patches} patches")
        if result.validation_dice:
            best = "  ".join(f"{region} {value:.3f}" for region, value in result.validation_dice.items())
            printing.lines(f"best validation Dice  {best}")
        printing.lines(f"{result.model}", f"{result.model.with_name('training.html')}")
        printing.lines(*(f"warning: {text}" for text in result.warnings))
    printing.failures(result.failed)
    return 5 if result.failed else 0


def _repeat(options: TrainOptions, seeds: tuple[int, ...], *, all_folds: bool, json: bool) -> int:
    from gliomap.distribution import is_first_process
    from gliomap.manifest import plain
    from gliomap.repeat import RepeatOptions, repeat

    result = repeat(RepeatOptions(options, all_folds, seeds))
    if not is_first_process():
        return 0
    if json:
        printing.as_json(plain(vars(result) | {"spreads": [vars(spread) for spread in result.spreads]}))
    elif not options.quiet:
        printing.lines(*result.statement)
        printing.spreads(result.spreads)
        printing.lines(str(result.model or "no ensemble was written"))
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
    printing.lines(*(f"{stage.recipe}: {text}" for stage in stages for text in stage.remarks))
    printing.lines(*(f"here it would be refused: {stage.refused}" for stage in stages if stage.refused))


def _hours(time_s: float) -> str:
    if time_s >= 3 * 86400:
        return f"{time_s / 86400:.0f} days"
    return f"{time_s / 3600:.1f} h" if time_s >= 3600 else f"{time_s / 60:.0f} min"
