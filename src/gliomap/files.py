"""Writing that leaves a whole file or none, and hashes of what was read and written."""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gliomap.errors import InputError


def write_files(contents: Mapping[Path, bytes | Iterable[bytes]]) -> None:
    """Write several files, of bytes or of parts as they come, so that either all are there and on the disk, or none is.

    Every content goes to a temporary file beside its destination and is flushed to the disk; only then are all renamed.

    Raises:
        InputError: a folder or file cannot be written (permission, full disk); nothing new is left behind.
    """
    made: list[Path] = []
    temporary: dict[Path, Path] = {}
    path = Path()
    try:
        for path, content in contents.items():
            _make_folder(path.parent, made)
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            temporary[path] = _write_temporary(path, content)
        for path, written in temporary.items():
            os.replace(written, path)
    except OSError as error:
        advice = "free space" if error.errno == errno.ENOSPC else "look at the path"
        raise InputError(
            f"cannot write {path}: {error.strerror or error}. Nothing was written; {advice} or choose another place with -o"
        ) from error
    finally:
        for written in temporary.values():
            written.unlink(missing_ok=True)
        for folder in reversed(made):
            if not any(folder.iterdir()):
                folder.rmdir()


def write_file(path: Path, content: bytes) -> None:
    """Write one file whole or not at all; see `write_files`."""
    write_files({path: content})


def json_bytes(value: Any) -> bytes:
    """A value as readable JSON text, the form of every record gliomap leaves."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        InputError: it cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error})") from error


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _make_folder(folder: Path, made: list[Path]) -> None:
    """Make a folder and its parents, adding each to ``made`` at once: a later one may fail."""
    for missing in [p for p in (folder, *folder.parents) if not p.exists()][::-1]:
        missing.mkdir(exist_ok=True)
        made.append(missing)


def _write_temporary(path: Path, content: bytes | Iterable[bytes]) -> Path:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.writelines([content] if isinstance(content, bytes) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o666 & ~_umask())
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
