"""gliomap view."""

from pathlib import Path
from typing import Annotated

import typer

from gliomap.cli import printing
from gliomap.cli.options import Debug, Labels


def view(
    studies: Annotated[
        list[Path],
        typer.Argument(help="Studies' folders, folders of studies, outputs of gliomap segment or label maps."),
    ],
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; one that is free, if 0.", min=0, max=65535)] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the address and open nothing.")] = False,
    labels: Labels = None,
    debug: Debug = False,
) -> None:
    """Look at studies at full resolution in the browser, served to this machine alone until Ctrl-C.

    Example: `gliomap view out/`
    """
    from gliomap.view import ViewOptions
    from gliomap.view import view as run

    def ready(address: str) -> None:
        printing.lines(address, "Ctrl-C ends it.")

    run(
        ViewOptions(tuple(studies), port, not no_browser, labels),
        ready,
        lambda text: printing.lines(f"not shown: {text}"),
    )
