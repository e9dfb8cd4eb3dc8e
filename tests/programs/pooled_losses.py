"""The losses of half a batch in each of two processes, and the gradients of both, written beside those of the whole batch.

Run: pooled_losses.py OUTPUT. The second process is forked, which spares its imports.
"""

import os
import sys

import torch
from torch import distributed

from gliomap.losses import inter_class, pooled_dice


def main(output: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 5, 6, 7, generator=generator)
    truth = (
        torch.rand(4, 3, 5, 6, 7, generator=generator) < torch.tensor([0.01, 0.2, 0.6]).reshape(1, 3, 1, 1, 1)
    ).float()
    prototypes = torch.randn(4, 4, 8, generator=generator)
    present = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]]).bool()
    child = os.fork()
    rank = int(child == 0)
    distributed.init_process_group("gloo", init_method=f"file://{output}.meeting", rank=rank, world_size=2)
    part = slice(2 * rank, 2 * rank + 2)
    own = found(logits[part], truth[part], prototypes[part], present[part])
    gathered = [None, None]
    distributed.all_gather_object(gathered, own)
    distributed.destroy_process_group()
    if rank == 0:
        torch.save({"whole": found(logits, truth, prototypes, present), "parts": gathered}, output)
        _, status = os.waitpid(child, 0)
        sys.exit(os.waitstatus_to_exitcode(status))


def found(logits, truth, prototypes, present):
    logits, prototypes = logits.clone().requires_grad_(), prototypes.clone().requires_grad_()
    losses = {
        "dice": pooled_dice(torch.sigmoid(logits), truth).sum(),
        "inter_class": inter_class(prototypes, present, "code"),
    }
    sum(losses.values()).backward()
    return {name: loss.detach() for name, loss in losses.items()} | {
        "logits": logits.grad,
        "prototypes": prototypes.grad,
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
