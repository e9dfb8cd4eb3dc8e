"""What a training will take, said before it begins."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from gliomap.distribution import share_of_batch
from gliomap.errors import UsageError
from gliomap.losses import build_loss
from gliomap.machine import available_memory_bytes
from gliomap.networks import Network, build_network, keep_heap
from gliomap.networks.training_cost import part_size, patch_size, patch_time_s, training_memory_bytes
from gliomap.postprocess import build_steps
from gliomap.recipe import Recipe, Start, trained_before
from gliomap.torch_engine import find_device

TRUSTED = 0.8
"""The share of the expected memory that a training is sure to need; the count is within a fifth of what was measured."""


@dataclass(frozen=True)
class Stage:
    """One training of a plan: its steps and validations, the memory in bytes and the seconds that it is expected to take.

    ``time_s`` is of the steps alone: reading studies, augmentation and validation come on top. ``refused``: why it would
    not be begun on this machine now; empty if it would. ``remarks``: what its batch means for speed and results
    here. Where twice ``memory_bytes`` are free, up to so much is used: see `keep_heap_if_roomy`.
    """

    recipe: str
    patches: int
    steps: int
    validations: int
    memory_bytes: int
    time_s: float
    refused: str = ""
    remarks: tuple[str, ...] = ()


def plan(recipe: Recipe, device: str = "auto") -> list[Stage]:
    """The trainings that a recipe takes, in their order, itself last; times a few small steps of each network.

    Raises:
        UsageError: there is no such device, or the network does not take its settings.
    """
    stages = [stage for before in trained_before(recipe) for stage in plan(before, device)]
    settings = recipe.training
    if not _trains(_network(recipe)):
        return [*stages, Stage(recipe.name, 0, 0, 1, 0, 0.0)]
    steps = -(-settings.patches // settings.batch_size)
    validations = -(-settings.patches // settings.validate_every)
    where = find_device(device)
    keep_heap_if_roomy(recipe, where)
    time_s, memory = patch_time_s(recipe, where) * settings.patches, training_memory_bytes(recipe)
    refused, remarks = _too_much(recipe, memory, where), _remarks(recipe, where)
    return [*stages, Stage(recipe.name, settings.patches, steps, validations, memory, time_s, refused, remarks)]


def check(recipe: Recipe) -> None:
    """Refuse a training that cannot be: it and all that are trained before it, before the first of them begins.

    Raises:
        UsageError: a network or loss does not take its settings, a size does not fit the network, a part to freeze does not
            exist, weights will not fit, the batch does not divide into its parts, the target has no region, or what finds
            the tumour first sees other modalities or needs another before it.
    """
    network = _network(recipe)
    settings = recipe.training
    share_of_batch(settings, 1)
    for before in trained_before(recipe):
        check(before)
    if recipe.coarse is not None and recipe.coarse.recipe.coarse is not None:
        raise UsageError(
            f"{recipe.coarse.recipe.name}, which finds the tumour for {recipe.name}, needs another that finds it first; "
            "expected a recipe without coarse"
        )
    if recipe.coarse is not None and recipe.coarse.recipe.modalities != recipe.modalities:
        raise UsageError(
            f"{recipe.coarse.recipe.name}, which finds the tumour for {recipe.name}, has other modalities; expected the same "
            "in the same order"
        )
    for start in recipe.starts_from:
        if _shapes(_part(network, start.into)) != _shapes(_network(start.recipe)):
            raise UsageError(
                f"the weights of {start.recipe.name} will not fit the {_place(start)} of {recipe.name}; set the network's "
                "settings alike in both (--set '*.network.settings...' sets them everywhere)"
            )
    if getattr(network, "kind", recipe.target.kind) != recipe.target.kind:
        raise UsageError(
            f"the network of {recipe.name} mixes {network.kind} probabilities and its target is a {recipe.target.kind}; "
            f"set network.settings.kind={recipe.target.kind}"
        )
    for name, size in (("training.patch_size", settings.patch_size), ("inference.window", recipe.inference.window)):
        if size is not None and any(n % d for n, d in zip(size, network.divisors, strict=True)):
            raise UsageError(f"{name} is {size}; expected multiples of {network.divisors}, which the network needs")
    build_loss(settings.loss)
    build_steps(recipe.postprocessing)
    if not recipe.target.regions:
        raise UsageError(
            f"the target of {recipe.name} makes up none of the regions; expected channels that do, such as [[3]]"
        )
    stages: dict[str, Recipe] = {}
    for one in _all(recipe):
        if stages.setdefault(one.name, one) != one:
            raise UsageError(f"two different recipes are called {one.name} in what is trained for {recipe.name}")


def check_memory(recipe: Recipe, device: torch.device, processes: int = 1) -> None:
    """Refuse a training whose share, in each of the processes, does not fit into the memory that is free.

    Raises:
        UsageError: it does not, and the message says what to turn down; or the batch cannot be divided among the processes.
    """
    if not _trains(_network(recipe)):
        return
    share = replace(recipe.training, batch_size=share_of_batch(recipe.training, processes))
    if refused := _too_much(recipe, training_memory_bytes(replace(recipe, training=share)), device):
        raise UsageError(refused)


def keep_heap_if_roomy(recipe: Recipe, device: torch.device) -> None:
    """Have a training on a CPU keep its heap, which is faster, if as much again as it needs is free; see `keep_heap`."""
    if device.type == "cpu" and 2 * training_memory_bytes(recipe) <= available_memory_bytes():
        keep_heap()


def _remarks(recipe: Recipe, device: torch.device) -> tuple[str, ...]:
    network, settings = _network(recipe), recipe.training
    part, (_, slices) = part_size(settings), patch_size(network, settings.patch_size)
    found: list[str] = []
    if device.type == "cpu" and part * slices == 1:
        better = "batch_size=2" if settings.batch_size == 1 else f"accumulation={_fewer(settings.batch_size)}"
        found.append(
            f"on a CPU a part of one patch takes up to twice the time of its share of two: set training.{better}"
        )
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training for module in network.modules()):
        if settings.accumulation > 1:
            found.append(f"BatchNorm takes its statistics over each part of {part} patches, not over the batch")
        if device.type == "cpu":
            found.append("in several processes BatchNorm takes its statistics over each one's own patches on a CPU")
    return tuple(found)


def _fewer(batch: int) -> int:
    """The most equal parts of a batch that have more than one patch each."""
    return next(batch // size for size in range(2, batch + 1) if batch % size == 0)


def _too_much(recipe: Recipe, needed: int, device: torch.device) -> str:
    """What is wrong if a training that needs so many bytes does not fit into those that are free; empty if it does."""
    settings = recipe.training
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory_bytes()
    if needed * TRUSTED <= free:
        return ""
    return (
        f"training {recipe.name} needs about {needed / 1e9:.0f} GB and {free / 1e9:.0f} GB are free; turn down "
        f"training.batch_size (now {settings.batch_size}) or training.patch_size (now {list(settings.patch_size)}), turn up "
        f"training.accumulation (now {settings.accumulation}), or set network.settings.recompute=true where the network has it"
    )


def _all(recipe: Recipe) -> list[Recipe]:
    return [recipe, *(inner for before in trained_before(recipe) for inner in _all(before))]


def _network(recipe: Recipe) -> Network:
    with torch.device("meta"):
        network = build_network(recipe)
    try:
        network.freeze(recipe.frozen)
    except ValueError as error:
        raise UsageError(f"cannot freeze {', '.join(recipe.frozen)}: {error}") from error
    return network


def _part(network: Network, name: str) -> nn.Module | None:
    try:
        return network.get_submodule(name)
    except AttributeError:
        return None


def _shapes(module: nn.Module | None) -> dict[str, torch.Size]:
    return {} if module is None else {name: tensor.shape for name, tensor in module.state_dict().items()}


def _place(start: Start) -> str:
    return f"part {start.into!r}" if start.into else "network"


def _trains(network: Network) -> bool:
    return any(p.requires_grad for p in network.parameters())
