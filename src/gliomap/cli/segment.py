"""gliomap segment."""

from pathlib import Path
from typing import Annotated

import typer

from gliomap.cli import printing
from gliomap.cli.options import Debug, Device, Engine, Json, Labels, Output, Quiet


def segment(
    output: Output,
    study: Annotated[Path | None, typer.Argument(help="A study's folder, or a folder of studies.")] = None,
    t1: Annotated[Path | None, typer.Option(help="The T1 image, instead of a folder.")] = None,
    t1c: Annotated[Path | None, typer.Option(help="The contrast-enhanced T1 image.")] = None,
    t2: Annotated[Path | None, typer.Option(help="The T2 image.")] = None,
    flair: Annotated[Path | None, typer.Option(help="The FLAIR image.")] = None,
    seg: Annotated[Path | None, typer.Option(help="The study's own label map, for --score.")] = None,
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Model file; the shipped one if not given.")
    ] = None,
    labels: Labels = None,
    output_labels: Annotated[
        str | None, typer.Option(help="Convention to write in; the study's own if not given.")
    ] = None,
    score: Annotated[bool, typer.Option("--score", help="Also compare with the study's own label map.")] = False,
    skull_on_anyway: Annotated[bool, typer.Option(help="Continue where the skull looks still on.")] = False,
    device: Device = "auto",
    engine: Engine = "auto",
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Segment one study or a folder of studies: label map, volumes in ml and a report.

    Example: `gliomap segment BraTS2021_00006 -o out`
    """
    from gliomap.segment import SegmentOptions
    from gliomap.segment import segment as run

    given = {"t1": t1, "t1c": t1c, "t2": t2, "flair": flair}
    files = {name: path for name, path in given.items() if path is not None}
    options = SegmentOptions(
        study, output, files, seg, model, labels, output_labels, score, skull_on_anyway, device, engine, quiet or json
    )
    result = run(options)
    if json:
        printing.as_json([r.record for r in result.done] + [{"study": s, "error": e} for s, e in result.failed.items()])
    elif not quiet:
        printing.counts(result.layouts)
        names = list(result.done[0].volumes_ml) if result.done else []
        printing.table(
            ["volume in ml", *names], [[r.study, *(f"{r.volumes_ml[n]:.1f}" for n in names)] for r in result.done]
        )
        if score:
            printing.scores(row for r in result.done for row in r.scores)
        printing.lines(*(f"warning: {r.study}: {w}" for r in result.done for w in r.warnings))
        printing.lines(f"written to {output}/")
    printing.failures(result.failed)
    return 5 if result.failed else 0
