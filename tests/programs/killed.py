"""Trainings that are killed, as by kill -9, in the middle of a step, each in a process of its own, and then one that is not.

Run: killed.py DATA OUTPUT WORKERS CHECKPOINT_EVERY_S KILL_AFTER_PATCHES,... RECIPE [SETTING ...]
"""

import os
import signal
import sys
from pathlib import Path

from gliomap import loop
from gliomap.checkpoint import has_checkpoint
from gliomap.train import TrainOptions, train


def main(data: str, output: str, workers: str, every_s: str, kills: str, recipe: str, *settings: str) -> None:
    loop.CHECKPOINT_EVERY_S = float(every_s)
    original = loop.backward
    for kill_after in [*map(int, filter(None, kills.split(","))), None]:
        child = os.fork()
        if child == 0:

            def backward(run, batch, kill_after=kill_after):
                if kill_after is not None and run.progress.patches >= kill_after:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(run, batch)

            loop.backward = backward
            options = TrainOptions(recipe, Path(data), Path(output), list(settings), workers=int(workers), device="cpu")
            train(TrainOptions(**vars(options) | {"threads": 1, "quiet": True, "resume": has_checkpoint(Path(output))}))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if kill_after is None and status != 0:
            sys.exit(f"the last training ended with {status}")
        if kill_after is not None and os.WTERMSIG(status) != signal.SIGKILL:
            sys.exit(f"the training was to be killed after {kill_after} patches and ended with {status}")


if __name__ == "__main__":
    main(*sys.argv[1:])
