"""Segments a folder again and again with --continue: runs that are killed, as by kill -9, and then one that is not.

Run: killed_segment.py DATA OUTPUT MODEL SEED. The first run dies as it renames a file that it has written; three more die at a
random moment of the studies after that.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from gliomap import torch_engine  # noqa: F401 - imported once, for all that are begun here
from gliomap.report import study
from gliomap.segment import SegmentOptions, segment


def run(data: str, output: str, model: str, dies_at_rename: int = 0) -> None:
    original, renames = os.replace, 0

    def replace(*paths):
        nonlocal renames
        renames += 1
        if renames == dies_at_rename:
            os.kill(os.getpid(), signal.SIGKILL)
        original(*paths)

    os.replace = replace
    study.study_page = lambda report: repr(report.facts)  # its pictures take longer than all else of a small study
    options = SegmentOptions(
        Path(data), Path(output), model=Path(model), device="cpu", engine="torch", quiet=True, resume=True
    )
    segment(options)
    os._exit(0)


def main(data: str, output: str, model: str, seed: str) -> None:
    rng = random.Random(seed)
    places = (data, output, model)
    child = os.fork()
    if child == 0:
        run(*places, dies_at_rename=5)
    killed = [os.waitpid(child, 0)[1]]
    if not list(Path(output).rglob(".*.part")):
        sys.exit("the first run was to leave a file that it had not renamed")
    for finished in (2, 4, 6):
        child = os.fork()
        if child == 0:
            run(*places)
        while os.waitpid(child, os.WNOHANG) == (0, 0) and len(list(Path(output).glob("*/record.json"))) < finished:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        killed.append(os.waitpid(child, 0)[1])
    if any(os.WTERMSIG(status) != signal.SIGKILL for status in killed):
        sys.exit(f"all were to be killed; they ended with {killed}")
    run(*places)


if __name__ == "__main__":
    main(*sys.argv[1:])
