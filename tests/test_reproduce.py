"""Whole tables with tiny networks on small phantoms, and the order of things with trainings that are only pretended."""

import csv
import importlib
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from recipes.test_contract import tiny
from reproducing import four_phantoms, never

from gliomap import loop
from gliomap.budget import ReproduceOptions
from gliomap.data.datasets import find_studies
from gliomap.data.rounds import Rounds
from gliomap.engines import load_engines
from gliomap.errors import InputError, Interrupted, UsageError
from gliomap.files import json_bytes, read_json, write_file
from gliomap.model_file import load_model
from gliomap.recipes import RECIPES
from gliomap.reproduce import reproduce
from gliomap.rows import Row, read_rows, rows_csv
from gliomap.segmenter import Segmenter
from gliomap.starts import training_time_s

pytestmark = pytest.mark.usefixtures("no_cache")

reproduction = importlib.import_module("gliomap.reproduce")
training = importlib.import_module("gliomap.train")

TINY = (
    *("network.settings.base=2", "network.settings.groups=2", "network.settings.blocks=[1,1,1,1]"),
    *("training.patches=4", "training.validate_every=2", "training.batch_size=2", "training.patch_size=[16,16,16]"),
)
ROWS = ("Baseline", "cga_unet_intra")
RESULTS = ("reproduction.csv", "claims.csv", "reproduction.md", "reproduction.html")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


data = pytest.fixture(scope="module")(four_phantoms)


def options(data, output, **changes):
    values = {"rows": ROWS, "settings": TINY, "folds": 2, "device": "cpu", "quiet": True} | changes
    table = values.pop("table", "002/table4")
    return ReproduceOptions(table, output, data, **values)


@pytest.fixture(scope="module", name="done")
def _done(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    return folder, reproduce(options(data, folder))


def lines(folder, name="reproduction.csv"):
    with (folder / name).open(newline="") as stream:
        return list(csv.DictReader(stream))


def record(folder):
    return json.loads((folder / "run.json").read_text())


def test_every_row_is_scored_on_every_study_once_by_the_fold_that_did_not_train_on_it(data, done):
    folder, result = done
    assert not result.failed
    for recipe in ("cga_unet_baseline", "cga_unet_intra"):
        scored = []
        for fold in range(2):
            place = folder / "rows" / f"fold{fold}" / recipe
            own = {row.study for row in read_rows(place / "scores.csv")}
            assert not own & set(record(place)["studies"]["training"])
            scored += own
        assert sorted(scored) == [s.id for s in find_studies(data)]


def test_measured_is_the_mean_of_the_scores_beside_the_published_number(done):
    folder, _ = done
    rows = [r for f in range(2) for r in read_rows(folder / "rows" / f"fold{f}" / "cga_unet_intra" / "scores.csv")]
    found = next(
        x for x in lines(folder) if (x["recipe"], x["region"], x["metric"]) == ("cga_unet_intra", "WT", "dice")
    )
    values = [r.value for r in rows if (r.region, r.metric) == ("WT", "dice")]
    assert len(values) == 4
    assert float(found["measured"]) == pytest.approx(100 * np.mean(values), rel=1e-5)
    assert (found["published"], found["unit"], found["studies"]) == ("90.07", "%", "4")
    assert float(found["measured_minus_published"]) == pytest.approx(float(found["measured"]) - 90.07, abs=1e-3)
    assert (found["patches_trained"], found["patches_of_recipe"]) == ("4", "134000")
    why = "not comparable: --set changed the recipes, 2 folds and not 5, 4 of 4 studies are phantoms"
    assert found["remark"] == why


def test_only_the_rows_asked_for_and_their_claims(done):
    folder, result = done
    assert {x["recipe"] for x in lines(folder)} == {"cga_unet_baseline", "cga_unet_intra"}
    claims = lines(folder, "claims.csv")
    assert {(x["better"], x["worse"]) for x in claims} == {("cga_unet_intra", "cga_unet_baseline")}
    assert len(claims) == 6
    assert {x["verdict"] for x in claims} <= {"undecided", "not supported"}
    assert len(result.reproduction.judged) == 6


def test_a_partial_run_never_claims_to_be_the_papers_experiment(done):
    folder, result = done
    statement = " ".join(result.reproduction.statement)
    assert "This is not the paper's experiment" in statement
    assert "saw 4 of its recipe's 134,000 patches (0.00299 %)" in statement
    assert "each is scored on 4 studies" in statement
    for name in ("reproduction.md", "reproduction.html"):
        text = (folder / name).read_text()
        assert "experiment, and no number in it reproduces the paper" in text
        assert "reproduced" not in text
        assert "4 of 134,000" in text
    assert record(folder)["verb"] == "reproduce"


def test_the_same_command_again_runs_nothing_and_says_the_same(data, done, tmp_path, monkeypatch):
    folder, _ = done
    shutil.copytree(folder, tmp_path / "again")
    before = {name: (folder / name).read_bytes() for name in RESULTS}
    monkeypatch.setattr(reproduction, "train", never)
    monkeypatch.setattr(reproduction, "evaluate", never)
    reproduce(options(data, tmp_path / "again"))
    assert {name: (tmp_path / "again" / name).read_bytes() for name in RESULTS} == before


def test_a_run_cut_in_the_middle_of_a_training_continues_to_the_same_result(data, done, tmp_path, monkeypatch):
    step, taken = loop.step, []

    def pressed(*arguments):
        values, run = step(*arguments), arguments[0]
        taken.append(run.recipe.name)
        if len(taken) == 3:  # the second training's first step
            os.kill(os.getpid(), signal.SIGINT)
        return values

    monkeypatch.setattr(loop, "step", pressed)
    with pytest.raises(Interrupted, match="the same command continues"):
        reproduce(options(data, tmp_path))
    assert not (tmp_path / "reproduction.csv").exists()
    assert record(tmp_path / "rows" / "fold1" / "cga_unet_baseline")["ended"] == "interrupted"
    monkeypatch.setattr(loop, "step", lambda run, *more: (taken.append(run.recipe.name), step(run, *more))[1])
    reproduce(options(data, tmp_path))
    assert len(taken) == 2 * 2 * 2  # no step was taken twice
    assert [(tmp_path / name).read_bytes() for name in RESULTS] == [(done[0] / name).read_bytes() for name in RESULTS]


def test_a_run_killed_while_it_scores_trains_nothing_again(data, done, tmp_path, monkeypatch):
    shutil.copytree(done[0], tmp_path / "cut")
    place = tmp_path / "cut" / "rows" / "fold1" / "cga_unet_intra"
    (place / "scores.csv").unlink()
    scored, evaluate = [], reproduction.evaluate
    monkeypatch.setattr(reproduction, "evaluate", lambda asked: (scored.append(asked.output), evaluate(asked)))
    monkeypatch.setattr(reproduction, "train", never)
    reproduce(options(data, tmp_path / "cut"))
    assert scored == [place / "scores.csv"]
    assert (tmp_path / "cut" / "claims.csv").read_bytes() == (done[0] / "claims.csv").read_bytes()


def test_scores_of_an_earlier_model_or_other_metrics_are_made_anew(data, done, tmp_path, monkeypatch):
    shutil.copytree(done[0], tmp_path / "other")
    monkeypatch.setattr(reproduction, "train", never)
    place = tmp_path / "other" / "rows" / "fold0" / "cga_unet_intra"
    shutil.copy(tmp_path / "other" / "rows" / "fold0" / "cga_unet_baseline" / "model.safetensors", place)
    scored, evaluate = [], reproduction.evaluate
    monkeypatch.setattr(reproduction, "evaluate", lambda asked: (scored.append(asked.output), evaluate(asked)))
    reproduce(options(data, tmp_path / "other"))
    assert scored == [place / "scores.csv"]
    (place / "scores.run.json").write_text((place / "scores.run.json").read_text().replace('"hd100"', '"hd95"'))
    reproduce(options(data, tmp_path / "other"))
    assert scored == [place / "scores.csv"] * 2


def test_standard_deviations_of_the_same_trainings_are_another_table(data, done, tmp_path, monkeypatch):
    shutil.copytree(done[0], tmp_path / "sd")
    monkeypatch.setattr(reproduction, "train", never)
    reproduce(options(data, tmp_path / "sd", table="002/table5"))
    rows = [r for f in range(2) for r in read_rows(done[0] / "rows" / f"fold{f}" / "cga_unet_intra" / "scores.csv")]
    values = [r.value for r in rows if (r.region, r.metric) == ("WT", "dice")]
    found = next(
        x
        for x in lines(tmp_path / "sd")
        if (x["recipe"], x["metric"], x["region"]) == ("cga_unet_intra", "dice_sd", "WT")
    )
    assert float(found["measured"]) == pytest.approx(100 * np.std(values, ddof=1), rel=1e-4)
    assert found["definition"] == "standard deviation over studies of dice of WT"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"seed": 1}, "folds, scored, seed"),
        ({"settings": (*TINY, "training.learning_rate=0.01")}, "settings"),
        ({"studies": 3}, "labels_sha256, folds, scored"),
        ({"folds": 4}, "folds, scored"),
        ({"labels": "brats2023"}, "labels"),
    ],
)
def test_another_question_in_the_same_place_is_refused(data, done, change, what):
    with pytest.raises(UsageError, match=f"a reproduction that differs in {what};"):
        reproduce(options(data, done[0], **change))


def test_other_data_of_the_same_names_are_refused(data, done, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    first, second, *_ = [s.label.path for s in find_studies(tmp_path / "data")]
    shutil.copy(second, first)
    with pytest.raises(UsageError, match=r"that differs in labels_sha256;"):
        reproduce(options(tmp_path / "data", done[0]))


@pytest.fixture(name="tiny_recipes")
def _tiny_recipes(monkeypatch):
    """Every recipe of papers 000 and 003 in its tiny form, with sizes that fit the phantoms."""
    for name in RECIPES:
        if name.startswith("dual_fusion") or name.endswith(("_t1c", "_t2", "_flair")):
            monkeypatch.setitem(RECIPES, name, tiny(RECIPES[name]))


def test_what_rows_start_from_is_trained_once_and_a_hold_out_scores_who_validates(
    data, tmp_path, tiny_recipes, monkeypatch
):
    trained, begin = [], training._train
    monkeypatch.setattr(
        training, "_train", lambda o, r, *more: (trained.append((o.output.name, r.name)), begin(o, r, *more))[1]
    )
    result = reproduce(options(data, tmp_path, table="000/table2", rows=(), settings=(), folds=None))
    names = ("dual_fusion_dynunet", "dual_fusion_segresnet", "dual_fusion_late", "dual_fusion_early", "dual_fusion")
    assert sorted(trained) == sorted((name, name) for name in names)
    assert [name for _, name in trained][:2] == ["dual_fusion_dynunet", "dual_fusion_segresnet"]
    scored = record(tmp_path / "rows" / "fold0" / "dual_fusion")["studies"]["validation"]
    assert {r.study for r in read_rows(tmp_path / "rows" / "fold0" / "dual_fusion_late" / "scores.csv")} == set(scored)
    assert "they also choose the best weights" in result.reproduction.facts["Split"]
    late = [x for x in lines(tmp_path) if x["recipe"] == "dual_fusion_late"]
    assert {(x["patches_trained"], x["patches_of_recipe"]) for x in late} == {("", "")}  # nothing of it is trained
    assert len({x["recipe"] for x in lines(tmp_path)}) == 3
    assert {"dual_fusion_dynunet", "dual_fusion_segresnet"} <= {x["worse"] for x in lines(tmp_path, "claims.csv")}
    assert result.reproduction.statement[2] == "What differs: 4 of 4 studies are phantoms."


def test_a_start_that_the_time_limit_cut_serves_its_row_and_the_rows_that_begin_with_it(
    data, tmp_path, tiny_recipes, monkeypatch
):
    trained, begin = [], training._train
    monkeypatch.setattr(training, "_train", lambda o, r, *more: (trained.append(r.name), begin(o, r, *more))[1])
    more = {"table": "000/table2", "rows": ("dual_fusion_late", "dual_fusion_early"), "max_time_s": 2.0}
    reproduce(options(data, tmp_path, **more, settings=("*.training.patches=4000",), folds=None))
    assert len(trained) == len(set(trained))
    run = record(tmp_path / "rows" / "fold0" / "dual_fusion_early")
    assert {start["ended"] for start in run["starts_from"].values()} == {"time limit reached"}


def test_paper_003_is_scored_on_the_middle_slice_of_its_test_studies(data, tmp_path, tiny_recipes):
    reproduce(
        options(data, tmp_path, table="003/table1", rows=("attention_unet2d_t2",), settings=(), folds=None, seed=1)
    )
    place = tmp_path / "rows" / "fold0" / "attention_unet2d_t2"
    model = load_model(place / "model.safetensors")
    segmenter = Segmenter(model.recipe, load_engines(model, "cpu", "torch"))
    rows = list(read_rows(place / "scores.csv"))
    (study,) = [s for s in find_studies(data) if s.id in {r.study for r in rows}]
    assert study.id not in [i for part in ("training", "validation") for i in record(place)["studies"][part]]
    true = study.read_classes()[0].array[0]
    middle = (len(true) - 1) // 2
    predicted, true = segmenter(study.read(model.recipe.modalities)[0]).array[0, middle] > 0, true[middle] > 0
    found = {x["metric"]: float(x["measured"]) for x in lines(tmp_path)}
    assert true.any()
    assert found["dice"] == pytest.approx(200 * (predicted & true).sum() / (predicted.sum() + true.sum()), rel=1e-5)
    assert found["miou"] == pytest.approx(100 * (predicted & true).sum() / (predicted | true).sum(), rel=1e-5)
    assert found["accuracy"] == pytest.approx(100 * (predicted == true).mean(), rel=1e-5)


def test_counted_tables_need_no_data(tmp_path):
    result = reproduce(ReproduceOptions("002/section4.3", tmp_path, quiet=True))
    found = {(x["recipe"], x["metric"], x["definition"]): float(x["measured"]) for x in lines(tmp_path)}
    assert found["cga_unet", "parameters_m", "parameters of the whole network"] == pytest.approx(4.768616, rel=1e-5)
    assert found["cga_unet", "gflops", "as the paper's released code counts"] == pytest.approx(151.118, rel=1e-5)
    assert [j.verdict for j in result.reproduction.judged] == ["supported", "supported"]
    assert not (tmp_path / "rows").exists()
    assert "gliomap 0." in (tmp_path / "reproduction.html").read_text().partition("How it was made</h2>")[2]


def test_run_times_and_quoted_numbers_are_shown_and_never_run(tmp_path):
    result = reproduce(ReproduceOptions("003/table2", tmp_path, quiet=True))
    assert {line.remark for line in result.reproduction.lines} == {"never run: the authors' machine"}
    assert len(result.reproduction.lines) == 24


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"table": "002/tabel4"}, "near it are 002/table4"),
        ({"rows": ("Baselin",)}, "has no row Baselin; it has: Baseline = cga_unet_baseline"),
        ({"settings": ("training.nothing=1",)}, "cannot set 'training.nothing=1'"),
        ({"settings": ("training.patch_size=[15,16,16]",)}, "expected multiples of"),
        ({"folds": 9}, "9 folds of 4 patients"),
        ({"studies": 9}, "cannot draw 9 of 4 patients"),
        ({"studies": 2, "folds": Path("folds.json")}, "give one of both"),
        ({"table": "001/table4", "rows": ("druwas",), "settings": ()}, "is a hold-out, which has no folds"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(data, tmp_path, change, why, monkeypatch):
    monkeypatch.setattr(reproduction, "train", never)
    with pytest.raises(UsageError, match=why):
        reproduce(options(data, tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()


def test_rows_to_train_need_data(tmp_path):
    with pytest.raises(UsageError, match="give DATA"):
        reproduce(ReproduceOptions("002/table4", tmp_path, quiet=True))


class Pretended:
    """Trainings that take the time that they are given, or ``needs`` seconds, and scores that are all the same."""

    def __init__(self, monkeypatch, needs=1e9, broken=()):
        self.needs, self.broken, self.calls = needs, broken, []
        monkeypatch.setattr(reproduction, "train", self.train)
        monkeypatch.setattr(reproduction, "evaluate", self.evaluate)
        monkeypatch.setattr(reproduction, "check", lambda _: None)

    def train(self, asked):
        if asked.recipe in self.broken:
            raise InputError("there is no memory")
        limit = asked.max_time_s or 1e9
        self.calls.append((asked.output.parent.name, asked.recipe, limit, asked.resume))
        spent = min(self.needs, limit)
        content = {"verb": "train", "ended": "budget reached" if self.needs <= limit else "time limit reached"}
        content |= {"train_time_s": spent, "patches": int(spent), "starts_from": {}, "warnings": ["odd"]}
        content |= {"studies": {"failed": {"s9": "unreadable"}}, "inputs_sha256": {}, "outputs_sha256": {}}
        write_file(asked.output / "run.json", json_bytes(content))
        write_file(asked.output / "model.safetensors", str(spent).encode())
        write_file(asked.output / "checkpoint.pt", b"")

    def evaluate(self, asked):
        keys = [(s, r, m) for s in asked.studies for r in ("ET", "TC", "WT") for m in asked.metrics]
        rows = [Row(s, "m", r, m, 0.5, "", "", "plain", "ok") for s, r, m in keys]
        write_file(asked.output, rows_csv(rows))


def test_time_is_divided_equally_among_the_trainings_that_are_left(data, tmp_path, monkeypatch):
    pretended = Pretended(monkeypatch)
    reproduce(options(data, tmp_path, max_time_s=100.0))
    assert [limit for _, _, limit, _ in pretended.calls] == pytest.approx([25.0] * 4)
    assert [call[:2] for call in pretended.calls] == [
        (f"fold{fold}", name) for name in ("cga_unet_baseline", "cga_unet_intra") for fold in range(2)
    ]
    reproduce(options(data, tmp_path, max_time_s=100.0))
    assert len(pretended.calls) == 4  # its time is used up
    reproduce(options(data, tmp_path, max_time_s=200.0))
    assert [call[2:] for call in pretended.calls[4:]] == [(pytest.approx(50.0), True)] * 4
    pretended.needs = 60.0
    reproduce(options(data, tmp_path))
    assert [call[2:] for call in pretended.calls[8:]] == [(1e9, True)] * 4
    reproduce(options(data, tmp_path))
    assert len(pretended.calls) == 12


def test_what_a_finished_training_leaves_is_for_the_others(data, tmp_path, monkeypatch):
    pretended = Pretended(monkeypatch, needs=10.0)
    result = reproduce(options(data, tmp_path, max_time_s=100.0))
    assert [limit for _, _, limit, _ in pretended.calls] == pytest.approx([25.0, 30.0, 40.0, 70.0])
    assert training_time_s(tmp_path / "rows" / "fold0" / "cga_unet_intra") == 10.0
    assert result.reproduction.warnings == ("2 rows: odd", "2 rows: s9 is left out: unreadable")


def test_a_row_that_cannot_be_run_does_not_end_the_table(data, tmp_path, monkeypatch):
    pretended = Pretended(monkeypatch, broken=("cga_unet_baseline",))
    reproduce(options(data, tmp_path / "time", max_time_s=100.0))
    assert [limit for _, _, limit, _ in pretended.calls] == pytest.approx(
        [50.0] * 2
    )  # what it does not need is the others'
    Pretended(monkeypatch, needs=1.0, broken=("cga_unet_intra",))
    result = reproduce(options(data, tmp_path))
    assert result.failed == {"cga_unet_intra": "there is no memory"}
    assert {x["remark"] for x in lines(tmp_path) if x["recipe"] == "cga_unet_intra"} == {"failed: there is no memory"}
    assert {x["verdict"] for x in lines(tmp_path, "claims.csv")} == {"not tested"}
    assert "cga_unet_intra could not be run: there is no memory" in result.reproduction.warnings
    assert all(x["measured"] for x in lines(tmp_path) if x["recipe"] == "cga_unet_baseline")


def test_time_that_a_row_took_before_it_failed_is_spent(data, tmp_path, monkeypatch):
    pretended = Pretended(monkeypatch)

    def unscorable(asked):
        raise RuntimeError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(reproduction, "evaluate", unscorable)
        with pytest.raises(InputError, match=r"unexpected RuntimeError.*CUDA out of memory"):
            reproduce(options(data, tmp_path, max_time_s=100.0))
    assert sum(limit for _, _, limit, _ in pretended.calls) <= 100.0


def test_the_least_trained_fold_counts_and_a_cut_start_makes_no_whole_training(data, tmp_path, monkeypatch):
    pretended = Pretended(monkeypatch, needs=10.0)
    reproduce(options(data, tmp_path))
    place = tmp_path / "rows" / "fold1" / "cga_unet_intra" / "run.json"
    run = read_json(place)
    write_file(place, json_bytes(run | {"patches": 3}))
    row = next(x for x in lines(reproduce(options(data, tmp_path)).page.parent) if x["recipe"] == "cga_unet_intra")
    assert row["patches_trained"] == "3"
    folders = [tmp_path / "rows" / f"fold{n}" / "cga_unet_intra" for n in range(2)]
    rounds = Rounds((("a",), ("b",)), (("a",), ("b",)), "", {})
    assert reproduction._collected("cga_unet_intra", folders, rounds).whole
    write_file(place, json_bytes(run | {"starts_from": {"x": {"ended": "time limit reached"}}}))
    assert not reproduction._collected("cga_unet_intra", folders, rounds).whole
    assert len(pretended.calls) == 4


def test_a_training_by_another_recipe_of_that_name_is_not_taken_for_this_one(done, tmp_path, data):
    shutil.copytree(done[0], tmp_path / "copy")
    for place in (tmp_path / "copy").rglob("cga_unet_baseline/recipe.json"):
        write_file(place, json_bytes(read_json(place) | {"source": "another version"}))
    result = reproduce(options(data, tmp_path / "copy"))
    assert list(result.failed) == ["cga_unet_baseline"]
    assert "another recipe of that name" in result.failed["cga_unet_baseline"]


def test_a_table_of_which_nothing_runs_fails(data, tmp_path, monkeypatch):
    Pretended(monkeypatch, broken=("cga_unet_intra", "cga_unet_baseline"))
    with pytest.raises(
        InputError, match="none of the 2 rows could be run; the first, cga_unet_baseline: there is no memory"
    ):
        reproduce(options(data, tmp_path))


@pytest.fixture(name="patients")
def _patients(data, tmp_path):
    """A phantom under the names of 5 patients, one of whom was examined twice."""
    first = find_studies(data)[0].label.path.parent
    for study in (*(f"BraTS-GLI-{n:05d}-000" for n in range(5)), "BraTS-GLI-00002-001"):
        for file in first.iterdir():
            target = tmp_path / "patients" / study / file.name.replace(first.name, study)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    return tmp_path / "patients"


def test_a_whole_run_says_that_it_is_one_and_what_it_is_comparable_with(patients, tmp_path, monkeypatch):
    Pretended(monkeypatch, needs=134_000.0)
    whole = {"settings": (), "folds": None}
    result = reproduce(options(patients, tmp_path, **whole))
    assert "Every row had its recipe's whole training" in result.reproduction.statement[0]
    assert lines(tmp_path)[0]["remark"].startswith("comparable only as far as the data are BraTS 2019")
    cut = reproduce(options(patients, tmp_path / "cut", **whole, max_time_s=8.0))
    assert "This is not the paper's experiment" in cut.reproduction.statement[0]
    assert lines(tmp_path / "cut")[0]["remark"] == "not comparable: the training was cut short"
    few = reproduce(options(patients, tmp_path / "few", settings=(), folds=3, studies=3))
    assert lines(tmp_path / "few")[0]["remark"] == "not comparable: 3 patients only, 3 folds and not 5"
    assert "This is not the paper's experiment" in few.reproduction.statement[0]
    assert len(few.reproduction.facts["Studies"]) == 1


def test_several_studies_of_a_patient_are_warned_of(patients, tmp_path, monkeypatch):
    Pretended(monkeypatch, needs=1.0)
    result = reproduce(options(patients, tmp_path, folds=None))
    assert result.reproduction.warnings[0].startswith(
        "1 of 5 scored patients, such as BraTS-GLI-00002, have several studies"
    )
    assert "warning: 1 of 5 scored patients" in (tmp_path / "reproduction.html").read_text()


def test_folds_of_which_two_share_a_patient_are_refused_before_anything_runs(patients, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduction, "train", never)
    ids = [s.id for s in find_studies(patients)]
    apart = [i for i in ids if i != "BraTS-GLI-00002-001"]
    names = dict.fromkeys(apart, "a") | {apart[0]: "b"}
    for content in ({"folds": [apart, ["BraTS-GLI-00002-001"]]}, {"folds": [apart[:2], apart[2:]], "patients": names}):
        (tmp_path / "own.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match="in more than one fold"):
            reproduce(options(patients, tmp_path / "out", folds=tmp_path / "own.json"))
        assert not (tmp_path / "out").exists()


def test_folds_of_a_file_are_those_that_train(data, tmp_path, monkeypatch):
    Pretended(monkeypatch, needs=1.0)
    ids = [s.id for s in find_studies(data)]
    folds = tmp_path / "own.json"
    names = {ids[1]: "one", ids[2]: "one"}
    folds.write_text(json.dumps({"folds": [ids[:1], ids[1:3]], "patients": names}))
    result = reproduce(options(data, tmp_path / "out", folds=folds, settings=()))
    written = json.loads((tmp_path / "out" / "folds.json").read_text())
    assert written["folds"] == [ids[:1], ids[1:3]]
    assert written["patients"] == {ids[0]: find_studies(data)[0].patient} | names
    assert "1 of 4 studies are in no fold, 3 of 3 studies are phantoms" in result.reproduction.statement[2]
    assert {p.name for p in (tmp_path / "out" / "rows").iterdir()} == {"fold0", "fold1"}
