"""run.json: what was run, on what, and what came of it."""

import math
import time
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from gliomap import machine


class RunRecord:
    """Collects one run's record; `content` is what run.json holds."""

    def __init__(self, verb: str, options: Any) -> None:
        self._start = time.perf_counter()
        self.fields: dict[str, Any] = {
            "verb": verb,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "options": plain(asdict(options) if is_dataclass(options) and not isinstance(options, type) else options),
            "versions": machine.versions(),
            "cores": machine.cores(),
        }

    def content(self, **results: Any) -> dict[str, Any]:
        """The record with these results, the seconds since the start and the peak memory of the process."""
        used = {
            "time_s": round(time.perf_counter() - self._start, 3),
            "peak_memory_mb": round(machine.peak_memory_mb(), 1),
        }
        return self.fields | used | plain(results)


def plain(value: Any) -> Any:
    """The value in types that JSON has: paths as text, tuples as lists, non-finite numbers as None."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
