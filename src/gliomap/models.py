"""gliomap models: what every network costs, beside what its paper says."""

import csv
import difflib
import inspect
import json
import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch

from gliomap.errors import UsageError
from gliomap.networks import NETWORKS, Network
from gliomap.networks.counting import Layer, count_forward, count_step, mean_logit, parameters
from gliomap.networks.training_cost import patch_size
from gliomap.progress import progress_bar
from gliomap.recipe import Recipe
from gliomap.recipes import RECIPES
from gliomap.recipes.published import published

_COMMON_INPUTS = 4
_COMMON_PATCH = {3: (128, 128, 128), 2: (240, 240)}
_MODULES_ALONE = {("002", "3")}
"""Papers and tables whose sizes are not of a whole network."""


@dataclass(frozen=True)
class ModelsOptions:
    """What `models` is asked for: all, or with ``name`` the layers of the network of that recipe, or of that name."""

    name: str | None = None
    quiet: bool = False


@dataclass(frozen=True)
class ModelCost:
    """What one network costs, and what its paper prints of that, None where it prints nothing.

    ``name`` is that of the first recipe with this network. ``input`` is (C, *S), of one patch or slice; ``outputs`` are
    the channels of its logits. Deviations are of ours from the paper's. Memory is in 10^6 bytes beyond the weights: of one
    patch without gradients, and of one forward and backward pass, gradients of the weights not included.
    """

    name: str
    network: str
    settings: dict[str, Any]
    paper: str
    input: tuple[int, ...]
    outputs: int
    parameters: int
    gmac: float
    published_parameters_m: float | None
    published_gflops: float | None
    parameter_deviation_percent: float | None
    gflops_deviation_percent: float | None
    forward_memory_mb: float
    training_memory_mb: float


@dataclass(frozen=True)
class LayerCost:
    """One call of a part of the network, and what is stated of that layer, by the paper or by our specification of it.

    ``differs`` names what of it is not ours, beyond what rounding explains. ``output`` is (C, *S).
    """

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    gmac: float
    stated_layer: str = ""
    stated_output: tuple[int, ...] = ()
    stated_parameters: float | None = None
    stated_gmac: float | None = None
    stated_by: str = ""
    differs: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelsResult:
    """A row per network, the first of equal ones; or the only row and its layers."""

    models: list[ModelCost]
    layers: list[LayerCost]


@dataclass(frozen=True)
class _Listed:
    """A network to count, with every recipe that has it, the first of which names it; none for what no recipe has."""

    name: str
    network: str
    settings: dict[str, Any]
    recipes: tuple[Recipe, ...] = ()


def models(options: ModelsOptions) -> ModelsResult:
    """Count every network and ablation, or the layers of one, on the meta device.

    Raises:
        UsageError: there is neither a recipe nor a network of that name.
    """
    if options.name is not None:
        listed = _named(options.name)
        cost, layers = _cost(listed)
        return ModelsResult([cost], _compared(layers, _stated(listed)))
    rows, every = [], _all()
    with progress_bar("counting", len(every), quiet=options.quiet) as bar:
        for listed in every:
            rows.append(_cost(listed)[0])
            bar.advance()
    return ModelsResult(rows, [])


def _all() -> list[_Listed]:
    """Every network that papers have recipes for, each once, and what no recipe but the common protocol's has, as it is."""
    groups: dict[str, list[Recipe]] = {}
    for recipe in _own_recipes():
        groups.setdefault(_key(recipe), []).append(recipe)
    found = [_of(*group) for group in groups.values()]
    covered = {listed.network for listed in found}
    return found + [_Listed(name, name, {}) for name in NETWORKS if name not in covered]


def _own_recipes() -> list[Recipe]:
    return [recipe for recipe in RECIPES.values() if not recipe.name.endswith("_fair")]


def _of(first: Recipe, *others: Recipe) -> _Listed:
    """What papers say of a network holds for patches of its recipe's size."""
    same = [recipe for recipe in others if recipe.training.patch_size == first.training.patch_size]
    return _Listed(first.name, first.network.name, first.network.settings, (first, *same))


def _key(recipe: Recipe) -> str:
    """What makes a network: equal for recipes whose networks are, whether they spell out its defaults or not."""
    settings = _defaults(recipe.network.name) | recipe.network.settings
    return json.dumps([recipe.network.name, len(recipe.modalities), len(recipe.target.channels), settings])


def _defaults(network: str) -> dict[str, Any]:
    found = inspect.signature(NETWORKS[network]).parameters.values()
    return {parameter.name: parameter.default for parameter in found if parameter.kind is parameter.KEYWORD_ONLY}


def _named(name: str) -> _Listed:
    if name in RECIPES:
        recipe = RECIPES[name]
        return _of(recipe, *(r for r in _own_recipes() if r is not recipe and _key(r) == _key(recipe)))
    if name in NETWORKS:
        listed = (one for one in _all() if one.network == name)
        plain = (one for one in listed if _defaults(name) | one.settings == _defaults(name))
        return next(plain, _Listed(name, name, {}))
    close = difflib.get_close_matches(name, [*RECIPES, *NETWORKS], cutoff=0.5)
    hint = f"did you mean {' or '.join(dict.fromkeys(close))}?" if close else "gliomap models lists all of them"
    raise UsageError(f"no recipe and no network is called {name!r}; {hint}")


def _cost(listed: _Listed) -> tuple[ModelCost, tuple[Layer, ...]]:
    network, size, outputs = _built(listed)
    learnt = parameters(network)
    forward = count_forward(network, size)
    network.freeze(listed.recipes[0].frozen if listed.recipes else ())
    step = count_step(network, size, 1, mean_logit)
    millions, gflops = _published(listed, "parameters_m"), _published(listed, "gflops")
    paper = re.match(r"paper (\d{3})", listed.recipes[0].source) if listed.recipes else None
    cost = ModelCost(
        name=listed.name,
        network=listed.network,
        settings=listed.settings,
        paper=paper[1] if paper else "",
        input=(network.in_channels, *size),
        outputs=outputs,
        parameters=learnt,
        gmac=forward.gmac,
        published_parameters_m=millions,
        published_gflops=gflops,
        parameter_deviation_percent=_deviation_percent(learnt / 1e6, millions),
        gflops_deviation_percent=_deviation_percent(forward.gmac, gflops),
        forward_memory_mb=forward.memory_bytes / 1e6,
        training_memory_mb=step.memory_bytes / 1e6,
    )
    return cost, forward.layers


def _built(listed: _Listed) -> tuple[Network, tuple[int, ...], int]:
    """The network on the meta device, the size of the patch or slice that it is counted on, and the channels it gives."""
    build = NETWORKS[listed.network]
    with torch.device("meta"):
        if not listed.recipes:
            network, outputs = build(_COMMON_INPUTS), inspect.signature(build).parameters["out_channels"].default
            return network, _COMMON_PATCH[network.spatial_dims], outputs
        recipe = listed.recipes[0]
        outputs = len(recipe.target.channels)
        network = build(len(recipe.modalities), outputs, **listed.settings)
    return network, patch_size(network, recipe.training.patch_size)[0], outputs


def _published(listed: _Listed, metric: str) -> float | None:
    """The first number that a paper prints of one of the recipes, of the whole network."""
    names = {recipe.name for recipe in listed.recipes}
    found = (p for p in published() if p.recipe in names and p.metric == metric)
    return next((p.value for p in found if (p.paper, p.table) not in _MODULES_ALONE), None)


def _deviation_percent(ours: float, theirs: float | None) -> float | None:
    return None if theirs is None else 100 * (ours / theirs - 1)


def _stated(listed: _Listed) -> dict[str, dict[str, str]]:
    """What is stated of the layers of this network, by the name of its part."""
    text = files("gliomap.networks").joinpath("published_layers.csv").read_text("utf-8")
    names = {recipe.name for recipe in listed.recipes}
    return {row["module"]: row for row in csv.DictReader(text.splitlines()) if row["recipe"] in names}


def _compared(layers: tuple[Layer, ...], stated: dict[str, dict[str, str]]) -> list[LayerCost]:
    rows = []
    for layer in layers:
        own = (layer.name, layer.kind, layer.output, layer.parameters, layer.gmac)
        row = stated.get(layer.name)
        if row is None:
            rows.append(LayerCost(*own))
            continue
        output = tuple(int(n) for n in row["output"].split())
        learnt, learnt_error = _sum(row["parameters"])
        gmac, gmac_error = _sum(row["gmac"])
        differs = {
            "output": output not in ((), layer.output),
            "parameters": learnt is not None and abs(layer.parameters - learnt) > learnt_error,
            "gmac": gmac is not None and abs(layer.gmac - gmac) > gmac_error,
        }
        marks = tuple(name for name, different in differs.items() if different)
        rows.append(LayerCost(*own, row["layer"], output, learnt, gmac, row["source"], marks))
    return rows


def _sum(text: str) -> tuple[float | None, float]:
    """A sum such as 1728+2x6928, 0.45+2x0.91 or 0.492M, and how far rounding can have moved it; None for no text.

    Whole numbers are not rounded.
    """
    if not text:
        return None, 0.0
    total = error = 0.0
    for term in text.split("+"):
        count, _, number = term.rpartition("x")
        scale = 1e6 if number.endswith("M") else 1.0
        digits = number.removesuffix("M")
        total += int(count or 1) * float(digits) * scale
        _, point, decimals = digits.partition(".")
        error += int(count or 1) * 0.501 * 10.0 ** -len(decimals) * scale if point else 0.0
    return total, error
