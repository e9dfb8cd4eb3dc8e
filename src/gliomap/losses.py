"""Training losses. Each takes what the network gave and the class map, and returns its terms by name; their sum is minimised.

Losses of the segmentation are taken at every level of deep supervision, with weights 1, 1/2, 1/4 ... scaled to a sum of 1.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
import torch
from torch import Tensor
from torch.nn import functional as F

from gliomap.classes import ALL_CLASSES, RC, Target
from gliomap.errors import UsageError
from gliomap.recipe import LossSpec, setting_problems

if TYPE_CHECKING:
    from gliomap.networks.base import Outputs

Loss = Callable[["Outputs", Tensor, Target, int], dict[str, Tensor]]
"""``loss(outputs, classes, target, epoch)``; what a recipe may set of a loss is keyword-only."""

_EPSILON = 1e-5


def encode(classes: Tensor, target: Target) -> Tensor:
    """A class map (B, *S) as the target's channels (B, K, *S) float32. A resection cavity trains as background."""
    table = torch.zeros(len(target.channels), RC + 1)
    for channel, members in enumerate(target.channels):
        table[channel, list(members)] = 1
        if 0 in members:
            table[channel, RC] = 1
    return table.to(classes.device)[:, classes.long()].movedim(0, 1)


def at_size(classes: Tensor, size: Sequence[int]) -> Tensor:
    """A class map (B, *S) brought to a coarser grid by nearest neighbour: the class where a strided convolution is centred."""
    if tuple(classes.shape[1:]) == tuple(size):
        return classes
    return F.interpolate(classes[:, None].float(), size=tuple(size), mode="nearest")[:, 0]


def pooled_dice(probabilities: Tensor, truth: Tensor, epsilon: float = 1e-6) -> Tensor:
    """1 - (2 sum(p g) + e) / (sum(p + g) + e) for each channel of (B, K, *S): (K,), paper 004 section 3.2.

    Sums run over the voxels of the batch, in all processes. A channel absent from both scores 0: it costs nothing and its
    gradient is finite.
    """
    axes = (0, *range(2, probabilities.ndim))
    overlap, total = _over_processes(
        torch.stack([(probabilities * truth).sum(axes), (probabilities + truth).sum(axes)])
    )
    return 1 - (2 * overlap + epsilon) / (total + epsilon)


def dice(
    outputs: "Outputs",
    classes: Tensor,
    target: Target,
    epoch: int,  # noqa: ARG001
    *,
    reduction: Literal["mean", "sum"] = "mean",
) -> dict[str, Tensor]:
    """Soft Dice of each region of a sigmoid target, or of each class but the background of a softmax target.

    Sums run over the batch. ``reduction`` over the channels: paper 002 takes the sum (its section 3.1 and released code).
    """

    def terms(logits: Tensor, truth: Tensor) -> dict[str, Tensor]:
        probabilities = torch.sigmoid(logits) if target.kind == "sigmoid" else torch.softmax(logits, 1)
        first = 0 if target.kind == "sigmoid" else 1
        pooled = pooled_dice(probabilities[:, first:], truth[:, first:], _EPSILON)
        return {"dice": pooled.mean() if reduction == "mean" else pooled.sum()}

    return _over_levels(terms, outputs, classes, target)


def cross_entropy_dice(
    outputs: "Outputs",
    classes: Tensor,
    target: Target,
    epoch: int,  # noqa: ARG001
    *,
    dice_share: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.5,
    background_weight: pydantic.PositiveFloat = 1.0,
) -> dict[str, Tensor]:
    """Cross-entropy + soft Dice over the foreground channels, for a softmax target; paper 004 takes half of each (3.2).

    Sums of the Dice run over the batch too, so that a patch without a class does not dominate it. Where a short training
    leaves much in doubt the Dice draws borders outwards, and a smaller ``dice_share`` does so less.

    A voxel of channel 0 counts ``background_weight`` times in the cross-entropy, which moves that channel's logit by the
    weight's logarithm. Patches chosen for their tumour hold more of it than a study does, and a network that has learnt
    from them finds too much; a weight as large as the ratio of the two odds undoes that.

    Raises:
        UsageError: the target is not a softmax.
    """
    if target.kind != "softmax":
        raise UsageError(
            "the loss cross_entropy_dice needs a softmax target; choose another loss or target in the recipe"
        )

    def terms(logits: Tensor, truth: Tensor) -> dict[str, Tensor]:
        pooled = pooled_dice(torch.softmax(logits, 1), truth)
        weights = logits.new_ones(logits.shape[1])
        weights[0] = background_weight
        cross_entropy = (1 - dice_share) * F.cross_entropy(logits, truth, weights)
        return {"cross_entropy": cross_entropy, "dice": dice_share * pooled[1:].mean()}

    return _over_levels(terms, outputs, classes, target)


def binary_cross_entropy_dice(outputs: "Outputs", classes: Tensor, target: Target, epoch: int) -> dict[str, Tensor]:  # noqa: ARG001
    """Binary cross-entropy + soft Dice with its sums over batch and channels alike, for a sigmoid target.

    Paper 001 does not state its loss; this is the one its public successor trains with.

    Raises:
        UsageError: the target is not a sigmoid.
    """
    if target.kind != "sigmoid":
        raise UsageError(
            "the loss binary_cross_entropy_dice needs a sigmoid target; choose another loss or target in the recipe"
        )

    def terms(logits: Tensor, truth: Tensor) -> dict[str, Tensor]:
        pooled = pooled_dice(torch.sigmoid(logits).flatten()[None, None], truth.flatten()[None, None])
        return {"binary_cross_entropy": F.binary_cross_entropy_with_logits(logits, truth), "dice": pooled.mean()}

    return _over_levels(terms, outputs, classes, target)


_SEGMENTATION: dict[str, Loss] = {
    "dice": functools.partial(dice, reduction="sum"),
    "cross_entropy_dice": cross_entropy_dice,
    "binary_cross_entropy_dice": binary_cross_entropy_dice,
}


def supervised_attention(  # noqa: PLR0913 - what a recipe may set are named arguments
    outputs: "Outputs",
    classes: Tensor,
    target: Target,
    epoch: int,
    *,
    segmentation: Literal["dice", "cross_entropy_dice", "binary_cross_entropy_dice"] = "dice",
    attention_weight: float = 20.0,
    inter: Literal["off", "code", "paper"] = "code",
    inter_weight: float = 1.0,
    inter_from_epoch: int = 20,
    skip_absent: bool = True,
) -> dict[str, Tensor]:
    """L_M + L_A + L_I of paper 002 (section 3.1), for a network with a supervised attention module.

    L_M is ``segmentation``; the paper's is the Dice summed over the classes. L_A is ``attention_weight`` times the mean square
    error of the raw class maps against the true classes at their size; the paper says 1, its code 20. L_I is
    ``inter_weight`` times `inter_class` and counts from epoch ``inter_from_epoch`` (0 is the first); a negative weight draws
    the classes together. With ``skip_absent`` it leaves out the classes that the truth, at that size, does not have: the mean
    of their features means nothing.

    Raises:
        UsageError: the network has no supervised attention module.
    """
    maps, prototypes = outputs.attention_logits, outputs.prototypes
    if maps is None or prototypes is None:
        raise UsageError(
            "the loss supervised_attention needs a network with a supervised attention module, such as cga_unet; "
            "choose another loss or network in the recipe"
        )
    truth = encode(at_size(classes, maps.shape[2:]), ALL_CLASSES)  # (B, 4, *s)
    terms = _SEGMENTATION[segmentation](outputs, classes, target, epoch)
    terms["attention"] = attention_weight * F.mse_loss(maps, truth)
    if inter != "off":
        present = truth.flatten(2).any(2) if skip_absent else torch.ones_like(prototypes[..., 0], dtype=torch.bool)
        late = epoch >= inter_from_epoch
        terms["inter_class"] = inter_weight * inter_class(prototypes, present, inter) if late else maps.new_zeros(())
    return terms


def inter_class(prototypes: Tensor, present: Tensor, form: Literal["code", "paper"]) -> Tensor:
    """How near each other the prototypes (B, K, C) are of the classes that are ``present`` (B, K): L_I of paper 002.

    ``paper``: 0.1 times -log(1 + D), D the sum of the distances of all ordered pairs of classes (equations 9 and 10), in the
    mean over the samples; the factor is ours, the paper asks for the magnitude of the other terms. ``code``: 10 log(1 + 100 / D),
    D the sum over the samples, of all processes, of the root of all squared distances. A sample with fewer than two
    classes adds nothing.
    Gradients are finite where prototypes coincide.
    """
    prototypes = prototypes.float()  # half precision cannot hold 100 / D
    others = ~torch.eye(present.shape[1], dtype=torch.bool, device=present.device)
    pairs = present[:, :, None] & present[:, None] & others  # (B, K, K)
    squares = (prototypes[:, :, None] - prototypes[:, None]).square().sum(3) * pairs
    if form == "paper":
        distances = ((squares + _EPSILON).sqrt() * pairs).sum((1, 2))  # (B,)
        return -0.1 * torch.log1p(distances).mean()
    counts = pairs.any(2).any(1).float()  # (B,)
    distance, found = _over_processes(
        torch.stack([((squares.sum((1, 2)) + _EPSILON).sqrt() * counts).sum(), counts.sum()])
    )
    return 10 * torch.log1p(100 / (distance + _EPSILON)) * (found > 0)


def _over_levels(
    terms: Callable[[Tensor, Tensor], dict[str, Tensor]], outputs: "Outputs", classes: Tensor, target: Target
) -> dict[str, Tensor]:
    """``terms(logits, truth)`` of every level of deep supervision, each weighing half of the one before and all of them 1."""
    weights = [0.5**level for level in range(len(outputs.logits))]
    mean: dict[str, Tensor] = {}
    for weight, logits in zip(weights, outputs.logits, strict=True):
        found = terms(logits, encode(at_size(classes, logits.shape[2:]), target))
        mean = {name: mean.get(name, 0) + weight / sum(weights) * term for name, term in found.items()}
    return mean


def _over_processes(sums: Tensor) -> Tensor:
    """Sums over all processes of a training, which their gradients know of; those of a training in one process are whole."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return sums
    return _SumOverProcesses.apply(sums)


class _SumOverProcesses(torch.autograd.Function):
    """The sum over the processes. The gradient is, too: each of them has the same loss, to which this process adds.

    So the mean of the processes' gradients, which is what they train with, is that of one process with all patches.
    """

    @staticmethod
    def forward(ctx: Any, sums: Tensor) -> Tensor:  # noqa: ARG004 - torch asks for it
        return _summed(sums)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004 - torch asks for it
        return _summed(gradients[0])


def _summed(tensor: Tensor) -> Tensor:
    out = tensor.detach().clone()
    torch.distributed.all_reduce(out)
    return out


LOSSES: dict[str, Loss] = {
    "dice": dice,
    "cross_entropy_dice": cross_entropy_dice,
    "binary_cross_entropy_dice": binary_cross_entropy_dice,
    "supervised_attention": supervised_attention,
}


def build_loss(spec: LossSpec) -> Loss:
    """The loss of a recipe.

    Raises:
        UsageError: there is none of that name, or it does not take these settings.
    """
    if spec.name not in LOSSES:
        raise UsageError(f"no loss is called {spec.name!r}; expected one of {', '.join(LOSSES)}")
    loss = LOSSES[spec.name]
    known = {p.name: p.annotation for p in inspect.signature(loss).parameters.values() if p.kind == p.KEYWORD_ONLY}
    if problems := setting_problems(spec.settings, known):
        raise UsageError(f"the loss {spec.name} does not take these settings: {'; '.join(problems)}")
    return functools.partial(loss, **spec.settings)
