"""gliomap report."""

from pathlib import Path
from typing import Annotated

import typer

from gliomap.cli import printing
from gliomap.cli.options import Debug, Json, Labels, Output, Quiet
from gliomap.errors import UsageError


def report(
    time_points: Annotated[
        list[Path],
        typer.Argument(help="Outputs of gliomap segment, studies' folders or label maps, in the order of time."),
    ],
    output: Output,
    dates: Annotated[str | None, typer.Option(help="When each was: 2024-01-05,2024-03-01.")] = None,
    weeks: Annotated[str | None, typer.Option(help="Or in weeks: 0,3,21.")] = None,
    labels: Labels = None,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Follow one patient over time: volumes, what changed in ml and per cent, and a page with all time points side by side.

    Example: `gliomap report T0/ T1/ T2/ -o over_time --weeks 0,6,12`
    """
    from gliomap.longitudinal import ReportOptions
    from gliomap.longitudinal import report as run

    days = tuple(part.strip() for part in dates.split(",")) if dates else ()
    result = run(ReportOptions(tuple(time_points), output, days, _numbers(weeks), labels, quiet or json))
    if json:
        printing.as_json(
            {
                "volumes": result.volumes,
                "lesions": result.lesions,
                "warnings": result.warnings,
                "page": str(result.page),
            }
        )
    elif not quiet:
        regions = list(dict.fromkeys(line["region"] for line in result.volumes))
        rows: dict[int, list[str]] = {}
        for line in result.volumes:
            row = rows.setdefault(line["time_point"], [" ".join(filter(None, (line["title"], line["when"])))])
            row.append(_change(line))
        printing.table(["volume in ml (since the first)", *regions], list(rows.values()))
        printing.lines(*(f"warning: {text}" for text in result.warnings))
        printing.lines(f"{result.page}")


def _numbers(weeks: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in (weeks or "").split(",") if weeks)
    except ValueError as error:
        raise UsageError(f"cannot read --weeks {weeks!r}; expected numbers such as 0,3,21") from error


def _change(line: dict[str, object]) -> str:
    volume, percent = line["volume_ml"], line["since_first_percent"]
    if volume is None:
        return "not told"
    return f"{volume:.1f}" if percent is None else f"{volume:.1f} ({percent:+.0f} %)"
