"""Model files: one safetensors file with the weights, the recipe and the card, refused when its content is not what it says."""

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from gliomap.errors import InputError, IntegrityError, UsageError
from gliomap.files import write_file
from gliomap.recipe import Recipe, recipe_from_json, recipe_json

FORMAT_VERSION = "2"
MAX_HEADER_BYTES = 1_000_000
DEFAULT_MODEL = "default.safetensors"

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Model:
    """A trained network: its recipe, its weights by name, and what is known about it (``card``).

    ``name`` is the recipe and the start of the content hash, so that rows of scores tell two trainings apart.
    """

    name: str
    recipe: Recipe
    weights: dict[str, Array]
    card: dict[str, Any]
    content_sha256: str


def content_hash(weights: dict[str, Array]) -> str:
    """SHA-256 over the sorted names, types, shapes and bytes of the weights."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name])
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def save_model(path: Path, recipe: Recipe, weights: dict[str, Array], card: dict[str, Any]) -> str:
    """Write a model file whole or not at all; returns its content hash."""
    weights = {name: np.asarray(array, order="C") for name, array in weights.items()}  # safetensors ignores strides
    digest = content_hash(weights)
    header = {
        "format_version": FORMAT_VERSION,
        "kind": "single",
        "members": json.dumps([{"prefix": "", "role": "network", "recipe": json.loads(recipe_json(recipe))}]),
        "card": json.dumps(card),
        "content_sha256": digest,
    }
    write_file(path, safetensors.numpy.save(weights, header))
    return digest


def load_model(path: Path) -> Model:
    """Read a model file. Nothing is unpickled, and a file that is not what it says is refused.

    Raises:
        InputError: the file cannot be read.
        IntegrityError: it is no model file, of an unknown version, or its weights differ from their hash.
    """
    try:
        with path.open("rb") as stream:
            header_bytes = int.from_bytes(stream.read(8), "little")
    except OSError as error:
        raise InputError(f"cannot read the model {path}: {error.strerror or error}") from error
    if not 2 <= header_bytes <= MAX_HEADER_BYTES:
        raise IntegrityError(f"{path} is not a gliomap model file (its header would have {header_bytes} bytes)")
    try:
        with safetensors.safe_open(path, framework="numpy") as stored:
            header = stored.metadata() or {}
            weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a dict
    except (safetensors.SafetensorError, TypeError, AttributeError) as error:  # the last two: types that numpy lacks
        raise IntegrityError(f"{path} is not a safetensors file: {error}") from error
    return _checked(path, header, weights)


def _checked(path: Path, header: dict[str, str], weights: dict[str, Array]) -> Model:
    version, kind = header.get("format_version"), header.get("kind")
    if version != FORMAT_VERSION or kind != "single":
        raise IntegrityError(
            f"{path} has format version {version!r} and kind {kind!r}; this gliomap reads version {FORMAT_VERSION!r}, "
            "kind 'single'. Use the gliomap that wrote it, or a newer one"
        )
    digest = content_hash(weights)
    if digest != header.get("content_sha256"):
        raise IntegrityError(
            f"the weights in {path} are not the ones it was saved with (content hash {digest[:12]}...). Copy it again"
        )
    try:
        members = json.loads(header["members"])
        recipe = recipe_from_json(json.dumps(members[0]["recipe"]))
        card = json.loads(header["card"])
    except (LookupError, TypeError, ValueError, RecursionError, UsageError) as error:
        raise IntegrityError(f"the header of {path} cannot be read: {error}") from error
    return Model(f"{recipe.name}-{digest[:8]}", recipe, weights, card, digest)


def default_model() -> Path | None:
    """The model that ships in the package, or None if there is none."""
    shipped = Path(str(resources.files("gliomap") / "weights" / DEFAULT_MODEL))
    return shipped if shipped.is_file() else None
