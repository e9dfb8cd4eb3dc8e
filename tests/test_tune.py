import csv
import importlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from studies import save, small_affine, write_study

from gliomap.classes import ED, ET, NCR, WHOLE_TUMOUR, region_mask
from gliomap.cli.tune import tune as tune_command
from gliomap.data.datasets import find_studies
from gliomap.errors import InputError, UsageError
from gliomap.files import json_bytes, sha256
from gliomap.metrics import measure
from gliomap.model_file import load_model, save_ensemble, save_model
from gliomap.networks import build_network
from gliomap.postprocess import postprocess
from gliomap.recipe import StepSpec, with_settings
from gliomap.recipes import RECIPES
from gliomap.segment import load_segmenter
from gliomap.tune import LIMITS_ML, TuneOptions, choose, limit_text, tune, tuned_steps

FILE_VALUES = np.array([0, 1, 2, 4], np.uint8)  # of BraTS 2021
RECIPE = replace(RECIPES["cga_unet_fair"], postprocessing=(StepSpec("fill_holes"),))
COMPONENTS, LITTLE_ET = "remove_small_components", "small_et_to_ncr"


def components_under(ml):
    return StepSpec(COMPONENTS, {"min_ml": ml})


def et_under(ml):
    return StepSpec(LITTLE_ET, {"min_ml": ml})


def core(enhancing=0):
    """A block of 1,000 voxels of NCR in ED, with so many voxels of ET in it; (D, H, W) of 1 mm."""
    classes = np.zeros((20, 24, 28), np.uint8)
    classes[2:14, 2:14, 2:14] = ED
    classes[3:13, 3:13, 3:13] = NCR
    block = classes[3:13, 3:13, 3:13].copy()
    block.reshape(-1)[:enhancing] = ET
    classes[3:13, 3:13, 3:13] = block
    return classes


def with_spot(classes, voxels):
    """The map with a component of ED of so many voxels away from the rest."""
    out = classes.copy()
    spot = np.zeros((4, 6, 6), np.uint8)
    spot.reshape(-1)[:voxels] = ED
    out[16:20, 16:22, 20:26] = spot
    return out


def study_id(number):
    return f"BraTS2021_{number:05d}"


@pytest.fixture
def folder(tmp_path):
    """Writes a model, and the true and predicted maps of studies; returns the options to tune on them."""

    def write(pairs, recipe=RECIPE, **options):
        for number, (prediction, truth) in enumerate(pairs):
            name = study_id(number)
            save(tmp_path / "data" / name / f"{name}_seg.nii.gz", FILE_VALUES[truth], small_affine(1.0))
            save(tmp_path / "maps" / f"{name}.nii.gz", FILE_VALUES[prediction], small_affine(1.0))
        model = tmp_path / "model.safetensors"
        card = options.pop("card", {})
        save_model(model, recipe, {"weight": np.arange(6, dtype=np.float32)}, card)
        maps = tmp_path / "maps"
        return TuneOptions(
            model, tmp_path / "data", tmp_path / "tuned.safetensors", label_maps=maps, quiet=True, **options
        )

    return write


def little_et():
    """Studies without ET in which 60, 90 and 120 voxels are called so, and two whose 400 voxels of ET are true."""
    return [(core(n), core()) for n in (60, 90, 120)] + [(core(400), core(400))] * 2


def spots():
    """False spots of 20, 35 and 45 voxels, and two true ones of 70."""
    return [(with_spot(core(400), n), core(400)) for n in (20, 35, 45)] + [(with_spot(core(400), 70),) * 2] * 2


def test_the_limit_of_et_is_the_smallest_that_tells_false_from_true(folder):
    result = tune(folder(little_et()))
    assert (result.kept.components, result.kept.little_et) == (None, et_under(0.15))
    assert result.kept is result.best
    assert result.kept.dice == {"ET": 1.0, "TC": 1.0, "WT": 1.0}
    assert result.steps == (StepSpec("fill_holes"), et_under(0.15))
    assert result.candidates[0].dice == {
        "ET": pytest.approx(2 / 5),
        "TC": 1.0,
        "WT": 1.0,
    }  # empty in both is 1, in one 0
    assert load_model(result.model).recipe.postprocessing == result.steps
    assert (
        "0.8000 without limits, 0.8000 with the model's own steps, 1.0000 with the best limits" in result.statement[0]
    )
    assert "4 of 5 such choices are the same" in result.statement[1]
    assert "the best limits are kept" in result.statement[2]
    record = json.loads((result.table.parent / "tuned.run.json").read_text())
    gains = record["held_out_gains"]
    assert [gains[study_id(n)] for n in range(5)] == pytest.approx([1 / 3, 1 / 3, 0, 0, 0])  # 120 needs itself
    assert record["statement"] == list(result.statement)


def test_the_limit_of_components_is_the_smallest_that_tells_false_from_true(folder):
    result = tune(folder(spots()))
    assert (result.kept.components, result.kept.little_et) == (components_under(0.05), None)
    assert result.steps == (components_under(0.05), StepSpec("fill_holes"))
    assert result.kept.mean_dice == 1.0


def test_both_limits_are_found_together(folder):
    result = tune(folder(little_et() + spots()))
    assert result.steps == (components_under(0.05), StepSpec("fill_holes"), et_under(0.15))


def test_where_no_limit_helps_the_model_gets_none_and_it_is_said(folder):
    recipe = replace(RECIPE, postprocessing=(et_under(0.5), StepSpec("fill_holes")))
    result = tune(folder([(core(400), core(400)), (core(40), core(40)), (with_spot(core(), 20),) * 2], recipe))
    assert result.kept is result.best is result.candidates[0]
    assert result.steps == (StepSpec("fill_holes"),)
    assert "no limit helps" in result.statement[2]
    assert "1.0000 without limits, 0.7778 with the model's own steps" in result.statement[0]


def test_a_limit_that_only_the_study_it_was_chosen_on_gains_by_is_not_kept(folder):
    result = tune(folder([(core(60), core()), (core(400), core(400)), (core(300), core(300))]))
    assert result.best.little_et == et_under(0.075)
    assert result.best.mean_dice > result.kept.mean_dice
    assert result.kept is result.candidates[0]
    assert result.steps == (StepSpec("fill_holes"),)


def test_the_recipes_own_limits_are_tried_too(folder):
    own = StepSpec(LITTLE_ET, {"min_voxels": 125})
    recipe = replace(RECIPE, postprocessing=(own, components_under(0.1)))
    result = tune(folder([*little_et(), (core(130), core(130)), (core(140), core(140))], recipe))
    assert result.kept.little_et == own
    assert len(result.candidates) == (len(LIMITS_ML) + 1) * (len(LIMITS_ML) + 2)
    assert limit_text(own) == "125 voxels"


def test_every_candidate_is_scored_as_the_model_would_do_with_its_steps(folder):
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(2):
        truth, found = with_spot(core(300), 40), with_spot(core(90), 25)
        noise = rng.random(truth.shape) < 0.02
        found[noise] = rng.integers(0, 4, noise.sum())
        pairs.append((found, truth))
    result = tune(folder(pairs))
    for one in result.candidates[:: len(LIMITS_ML) // 2]:
        steps = tuned_steps(RECIPE, one.components, one.little_et)
        for region in ("ET", "TC", "WT"):
            dice = []
            for found, truth in pairs:
                a, b = region_mask(postprocess(found, steps, 0.001)[0], region), region_mask(truth, region)
                dice.append(2 * (a & b).sum() / (a.sum() + b.sum()))
            assert one.dice[region] == pytest.approx(np.mean(dice), abs=1e-12), one
    assert len({one.mean_dice for one in result.candidates}) > 5


def test_all_studies_of_a_patient_are_left_out_together():
    dice = np.array([[0.5, 0.9], [0.5, 0.9], [0.6, 0.5]])
    alone = choose(dice, ["a", "b", "c"])
    assert (alone.best, alone.kept, alone.alike) == (1, 1, 3)
    np.testing.assert_allclose(alone.held_out, [0.4, 0.4, -0.1])
    together = choose(dice, ["a", "a", "c"])
    assert (together.best, together.kept, together.alike) == (1, 0, 1)
    np.testing.assert_allclose(together.held_out, [0, 0, -0.1])


def test_the_tuned_file_has_the_same_weights_another_name_and_remembers_what_it_was_tuned_on(folder):
    card = {"training_studies": ["x"], "validation_studies": ["y"], "test_studies": ["z"], "seed": 7}
    options = folder(little_et(), card=card)
    tune(options)
    before, after = load_model(options.model), load_model(options.output)
    assert after.content_sha256 == before.content_sha256
    assert after.name != before.name
    assert after.recipe == replace(
        before.recipe, name="cga_unet_fair_tuned", postprocessing=after.recipe.postprocessing
    )
    assert (after.card["training_studies"], after.card["test_studies"], after.card["seed"]) == (["x"], ["z"], 7)
    assert after.card["validation_studies"] == sorted(["y", *(study_id(n) for n in range(5))])
    digest = sha256(options.output)
    again = tune(replace(options, model=options.output))
    record = json.loads(options.output.with_suffix(".run.json").read_text())
    assert (record["model_sha256"], record["tuned_sha256"]) == (digest, sha256(options.output))
    label_map = options.label_maps / f"{study_id(3)}.nii.gz"
    assert record["inputs"][study_id(3)][f"prediction of {after.name}"] == sha256(label_map)
    assert again.steps == after.recipe.postprocessing
    assert load_model(options.output).recipe.name == "cga_unet_fair_tuned"


def test_an_ensemble_stays_one(folder, tmp_path):
    options = folder(little_et())
    members = []
    for number in range(2):
        place = tmp_path / f"{number}.safetensors"
        card = {"training_studies": ["x"], "test_studies": ["z"], "seed": number, "cautions": ["care"]}
        save_model(place, RECIPE, {"weight": np.full(3, number, np.float32)}, card)
        members.append(load_model(place))
    save_ensemble(options.model, members)
    tune(options)
    before, after = load_model(options.model), load_model(options.output)
    assert (after.content_sha256, after.prefixes) == (before.content_sha256, before.prefixes)
    assert after.card.pop("tuning") != []
    assert after.card == before.card | {"validation_studies": [study_id(n) for n in range(5)]}
    assert after.recipe.postprocessing == (StepSpec("fill_holes"), et_under(0.15))


def test_studies_of_the_models_test_are_refused_and_those_it_was_trained_on_are_told(folder):
    options = folder(little_et(), card={"test_studies": [study_id(1)]})
    with pytest.raises(UsageError, match="1 of 5 studies, such as BraTS2021_00001, are the test of this model"):
        tune(options)
    assert not options.output.exists()
    tune(replace(options, studies=tuple(study_id(n) for n in (0, 2, 3))))


def test_a_fold_is_what_its_training_did_not_see(folder, tmp_path):
    options = folder(little_et())
    folds = tmp_path / "folds.json"
    folds.write_bytes(json_bytes({"folds": [[study_id(0), study_id(3)], [study_id(1), study_id(2), study_id(4)]]}))
    result = tune(replace(options, folds=folds, fold=1))
    assert "3 studies of 3 patients" in result.statement[0]
    assert load_model(result.model).card["validation_studies"] == [study_id(n) for n in (1, 2, 4)]
    for wrong, match in (
        ({"folds": folds}, "--folds and --fold go together"),
        ({"fold": 1}, "--folds and --fold go together"),
        ({"folds": folds, "fold": 0, "studies": (study_id(1),)}, "not both"),
        ({"folds": folds, "fold": 2}, "folds 0 to 1"),
        ({"studies": ("nobody",)}, "no labelled study nobody"),
        ({"studies": (study_id(1),)}, "of one patient"),
        ({"output": tmp_path / "tuned"}, "no name of a model file"),
    ):
        with pytest.raises(UsageError, match=match):
            tune(replace(options, **wrong))


def test_a_model_that_does_not_tell_et_has_no_limit_of_it(folder):
    recipe = replace(RECIPE, target=WHOLE_TUMOUR)
    as_whole = [tuple(np.where(classes > 0, ED, 0).astype(np.uint8) for classes in pair) for pair in spots()]
    result = tune(folder(as_whole, recipe))
    assert {one.little_et for one in result.candidates} == {None}
    assert list(result.kept.dice) == ["WT"]
    assert result.steps == (components_under(0.05), StepSpec("fill_holes"))


def test_a_study_that_cannot_be_used_is_reported_and_the_others_are_used(folder, capsys):
    options = folder([*little_et(), (core(), core())])
    (options.label_maps / f"{study_id(5)}.nii.gz").unlink()
    save(options.label_maps / f"{study_id(4)}.nii.gz", np.zeros((3, 4, 5), np.uint8), small_affine(1.0))
    result = tune(options)
    assert set(result.failed) == {study_id(4), study_id(5)}
    assert "different grids" in result.failed[study_id(4)]
    assert "no label map" in result.failed[study_id(5)]
    code = tune_command(options.model, options.data, options.output, label_maps=options.label_maps, quiet=True)
    assert code == 5
    assert study_id(5) in capsys.readouterr().err
    for place in options.label_maps.iterdir():
        save(place, np.zeros((3, 4, 5), np.uint8), small_affine(1.0))
    with pytest.raises(InputError, match="none of the 6 studies can be used"):
        tune(options)


def test_the_command_prints_both_axes_through_the_best_and_the_table_has_all(folder, capsys):
    own = (StepSpec(COMPONENTS, {"min_voxels": 30}),)
    options = folder(little_et(), replace(RECIPE, postprocessing=own))
    arguments = (options.model, options.data, options.output)
    assert tune_command(*arguments, label_maps=options.label_maps) == 0
    shown = capsys.readouterr().out
    assert [line.split() for line in shown.splitlines() if line.endswith("kept")] == [
        ["none", "0.15", "ml", "1.0000", "1.0000", "1.0000", "1.0000", "kept"]
    ]
    assert "warning: the model has the steps remove_small_components" in shown
    assert str(options.output) in shown
    with options.output.with_suffix(".csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == (len(LIMITS_ML) + 2) * (len(LIMITS_ML) + 1)
    (kept,) = (line for line in lines if line["kept"])
    assert (kept["components_under"], kept["et_under"], kept["dice_mean"]) == ("none", "0.15 ml", "1")
    assert tune_command(*arguments, label_maps=options.label_maps, json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["steps"] == [{"name": LITTLE_ET, "settings": {"min_ml": 0.15}}]


def test_a_model_is_run_once_for_each_study_and_does_with_the_steps_as_was_promised(tmp_path, monkeypatch):
    for number in range(2):
        write_study(tmp_path / "data", "brats2021", study_id(number), seed=number)
    settings = ["network.settings.base=2", "preprocessing.spacing_mm=null", "postprocessing=[]"]
    recipe = with_settings(RECIPES["attention_resunet_small"], settings)
    torch.manual_seed(0)
    weights = {name: tensor.numpy() for name, tensor in build_network(recipe).state_dict().items()}
    path = tmp_path / "model.safetensors"
    save_model(path, recipe, weights, {"training_studies": [study_id(0)]})
    module = importlib.import_module("gliomap.tune")
    original, runs = module.model_segmenter, []

    def counted(*arguments):
        segmenter = original(*arguments)
        (engine,) = segmenter.engines
        noted = replace(engine, run=lambda images: (runs.append(1), engine.run(images))[1])
        return replace(segmenter, engines=(noted,))

    monkeypatch.setattr(module, "model_segmenter", counted)
    options = TuneOptions(
        path, tmp_path / "data", tmp_path / "tuned.safetensors", device="cpu", engine="torch", quiet=True
    )
    result = tune(options)
    assert len(runs) == 2
    assert len(result.warnings) == 1
    assert "1 of 2 studies trained this model" in result.warnings[0]
    _, segmenter = load_segmenter(result.model, "cpu", "torch")
    dice = []
    for study in find_studies(options.data):
        found, truth = segmenter(study.read()[0]).array[0], study.read_classes()[0].array[0]
        assert len(np.unique(found)) > 2
        measured = measure(found, truth, (1.0, 1.0, 1.0), ("ET", "TC", "WT"), ("dice",))
        dice.append([measured[region, "dice"] for region in ("ET", "TC", "WT")])
    assert list(result.kept.dice.values()) == pytest.approx(np.mean(dice, 0), abs=1e-9)
