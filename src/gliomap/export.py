"""gliomap export: a model's network for other programs, compared with torch before a file is kept."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gliomap.conversion import FORMATS, convert_apart
from gliomap.data.cache import Entry
from gliomap.engines import members
from gliomap.errors import UsageError
from gliomap.files import json_bytes, write_files
from gliomap.manifest import RunRecord
from gliomap.model_file import Model, default_model, load_model
from gliomap.progress import progress_bar
from gliomap.recipe import recipe_json

SUFFIXES = {"openvino": ".xml", "onnx": ".onnx", "torchscript": ".pt"}


@dataclass(frozen=True)
class ExportOptions:
    """What `export` is asked for: ``model`` (None: the one that ships) in a format of `FORMATS`, in the file ``output``."""

    model: Path | None
    output: Path
    to: str = "openvino"
    quiet: bool = False


@dataclass(frozen=True)
class ExportResult:
    """The files that were written, the record last, and the largest difference of a probability from torch's."""

    files: list[Path]
    largest_difference: float


def export(options: ExportOptions) -> ExportResult:
    """Write a model's network in another format, with a record that says what its images must look like.

    The networks of an ensemble go to a file each, numbered from 1. Either every file is written or none.

    Raises:
        UsageError: no such format, a name that does not fit it, or the network cannot be converted; the message says why.
        InputError: the model cannot be read or the files cannot be written.
        IntegrityError: the model file is not what it says.
    """
    if options.to not in FORMATS:
        raise UsageError(f"no format is called {options.to!r}; expected one of {', '.join(FORMATS)}")
    suffix = SUFFIXES[options.to]
    if options.output.suffix != suffix:
        raise UsageError(f"{options.output} is no name for {options.to}; expected one that ends with {suffix}")
    record = RunRecord("export", options)
    path = options.model or default_model()
    model = load_model(path)
    if model.coarse is not None:
        raise UsageError(
            f"{path} is a cascade: what its network is shown depends on what another finds before it. Export a model without "
            "recipe.coarse"
        )
    converted: list[Entry] = []
    with progress_bar("converting", len(model.prefixes), quiet=options.quiet) as bar:
        for alone in members(model):
            converted.append(convert_apart(alone, options.to))
            bar.advance()
    contents: dict[Path, bytes] = {}
    for number, entry in enumerate(converted, 1):
        stem = options.output.stem if len(converted) == 1 else f"{options.output.stem}-{number}"
        contents |= {options.output.with_name(f"{stem}.{s}"): array.tobytes() for s, array in entry.arrays.items()}
    largest = max(entry.about["largest_difference"] for entry in converted)
    written = {"files": {file.name: hashlib.sha256(content).hexdigest() for file, content in contents.items()}}
    facts = _facts(model, converted[0].about)
    contents[options.output.with_suffix(".json")] = json_bytes(
        record.content(**facts, **written, largest_difference=largest)
    )
    write_files(contents)
    return ExportResult(list(contents), largest)


def _facts(model: Model, about: dict[str, Any]) -> dict[str, Any]:
    """What somebody must know to use the files without gliomap."""
    recipe = model.recipe
    slices = about["spatial_dims"] == 2
    return {
        "model": {"name": model.name, "content_sha256": model.content_sha256, "networks": len(model.prefixes)},
        "images": {
            "name": "images",
            "type": "float32",
            "axes": ["batch", "modality", "height", "width"]
            if slices
            else ["batch", "modality", "depth", "height", "width"],
            "modalities": list(recipe.modalities),
            "orientation": "depth from inferior to superior, height from posterior to anterior, width from left to right",
            "multiples_of": about["divisors"][1:] if slices else about["divisors"],
            "only_size": about["only_size"],
        },
        "logits": {
            "name": "logits",
            "activation": recipe.target.kind,
            "channels": [list(classes) for classes in recipe.target.channels],
            "of_several_networks": "mean of their probabilities",
        },
        "recipe": json.loads(recipe_json(recipe)),
    }
