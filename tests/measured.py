"""What a process takes, as seen from outside it."""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil


def peak_memory_gb(command: Sequence[str | Path]) -> float:
    """The most that a process and what it starts have in memory at a time, in 10^9 bytes; it has to end well."""
    process, peak = psutil.Popen(list(map(str, command))), 0
    while process.poll() is None:
        with suppress(psutil.Error):
            peak = max(peak, sum(one.memory_info().rss for one in (process, *process.children(recursive=True))))
        time.sleep(0.005)
    assert process.returncode == 0
    return peak / 1e9
