"""gliomap explain."""

from pathlib import Path
from typing import Annotated

import typer

from gliomap.cli import printing
from gliomap.cli.options import Debug, Device, Engine, Json, Labels, Output, Quiet, Seed


def explain(
    output: Output,
    study: Annotated[Path, typer.Argument(help="A study's folder.")],
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Model file; the shipped one if not given.")
    ] = None,
    labels: Labels = None,
    checks: Annotated[str, typer.Option(help="all; cheap, without deletion and insertion; or none.")] = "all",
    saliency: Annotated[
        bool, typer.Option("--saliency", help="Gradients too, where the attention makes maps already.")
    ] = False,
    skull_on_anyway: Annotated[bool, typer.Option(help="Continue where the skull looks still on.")] = False,
    seed: Seed = 0,
    device: Device = "auto",
    engine: Engine = "auto",
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show where a network looks in a study: its attention maps, checks that say whether they mean anything, and a page.

    Example: `gliomap explain BraTS2021_00006 -o out`
    """
    from gliomap.explain import ExplainOptions
    from gliomap.explain import explain as run

    options = ExplainOptions(
        study, output, model, labels, checks, saliency, skull_on_anyway, device, engine, seed, quiet or json
    )
    result = run(options)
    shown = result.explanation
    named = {one.name: one for one in (*shown.maps, *shown.channels)}
    if json:
        told = {name: {check.name: check.value for check in one.checks} for name, one in named.items()}
        printing.as_json({"maps": told, "warnings": list(result.warnings), "files": list(map(str, result.files))})
    elif not quiet:
        columns = list(dict.fromkeys(check.name for one in named.values() for check in one.checks))
        rows = []
        for name, one in named.items():
            answers = {check.name: _answer(check.value, check.passed) for check in one.checks}
            rows.append([name, *(answers.get(column, "") for column in columns)])
        printing.table(["map", *columns], rows)
        printing.lines(*(f"{one.name}: {one.meaning}" for one in named.values()))
        printing.lines(*(f"warning: {text}" for text in result.warnings))
        printing.lines(f"written to {output}/")


def _answer(value: float | None, passed: bool | None) -> str:
    if value is None:
        return "cannot be told"
    return f"{value:.2f}" + {None: "", True: ", passed", False: ", failed"}[passed]
