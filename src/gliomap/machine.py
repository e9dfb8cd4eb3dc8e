"""What this machine has, and what the process has used of it."""

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import psutil

_RECORDED = (
    "numpy",
    "scipy",
    "nibabel",
    "torch",
    "monai",
    "lightning-fabric",
    "safetensors",
    "nilearn",
    "openvino",
    "onnx",
    "onnxruntime",
)

CONTROL_GROUP = Path("/sys/fs/cgroup")
"""Where Linux says how much memory a container may use."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def peak_memory_mb() -> float:
    """The largest resident memory of this process so far, in MB (10^6 bytes)."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 1e6
    import resource  # noqa: PLC0415 - absent on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


def memory_bytes() -> int:
    """The resident memory of this process now."""
    return psutil.Process().memory_info().rss


def available_memory_bytes() -> int:
    """Memory that this process can still have, within the limit of its control group if there is one."""
    free = psutil.virtual_memory().available
    try:
        limit, used = ((CONTROL_GROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        if limit == "max":
            return free
        counts = dict(line.split() for line in (CONTROL_GROUP / "memory.stat").read_text().splitlines())
        kept = int(used) - int(counts["inactive_file"])  # files that were read are given back when memory is short
        return min(free, max(int(limit) - kept, 0))
    except (OSError, ValueError, KeyError):  # no such limit here
        return free


def versions() -> dict[str, str]:
    """Versions of gliomap, Python and the libraries that results depend on, without importing them."""
    found = {"gliomap": metadata.version("gliomap"), "python": platform.python_version(), "system": platform.platform()}
    for name in _RECORDED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
