"""Options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

from gliomap.errors import UsageError

Output = Annotated[Path, typer.Option("--output", "-o", help="Where the results go.")]
Labels = Annotated[
    str | None,
    typer.Option(help="What label values mean: brats2021, brats2023, brats2024, msd, audit, or 1=ET,2=NCR,3=ED."),
]
Metrics = Annotated[str | None, typer.Option(help="Which metrics, such as dice,hd95,nsd_1mm; docs/metrics.md has all.")]
Regions = Annotated[str, typer.Option(help="Which regions or classes, of ET, TC, WT, NCR, ED, RC.")]
Jobs = Annotated[int | None, typer.Option(help="How many processes; as many as cores, if not given.", min=1)]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Engine = Annotated[str, typer.Option(help="What runs the network: auto, openvino or torch.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.", min=0)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars and no text.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Print a traceback when something fails.")]


def names(text: str | None) -> tuple[str, ...]:
    """The names in a list such as dice,hd95; none in nothing."""
    return tuple(dict.fromkeys(part for name in (text or "").split(",") if (part := name.strip())))


def number(text: str, option: str, expected: str = "a number such as 0") -> int:
    """The number, 0 or more, that an option has.

    Raises:
        UsageError: the text is none.
    """
    if not text.isdecimal():
        raise UsageError(f"cannot read {option} {text!r}; expected {expected}")
    return int(text)


def numbers(text: str | None, option: str) -> tuple[int, ...]:
    """The numbers in a list such as 1,2,3; none in nothing.

    Raises:
        UsageError: one of them is none.
    """
    return tuple(number(name, option) for name in names(text))


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str | None) -> float | None:
    """Seconds in a duration such as 90s, 20m or 8h.

    Raises:
        UsageError: the text is no duration.
    """
    if text is None:
        return None
    try:
        value = float(text[:-1]) * _UNITS[text[-1:]]
    except (KeyError, ValueError) as error:
        raise UsageError(f"cannot read the time {text!r}; expected a number with s, m or h, such as 20m") from error
    if not value > 0:
        raise UsageError(f"the time {text!r} is not positive; expected such as 20m")
    return value
