"""A journal: what a long run has finished, so that one that was killed continues where it stopped."""

import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from gliomap.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class Journal:
    """Finished parts of one run by key, a line of JSON each, in a file beside its output that only grows.

    ``question`` is everything the parts depend on; each has a file of its own, so that nothing finished is lost to another.
    A line is on the disk as soon as it is added; one that was cut off (by a kill or a full disk) was not finished, and is
    dropped. Parts are read when they are asked for, so that memory does not grow with them.

    Raises:
        InputError: the file cannot be written, or another run writes it now.
    """

    def __init__(self, output: Path, question: dict[str, Any]) -> None:
        text = json.dumps(question, ensure_ascii=False, sort_keys=True, allow_nan=False)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        self.path = output.with_name(f"{output.name}.{digest}.part.jsonl")
        self._places: dict[str, tuple[int, int]] = {}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise self._failed(error) from error
        try:
            _hold(self._file)
            self._end = self._read_whole_lines()
            os.ftruncate(self._file, self._end)
        except OSError as error:
            os.close(self._file)
            raise self._failed(error) from error

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __getitem__(self, key: str) -> Any:
        """The part of that key as it was added last."""
        start, length = self._places[key]
        with self.path.open("rb") as stream:
            stream.seek(start)
            return json.loads(stream.read(length))[1]

    def add(self, key: str, part: Any) -> None:
        """Write a finished part down.

        Raises:
            InputError: it cannot be written; what was there is kept.
        """
        line = json.dumps([key, part], ensure_ascii=False, allow_nan=False).encode() + b"\n"
        try:
            os.lseek(self._file, self._end, os.SEEK_SET)
            left = memoryview(line)
            while left:
                left = left[os.write(self._file, left) :]
            os.fsync(self._file)
        except OSError as error:  # the next line goes where this one began
            raise self._failed(error) from error
        self._places[key] = self._end, len(line)
        self._end += len(line)

    def remove(self) -> None:
        """Delete the file when the run is left: what it held is written elsewhere."""
        self._places.clear()
        self._end = -1

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)
        if self._end < 0 or not self._places:
            self.path.unlink(missing_ok=True)

    def _read_whole_lines(self) -> int:
        """Learn where the parts of an earlier run are; returns where its whole lines end."""
        end = 0
        with self.path.open("rb") as stream:
            for line in stream:
                try:
                    key, _ = json.loads(line)
                except ValueError:
                    break
                if not line.endswith(b"\n"):
                    break
                self._places[key] = end, len(line)
                end += len(line)
        return end

    def _failed(self, error: OSError) -> InputError:
        if isinstance(error, BlockingIOError):
            return InputError(
                f"another process is doing the same and writes {self.path}; wait for it, or choose another -o"
            )
        return InputError(
            f"cannot write {self.path}: {error.strerror or error}. What was finished is kept; free space or look at the path"
        )


def _hold(handle: int) -> None:
    """Keep other processes from writing a file until this one closes it or ends, where the system can do that."""
    if fcntl is None:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a network drive without locks
        return
