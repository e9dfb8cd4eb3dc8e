"""What every recipe promises, over every name in RECIPES, with networks made tiny: it trains, and its model segments."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks.tiny import TINY

from gliomap.data.datasets import find_studies
from gliomap.data.patches import PatchSampler
from gliomap.data.prepared import prepare_study
from gliomap.engines import model_segmenter
from gliomap.losses import build_loss
from gliomap.model_file import load_model
from gliomap.networks import as_slices, build_network
from gliomap.phantom import PhantomOptions, phantom
from gliomap.recipe import NetworkSpec, Recipe, Start, recipe_json, trained_before
from gliomap.recipes import RECIPES
from gliomap.train import TrainOptions, train

training = importlib.import_module("gliomap.train")

SIZE = 32


@pytest.fixture(scope="module", name="data")
def _data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    phantom(PhantomOptions(folder, studies=2, size=SIZE, quiet=True))
    return folder


pytestmark = pytest.mark.usefixtures("narrow_vnet", "no_training_page")

SIZES = {"swin_unetr": (32, 32, 64)} | dict.fromkeys(("attention_resunet", "unet3d", "unetr"), (16, 16, 32))
"""Patches of networks whose last level normalises one voxel of 16 x 16 x 16, or has none."""
SPACING_MM = 4.0
"""Of the voxels of a recipe that has a millimetre or two, of which a phantom would have a hundred times its own."""


def tiny(recipe: Recipe) -> Recipe:
    """The recipe with everything that costs made small, in what is trained before it too, and nothing else changed."""
    name = recipe.network.name
    deep = {1: 1, 8: 2}.get(recipe.training.patch_size[0], 16)  # a slice, a few slices, a volume
    size = SIZES.get(name, (deep, 16, 16))
    return replace(
        recipe,
        network=NetworkSpec(name, recipe.network.settings | TINY[name]),
        training=replace(recipe.training, patches=2, validate_every=2, batch_size=2, patch_size=size),
        inference=replace(recipe.inference, window=recipe.inference.window and size),
        preprocessing=replace(
            recipe.preprocessing,
            grid=recipe.preprocessing.grid and (SIZE,) * 3,
            spacing_mm=recipe.preprocessing.spacing_mm and SPACING_MM,
            crop_size=(16, 32, 32),
        ),
        starts_from=tuple(Start(tiny(start.recipe), start.into) for start in recipe.starts_from),
        coarse=recipe.coarse and replace(recipe.coarse, recipe=tiny(recipe.coarse.recipe)),
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Where what several recipes start from is found trained by all but the first."""
    return tmp_path_factory.mktemp("runs")


def trainable(recipe: Recipe):
    torch.manual_seed(0)
    network = build_network(recipe)
    network.freeze(recipe.frozen)
    return network


@pytest.mark.parametrize("name", RECIPES)
def test_it_trains_on_phantoms_and_its_model_segments_one(name, data, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(
        training, "check_memory", lambda *_: None
    )  # tiny as they are, counting takes longer than training
    monkeypatch.setattr(training, "keep_heap_if_roomy", lambda *_: None)
    recipe = tiny(RECIPES[name])
    path = tmp_path / "recipe.json"
    path.write_text(recipe_json(recipe))
    family = (trained_before(recipe) or (recipe,))[0].name
    result = train(TrainOptions(str(path), data, runs / family / name, device="cpu", quiet=True))
    assert not result.failed
    assert set(result.validation_dice) == set(recipe.target.regions)
    model = load_model(result.model)
    assert model.recipe == recipe
    study = find_studies(data)[0]
    volume, _ = study.read(recipe.modalities)
    truth, _, _ = study.read_classes()
    classes = model_segmenter(model, "cpu", "torch")(volume, truth)
    assert classes.shape == volume.shape
    assert set(np.unique(classes.array)) <= {0, 1, 2, 3}


@pytest.mark.parametrize("name", RECIPES)
def test_its_loss_falls_on_a_batch_it_sees_again(name, data):
    recipe = tiny(RECIPES[name])
    network = trainable(recipe)
    parameters = [p for p in network.parameters() if p.requires_grad]
    if not parameters:
        pytest.skip("nothing of it is trained by itself")
    study = prepare_study(find_studies(data)[0], recipe)
    sampler = PatchSampler([study], replace(recipe.training, foreground_share=1.0), seed=0)
    batch = sampler.batch([0, 1])
    x, y = torch.from_numpy(batch.images), torch.from_numpy(batch.classes)
    if network.spatial_dims == 2:
        x, y = as_slices(x), as_slices(y)
    optimizer = torch.optim.Adam(parameters, 5e-3)
    loss, values = build_loss(recipe.training.loss), []
    for _ in range(8):
        torch.manual_seed(1)  # the same dropout each time, which could make a loss fall that nothing is learnt by
        total = torch.stack(list(loss(network.supervised(x), y, recipe.target, 0).values())).sum()
        values.append(float(total.detach()))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert min(values[-3:]) < values[0]
