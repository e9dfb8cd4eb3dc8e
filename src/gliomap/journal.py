"""A journal: what a long run has finished, so that one that was killed continues where it stopped."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from gliomap.errors import InputError


class Journal:
    """Finished parts of one run by key, a line of JSON each, in a file that only grows; one writer.

    ``question`` is everything the parts depend on: a journal of another question is begun anew. A line is written and
    flushed to the disk at once; one that was cut off (by a kill or a full disk) was not finished, and is dropped. Parts are
    read from the file when they are asked for, so that memory does not grow with them.

    Raises:
        InputError: the file cannot be written.
    """

    def __init__(self, path: Path, question: dict[str, Any]) -> None:
        self.path = path
        self._offsets: dict[str, int] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("a+b")
            if not self._continued(question):
                self._stream.truncate(0)
                self._write(question)
        except OSError as error:
            raise self._failed(error) from error

    def __contains__(self, key: str) -> bool:
        return key in self._offsets

    def __getitem__(self, key: str) -> Any:
        """The part of that key as it was added last."""
        self._stream.seek(self._offsets[key])
        return json.loads(self._stream.readline())[1]

    def add(self, key: str, part: Any) -> None:
        """Write a finished part down.

        Raises:
            InputError: it cannot be written; what was there is kept.
        """
        end = self._stream.seek(0, os.SEEK_END)
        try:
            self._write([key, part])
        except OSError as error:
            self._stream.truncate(end)
            raise self._failed(error) from error
        self._offsets[key] = end

    def remove(self) -> None:
        """Delete the file: what it held is written elsewhere."""
        self._stream.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def _continued(self, question: dict[str, Any]) -> bool:
        """Whether the file answers this question; if so its whole lines are known afterwards, and the rest is cut off."""
        self._stream.seek(0)
        if self._stream.readline() != _line(question):
            return False
        end = self._stream.tell()
        for line in iter(self._stream.readline, b""):
            try:
                key, _ = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            self._offsets[key] = end
            end += len(line)
        self._stream.truncate(end)
        return True

    def _write(self, value: Any) -> None:
        self._stream.write(_line(value))
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def _failed(self, error: OSError) -> InputError:
        return InputError(
            f"cannot write {self.path}: {error.strerror or error}. What was finished is kept; free space or look at the path"
        )


def _line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n"
