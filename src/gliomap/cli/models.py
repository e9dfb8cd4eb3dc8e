"""gliomap models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gliomap.cli import printing
from gliomap.cli.options import Debug, Json, Quiet
from gliomap.errors import UsageError

if TYPE_CHECKING:
    from gliomap.models import LayerCost, ModelCost


def models(
    name: Annotated[
        str | None, typer.Argument(help="A recipe or a network: print its layers. Or `verify`: check a model file.")
    ] = None,
    file: Annotated[
        Path | None, typer.Argument(help="The model file to verify; the one that ships if not given.")
    ] = None,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Count parameters, multiply-accumulates and memory of every network, beside what its paper says; or verify a model file.

    Example: `gliomap models cga_unet`
    """
    if name == "verify":
        _verify(file, quiet=quiet, json=json)
        return
    if file is not None:
        raise UsageError(f"a file goes with verify only: gliomap models verify {file}")
    from gliomap.models import ModelsOptions
    from gliomap.models import models as run

    result = run(ModelsOptions(name, quiet or json))
    if json:
        printing.as_json([vars(row) for row in (result.models if name is None else result.layers)])
    elif not quiet and name is None:
        _print_models(result.models)
    elif not quiet:
        _print_layers(result.models[0], result.layers)


def _verify(file: Path | None, *, quiet: bool, json: bool) -> None:
    from gliomap.verify import verify

    found = verify(file)
    if json:
        printing.as_json(vars(found) | {"path": str(found.path)})
    elif not quiet:
        compared = f"as {found.path.name}.sha256 says" if found.compared else "nothing beside it to compare with"
        printing.lines(
            f"{found.path}: whole",
            f"{found.name}: {found.source}; {found.parameters:,} parameters",
            f"weights {found.content_sha256}, as the file says",
            f"file {found.file_sha256}, {compared}",
        )
        printing.lines(*(f"{name}: {found.card[name]}" for name in _TOLD if name in found.card))


_TOLD = ("data", "intended_use", "made_by", "patches", "seed")
"""What `models verify` prints of a card; --json has all of it."""


def _print_models(rows: list[ModelCost]) -> None:
    headers = ["network", "paper", "input", "parameters", "paper's M", "%", "GMAC", "paper's G", "%", "forward MB"]
    printing.table(
        [*headers, "training MB"],
        [
            [
                row.name,
                row.paper or "-",
                _size(row.input),
                f"{row.parameters:,}",
                _number(row.published_parameters_m, "g"),
                _number(row.parameter_deviation_percent, "+.2f"),
                f"{row.gmac:.3f}",
                _number(row.published_gflops, "g"),
                _number(row.gflops_deviation_percent, "+.2f"),
                f"{row.forward_memory_mb:,.0f}",
                f"{row.training_memory_mb:,.0f}",
            ]
            for row in rows
        ],
    )


def _print_layers(model: ModelCost, layers: list[LayerCost]) -> None:
    printing.lines(
        f"{model.name}: {model.parameters:,} parameters, {model.gmac:.3f} GMAC at {_size(model.input)}; "
        f"{model.forward_memory_mb:,.0f} MB forward, {model.training_memory_mb:,.0f} MB to train on one patch"
    )
    headers = ["part", "made by", "output", "parameters", "GMAC"]
    rows = [[row.name, row.kind, _size(row.output), f"{row.parameters:,}", f"{row.gmac:.3f}"] for row in layers]
    stated_by = dict.fromkeys(row.stated_by for row in layers if row.stated_by)
    if stated_by:
        headers += ["stated: layer", "output", "parameters", "GMAC"]
        rows = [[*cells, *_stated(row)] for cells, row in zip(rows, layers, strict=True)]
    printing.table(headers, rows)
    if stated_by:
        printing.lines(f"stated by: {'; '.join(stated_by)}")
        printing.lines(*["* is not what was counted"][: any(row.differs for row in layers)])


def _stated(row: LayerCost) -> list[str]:
    cells = {
        "output": _size(row.stated_output),
        "parameters": _number(row.stated_parameters, ",.0f"),
        "gmac": _number(row.stated_gmac, ".3f").rstrip("0").rstrip("."),  # the zeros were not stated
    }
    return [row.stated_layer, *(f"{text}*" if name in row.differs else text for name, text in cells.items())]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _size(size: tuple[int, ...]) -> str:
    """4 x 128^3 for (4, 128, 128, 128); nothing for no size."""
    channels, *axes = size or ("",)
    if len(axes) > 1 and len(set(axes)) == 1:
        return f"{channels}x{axes[0]}^{len(axes)}"
    return "x".join(map(str, (channels, *axes)))
