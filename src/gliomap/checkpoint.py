"""Resume state: tensors and plain types, written whole, read without unpickling code. It never ships.

A folder has two, the last and the one before it, which is there should the last be damaged or a kill have come between.
"""

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch

from gliomap.errors import InputError, IntegrityError
from gliomap.files import write_file

CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
_NEW = "checkpoint.new.pt"
_DIGEST_BYTES = 32


def has_checkpoint(folder: Path) -> bool:
    """Whether a training in a folder can be continued, if what is there is whole."""
    return any((folder / name).exists() for name in (CHECKPOINT, PREVIOUS))


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write a training state; the one before it is kept until this one is on the disk and was read back, and after.

    Raises:
        InputError: it cannot be written, or does not read back as it was written; what was there is kept.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    new, current = folder / _NEW, folder / CHECKPOINT
    try:
        write_file(new, content + hashlib.sha256(content).digest())
        _content(new)
        if current.exists():
            os.replace(current, folder / PREVIOUS)
        os.replace(new, current)
    except IntegrityError as error:
        raise InputError(f"{error}. The one before it is kept; look at the disk") from error
    except OSError as error:
        raise InputError(f"cannot write {current}: {error.strerror or error}. The one before it is kept") from error
    finally:
        new.unlink(missing_ok=True)


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The last training state in a folder that is whole, and what is wrong with a later one, if anything is.

    Raises:
        InputError: there is none.
        IntegrityError: those that are there are damaged, or hold anything but tensors and plain types.
    """
    names = [name for name in (CHECKPOINT, PREVIOUS) if (folder / name).exists()]
    if not names:
        raise InputError(f"{folder} has no {CHECKPOINT}, so there is nothing to resume; train without --resume")
    damage: list[str] = []
    for name in names:
        try:
            state = _state(folder / name)
        except (InputError, IntegrityError) as error:
            damage.append(str(error))
            continue
        return state, [f"{text}; the training continues from {name}" for text in damage]
    raise IntegrityError(f"{'; '.join(damage)}. Nothing can be resumed; train anew in another place")


def _state(path: Path) -> dict[str, Any]:
    content = _content(path)
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # foreign bytes make torch's readers fail in about any way
        raise IntegrityError(f"{path} is not a checkpoint of gliomap: {str(error).partition(chr(10))[0]}") from error


def _content(path: Path) -> bytes:
    """What a file held when it was written, which its last bytes, a SHA-256 of the others, tell."""
    try:
        whole = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    content, digest = whole[:-_DIGEST_BYTES], whole[-_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise IntegrityError(
            f"{path} is damaged or not a checkpoint of gliomap: its bytes are not those that were written"
        )
    return content
