"""A folder of arrays by key: each entry written once, whole or not at all, read as memory maps, all kept below a size."""

import errno
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from gliomap.errors import InputError, UsageError
from gliomap.files import write_file

DEFAULT_GB = 20.0
SUFFIX, UNFINISHED = ".safetensors", ".part"
ABANDONED_S = 24 * 3600.0
"""The age of a temporary file that nobody is writing any more."""

Array = np.ndarray[Any, np.dtype[Any]]

_DTYPES = {"F16": np.float16, "U8": np.uint8, "I16": np.int16}


@dataclass(frozen=True)
class Cache:
    """Where entries are kept: ``folder``, of at most ``limit_bytes``; None keeps nothing, and ``problem`` may say why.

    Entries used since ``since_s`` (seconds since the epoch) are this run's, and are not removed to make room.
    """

    folder: Path | None
    limit_bytes: int = 0
    problem: str = ""
    since_s: float = field(default_factory=time.time)


class Entry(NamedTuple):
    """Arrays by name, of float16, int16 or uint8, and what else is known, as JSON has it."""

    arrays: dict[str, Array]
    about: dict[str, Any]


def find_cache(name: str) -> Cache:
    """The cache of that name, below ``GLIOMAP_CACHE`` or the platform's cache folder, of at most ``GLIOMAP_CACHE_GB``.

    ``GLIOMAP_CACHE=off`` keeps nothing; nor does a folder that cannot be written, and ``problem`` says so.

    Raises:
        UsageError: ``GLIOMAP_CACHE_GB`` is no size.
    """
    told = os.environ.get("GLIOMAP_CACHE_GB", str(DEFAULT_GB))
    try:
        limit_bytes = int(float(told) * 1e9)
    except (ValueError, OverflowError):
        limit_bytes = -1
    if limit_bytes < 0:
        raise UsageError(f"GLIOMAP_CACHE_GB is {told!r}; expected the largest size of the cache in GB, such as 20")
    if os.environ.get("GLIOMAP_CACHE") == "off":
        return Cache(None)
    folder = _cache_folder() / name
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # these are voxels of patients
        _remove_abandoned(folder)
    except OSError as error:
        problem = f"the cache {folder} cannot be written: {error.strerror or error}"
        return Cache(None, problem=f"{problem}. Set GLIOMAP_CACHE to another folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        return Cache(None, problem=f"the cache {folder} cannot be written. Set GLIOMAP_CACHE to another folder")
    _allow_open_files()
    return Cache(folder, limit_bytes)


def _cache_folder() -> Path:
    """``GLIOMAP_CACHE``, or where this platform keeps what may be deleted."""
    if told := os.environ.get("GLIOMAP_CACHE"):
        return Path(told)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "gliomap"
    name, default = ("LOCALAPPDATA", "AppData/Local") if sys.platform == "win32" else ("XDG_CACHE_HOME", ".cache")
    return Path(os.environ.get(name) or Path.home() / default) / "gliomap"


def entry_key(facts: Mapping[str, Any]) -> str:
    """The key of what follows from these facts, values as JSON has them, and from nothing else."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@lru_cache
def sources_sha256(modules: tuple[str, ...]) -> str:
    """The SHA-256 of the source text of these modules, so that what another program has made is not taken for this one's."""
    digest = hashlib.sha256()
    for name in modules:
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            raise ValueError(f"there is no source of a module {name}")
        digest.update(hashlib.sha256(Path(spec.origin).read_bytes()).digest())
    return digest.hexdigest()


def load(cache: Cache, key: str) -> Entry | None:
    """The entry of that key, its arrays memory-mapped and read-only; None if there is none, or only a damaged one.

    What was loaded stays readable for as long as it is held, even if another run removes it.

    Raises:
        InputError: the system lets this process open no more files.
    """
    if cache.folder is None:
        return None
    path = cache.folder / f"{key}{SUFFIX}"
    try:
        entry = _mapped(path)
        _mark_used(path)
    except Exception as error:  # whatever is wrong with an entry, it is made again
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise InputError(
                "the system lets a process open fewer files than there are studies; allow more (ulimit -n 65536) or keep "
                "the prepared studies in memory (GLIOMAP_CACHE=off)"
            ) from error
        return None
    return entry


def store(cache: Cache, key: str, entry: Entry) -> str:
    """Keep an entry, in place of the least recently used ones if there is no more room; returns why not, if it is not kept."""
    if cache.folder is None:
        return cache.problem or "the cache is off"
    path = cache.folder / f"{key}{SUFFIX}"
    content = safetensors.numpy.save(
        {name: np.asarray(array, order="C") for name, array in entry.arrays.items()}, {"about": json.dumps(entry.about)}
    )
    if not _make_room(cache, len(content), path):
        return f"the cache of {cache.limit_bytes / 1e9:g} GB is full; set GLIOMAP_CACHE_GB to more"
    try:
        write_file(path, content)
        _mark_used(path)
    except (InputError, OSError) as error:
        cause = error.__cause__ or error
        return f"the cache {cache.folder} cannot be written: {getattr(cause, 'strerror', None) or cause}"
    return ""


def _mapped(path: Path) -> Entry:
    """The arrays of a safetensors file, whose own library would copy them; raises ValueError if it is not whole."""
    with path.open("rb") as stream:
        length, size = int.from_bytes(stream.read(8), "little"), os.fstat(stream.fileno()).st_size
        if not 0 < length < size - 8:
            raise ValueError(f"{path} is damaged")
        header = json.loads(stream.read(length))
        voxels = np.asarray(np.memmap(stream, np.uint8, "r", offset=8 + length))
    about = json.loads(header.pop("__metadata__")["about"])
    arrays = {  # no slice of what was cut off has its shape
        name: voxels[slice(*part["data_offsets"])].view(_DTYPES[part["dtype"]]).reshape(part["shape"])
        for name, part in header.items()
    }
    return Entry(arrays, about)


def _mark_used(path: Path) -> None:
    now = time.time()  # the file system's own clock may be another's
    os.utime(path, (now, now))


def _make_room(cache: Cache, needed: int, path: Path) -> bool:
    """Remove entries, those first that were not used for longest, until so many bytes fit in; False if they cannot."""
    found: list[tuple[float, int, Path]] = []
    for other in (cache.folder or path.parent).glob(f"*{SUFFIX}"):
        with suppress(OSError):  # another run has just removed it
            status = other.stat()
            found.append((status.st_mtime, status.st_size, other))
    excess = sum(size for _, size, other in found if other != path) + needed - cache.limit_bytes
    old = sorted(part for part in found if part[0] < cache.since_s and part[2] != path)
    if excess > sum(size for _, size, _ in old):
        return False
    for _, size, other in old:
        if excess <= 0:
            break
        with suppress(OSError):  # on Windows what is open cannot be removed
            other.unlink(missing_ok=True)
            excess -= size
    return excess <= 0


def _remove_abandoned(folder: Path) -> None:
    """Remove what runs that were killed have left half written."""
    for path in folder.glob(f".*{UNFINISHED}"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED_S:
                path.unlink()


def _allow_open_files() -> None:
    """Let this process open as many files as it may: one for every entry in use, where it begins with 256 or 1024."""
    try:
        import resource  # noqa: PLC0415 - absent on Windows
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
