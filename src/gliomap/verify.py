"""gliomap models verify: whether a model file is what its maker wrote, and what it says of itself."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gliomap.errors import IntegrityError
from gliomap.files import sha256
from gliomap.model_file import default_model, load_model


@dataclass(frozen=True)
class VerifyResult:
    """A model file that is whole: its name and recipe's source, networks and their parameters, hashes, and its card.

    ``compared``: whether the file's hash is the one that lies beside it, False where none does.
    """

    path: Path
    name: str
    source: str
    networks: int
    parameters: int
    content_sha256: str
    file_sha256: str
    compared: bool
    card: dict[str, Any]


def verify(path: Path | None = None) -> VerifyResult:
    """Check a model file, the one that ships without ``path``, against the hashes in it and in FILE.sha256 beside it.

    Raises:
        InputError: it cannot be read.
        IntegrityError: it is no model file, or differs from one of its hashes.
    """
    path = path or default_model()
    model, digest = load_model(path), sha256(path)
    beside = path.with_name(f"{path.name}.sha256")
    if beside.exists():
        stated = re.match(r"[0-9a-f]{64}\b", beside.read_text("utf-8", "replace"))
        if stated is None or stated[0] != digest:
            raise IntegrityError(
                f"{path} has the SHA-256 {digest}, and {beside.name} says {stated[0] if stated else 'none'}; "
                "get both from where they came"
            )
    weights = sum(array.size for array in model.weights.values())
    return VerifyResult(
        path,
        model.name,
        model.recipe.source,
        len(model.prefixes),
        weights,
        model.content_sha256,
        digest,
        beside.exists(),
        model.card,
    )
