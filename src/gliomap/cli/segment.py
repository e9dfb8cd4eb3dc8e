"""gliomap segment."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
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
    resume: Annotated[
        bool,
        typer.Option("--continue", help="Leave out studies whose results are there, whole and of the same question."),
    ] = False,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Work on the machines of a Ray cluster; auto is the one here.")
    ] = None,
    preset: Annotated[
        str, typer.Option(help="fast: one look; balanced: as the model was validated; accurate: eight flips.")
    ] = "balanced",
    max_memory: Annotated[
        float | None, typer.Option(metavar="GB", help="What the process may use; what is free, if not given.", min=0.1)
    ] = None,
    uncertainty: Annotated[bool, typer.Option("--uncertainty", help="Also write where it is in doubt.")] = False,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Make the page of each study.")] = True,
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
        study, output, files, seg, model, labels, output_labels, score, skull_on_anyway, device, engine, preset,
        max_memory, uncertainty, quiet or json, resume, ray, report,
    )  # fmt: skip
    result = run(options)
    if json:
        printing.as_json([r.record for r in result.done] + [{"study": s, "error": e} for s, e in result.failed.items()])
    elif not quiet:
        printing.counts(result.layouts)
        names = list(dict.fromkeys(name for r in result.done for name in r.volumes_ml))
        rows = [
            [
                r.study,
                *(_volume(r.volumes_ml.get(n), r.record["volume_ranges_ml"].get(n)) for n in names),
                f"{r.record['time_s']['total']:.1f}",
                str(len(r.warnings)),
            ]
            for r in result.done
        ]
        printing.table(["volume in ml", *names, "time in s", "warnings"], rows)
        if score:
            printing.scores(row for r in result.done for row in r.scores)
        warnings = [(r.study, warning) for r in result.done for warning in r.warnings]
        printing.lines(*(f"warning: {text}" for text in _together(warnings)))
        printing.lines(*(f"done again: {text}" for text in _together(result.again.items())))
        if resume:
            printing.lines(f"continued: {result.continued} of {len(result.done)} studies had been done before")
        printing.lines(f"written to {output}/")
    printing.failures(result.failed)
    return 5 if result.failed else 0


def _volume(ml: float | None, between: Sequence[float] | None) -> str:
    if ml is None:
        return ""
    return f"{ml:.1f}" if between is None else f"{ml:.1f} ({between[0]:.1f} to {between[1]:.1f})"


def _together(told: Iterable[tuple[str, str]]) -> list[str]:
    """What is told of studies, each text once."""
    by_text: dict[str, list[str]] = defaultdict(list)
    for study, text in told:
        by_text[text].append(study)
    return [
        f"{studies[0] if len(studies) == 1 else f'{len(studies)} studies, such as {studies[0]}'}: {text}"
        for text, studies in by_text.items()
    ]
