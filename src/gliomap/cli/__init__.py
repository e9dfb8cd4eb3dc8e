"""The command line: one file per verb, which parses, calls one function and prints.

Nothing heavy is imported before a verb runs.
"""

import functools
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console

from gliomap import __version__
from gliomap.cli.compare import compare
from gliomap.cli.demo import demo
from gliomap.cli.evaluate import evaluate
from gliomap.cli.explain import explain
from gliomap.cli.export import export
from gliomap.cli.models import models
from gliomap.cli.phantom import phantom
from gliomap.cli.report import report
from gliomap.cli.reproduce import reproduce
from gliomap.cli.segment import segment
from gliomap.cli.split import split
from gliomap.cli.train import train
from gliomap.cli.tune import tune
from gliomap.cli.view import view
from gliomap.errors import GliomapError, Interrupted

EXIT_CODES = (
    "Exit codes: 0 done, 2 wrong usage, 3 bad input data, 4 a file that is not what it claims to be, "
    "5 part of a folder failed, 130 interrupted."
)

app = typer.Typer(epilog=EXIT_CODES, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  rich_markup_mode="markdown")  # fmt: skip


def _command(verb: Callable[..., int | None]) -> Callable[..., None]:
    """A verb as typer wants it: the number it returns is the exit code, and Ctrl-C is an error like others."""

    @functools.wraps(verb)
    def wrapped(**options: Any) -> None:
        try:
            code = verb(**options)
        except KeyboardInterrupt as error:
            raise Interrupted("interrupted; what was finished is kept") from error
        if code:
            raise typer.Exit(code)

    return wrapped


VERBS = (
    demo, segment, view, report, explain, train, tune, evaluate, compare, reproduce, models, export, split, phantom,
)  # fmt: skip

for _verb in VERBS:
    app.command()(_command(_verb))


def _print_version(wanted: bool) -> None:
    if wanted:
        Console().print(f"gliomap {__version__}", highlight=False)
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)]


@app.callback()
def about(version: Version = False) -> None:
    """Segment gliomas in brain MRI with attention networks; train and compare them."""


def main() -> None:
    """Run the command line and end the process: one red line on standard error for a failure, a traceback with --debug."""
    try:
        app()
    except Exception as error:
        known = isinstance(error, GliomapError)
        message = str(error) if known else f"unexpected {error!r}; run it again with --debug and report what it prints"
        if "--debug" in sys.argv:
            traceback.print_exc()
        Console(stderr=True, soft_wrap=True).print(f"error: {message}", style="red", markup=False, highlight=False)
        sys.exit(error.exit_code if isinstance(error, GliomapError) else 1)
