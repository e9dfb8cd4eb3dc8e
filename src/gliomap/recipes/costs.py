"""Published sizes counted anew: the network of a recipe, or the one module of it that a table is about."""

import torch
from torch import nn

from gliomap.networks import Network, build_network
from gliomap.networks.counting import Layer, count_forward, parameters
from gliomap.networks.training_cost import patch_size
from gliomap.recipe import Recipe
from gliomap.recipes.published import Published

_MODULES = {("002", "3"): "attend"}
"""Papers and tables that print the size of one part of the network, and what ours is called."""

_BY_ITS_OWN_RULE = {("002", "section 4.3")}


def counted(number: Published, recipe: Recipe) -> list[tuple[str, float]]:
    """What a published size is by our count, in its unit, with the definition; where a paper has a rule of its own, by that too."""
    network, size = _built(recipe)
    part = _MODULES.get((number.paper, number.table))
    what = f"of the module {part}" if part else "of the whole network"
    if number.metric == "parameters_m":
        learnt = parameters(network) if part is None else parameters(network.get_submodule(part))
        return [(f"parameters {what}", learnt / 1e6)]
    forward = count_forward(network, size)
    gmac = forward.gmac if part is None else sum(_of(part, layer) for layer in forward.layers)
    found = [(f"multiply-accumulates {what}, of one patch", gmac)]
    if (number.paper, number.table) in _BY_ITS_OWN_RULE:
        found.append(("as the paper's released code counts", as_released_code_counts(network, size)))
    return found


def as_released_code_counts(network: Network, size: tuple[int, ...]) -> float:
    """Paper 002's count of one patch, in 10^9: convolutions' multiply-accumulates and biases, and values out of ReLUs.

    Transposed convolutions, normalisations and matrix products are left out.
    """
    found: list[int] = []

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        if isinstance(module, nn.Conv3d):
            macs = module.in_channels * torch.Size(module.kernel_size).numel()
            found.append(output.numel() * (macs + (module.bias is not None)))
        else:
            found.append(output.numel())

    counted_modules = [m for m in network.modules() if isinstance(m, nn.Conv3d | nn.ReLU | nn.LeakyReLU)]
    hooks = [module.register_forward_hook(count) for module in counted_modules]
    network.eval()
    with torch.no_grad():
        network(torch.zeros(1, network.in_channels, *size, device="meta"))
    for hook in hooks:
        hook.remove()
    return sum(found) / 1e9


def _built(recipe: Recipe) -> tuple[Network, tuple[int, ...]]:
    with torch.device("meta"):
        network = build_network(recipe)
    return network, patch_size(network, recipe.training.patch_size)[0]


def _of(part: str, layer: Layer) -> float:
    return layer.gmac if layer.name == part else 0.0
