"""Trains one step as one of several processes, or alone, and writes its gradient. Run: gradients.py DATA OUTPUT [SETTING ...]"""

import sys
from pathlib import Path

import torch

from gliomap import loop
from gliomap.train import TrainOptions, train


def main(recipe: str, data: str | Path, output: str | Path, *settings: str) -> None:
    original = loop.step

    def step(run, batch, begun):  # the gradients are still there when the step is made
        line = original(run, batch, begun)
        gradients = {name: p.grad.clone() for name, p in run.network.named_parameters() if p.grad is not None}
        if run.fabric.is_global_zero:
            torch.save({"gradients": gradients, "line": line}, Path(output) / "gradients.pt")
        Path(output, f"process_{run.fabric.global_rank}").write_text(" ".join(batch.ids))
        return line

    loop.step = step
    train(TrainOptions(recipe, Path(data), Path(output), list(settings), device="cpu", threads=1, quiet=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
