"""Resume state: tensors and plain types, written whole, read without unpickling code. It never ships."""

import io
from pathlib import Path
from typing import Any

import torch

from gliomap.errors import InputError, IntegrityError
from gliomap.files import write_file


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a training state whole or not at all."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_file(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The training state in a file.

    Raises:
        InputError: there is none, or it cannot be read.
        IntegrityError: it is damaged or holds anything but tensors and plain types.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist, so there is nothing to resume; train without --resume")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # damaged bytes make torch's readers fail in about any way
        reason = str(error).partition("\n")[0]
        raise IntegrityError(f"{path} is damaged or not a checkpoint of gliomap: {reason}") from error
