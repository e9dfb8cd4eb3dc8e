"""Two folds and two seeds of a tiny network on small phantoms, and the order of things with trainings that are pretended."""

import csv
import importlib
import json
import math
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gliomap.data.datasets import find_studies
from gliomap.data.images import read_image
from gliomap.engines import load_engines
from gliomap.errors import InputError, Interrupted, UsageError
from gliomap.evaluate import EvaluateOptions, evaluate
from gliomap.files import read_json
from gliomap.model_file import load_model
from gliomap.phantom import PhantomOptions, phantom
from gliomap.repeat import RepeatOptions, repeat, unfinished
from gliomap.report.repeats import spread_table, spreads, spreads_csv
from gliomap.rows import Row, read_rows
from gliomap.segment import SegmentOptions, segment
from gliomap.segmenter import Segmenter
from gliomap.starts import training_time_s
from gliomap.train import TrainOptions

pytestmark = pytest.mark.usefixtures("no_cache")

repetition = importlib.import_module("gliomap.repeat")

RECIPE = "attention_resunet_small"
TINY = [
    *("network.settings.base=4", "preprocessing.spacing_mm=null"),
    *("training.patches=2", "training.validate_every=2", "training.batch_size=2", "training.patch_size=[16,16,16]"),
]
NAMES = ["fold_0_seed_1", "fold_1_seed_1", "fold_0_seed_2", "fold_1_seed_2"]
TABLES = ("scores.csv", "summary.csv", "summary.md")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", name="data")
def _data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    phantom(PhantomOptions(folder, studies=4, size=24, quiet=True))
    return folder


@pytest.fixture(scope="module", name="folds")
def _folds(data, tmp_path_factory):
    ids = [study.id for study in find_studies(data)]
    path = tmp_path_factory.mktemp("folds") / "folds.json"
    path.write_text(json.dumps({"folds": [[ids[0], ids[2]], [ids[1], ids[3]]]}))
    return path


def options(data, folds, output, **changes):
    values = {"all_folds": True, "seeds": (1, 2)} | {k: changes.pop(k) for k in ("all_folds", "seeds") if k in changes}
    own = {"settings": TINY, "folds": folds, "device": "cpu", "quiet": True, "threads": 1} | changes
    return RepeatOptions(TrainOptions(RECIPE, data, output, **own), **values)


@pytest.fixture(scope="module", name="done")
def _done(data, folds, tmp_path_factory):
    folder = tmp_path_factory.mktemp("repeats") / "run"
    return folder, repeat(options(data, folds, folder))


def never(*_, **__):
    raise AssertionError("this should not run")


def contents(folder):
    """What the tables say and the ensemble is; safetensors writes the entries of a header in any order."""
    model = load_model(folder / "model.safetensors")
    return [(folder / name).read_text() for name in TABLES] + [model.content_sha256, model.card]


def test_there_is_a_training_for_each_fold_and_seed_and_one_summary(done):
    folder, result = done
    assert set(os.listdir(folder)) == {
        *(*NAMES, "out_of_fold", "folds.json", "repeat.json", "run.json", "model.safetensors"),
        *TABLES,
    }
    assert (result.model, result.failed) == (folder / "model.safetensors", {})
    for name in NAMES:
        card = load_model(folder / name / "model.safetensors").card
        assert str(card["seed"]) == name[-1]
        assert card["validation_studies"] == read_json(folder / "folds.json")["folds"][int(name[5])]
    record = read_json(folder / "run.json")
    assert record["verb"] == "repeat"
    assert list(record["trainings"]) == NAMES
    assert {training["ended"] for training in record["trainings"].values()} == {"budget reached"}


def test_every_study_is_scored_once_per_seed_by_a_model_that_did_not_train_on_it(data, done):
    folder, _ = done
    ids = [study.id for study in find_studies(data)]
    rows = list(read_rows(folder / "scores.csv"))
    once = Counter((row.model, row.study) for row in rows if (row.region, row.metric) == ("WT", "dice"))
    assert once == {(f"{RECIPE}_seed_{seed}", study): 1 for seed in (1, 2) for study in ids}
    for name in NAMES:
        scored = {row.study for row in read_rows(folder / name / "scores.csv")}
        assert scored
        assert not scored & set(load_model(folder / name / "model.safetensors").card["training_studies"])


def test_label_maps_are_what_gliomap_segment_writes(data, done, tmp_path):
    folder, _ = done
    for fold, ids in enumerate(read_json(folder / "folds.json")["folds"]):
        model = folder / f"fold_{fold}_seed_2" / "model.safetensors"
        study = next(study for study in find_studies(data) if study.id in ids)
        place = next(iter(study.images.values())).path.parent
        segment(SegmentOptions(place, tmp_path / study.id, model=model, device="cpu", quiet=True))
        expected = (tmp_path / study.id / "segmentation.nii.gz").read_bytes()
        assert (folder / "out_of_fold" / "seed_2" / f"{study.id}.nii.gz").read_bytes() == expected


def test_scores_are_those_of_gliomap_evaluate(data, done, tmp_path):
    folder, _ = done
    evaluate(
        EvaluateOptions(
            folder / "fold_1_seed_1" / "model.safetensors",
            data,
            tmp_path / "s.csv",
            device="cpu",
            quiet=True,
            seen_too=True,
        )
    )
    ours = {(r.study, r.region, r.metric): r for r in read_rows(folder / "fold_1_seed_1" / "scores.csv")}
    theirs = {(r.study, r.region, r.metric): r for r in read_rows(tmp_path / "s.csv")}
    assert len(ours) == len(theirs) // 2
    assert all(replace(theirs[key], model=row.model) == row for key, row in ours.items())


def test_the_ensemble_is_the_mean_of_all_trainings_and_knows_what_they_saw(data, done):
    folder, _ = done
    ensemble = load_model(folder / "model.safetensors")
    models = [load_model(folder / name / "model.safetensors") for name in NAMES]
    assert ensemble.card["training_studies"] == [study.id for study in find_studies(data)]
    assert ensemble.card["validation_studies"] == []
    assert [member["content_sha256"] for member in ensemble.card["members"]] == [m.content_sha256 for m in models]
    study = find_studies(data)[0]
    volume = study.read(ensemble.recipe.modalities)[0]
    found = Segmenter(ensemble.recipe, load_engines(ensemble, "cpu", "torch")).with_probabilities(volume)[1]
    alone = [Segmenter(m.recipe, load_engines(m, "cpu", "torch")).with_probabilities(volume)[1].array for m in models]
    assert not np.allclose(alone[0], alone[1], atol=1e-4)
    np.testing.assert_allclose(found.array, np.mean(alone, 0), atol=1e-6)


def test_segment_and_evaluate_take_an_ensemble_as_any_model(data, done, tmp_path):
    folder, result = done
    study = find_studies(data)[0]
    place = next(iter(study.images.values())).path.parent
    segment(SegmentOptions(place, tmp_path / "one", model=result.model, score=True, device="cpu", quiet=True))
    name = load_model(folder / "model.safetensors").name
    assert name.startswith(f"{RECIPE}_ensemble-")
    model = read_json(tmp_path / "one" / "run.json")["model"]
    assert (model["name"], model["networks"]) == (name, 4)
    assert "4 networks together" in (tmp_path / "one" / "report.html").read_text()
    truth = read_image(study.label.path)
    assert read_image(tmp_path / "one" / "segmentation.nii.gz").shape == truth.shape
    asked = EvaluateOptions(
        result.model, data, tmp_path / "s.csv", metrics=("dice",), studies=(study.id,), device="cpu", quiet=True
    )
    with pytest.raises(UsageError, match=r"an ensemble of all folds has seen all studies; .* gliomap train --fold all"):
        evaluate(asked)
    scored = evaluate(replace(asked, seen_too=True))
    assert scored.models == (name,)
    assert any("trained this model" in text for text in scored.warnings)
    dice = {(r.region, r.metric): r.value for r in read_rows(tmp_path / "one" / "scores.csv")}
    assert {r.region: r.value for r in scored.rows if r.metric == "dice"} == {
        region: dice[region, "dice"] for region in ("ET", "TC", "WT")
    }


def test_the_same_command_again_runs_nothing_and_says_the_same(data, folds, done, tmp_path, monkeypatch):
    shutil.copytree(done[0], tmp_path / "again")
    monkeypatch.setattr(repetition, "train", never)
    monkeypatch.setattr(repetition, "load_segmenter", never)
    repeat(options(data, folds, tmp_path / "again"))
    assert contents(tmp_path / "again") == contents(done[0])


def test_what_was_cut_short_is_continued_and_what_is_gone_is_made_again(data, folds, done, tmp_path, monkeypatch):
    place = tmp_path / "cut"
    shutil.copytree(done[0], place)
    shutil.rmtree(place / "fold_0_seed_2")
    lost = next((place / "out_of_fold" / "seed_1").iterdir())
    content = lost.read_bytes()
    lost.write_bytes(content[:-1])
    begun, train = [], repetition.train

    def interrupted(asked):
        begun.append(asked.output.name)
        raise Interrupted("pressed")

    monkeypatch.setattr(repetition, "train", interrupted)
    with pytest.raises(Interrupted, match="the same command continues"):
        repeat(options(data, folds, place))
    assert lost.read_bytes() == content
    monkeypatch.setattr(repetition, "train", lambda asked: (begun.append(asked.output.name), train(asked))[1])
    repeat(options(data, folds, place))
    assert begun == ["fold_0_seed_2"] * 2
    assert contents(place)[0] == contents(done[0])[0]


def test_label_maps_and_scores_of_an_earlier_model_are_made_again(data, folds, done, tmp_path, monkeypatch):
    place = tmp_path / "other"
    shutil.copytree(done[0], place)
    shutil.copy(done[0] / "fold_0_seed_2" / "model.safetensors", place / "fold_0_seed_1")
    monkeypatch.setattr(repetition, "train", never)
    repeat(options(data, folds, place))
    for study in read_json(place / "folds.json")["folds"][0]:
        maps = [place / "out_of_fold" / f"seed_{seed}" / f"{study}.nii.gz" for seed in (1, 2)]
        assert maps[0].read_bytes() == maps[1].read_bytes()
    assert (place / "fold_0_seed_1" / "scores.csv").read_text() != (
        done[0] / "fold_0_seed_1" / "scores.csv"
    ).read_text()


def test_ctrl_c_while_it_scores_is_no_failed_study(data, folds, done, tmp_path, monkeypatch):
    shutil.copytree(done[0], tmp_path / "cut")
    (tmp_path / "cut" / "fold_1_seed_1" / "scores.csv").unlink()

    def pressed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(repetition, "_study_scores", pressed)
    with pytest.raises(Interrupted, match="the same command continues"):
        repeat(options(data, folds, tmp_path / "cut"))


def test_a_third_seed_is_added_to_two(data, folds, done, tmp_path, monkeypatch):
    shutil.copytree(done[0], tmp_path / "more")
    trained = []

    def copied(asked):
        trained.append((asked.output.name, asked.fold, asked.seed, asked.resume))
        shutil.copytree(done[0] / f"fold_{asked.fold}_seed_1", asked.output)

    monkeypatch.setattr(repetition, "train", copied)
    repeat(options(data, folds, tmp_path / "more", seeds=(1, 2, 7)))
    assert trained == [("fold_0_seed_7", 0, 7, False), ("fold_1_seed_7", 1, 7, False)]
    assert len(load_model(tmp_path / "more" / "model.safetensors").prefixes) == 6


def test_one_training_that_fails_is_reported_and_there_is_no_ensemble_without_it(
    data, folds, done, tmp_path, monkeypatch
):
    place = tmp_path / "failing"
    shutil.copytree(done[0], place)
    shutil.rmtree(place / "fold_1_seed_1")

    def failing(_):
        raise InputError("the loss is not finite")

    monkeypatch.setattr(repetition, "train", failing)
    result = repeat(options(data, folds, place))
    assert result.failed == {"fold_1_seed_1": "the loss is not finite"}
    assert result.model is None
    assert not (place / "model.safetensors").exists()
    assert any("no ensemble" in text and "fold_1_seed_1" in text for text in result.statement)
    assert "fold_1_seed_1 failed: the loss is not finite" in (place / "summary.md").read_text()
    gone = {(row.model, row.study) for row in read_rows(place / "scores.csv") if row.status == "failed"}
    assert gone == {(f"{RECIPE}_seed_1", study) for study in read_json(place / "folds.json")["folds"][1]}
    assert {(one.studies, one.missing) for one in result.spreads if one.metric == "dice"} == {(2, 2)}
    shutil.copytree(done[0] / "fold_1_seed_1", place / "fold_1_seed_1")
    repeat(options(data, folds, place))
    assert contents(place) == contents(done[0])


def test_an_ensemble_that_no_file_can_hold_costs_no_scores(data, folds, done, tmp_path, monkeypatch):
    shutil.copytree(done[0], tmp_path / "large")

    def refused(path, _):
        raise InputError(f"cannot write {path}: its header would have too many bytes")

    monkeypatch.setattr(repetition, "save_ensemble", refused)
    result = repeat(options(data, folds, tmp_path / "large"))
    assert result.model is None
    assert not (tmp_path / "large" / "model.safetensors").exists()
    assert "its header would have" in result.failed["the ensemble"]
    assert (tmp_path / "large" / "scores.csv").read_bytes() == (done[0] / "scores.csv").read_bytes()


def test_nothing_is_left_where_every_training_fails(data, folds, tmp_path, monkeypatch):
    monkeypatch.setattr(repetition, "train", never)
    with pytest.raises(InputError, match="none of the 4 trainings could be done; the first, fold_0_seed_1: unexpected"):
        repeat(options(data, folds, tmp_path / "run"))


def test_a_study_that_cannot_be_segmented_is_counted_and_tried_again(data, folds, done, tmp_path):
    place, other = tmp_path / "run", tmp_path / "data"
    shutil.copytree(done[0], place)
    shutil.copytree(data, other)
    study = find_studies(other)[0]
    shutil.rmtree(place / "out_of_fold" / "seed_1")
    image = study.images["t1"].path
    content = image.read_bytes()
    image.write_bytes(content[:100])
    result = repeat(options(other, folds, place))
    assert list(result.failed) == [f"{study.id} by fold_0_seed_1"]
    assert result.model is not None  # no training failed
    assert {r.study for r in result_rows(place) if r.status == "failed"} == {study.id}
    image.write_bytes(content)
    assert repeat(options(other, folds, place)).failed == {}
    assert contents(place)[0] == contents(done[0])[0]


def result_rows(folder):
    return list(read_rows(folder / "scores.csv"))


def test_seeds_alone_share_one_division_and_no_test_study_is_used_before_the_end(data, tmp_path, done, monkeypatch):
    asked = []

    def copied(own):
        asked.append(own)
        shutil.copytree(done[0] / f"fold_0_seed_{own.seed}", own.output)

    monkeypatch.setattr(repetition, "train", copied)
    settings = [*TINY, "training.test_share=0.25", "training.validation_share=0.25"]
    result = repeat(options(data, None, tmp_path / "run", all_folds=False, settings=settings))
    assert [(own.output.name, own.fold, own.seed) for own in asked] == [("seed_1", 0, 1), ("seed_2", 0, 2)]
    assert {own.folds for own in asked} == {tmp_path / "run" / "folds.json"}
    validating, training = read_json(tmp_path / "run" / "folds.json")["folds"]
    scored = {row.study for row in result_rows(tmp_path / "run")}
    assert (len(validating), len(training), len(scored)) == (1, 2, 1)
    assert not scored & {*validating, *training}
    assert not any("flatter" in text for text in result.statement)


def test_it_is_said_that_scored_studies_chose_the_weights(done):
    assert any("chosen by the mean Dice of these same studies" in text for text in done[1].statement)


def test_time_is_divided_among_the_trainings_that_are_left(data, folds, done, tmp_path, monkeypatch):
    limits = []

    def timed(asked):
        limits.append(asked.max_time_s)
        shutil.copytree(done[0] / asked.output.name, asked.output)
        run = read_json(asked.output / "run.json") | {"train_time_s": 10.0, "ended": "time limit reached"}
        (asked.output / "run.json").write_text(json.dumps(run))

    monkeypatch.setattr(repetition, "train", timed)
    result = repeat(options(data, folds, tmp_path / "run", max_time_s=100.0))
    assert limits == pytest.approx([25, 30, 40, 70])
    assert any("4 of 4 trainings did not come to their end (time limit reached)" in text for text in result.statement)


def test_a_training_is_begun_continued_or_left_alone(done, data, folds, tmp_path):
    own = options(data, folds, tmp_path).train
    at = replace(own, output=done[0] / NAMES[0])
    assert unfinished(at) is None
    assert unfinished(replace(own, output=tmp_path / "new")) == replace(own, output=tmp_path / "new", resume=False)
    shutil.copytree(at.output, tmp_path / "part")
    part, taken_s = replace(own, output=tmp_path / "part"), training_time_s(at.output)
    for ended, none_at_limit in (("interrupted", False), ("running", False), ("time limit reached", True)):
        run = read_json(at.output / "run.json") | {"ended": ended}
        (part.output / "run.json").write_text(json.dumps(run))
        assert unfinished(part) == replace(part, resume=True)
        assert unfinished(replace(part, max_time_s=taken_s + 1)) == replace(part, max_time_s=taken_s + 1, resume=True)
        assert (unfinished(replace(part, max_time_s=taken_s)) is None) == none_at_limit
    with pytest.raises(UsageError, match="another recipe of that name"):
        unfinished(replace(part, settings=[*TINY, "training.patches=6"]))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"all_folds": False, "seeds": (1,)}, "a single training"),
        ({"seeds": (1, 2, 1)}, "a seed twice"),
        ({"all_folds": False, "folds": None, "fold": 1}, "needs --folds"),
        ({"all_folds": False, "fold": 2}, "folds 0 to 1; got --fold 2"),
        ({"data": None}, "need DATA"),
        ({"folds": None}, "cannot make 5 folds of 4 patients"),
        ({"settings": [*TINY, "training.patches=4"]}, "differs in recipe;"),
        ({"seeds": ()}, "differs in seed;"),
        ({"phantoms": 3}, "differs in phantoms;"),
    ],
)
def test_what_makes_no_sense_or_is_another_question_is_refused(data, folds, done, monkeypatch, changes, match):
    monkeypatch.setattr(repetition, "train", never)
    values = {"data": data, "folds": folds} | changes
    before = contents(done[0])
    with pytest.raises(UsageError, match=match):
        repeat(options(values.pop("data"), values.pop("folds"), done[0], **values))
    assert contents(done[0]) == before


def test_an_output_that_holds_a_single_training_is_refused(data, folds, done):
    with pytest.raises(UsageError, match="already holds a single training"):
        repeat(options(data, folds, done[0] / NAMES[0]))


def rows_of(model, values, metric="dice", region="WT"):
    return [
        Row(f"s{n}", model, region, metric, value, "1", "", "plain", "ok" if value is not None else "truth_empty")
        for n, value in enumerate(values)
    ]


def test_the_spread_of_seeds_and_of_studies_by_hand():
    first, second, third = [0.5, 0.7, 0.9, 0.9], [0.6, 0.8, 0.8, 1.0], [0.4, 0.6, 0.8, 0.8]
    rows = [*rows_of("a", first), *rows_of("b", second), *rows_of("c", third)]
    *own, together = spreads(rows, "all")
    assert [one.model for one in own] == ["a", "b", "c"]
    assert [one.mean for one in own] == pytest.approx([0.75, 0.8, 0.65])
    assert [one.sd_studies**2 for one in own] == pytest.approx([0.11 / 3, 0.08 / 3, 0.11 / 3])
    assert own[0].standard_error == pytest.approx(math.sqrt(0.11 / 3) / 2)
    assert all(math.isnan(one.sd_seeds) for one in own)
    assert (together.model, together.studies, together.missing) == ("all", 4, 0)
    assert together.mean == pytest.approx((0.75 + 0.8 + 0.65) / 3)
    assert together.sd_studies == pytest.approx(math.sqrt((0.11 + 0.08 + 0.11) / 9))
    assert together.standard_error == pytest.approx(math.sqrt(0.3 / 9) / 2)
    assert together.sd_seeds == pytest.approx(np.std([0.75, 0.8, 0.65], ddof=1))
    assert together.seed_difference == pytest.approx(4.302653 * math.sqrt(2) * together.sd_seeds)  # t of 2 at 97.5 %
    assert together.low < together.mean < together.high


def test_only_studies_that_every_seed_has_a_value_for_count():
    rows = [*rows_of("a", [0.5, None, 0.9]), *rows_of("b", [0.7, 0.1, 0.7]), *rows_of("gone", [None] * 3)]
    first, second, together = spreads(rows, "all")
    assert (first.mean, second.mean, together.mean) == pytest.approx((0.7, 0.7, 0.7))
    assert {(one.studies, one.missing) for one in (first, second, together)} == {(2, 1)}
    assert together.sd_seeds == pytest.approx(0)


def test_a_table_keeps_its_columns_where_a_seed_has_no_values():
    rows = rows_of("a", [0.5, 0.7], region="ET") + rows_of("a", [0.8, 0.9]) + rows_of("b", [0.7, 0.8])
    headers, lines = spread_table(spreads(rows, "all"), "dice")
    assert headers == ["Dice", "ET", "WT"]
    assert {len(line) for line in lines} == {3}
    by_title = {line[0]: line[1:] for line in lines}
    assert by_title["b"][0] == by_title["all"][0] == by_title["standard deviation over seeds"][0] == "-"
    assert by_title["b"][1].startswith("0.750 [")
    assert by_title["studies"] == ["-", "2"]


def test_one_model_has_no_spread_of_seeds(tmp_path: Path):
    found = spreads(rows_of("a", [0.5, 0.7]), "all")
    assert [one.model for one in found] == ["a"]
    assert not any("seed" in line[0] for line in spread_table(found, "dice")[1])
    (line,) = csv.DictReader(spreads_csv(found).decode().splitlines())
    assert (line["mean"], line["sd_seeds"], line["studies"]) == ("0.6", "", "2")
