import csv
import importlib
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from gliomap import loop, training_state
from gliomap.classes import WHOLE_TUMOUR
from gliomap.data.datasets import find_studies
from gliomap.errors import InputError, Interrupted, UsageError
from gliomap.evaluate import EvaluateOptions, evaluate
from gliomap.export import ExportOptions, export
from gliomap.model_file import load_model
from gliomap.phantom import PhantomOptions, phantom
from gliomap.recipe import Coarse, LossSpec, Preprocessing, Recipe, Start, recipe_from_json, recipe_json, with_settings
from gliomap.recipes import RECIPES
from gliomap.segment import SegmentOptions, segment
from gliomap.segmenter import Segmenter
from gliomap.starts import finished_training
from gliomap.train import TrainOptions, train
from gliomap.tune import TuneOptions, tune

pytestmark = pytest.mark.usefixtures("no_cache", "no_training_page")

train_module = importlib.import_module("gliomap.train")

SETTINGS = [
    "network.settings.base=4",
    "preprocessing.spacing_mm=null",
    "training.patch_size=[16,16,16]",
    "inference.window=[16,32,32]",
    "training.batch_size=2",
    "training.patches=8",
    "training.validate_every=4",
]


@pytest.fixture(scope="module", name="data")
def _data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    phantom(PhantomOptions(folder, studies=4, size=32, quiet=True))
    return folder


def _options(data: Path, output: Path, **changes: object) -> TrainOptions:
    values: dict[str, object] = {"settings": SETTINGS, "device": "cpu", "quiet": True} | changes
    return TrainOptions("attention_resunet_small", data, output, **values)  # pyright: ignore[reportArgumentType]


def _variant(folder: Path, **changes: object) -> str:
    """A small recipe changed and written to a file, as `train` takes it."""
    recipe = replace(with_settings(RECIPES["attention_resunet_small"], SETTINGS), **changes)  # pyright: ignore[reportArgumentType]
    path = folder / f"{recipe.name}.json"
    path.write_text(recipe_json(recipe))
    return str(path)


def _train(recipe: str, data: Path, output: Path, **changes: object):
    return train(TrainOptions(recipe, data, output, device="cpu", quiet=True, **changes))  # pyright: ignore[reportArgumentType]


def _begun_with(first: Recipe, **changes: object) -> dict[str, object]:
    return {"name": "second", "starts_from": (Start(first),), **changes}


def _weights(path: Path) -> dict[str, np.ndarray]:
    return load_model(path).weights


def _same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module", name="whole")
def _whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that came to its end; to be read only."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert train(_options(data, run)).ended == "budget reached"
    return run


@pytest.fixture(scope="module")
def one_step(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that ended with its time, after one step; to be copied."""
    run = tmp_path_factory.mktemp("one_step") / "run"
    result = train(_options(data, run, max_time_s=1e-6))
    assert (result.ended, result.patches) == ("time limit reached", 2)
    assert result.model.is_file()
    return run


def test_training_leaves_a_model_a_log_and_a_record(data: Path, tmp_path: Path) -> None:
    result = train(_options(data, tmp_path / "run"))
    assert (result.patches, result.ended) == (8, "budget reached")
    assert set(os.listdir(tmp_path / "run")) == {
        "model.safetensors",
        "last.safetensors",
        "checkpoint.pt",
        "checkpoint.previous.pt",
        "recipe.json",
        "log.csv",
        "steps.csv",
        "training.html",
        "tensorboard",
        "run.json",
    }
    with (tmp_path / "run" / "log.csv").open() as stream:
        log = list(csv.DictReader(stream))
    assert [int(line["patches"]) for line in log] == [4, 8]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    used = record["studies"]
    assert len(used["validation"]) == 1
    assert not set(used["training"]) & set(used["validation"])
    assert len(used["training"]) == 3
    best = max(float(line["dice_mean"]) for line in log)
    assert load_model(result.model).card["validation"]["dice_mean"] == pytest.approx(best)


def test_training_is_the_same_from_the_same_seed_and_not_from_another(data: Path, tmp_path: Path) -> None:
    settings = [*SETTINGS, "training.patches=4"]
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(_options(data, tmp_path / name, settings=settings, seed=seed))
    first, again, other = (_weights(tmp_path / name / "last.safetensors") for name in "abc")
    assert _same(first, again)
    assert not _same(first, other)


def test_the_loss_falls(data: Path, tmp_path: Path) -> None:
    settings = [*SETTINGS, "training.patches=48", "training.validate_every=12", "training.learning_rate=0.005"]
    train(_options(data, tmp_path / "run", settings=settings))
    with (tmp_path / "run" / "log.csv").open() as stream:
        losses = [float(line["loss_cross_entropy"]) for line in csv.DictReader(stream)]
    assert losses[-1] < 0.7 * losses[0]


def test_an_interrupted_training_resumes_to_exactly_the_uninterrupted_one(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gliomap.loop.backward", _interrupt_after(3))
    with pytest.raises(Interrupted, match="--resume") as caught:
        train(_options(data, tmp_path / "parts"))
    assert caught.value.exit_code == 130
    monkeypatch.undo()
    resumed = train(_options(data, tmp_path / "parts", resume=True))
    assert resumed.patches == 8
    for name in ("model.safetensors", "last.safetensors"):
        assert _same(_weights(whole / name), _weights(tmp_path / "parts" / name))


def _interrupt_after(steps: int):
    original, done = loop.backward, []

    def backward(*arguments: object) -> dict[str, float]:
        done.append(1)
        if len(done) == steps:
            signal.raise_signal(signal.SIGINT)  # in the middle of a step, as Ctrl-C nearly always is
        return original(*arguments)  # pyright: ignore[reportArgumentType]

    return backward


def test_there_is_nothing_to_resume_where_nothing_was_trained(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to resume"):
        train(_options(data, tmp_path / "run", resume=True))


def test_a_validation_study_that_cannot_be_read_is_found_before_training(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    ids = phantom(PhantomOptions(copy, studies=3, size=32, quiet=True))
    (copy / ids[0] / f"{ids[0]}_flair.nii.gz").unlink()
    folds = tmp_path / "folds.json"
    folds.write_text(json.dumps({"folds": [ids[:2], ids[2:]]}))
    result = train(_options(copy, tmp_path / "run", folds=folds, max_time_s=1e-6))
    assert list(result.failed) == [ids[0]]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["studies"]["validation"] == [ids[1]]


def test_the_fold_decides_who_validates(data: Path, tmp_path: Path) -> None:
    held_out = []
    for fold in (0, 1):
        train(_options(data, tmp_path / str(fold), fold=fold, max_time_s=1e-6))
        held_out += json.loads((tmp_path / str(fold) / "run.json").read_text())["studies"]["validation"]
    assert len(set(held_out)) == 2
    with pytest.raises(UsageError, match="folds 0 to 3"):
        train(_options(data, tmp_path / "more", fold=7))


def test_augmentation_and_weight_decay_and_schedule_reach_the_weights(data: Path, tmp_path: Path) -> None:
    base = [*SETTINGS, "training.patches=4", "augmentation.elastic_voxels=0", "augmentation.noise=0"]
    changes = {
        "base": [],
        "augmented": ["augmentation.noise=0.5"],
        "decay": ["training.weight_decay=0.1"],
        "schedule": ["training.schedule=constant"],
    }
    for name, change in changes.items():
        train(_options(data, tmp_path / name, settings=[*base, *change]))
    weights = {name: _weights(tmp_path / name / "last.safetensors") for name in changes}
    assert not any(_same(weights["base"], weights[name]) for name in ("augmented", "decay", "schedule"))


def test_the_model_is_the_one_that_validated_best_not_the_last(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.9] * 3 + [0.1] * 3)
    monkeypatch.setattr("gliomap.loop.dice", lambda *_: next(scores, 0.1))
    result = train(_options(data, tmp_path / "run"))
    assert load_model(result.model).card["patches"] == 4
    assert not _same(_weights(result.model), _weights(tmp_path / "run" / "last.safetensors"))


def test_sizes_that_the_network_cannot_take_are_refused_before_training(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"inference\.window is \(50, 50, 50\); expected multiples of \(16, 16, 16\)"):
        train(_options(data, tmp_path / "run", settings=[*SETTINGS, "inference.window=[50,50,50]"]))


def test_resuming_with_other_training_studies_is_refused(data: Path, one_step: Path, tmp_path: Path) -> None:
    shutil.copytree(one_step, tmp_path / "run")
    with pytest.raises(UsageError, match="training studies are not those of the checkpoint, such as BraTS2021"):
        train(_options(data, tmp_path / "run", resume=True, fold=1))


def test_studies_in_no_fold_are_reported(data: Path, tmp_path: Path) -> None:
    ids = sorted(p.name for p in data.iterdir() if p.is_dir())
    folds = tmp_path / "folds.json"
    folds.write_text(json.dumps({"folds": [ids[:1], ids[1:3]]}))
    result = train(_options(data, tmp_path / "run", folds=folds, max_time_s=1e-6))
    assert any(text.startswith("1 studies are in no fold") for text in result.warnings)


def test_a_resection_cavity_trains_as_background_with_a_warning(tmp_path: Path) -> None:
    ids = phantom(PhantomOptions(tmp_path / "data", studies=2, layout="brats2024", size=32, quiet=True))
    label = tmp_path / "data" / ids[0] / f"{ids[0]}-seg.nii.gz"
    image = nib.load(label)
    values = np.asarray(image.dataobj).copy()
    values[values == 3] = 4
    nib.save(nib.Nifti1Image(values, image.affine, image.header), label)
    result = train(_options(tmp_path / "data", tmp_path / "run", max_time_s=1e-6))
    assert any("cavity trains as background" in text for text in result.warnings)


def test_a_time_limit_ends_training_early_and_says_so(one_step: Path) -> None:
    record = json.loads((one_step / "run.json").read_text())
    assert (record["ended"], record["patches"]) == ("time limit reached", 2)
    assert load_model(one_step / "model.safetensors").card["patches"] == 2


def test_a_folder_that_holds_a_training_is_not_overwritten(data: Path, one_step: Path, tmp_path: Path) -> None:
    shutil.copytree(one_step, tmp_path / "run")
    with pytest.raises(UsageError, match="already holds a training"):
        train(_options(data, tmp_path / "run"))


def test_resuming_with_another_recipe_or_seed_is_refused(data: Path, one_step: Path, tmp_path: Path) -> None:
    shutil.copytree(one_step, tmp_path / "run")
    with pytest.raises(UsageError, match="recipe is not the one"):
        train(_options(data, tmp_path / "run", resume=True, settings=[*SETTINGS, "training.patches=14"]))
    with pytest.raises(UsageError, match="--seed 0 and this is 3"):
        train(_options(data, tmp_path / "run", resume=True, seed=3))


def test_a_loss_that_is_not_finite_stops_training_and_names_the_studies(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not finite after .*BraTS2021_Phantom"):
        train(_options(data, tmp_path / "run", settings=[*SETTINGS, "training.learning_rate=1e30"]))


def test_a_bad_study_is_left_out_and_reported(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    phantom(PhantomOptions(copy, studies=4, size=32, quiet=True))
    for bad in copy.glob("*/*_t2.nii.gz"):
        if bad.parent.name.endswith("0002"):
            bad.write_bytes(bad.read_bytes()[:2000])
    folds = tmp_path / "folds.json"
    ids = sorted(p.name for p in copy.iterdir() if p.is_dir())
    folds.write_text(json.dumps({"folds": [[ids[0]], ids[1:]]}))
    result = train(_options(copy, tmp_path / "run", folds=folds, max_time_s=1e-6))
    assert list(result.failed) == ["BraTS2021_PhantomV1_00002"]
    assert "truncated" in result.failed["BraTS2021_PhantomV1_00002"]


def test_the_validation_score_is_that_of_the_real_inference(data: Path, tmp_path: Path) -> None:
    result = train(_options(data, tmp_path / "run"))
    (held_out,) = json.loads((tmp_path / "run" / "run.json").read_text())["studies"]["validation"]
    asked = EvaluateOptions(result.model, data, tmp_path / "scores.csv", studies=(held_out,), device="cpu", quiet=True)
    dice = {r.region: r.value for r in evaluate(asked).rows if r.metric == "dice"}
    assert dice == pytest.approx(result.validation_dice, abs=1e-6)
    assert torch.is_grad_enabled()


def test_what_a_recipe_starts_from_is_trained_first_and_its_weights_carry_over(data: Path, tmp_path: Path) -> None:
    first = recipe_from_json(Path(_variant(tmp_path, name="first")).read_text())
    whole = ("encoder", "bottleneck", "up", "decoder", "head", "gates")
    second = _variant(tmp_path, **_begun_with(first, frozen=whole))
    result = _train(second, data, tmp_path / "runs" / "second")
    assert result.ended == "nothing to train"
    part = tmp_path / "runs" / "second" / "starts_from" / "first"
    assert json.loads((part / "run.json").read_text())["ended"] == "budget reached"
    assert _same(_weights(result.model), _weights(part / "model.safetensors"))
    model = load_model(result.model)
    began = {"content_sha256": load_model(part / "model.safetensors").content_sha256, "ended": "budget reached"}
    assert model.card["starts_from"] == {"first": began}
    assert set(result.validation_dice) == {"ET", "TC", "WT"}


def test_a_finished_training_beside_it_is_reused(data: Path, tmp_path: Path) -> None:
    path = _variant(tmp_path, name="first")
    _train(path, data, tmp_path / "runs" / "a")
    first = recipe_from_json(Path(path).read_text())
    training = replace(first.training, patches=2, validate_every=2)
    second = _variant(tmp_path, **_begun_with(first, training=training))
    _train(second, data, tmp_path / "runs" / "b")
    assert not (tmp_path / "runs" / "b" / "starts_from").exists()
    began = json.loads((tmp_path / "runs" / "b" / "run.json").read_text())["starts_from"]
    assert began["first"]["content_sha256"] == load_model(tmp_path / "runs" / "a" / "model.safetensors").content_sha256
    _train(second, data, tmp_path / "runs" / "c", seed=1)  # another seed has other weights and other studies
    assert (tmp_path / "runs" / "c" / "starts_from" / "first" / "model.safetensors").exists()


def test_a_training_cut_short_is_not_reused_and_the_time_is_shared(data: Path, tmp_path: Path) -> None:
    path = _variant(tmp_path, name="first")
    _train(path, data, tmp_path / "runs" / "a", max_time_s=1e-6)
    first = recipe_from_json(Path(path).read_text())
    result = _train(_variant(tmp_path, **_begun_with(first)), data, tmp_path / "runs" / "b", max_time_s=1e-6)
    assert (result.ended, result.patches) == ("time limit reached", 2)
    part = json.loads((tmp_path / "runs" / "b" / "starts_from" / "first" / "run.json").read_text())
    assert (part["ended"], part["patches"]) == ("time limit reached", 2)


def test_an_interruption_while_the_first_part_trains_is_resumed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = recipe_from_json(Path(_variant(tmp_path, name="first")).read_text())
    second = _variant(tmp_path, **_begun_with(first))
    whole = _train(second, data, tmp_path / "whole" / "run")
    monkeypatch.setattr("gliomap.loop.backward", _interrupt_after(3))
    with pytest.raises(Interrupted):
        _train(second, data, tmp_path / "parts" / "run")
    monkeypatch.undo()
    with pytest.raises(UsageError, match="already holds a training"):
        _train(second, data, tmp_path / "parts" / "run")
    other = _variant(tmp_path, **_begun_with(replace(first, training=replace(first.training, patches=10))))
    with pytest.raises(UsageError, match="recipe is not the one"):
        _train(other, data, tmp_path / "parts" / "run", resume=True)
    second = _variant(tmp_path, **_begun_with(first))
    resumed = _train(second, data, tmp_path / "parts" / "run", resume=True)
    assert _same(_weights(whole.model), _weights(resumed.model))


def test_frozen_parts_keep_their_weights_and_others_do_not(data: Path, tmp_path: Path) -> None:
    free = _train(_variant(tmp_path, name="free"), data, tmp_path / "free")
    held = _train(_variant(tmp_path, name="held", frozen=("encoder",)), data, tmp_path / "held")
    untrained = _train(_variant(tmp_path, name="x", frozen=("encoder",)), data, tmp_path / "x", max_time_s=1e-6)
    a, b, start = (_weights(r.model.with_name("last.safetensors")) for r in (free, held, untrained))
    assert all(np.array_equal(b[k], start[k]) for k in b if k.startswith("encoder."))
    assert not np.array_equal(a["encoder.0.0.conv1.weight"], b["encoder.0.0.conv1.weight"])
    assert not np.array_equal(b["head.weight"], start["head.weight"])
    with pytest.raises(UsageError, match="cannot freeze nothing"):
        _train(_variant(tmp_path, name="y", frozen=("nothing",)), data, tmp_path / "y")


def test_weights_that_do_not_fit_are_refused(data: Path, tmp_path: Path) -> None:
    first = with_settings(RECIPES["attention_resunet_small"], [*SETTINGS, "name=first", "network.settings.base=6"])
    with pytest.raises(UsageError, match="the weights of first will not fit the network of second"):
        _train(_variant(tmp_path, **_begun_with(first)), data, tmp_path / "run", max_time_s=1e-6)


def test_training_stops_early_when_the_validation_no_longer_improves(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([v for epoch in (0.3, 0.5, 0.4, 0.5, 0.9) for v in [epoch] * 3])
    monkeypatch.setattr("gliomap.loop.dice", lambda *_: next(scores))
    recipe = RECIPES["attention_resunet_small"].training
    training = replace(recipe, patches=10, validate_every=2, early_stopping=2, patch_size=(16, 16, 16), batch_size=2)
    result = _train(_variant(tmp_path, training=training), data, tmp_path / "run")
    assert (result.ended, result.patches) == ("stopped early", 8)
    assert load_model(result.model).card["patches"] == 4


def test_the_loss_is_told_the_epoch(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gliomap import train as module  # noqa: PLC0415

    epochs = []

    def build_loss(spec: object):
        loss = original(spec)  # pyright: ignore[reportArgumentType]
        return lambda *arguments: epochs.append(arguments[3]) or loss(*arguments)

    original = module.build_loss
    monkeypatch.setattr("gliomap.train.build_loss", build_loss)
    train(_options(data, tmp_path / "run"))
    assert epochs == [0, 0, 1, 1]


def test_studies_kept_for_the_test_are_not_seen_and_are_written_down(tmp_path: Path) -> None:
    phantom(PhantomOptions(tmp_path / "data", studies=5, size=32, quiet=True))
    settings = [*SETTINGS, "training.test_share=0.4"]
    result = train(_options(tmp_path / "data", tmp_path / "run", settings=settings, max_time_s=1e-6))
    used = json.loads((tmp_path / "run" / "run.json").read_text())["studies"]
    assert [len(used[part]) for part in ("training", "validation", "test")] == [2, 1, 2]
    assert load_model(result.model).card["test_studies"] == used["test"]
    assert len({i for part in ("training", "validation", "test") for i in used[part]}) == 5


def test_a_two_dimensional_network_trains_on_slices_and_segments_volumes(data: Path, tmp_path: Path) -> None:
    recipe = with_settings(
        RECIPES["aspp_attention_unet_flair"],
        ["training.patch_size=[1,32,32]", "training.batch_size=4", "training.patches=12", "training.validate_every=12",
         "network.settings.base=2", "network.settings.aspp_width=2", "inference.window=[1,32,32]"],
    )  # fmt: skip
    path = tmp_path / "slices.json"
    path.write_text(recipe_json(recipe))
    result = _train(str(path), data, tmp_path / "run")
    assert set(result.validation_dice) == {"WT"}
    with (tmp_path / "run" / "log.csv").open() as stream:
        assert "dice_ET" not in next(csv.DictReader(stream))


def test_a_reproduction_that_nobody_should_do_is_flagged_wherever_it_is_used(data: Path, tmp_path: Path) -> None:
    told = _variant(tmp_path, preprocessing=Preprocessing(crop="truth_centre", crop_size=(16, 32, 32)))
    result = _train(told, data, tmp_path / "run")
    (warning,) = (text for text in result.warnings if text.startswith("reproduction: "))
    assert "told where the tumour is" in warning
    asked = EvaluateOptions(result.model, data, tmp_path / "scores.csv", seen_too=True, device="cpu", quiet=True)
    assert warning in evaluate(asked).warnings
    (study, *_) = sorted(p for p in data.iterdir() if p.is_dir())
    segmented = segment(SegmentOptions(study, tmp_path / "out", model=result.model, device="cpu", quiet=True))
    assert warning in segmented.done[0].warnings
    assert not segmented.done[0].scores
    assert "told where the tumour is" in (tmp_path / "out" / "report.html").read_text()
    copy = tmp_path / study.name
    shutil.copytree(study, copy)
    next(copy.glob("*_seg.nii.gz")).unlink()
    with pytest.raises(InputError, match=r"no label map.* crops about the true tumour"):
        segment(SegmentOptions(copy, tmp_path / "none", model=result.model, device="cpu", quiet=True))


def test_a_model_of_the_whole_tumour_is_scored_by_it_alone(data: Path, tmp_path: Path) -> None:
    loss = LossSpec("binary_cross_entropy_dice")
    base = with_settings(RECIPES["attention_resunet_small"], SETTINGS)
    whole = _variant(tmp_path, target=WHOLE_TUMOUR, training=replace(base.training, loss=loss))
    result = _train(whole, data, tmp_path / "run")
    metrics = ("dice", "hd95_all_voxels")
    asked = EvaluateOptions(
        result.model, data, tmp_path / "s.csv", metrics=metrics, seen_too=True, device="cpu", quiet=True
    )
    rows = list(evaluate(asked).rows)
    assert {row.region for row in rows} == {"WT"}
    assert {row.metric for row in rows} == {*metrics, "volume", "volume_truth"}
    (study, *_) = sorted(p for p in data.iterdir() if p.is_dir())
    found = segment(SegmentOptions(study, tmp_path / "out", model=result.model, score=True, device="cpu", quiet=True))
    assert set(found.done[0].volumes_ml) == {"WT"}
    assert any(text.startswith("this model tells WT only") for text in found.done[0].warnings)
    assert {row.region for row in found.done[0].scores} == {"WT"}


def test_dropout_resumes_exactly_too(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["network.settings.base=8", "network.settings.blocks=[1,1,1,1]", "training.patch_size=[16,32,32]",
                "inference.window=[16,32,32]", "training.patches=8", "training.validate_every=4"]  # fmt: skip
    run = {"settings": settings}
    whole = _train("cga_unet_baseline_fair", data, tmp_path / "whole", **run)
    monkeypatch.setattr("gliomap.loop.backward", _interrupt_after(2))
    with pytest.raises(Interrupted):
        _train("cga_unet_baseline_fair", data, tmp_path / "parts", **run)
    monkeypatch.undo()
    parts = _train("cga_unet_baseline_fair", data, tmp_path / "parts", resume=True, **run)
    a, b = (_weights(result.model.with_name("last.safetensors")) for result in (whole, parts))
    assert _same(a, b)


def test_what_a_recipe_starts_from_never_sees_its_validation_studies(data: Path, tmp_path: Path) -> None:
    first = recipe_from_json(Path(_variant(tmp_path, name="first")).read_text())
    shares = replace(first.training, validation_share=0.5, test_share=0.25)
    second = _variant(tmp_path, **_begun_with(first, training=shares))
    _train(second, data, tmp_path / "runs" / "second", max_time_s=1e-6)
    outer, inner = (
        json.loads((tmp_path / "runs" / "second" / place / "run.json").read_text())["studies"]
        for place in ("", "starts_from/first")
    )
    assert [len(outer[part]) for part in ("training", "validation", "test")] == [1, 2, 1]
    assert {part: outer[part] for part in outer} == {part: inner[part] for part in outer}


def _log(run: Path) -> list[dict[str, str]]:
    with (run / "log.csv").open() as stream:
        return list(csv.DictReader(stream))


def _finished(data: Path, folder: Path, **changes: object) -> Path | None:
    """The training in a folder, if it would be taken over for the default seed and the studies it was made with."""
    recipe = recipe_from_json((folder / "recipe.json").read_text())
    used = json.loads((folder / "run.json").read_text())["studies"]
    studies = {s.id: s for s in find_studies(data)}
    more = {"cut_too": changes.pop("cut_too", False)}
    arguments = {"recipe": recipe, "seed": 0, "labels": None} | changes
    parts = ([studies[i] for i in used[part]] for part in ("training", "validation"))
    return finished_training([folder], *arguments.values(), list(parts), **more)  # pyright: ignore


def test_only_the_same_training_of_the_same_files_is_taken_over(tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    ids = phantom(PhantomOptions(data, studies=3, size=32, quiet=True))
    _train(_variant(tmp_path), data, run)
    recipe = recipe_from_json((run / "recipe.json").read_text())
    assert _finished(data, run) == run
    assert _finished(data, run, seed=1) is None
    assert _finished(data, run, labels="brats2021") is None
    assert _finished(data, run, recipe=replace(recipe, name="other")) is None
    studies = sorted(find_studies(data), key=lambda s: s.id)
    assert finished_training([run], recipe, 0, None, [studies[:1], studies[1:]]) is None
    record = (run / "run.json").read_text()
    for ended in ("time limit reached", "interrupted"):
        (run / "run.json").write_text(record.replace("budget reached", ended))
        assert _finished(data, run) is None
        assert _finished(data, run, cut_too=True) == (run if ended == "time limit reached" else None)
    (run / "run.json").write_text(record)
    model = run / "model.safetensors"
    content = model.read_bytes()
    model.write_bytes(content[:-1])
    assert _finished(data, run) is None
    model.write_bytes(content)
    flair = data / ids[0] / f"{ids[0]}_flair.nii.gz"
    image = nib.load(flair)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * 2, image.affine, image.header), flair)
    assert _finished(data, run) is None


def test_what_was_begun_with_a_training_cut_short_says_so_and_is_not_taken_over(data: Path, tmp_path: Path) -> None:
    first = recipe_from_json(Path(_variant(tmp_path, name="first")).read_text())
    whole = ("encoder", "bottleneck", "up", "decoder", "head", "gates")
    second = _variant(tmp_path, **_begun_with(first, frozen=whole))
    result = _train(second, data, tmp_path / "runs" / "second", max_time_s=1e-6)
    assert result.ended == "nothing to train"
    assert result.warnings[0] == "it starts from first, which did not come to its end (time limit reached)"
    assert _finished(data, tmp_path / "runs" / "second") is None


def test_a_write_that_fails_loses_no_best_model(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *arguments: object) -> str:
        if path.name == "last.safetensors":
            raise OSError(28, "No space left on device")
        return original(path, *arguments)  # pyright: ignore[reportArgumentType]

    original = training_state.save_model
    monkeypatch.setattr("gliomap.training_state.save_model", full)
    with pytest.raises(OSError, match="No space"):
        train(_options(data, tmp_path / "run"))
    monkeypatch.undo()
    result = train(_options(data, tmp_path / "run", resume=True))
    best = max(_log(tmp_path / "run"), key=lambda line: float(line["dice_mean"]))
    assert load_model(result.model).card["patches"] == int(best["patches"])


def test_a_time_limit_changes_nothing_of_what_comes_after_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*SETTINGS, "training.schedule=plateau", "training.plateau_patience=0", "training.plateau_factor=0.1"]
    train(_options(data, tmp_path / "whole", settings=settings))
    train(_options(data, tmp_path / "parts", settings=settings, max_time_s=1e-6))
    train(_options(data, tmp_path / "parts", settings=settings, resume=True))
    assert _same(*(_weights(tmp_path / run / "last.safetensors") for run in ("whole", "parts")))
    logs = [_log(tmp_path / run) for run in ("whole", "parts")]
    columns = [name for name in logs[0][0] if name.startswith(("patches", "dice", "learning"))]
    assert [[line[c] for c in columns] for line in logs[0]] == [[line[c] for c in columns] for line in logs[1]]


def test_a_resumed_training_keeps_its_log_its_time_and_what_it_began_with(data: Path, tmp_path: Path) -> None:
    first = recipe_from_json(Path(_variant(tmp_path, name="first")).read_text())
    second, run = _variant(tmp_path, **_begun_with(first)), tmp_path / "runs" / "second"
    _train(_variant(tmp_path, name="first"), data, tmp_path / "runs" / "first")
    _train(second, data, run, max_time_s=1e-6)
    before = json.loads((run / "run.json").read_text())
    _train(second, data, run, resume=True)
    after = json.loads((run / "run.json").read_text())
    assert after["starts_from"] == before["starts_from"] != {}
    assert after["train_time_s"] > before["train_time_s"]
    with (run / "log.csv").open() as stream:
        assert [int(line["patches"]) for line in csv.DictReader(stream)] == [4, 8]


def test_label_maps_of_a_whole_tumour_model_are_scored_by_it_alone(data: Path, tmp_path: Path) -> None:
    base = with_settings(RECIPES["attention_resunet_small"], SETTINGS)
    training = replace(base.training, loss=LossSpec("binary_cross_entropy_dice"))
    result = _train(_variant(tmp_path, target=WHOLE_TUMOUR, training=training), data, tmp_path / "run", max_time_s=1e-6)
    segment(SegmentOptions(data, tmp_path / "maps", model=result.model, device="cpu", quiet=True))
    rows = evaluate(EvaluateOptions(tmp_path / "maps", data, tmp_path / "scores.csv", quiet=True)).rows
    assert {row.region for row in rows} == {"WT"}


def test_the_time_is_divided_among_the_trainings_that_have_to_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float] = []

    def fit(run: Any) -> str:
        limits.append(run.limit_s)
        return original(run)

    original = loop.fit
    monkeypatch.setattr("gliomap.train.fit", fit)
    first = recipe_from_json(Path(_variant(tmp_path, name="first")).read_text())
    other = replace(first, name="other")
    last = _variant(tmp_path, name="last", starts_from=(Start(first), Start(other)))
    _train(last, data, tmp_path / "runs" / "last", max_time_s=3000.0)
    assert limits[0] == pytest.approx(1000, rel=0.01)
    assert limits[1] == pytest.approx(1500, rel=0.02)  # half of what the first left
    assert limits[2] == pytest.approx(3000, rel=0.02)


FIRST = replace(with_settings(RECIPES["attention_resunet_small"], SETTINGS), name="first")


def test_what_finds_the_tumour_is_trained_first_and_goes_into_the_model(data: Path, tmp_path: Path) -> None:
    recipe = _variant(tmp_path, name="second", coarse=Coarse(FIRST, 2.0))
    whole = _train(recipe, data, tmp_path / "whole" / "run")
    place = tmp_path / "cut" / "run"
    _train(recipe, data, place, max_time_s=1e-6)
    shutil.rmtree(place / "starts_from")  # it has its own copy
    resumed = _train(recipe, data, place, resume=True)
    assert (resumed.patches, resumed.ended) == (8, "budget reached")
    model = load_model(whole.model)
    assert model.coarse is not None
    copied = load_model(tmp_path / "whole" / "run" / "coarse.safetensors")
    assert (model.coarse.recipe, model.coarse.name) == (FIRST, copied.name)
    assert _same(model.coarse.weights, copied.weights)
    assert model.card["coarse"] == {"first": {"content_sha256": copied.content_sha256, "ended": "budget reached"}}
    assert load_model(resumed.model).coarse is not None
    warning = "the tumour is found for it by first, which did not come to its end (time limit reached)"
    assert (warning in resumed.warnings, warning in whole.warnings) == (True, False)
    split = [[s for s in find_studies(data) if s.id in model.card[f"{p}_studies"]] for p in ("training", "validation")]
    assert finished_training([place], model.recipe, 0, None, split) is None
    assert finished_training([place], model.recipe, 0, None, split, cut_too=True) == place


def _noted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The recipes of all segmenters that run from now on, in their order."""
    seen: list[str] = []
    original = Segmenter.segmentation

    def noted(self: Segmenter, *arguments: Any, **keywords: Any) -> Any:
        seen.append(self.recipe.name)
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(Segmenter, "segmentation", noted)
    return seen


def test_a_model_that_finds_the_tumour_first_is_used_by_every_verb(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = _train(_variant(tmp_path, name="second", coarse=Coarse(FIRST, 0.0)), data, tmp_path / "run")
    found = segment(SegmentOptions(data, tmp_path / "out", model=result.model, engine="torch", quiet=True))
    assert [len(one.record["passes"]) for one in found.done] == [2] * 4
    seen = _noted(monkeypatch)
    evaluate(EvaluateOptions(result.model, data, tmp_path / "scores.csv", seen_too=True, device="cpu", quiet=True))
    tune(TuneOptions(result.model, data, tmp_path / "tuned.safetensors", device="cpu", engine="torch", quiet=True))
    assert seen.count("first") == 8
    assert load_model(tmp_path / "tuned.safetensors").coarse is not None
    with pytest.raises(UsageError, match="is a cascade"):
        export(ExportOptions(result.model, tmp_path / "net.onnx", "onnx"))


def test_a_model_left_by_a_run_that_never_began_does_not_find_the_tumour(data: Path, tmp_path: Path) -> None:
    recipe = _variant(tmp_path, name="second", coarse=Coarse(FIRST, 2.0))
    other = _train(recipe, data, tmp_path / "other", seed=5)
    (tmp_path / "run").mkdir()
    shutil.copy(tmp_path / "other" / "coarse.safetensors", tmp_path / "run")
    coarse = load_model(_train(recipe, data, tmp_path / "run").model).coarse
    assert coarse is not None
    assert coarse.name != load_model(tmp_path / "other" / "coarse.safetensors").name
    again = _train(recipe, data, tmp_path / "again", seed=1, begin_with=other.model, max_time_s=1e-6)
    began = json.loads((tmp_path / "again" / "starts_from" / "first" / "run.json").read_text())["starts_from"]
    assert began == {}  # only the last network begins with the weights that are given
    card = load_model(again.model).card
    assert list(card["starts_from"]) == [load_model(other.model).name]


def test_what_starts_a_training_and_finds_the_tumour_for_it_is_trained_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _variant(tmp_path, name="second", coarse=Coarse(FIRST, 2.0), starts_from=(Start(FIRST),))
    limits: list[float] = []
    original = train_module._set_up

    def noted(*arguments: Any) -> Any:
        limits.append(arguments[-1])
        return original(*arguments)

    monkeypatch.setattr(train_module, "_set_up", noted)
    monkeypatch.setattr(train_module, "training_time_s", lambda _: 40.0)
    _train(recipe, data, tmp_path / "run", max_time_s=100.0)
    assert limits == [50.0, 60.0]
    shutil.rmtree(tmp_path / "run" / "tensorboard")
    _train(recipe, data, tmp_path / "run", max_time_s=100.0, resume=True)
    assert limits[2:] == [60.0]


def test_what_finds_the_tumour_decides_the_validation(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _variant(tmp_path, name="second", coarse=Coarse(FIRST, 0.0))
    seen = _noted(monkeypatch)
    _train(recipe, data, tmp_path / "run")
    assert seen == ["first"] * 2 + ["second", "first"] * 2
