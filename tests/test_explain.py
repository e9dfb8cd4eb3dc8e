import csv
import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from follower import SliceFollower, follower_model, follower_recipe
from models import tiny_model
from studies import SHAPE, SPACING_MM, brain_images, brain_mask, nested_tumour, save, small_affine

from gliomap.data.datasets import find_studies
from gliomap.data.synthetic import make_phantom
from gliomap.errors import InputError, UsageError
from gliomap.explain import ExplainOptions, explain
from gliomap.explaining import segmented_case
from gliomap.losses import build_loss
from gliomap.model_file import save_ensemble, save_model
from gliomap.networks import build_network
from gliomap.preprocess import normalise
from gliomap.recipe import Coarse, NetworkSpec
from gliomap.sanity import shuffled
from gliomap.segmenting import Asked, SegmentOptions

SPOT = (15, 10, 20)  # z, y, x, inside the brain and to one side of every middle


def _oriented(array, affine, order, flips):
    """The same voxels in another order of the file's axes."""
    image = nib.Nifti1Image(array.T, affine)
    return image.as_reoriented(np.column_stack([order, flips]))


def _spot_study(folder: Path, spot=SPOT, order=(0, 1, 2), flips=(1, 1, 1)) -> np.ndarray:
    """A study with one bright voxel in FLAIR; returns where that is in mm."""
    images = brain_images()
    images[3][spot] = 20000
    folder.mkdir(parents=True)
    for name, one in zip(("t1", "t1c", "t2", "flair"), images, strict=True):
        nib.save(_oriented(one, small_affine(), order, flips), folder / f"{name}.nii")
    return small_affine() @ [*spot[::-1], 1]


def _peak(path: Path) -> np.ndarray:
    """Where a map is highest, in mm: the middle of its highest voxels."""
    image = nib.load(path)
    values = np.asarray(image.dataobj)
    return image.affine @ [*np.argwhere(values > values.max() - 1e-6).mean(0), 1]


def _explain(study: Path, output: Path, model: Path | None = None, **changes):
    options = {"device": "cpu", "engine": "torch", "quiet": True, "checks": "none"} | changes
    return explain(ExplainOptions(study, output, model, **options))


ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))


@pytest.mark.parametrize("spot", [SPOT, (8, 21, 9)])
def test_a_gate_peaks_at_the_bright_voxel_in_every_order_of_the_files_axes(spot, tmp_path, monkeypatch):
    model = follower_model(tmp_path / "m.safetensors", follower_recipe(monkeypatch, spacing_mm=9.0))
    monkeypatch.setattr("gliomap.explain.explanation_page", lambda _: "")  # which would take most of the time
    for number, (order, flips) in enumerate(ORIENTATIONS):
        folder = tmp_path / str(number)
        expected_mm = _spot_study(folder / "study", spot, order, flips)
        _explain(folder / "study", folder / "out", model)
        for level in range(3):
            path = folder / "out" / "maps" / f"AG_{level + 1}.nii.gz"
            away = np.abs(_peak(path) - expected_mm)[:3].max()
            assert away <= 9.0 * 2**level / 2 + SPACING_MM / 2, (order, flips, level)
            source = nib.load(folder / "study" / "t1.nii")
            np.testing.assert_array_equal(nib.load(path).affine, source.affine)
            assert nib.load(path).shape == source.shape


@pytest.mark.parametrize("kind", ["slices", "windows", "own grid"])
def test_a_gate_peaks_at_the_bright_voxel_whatever_way_the_study_goes_through(kind, tmp_path, monkeypatch):
    recipe = follower_recipe(monkeypatch, *([SliceFollower] if kind == "slices" else []))
    if kind == "windows":
        recipe = replace(recipe, inference=replace(recipe.inference, window=(8, 12, 8)))
    expected_mm = _spot_study(tmp_path / "study")
    result = _explain(tmp_path / "study", tmp_path / "out", follower_model(tmp_path / "m.safetensors", recipe))
    for level, one in enumerate(result.explanation.maps):
        away = np.abs(_peak(tmp_path / "out" / "maps" / f"{one.name}.nii.gz") - expected_mm)[:3].max()
        assert away <= SPACING_MM * 2**level / 2 + 1e-6
        assert one.values[~brain_mask()].max() == 0


def test_a_cascade_shows_its_fine_network_in_its_box(tmp_path, monkeypatch):
    coarse = follower_recipe(monkeypatch, spacing_mm=9.0)
    training = replace(coarse.training, patch_size=(8, 8, 8))
    fine = replace(coarse, training=training, preprocessing=replace(coarse.preprocessing, spacing_mm=None))
    recipe = replace(fine, coarse=Coarse(coarse, margin_mm=6.0))
    weights = {"scale": np.array([0.05], np.float32)}
    finder = replace(tiny_model(), recipe=coarse, weights=weights)
    save_model(tmp_path / "m.safetensors", recipe, weights, {}, finder)
    expected_mm = _spot_study(tmp_path / "study")
    result = _explain(tmp_path / "study", tmp_path / "out", tmp_path / "m.safetensors")
    (gate, *_) = result.explanation.maps
    seen = np.argwhere(gate.values)
    assert np.ptp(seen, 0).max() < 12  # of a brain of 20 and more
    np.testing.assert_allclose(_peak(tmp_path / "out" / "maps" / "AG_1.nii.gz"), expected_mm, atol=SPACING_MM / 2)
    assert (np.abs(seen.mean(0) - SPOT) <= 4).all()


def _labelled_study(folder: Path) -> Path:
    """Its tumour is the brightest part of FLAIR."""
    images, tumour = brain_images(), nested_tumour()
    images[3][(tumour > 0)] += 2000
    for name, one in zip(("t1", "t1c", "t2", "flair", "seg"), (*images, tumour), strict=True):
        save(folder / f"{name}.nii", one)
    return folder


def test_everything_that_is_found_is_written(tmp_path, monkeypatch):
    study = _labelled_study(tmp_path / "study")
    model = follower_model(tmp_path / "m.safetensors", follower_recipe(monkeypatch))
    result = _explain(study, tmp_path / "out", model, checks="all", labels="brats2023")
    names = [f"AG_{level}" for level in (1, 2, 3)]
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    tables = {"channels.csv", "checks.csv", "curves.csv"}
    expected = {"segmentation.nii.gz", "explanation.html", "run.json"} | tables
    assert written == expected | {f"maps/{name}.nii.gz" for name in names}
    assert {path.relative_to(tmp_path / "out").as_posix() for path in result.files} == written
    with (tmp_path / "out" / "checks.csv").open() as stream:
        checks = {(row["map"], row["check"]): row for row in csv.DictReader(stream)}
    # what is bright is the tumour, whatever its weights: the map knows the tumour and nothing of it was learnt
    assert float(checks["AG_1", "inside the reference WT"]["value"]) > 0.99
    assert float(checks["AG_1", "randomised weights"]["value"]) > 0.99
    assert checks["AG_1", "randomised weights"]["passed"] == "False"
    assert checks["AG_1", "more than randomised"]["passed"] == "False"
    assert checks["AG_1", "deletion"]["passed"] == checks["AG_1", "insertion"]["passed"] == "True"
    with (tmp_path / "out" / "curves.csv").open() as stream:
        points = [row for row in csv.DictReader(stream) if (row["map"], row["kind"]) == ("AG_1", "deletion")]
    assert [float(row["share"]) for row in points] == [0, 0.02, 0.05, 0.1, 0.2, 0.5, 1]
    scores = [float(row["score"]) for row in points]
    assert scores[0] > 0.9 > scores[-1]
    assert sum(scores) < sum(float(row["random"]) for row in points)
    assert sum(share for _, _, share in result.explanation.confidence) == pytest.approx(1)
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["verb"] == "explain"
    assert run["studies"][0]["maps"]["AG_2"]["own_size"] == [
        n // 2 for n in run["studies"][0]["maps"]["AG_1"]["own_size"]
    ]
    assert set(run["studies"][0]["outputs"]) == written - {"run.json"}


def test_maps_of_an_earlier_model_do_not_stay(tmp_path, monkeypatch):
    _spot_study(tmp_path / "study")
    model = follower_model(tmp_path / "m.safetensors", follower_recipe(monkeypatch))
    _explain(tmp_path / "study", tmp_path / "out", model)
    mine = tmp_path / "out" / "maps" / "AG_2.nii.gz"
    mine.write_bytes(b"changed by somebody")
    other = tiny_model("cga_unet")
    save_model(tmp_path / "cga.safetensors", other.recipe, other.weights, {})
    result = _explain(tmp_path / "study", tmp_path / "out", tmp_path / "cga.safetensors")
    assert [one.name for one in result.explanation.maps] == [f"SAM_{c}" for c in ("background", "NCR", "ED", "ET")]
    assert [one.name for one in result.explanation.features] == ["sam"]
    left = {path.name for path in (tmp_path / "out" / "maps").iterdir()}
    assert left == {f"SAM_{c}.nii.gz" for c in ("background", "NCR", "ED", "ET")} | {"AG_2.nii.gz"}


def test_of_an_ensemble_the_first_network_is_explained_and_that_is_said(tmp_path):
    _spot_study(tmp_path / "study")
    models = [tiny_model("attention_unet", seed=seed) for seed in (0, 1)]
    save_ensemble(tmp_path / "both.safetensors", models)
    save_model(tmp_path / "first.safetensors", models[0].recipe, models[0].weights, {})
    both, first = (
        _explain(tmp_path / "study", tmp_path / name, tmp_path / f"{name}.safetensors") for name in ("both", "first")
    )
    for a, b in zip(both.explanation.maps, first.explanation.maps, strict=True):
        np.testing.assert_array_equal(a.values, b.values)
    assert any("2 networks together; the first alone" in text for text in both.warnings)
    assert not any("networks together" in text for text in first.warnings)


def test_a_network_without_attention_shows_gradients_and_which_modality_they_are_of(tmp_path):
    pytest.importorskip("captum")
    study = _labelled_study(tmp_path / "study")
    model = tiny_model("unet3d")
    weights = {name: np.array(array) for name, array in model.weights.items()}
    save_model(tmp_path / "m.safetensors", model.recipe, weights, {})
    result = _explain(study, tmp_path / "out", tmp_path / "m.safetensors", labels="brats2023")
    found = {one.name for one in result.explanation.maps}
    assert found
    assert found <= {"saliency_ET", "saliency_TC", "saliency_WT"}
    for one in result.explanation.channels:
        assert one.weights.sum() == pytest.approx(1)
        assert one.labels == ("T1", "T1c", "T2", "FLAIR")
    with (tmp_path / "out" / "channels.csv").open() as stream:
        assert [row["channel"] for row in csv.DictReader(stream)][:4] == ["t1", "t1c", "t2", "flair"]


def test_without_captum_a_network_without_attention_cannot_be_explained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    _spot_study(tmp_path / "study")
    for name in ("unet3d", "attention_resunet", "attention_unet"):
        model = tiny_model(name)
        save_model(tmp_path / f"{name}.safetensors", model.recipe, model.weights, {})
    with pytest.raises(UsageError, match=r"no attention, and saliency maps need Captum.*gliomap\[explain\]"):
        _explain(tmp_path / "study", tmp_path / "a", tmp_path / "unet3d.safetensors")
    assert not (tmp_path / "a").exists()
    result = _explain(tmp_path / "study", tmp_path / "b", tmp_path / "attention_resunet.safetensors")
    assert result.explanation.maps == ()
    assert [one.name for one in result.explanation.channels] == ["A_1", "A_2", "A_3", "A_4"]
    assert any("gliomap[explain]" in text for text in result.warnings)
    _explain(tmp_path / "study", tmp_path / "c", tmp_path / "attention_unet.safetensors")
    with pytest.raises(UsageError, match=r"gliomap\[explain\]"):
        _explain(tmp_path / "study", tmp_path / "d", tmp_path / "attention_unet.safetensors", saliency=True)


def test_what_cannot_be_explained_is_refused_before_anything_is_written(tmp_path):
    for name in "ab":
        _spot_study(tmp_path / "data" / name)
    with pytest.raises(UsageError, match="2 studies, such as a; explain takes one study at a time"):
        _explain(tmp_path / "data", tmp_path / "out")
    with pytest.raises(UsageError, match="no checks are called 'most'; expected all, cheap, none"):
        _explain(tmp_path / "data" / "a", tmp_path / "out", checks="most")
    with pytest.raises(InputError, match="does not exist"):
        _explain(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _phantom_batch(seeds, size):
    images, classes = [], []
    for seed in seeds:
        made = make_phantom(seed, size=size)
        prepared = normalise(made.images.astype(np.float32), made.images.any(0), "zscore")
        images.append(prepared[:, : prepared.shape[1] // 4 * 4])
        classes.append(made.classes[: prepared.shape[1] // 4 * 4])
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(classes))


def _trained(recipe, steps=60):
    torch.manual_seed(0)
    network, loss = build_network(recipe).train(), build_loss(recipe.training.loss)
    images, classes = _phantom_batch(range(5), 24)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        torch.stack(list(loss(network.supervised(images), classes, recipe.target, 0).values())).sum().backward()
        optimiser.step()
    return network.eval()


def test_the_randomised_weights_tell_a_trained_network_from_a_shuffled_one(tmp_path, monkeypatch):
    monkeypatch.setattr("gliomap.explain.explanation_page", lambda _: "")
    recipe = replace(tiny_model().recipe, network=NetworkSpec("druwas", {"base": 8, "depth": 2, "blocks_per_level": 1}))
    trained = _trained(recipe)
    made = make_phantom(100, size=24)
    for name, one in zip(("t1", "t1c", "t2", "flair", "seg"), (*made.images, made.classes), strict=True):
        save(tmp_path / "study" / f"{name}.nii", one, made.affine)
    passed = {}
    for name, network in {"trained": trained, "a": shuffled(trained, 50), "b": shuffled(trained, 51)}.items():
        path = tmp_path / f"{name}.safetensors"
        save_model(path, recipe, {key: tensor.numpy() for key, tensor in network.state_dict().items()}, {})
        result = _explain(tmp_path / "study", tmp_path / name, path, checks="cheap", labels="brats2023")
        asked = ("randomised weights", "more than randomised")
        answers = [[c.passed for c in one.checks if c.name in asked] for one in result.explanation.maps]
        passed[name] = answers.count([True, True])
    assert passed["trained"] == 4  # AG_1, SA_1, AG_2, SA_2
    assert passed["a"] + passed["b"] <= 2  # of eight: without meaning one in four would come first by chance


def test_the_box_that_is_explained_is_the_one_that_is_segmented(tmp_path):
    _spot_study(tmp_path / "study")
    model, (study,) = tiny_model("attention_unet"), find_studies(tmp_path / "study")
    options = ExplainOptions(tmp_path / "study", tmp_path / "out", device="cpu", engine="torch")
    asked = Asked(model, "", SegmentOptions(tmp_path / "study", tmp_path / "out"), single=True)
    case, _ = segmented_case(study, asked, options)
    again = case.target.decode(case.probabilities(case.shown.images))
    placed = np.rint(case.placed(again.astype(np.float32))).astype(np.uint8)
    np.testing.assert_array_equal(placed, case.segmented.found.classes.array[0])
    assert placed.shape == SHAPE
