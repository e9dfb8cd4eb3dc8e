"""Tiny untrained models of any network, for the tests of what runs and converts them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from networks.tiny import TINY

from gliomap.model_file import Model, content_hash, save_model
from gliomap.networks import build_network
from gliomap.recipe import NetworkSpec, Preprocessing, with_settings
from gliomap.recipes import RECIPES


def tiny_model(name: str = "unet2d", seed: int = 0, **settings: Any) -> Model:
    """A network of random weights, four modalities in, four classes out."""
    spec = NetworkSpec(name, json.loads(json.dumps(TINY[name] | settings)))
    recipe = replace(RECIPES["attention_resunet_small"], network=spec, preprocessing=Preprocessing(), postprocessing=())
    torch.manual_seed(seed)
    weights = {key: tensor.numpy() for key, tensor in build_network(recipe).state_dict().items()}
    return Model(name, recipe, weights, {}, content_hash(weights))


def tiny_ensemble() -> Model:
    """Two networks with different weights."""
    both = [tiny_model(seed=seed) for seed in (0, 1)]
    weights = {f"{n}.{key}": array for n, model in enumerate(both) for key, array in model.weights.items()}
    return Model("both", both[0].recipe, weights, {}, content_hash(weights), ("0.", "1."))


def small_model_file(path: Path, *settings: str) -> Path:
    """An untrained network that finds every class somewhere, for what is done with a segmentation; it takes milliseconds."""
    own = ["network.settings.base=4", "preprocessing.spacing_mm=null"]
    recipe = with_settings(RECIPES["attention_resunet_small"], [*own, *settings])
    torch.manual_seed(0)
    weights = {key: tensor.numpy() for key, tensor in build_network(recipe).state_dict().items()}
    save_model(path, recipe, weights | {"head.bias": weights["head.bias"] * 0}, {})  # or all would be background
    return path
