"""Training losses. Each takes what the network gave and the class map, and returns its terms by name; their sum is minimised."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from gliomap.classes import RC, Target
from gliomap.errors import UsageError
from gliomap.recipe import LossSpec

if TYPE_CHECKING:
    from gliomap.networks.base import Outputs

Loss = Callable[["Outputs", Tensor, Target, int], dict[str, Tensor]]
"""``loss(outputs, classes, target, epoch)``; what a recipe may set of a loss is keyword-only."""


def encode(classes: Tensor, target: Target) -> Tensor:
    """A class map (B, *S) as the target's channels (B, K, *S) float32. A resection cavity trains as background."""
    table = torch.zeros(len(target.channels), RC + 1)
    for channel, members in enumerate(target.channels):
        table[channel, list(members)] = 1
        if 0 in members:
            table[channel, RC] = 1
    return table.to(classes.device)[:, classes.long()].movedim(0, 1)


def soft_dice(probabilities: Tensor, truth: Tensor, epsilon: float = 1e-6) -> Tensor:
    """1 - (2 sum(p g) + e) / (sum(p + g) + e) for each sample and channel of (B, K, *S): (B, K), paper 004 section 3.2.

    A channel absent from both scores 0: it costs nothing and its gradient is finite.
    """
    axes = tuple(range(2, probabilities.ndim))
    overlap = (probabilities * truth).sum(axes)
    total = (probabilities + truth).sum(axes)
    return 1 - (2 * overlap + epsilon) / (total + epsilon)


def cross_entropy_dice(outputs: Outputs, classes: Tensor, target: Target, epoch: int) -> dict[str, Tensor]:  # noqa: ARG001
    """0.5 cross-entropy + 0.5 soft Dice over the foreground channels (paper 004 section 3.2), for a softmax target.

    Sums of the Dice run over the batch too, so that a patch without a class does not dominate it.

    Raises:
        UsageError: the target is not a softmax.
    """
    if target.kind != "softmax":
        raise UsageError(
            "the loss cross_entropy_dice needs a softmax target; choose another loss or target in the recipe"
        )
    logits = outputs.logits[0]
    truth = encode(classes, target)
    probabilities = torch.softmax(logits, 1)
    pooled = soft_dice(_batch_pooled(probabilities), _batch_pooled(truth))
    return {"cross_entropy": 0.5 * F.cross_entropy(logits, truth), "dice": 0.5 * pooled[:, 1:].mean()}


def binary_cross_entropy_dice(outputs: Outputs, classes: Tensor, target: Target, epoch: int) -> dict[str, Tensor]:  # noqa: ARG001
    """Binary cross-entropy + soft Dice with its sums over batch and channels alike, for a sigmoid target.

    Paper 001 does not state its loss; this is the one its public successor trains with.

    Raises:
        UsageError: the target is not a sigmoid.
    """
    if target.kind != "sigmoid":
        raise UsageError(
            "the loss binary_cross_entropy_dice needs a sigmoid target; choose another loss or target in the recipe"
        )
    logits = outputs.logits[0]
    truth = encode(classes, target)
    pooled = soft_dice(torch.sigmoid(logits).flatten()[None, None], truth.flatten()[None, None])
    return {"binary_cross_entropy": F.binary_cross_entropy_with_logits(logits, truth), "dice": pooled.mean()}


def _batch_pooled(x: Tensor) -> Tensor:
    return x.movedim(0, 1).flatten(1)[None]  # (1, K, B * voxels)


LOSSES: dict[str, Loss] = {
    "cross_entropy_dice": cross_entropy_dice,
    "binary_cross_entropy_dice": binary_cross_entropy_dice,
}


def build_loss(spec: LossSpec) -> Loss:
    """The loss of a recipe.

    Raises:
        UsageError: there is none of that name, or it does not take these settings.
    """
    if spec.name not in LOSSES:
        raise UsageError(f"no loss is called {spec.name!r}; expected one of {', '.join(LOSSES)}")
    loss = LOSSES[spec.name]
    known = [p.name for p in inspect.signature(loss).parameters.values() if p.kind == p.KEYWORD_ONLY]
    unknown = [name for name in spec.settings if name not in known]
    if unknown:
        raise UsageError(
            f"the loss {spec.name} has no setting {', '.join(unknown)}; expected {', '.join(known) or 'none at all'}"
        )
    return functools.partial(loss, **spec.settings)
