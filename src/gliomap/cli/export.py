"""gliomap export."""

from pathlib import Path
from typing import Annotated

import typer

from gliomap.cli import printing
from gliomap.cli.options import Debug, Json, Output, Quiet


def export(
    output: Output,
    model: Annotated[Path | None, typer.Argument(help="A model file; the one that ships, if not given.")] = None,
    to: Annotated[str, typer.Option(help="openvino (.xml and .bin), onnx (.onnx) or torchscript (.pt).")] = "openvino",
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a model's network for other programs, compared with torch before a file is kept.

    Example: `gliomap export model.safetensors -o model.onnx --to onnx`
    """
    from gliomap.export import ExportOptions
    from gliomap.export import export as run

    result = run(ExportOptions(model, output, to, quiet or json))
    if json:
        printing.as_json({"files": list(map(str, result.files)), "largest_difference": result.largest_difference})
    elif not quiet:
        printing.lines(f"its probabilities differ from torch's by {result.largest_difference:.1g} at most")
        printing.lines(*(f"written to {file}" for file in result.files))
