"""A whole leaderboard of tiny networks on small phantoms; what is tried apart from it is tried in this process."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
from recipes.test_contract import tiny
from reproducing import four_phantoms, never

from gliomap import loop
from gliomap.budget import ABLATED, MAIN, ROWS, ReproduceOptions, Trial, estimate
from gliomap.cli.reproduce import reproduce as command
from gliomap.compare import CompareOptions, compare
from gliomap.errors import InputError, Interrupted, UsageError
from gliomap.evaluate import EvaluateOptions, evaluate
from gliomap.leaderboard import METRICS, leaderboard
from gliomap.plan import check
from gliomap.recipe import NetworkSpec, trained_before
from gliomap.recipes import RECIPES
from gliomap.recipes.fair import with_budget
from gliomap.report.leaderboard import sections
from gliomap.rows import read_rows
from gliomap.starts import ENOUGH, NOTHING

pytestmark = pytest.mark.usefixtures("no_cache")

budget = importlib.import_module("gliomap.budget")
own_process = budget.apart
board = importlib.import_module("gliomap.leaderboard")
training = importlib.import_module("gliomap.train")

NAMES = FULL, PLAIN, ABLATION = ("attention_resunet_fair", "unet3d_fair", "attention_resunet_baseline_fair")


@contextmanager
def small_things():
    """Tiny networks; trials and timings in this process; no counting of memory, which takes longer than these trainings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "RECIPES", RECIPES | {name: tiny(RECIPES[name]) for name in NAMES})
        for module in (budget, board):
            patch.setattr(module, "apart", lambda what, *given: what(*given))
        patch.setattr(training, "check_memory", lambda *_: None)
        patch.setattr(training, "keep_heap_if_roomy", lambda *_: None)
        yield


@pytest.fixture(scope="module", autouse=True)
def _small():
    with small_things():
        yield


data = pytest.fixture(scope="module")(four_phantoms)


def options(data, output, **changes):
    values = {"rows": NAMES, "patches": 12, "folds": 2, "device": "cpu", "quiet": True} | changes
    return ReproduceOptions("leaderboard", output, data, **values)


@pytest.fixture(scope="module", name="done")
def _done(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    return folder, leaderboard(options(data, folder))


def read(path):
    return json.loads(path.read_text())


def scores(folder):
    return {name: (folder / "rows" / name / "challenge.csv").read_bytes() for name in NAMES}


def test_every_row_has_the_same_folds_and_scores_every_study_by_the_fold_that_did_not_see_it(done):
    folder, result = done
    assert not result.failed
    folds = read(folder / "folds.json")["folds"]
    for name in NAMES:
        assert read(folder / "rows" / name / "folds.json")["folds"] == folds
        for number, ids in enumerate(folds):
            run = read(folder / "rows" / name / f"fold_{number}" / "run.json")
            assert not set(ids) & set(run["studies"]["training"])
        assert {row.study for row in read_rows(folder / "rows" / name / "challenge.csv")} == {
            i for f in folds for i in f
        }


def test_the_budget_is_equal_in_every_training(done):
    folder, _ = done
    runs = [read(path) for name in NAMES for path in (folder / "rows" / name).glob("fold_[0-9]/run.json")]
    assert [run["patches"] for run in runs] == [12] * 6
    assert read(folder / "leaderboard.json")["patches"] == 12


def test_what_a_row_starts_from_counts_and_what_trains_nothing_does_not(tmp_path):
    for place, told in (
        (".", {"patches": 1, "ended": NOTHING}),
        ("starts_from/a", {"patches": 6, "ended": ENOUGH}),
        ("starts_from/b", {"patches": 4, "ended": ENOUGH}),
    ):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "run.json").write_text(json.dumps(told))
    assert board._seen(tmp_path) == 10


def test_each_training_is_validated_once_so_that_nothing_is_chosen(done):
    logs = [path.read_text().splitlines() for path in (done[0] / "rows").rglob("log.csv")]
    assert len(logs) == 2 * 3
    assert {len(lines) for lines in logs} == {2}  # a header and one validation


def test_scores_are_those_of_evaluate_by_the_challenges_protocol(data, done, tmp_path):
    folder, _ = done
    place = folder / "rows" / FULL
    asked = EvaluateOptions(
        place / "out_of_fold",
        data,
        tmp_path / "scores.csv",
        "brats2023",
        METRICS,
        name=FULL,
        labels="brats2021",
        quiet=True,
    )
    expected = {(r.study, r.region, r.metric): r for r in evaluate(asked).rows}
    found = {(r.study, r.region, r.metric): r for r in read_rows(place / "challenge.csv")}
    assert found == expected


def test_answers_and_scores_are_those_of_compare_on_the_same_tables(done, tmp_path):
    folder, result = done
    tables = tuple(folder / "rows" / name / "challenge.csv" for name in NAMES)
    expected = compare(CompareOptions(tables, tmp_path / "compare", METRICS))
    assert (folder / "compare" / "compare.csv").read_bytes() == (tmp_path / "compare" / "compare.csv").read_bytes()
    assert [a.comparison for a in result.board.answers] == pytest.approx(
        [a.comparison for a in expected.answers], nan_ok=True
    )
    assert set(result.board.order) == set(NAMES)


def test_an_ablation_is_asked_against_its_own_network_alone(done):
    _, result = done
    assert len(result.board.ablations) == 3
    assert all(FULL in text and ABLATION in text for text in result.board.ablations)


def test_costs_are_counted_or_measured_for_every_row(done):
    for entry in done[1].board.entries:
        cost = entry.cost
        assert min(cost.parameters_m, cost.gmac, cost.training_s, cost.training_gb, cost.study_s, cost.study_gb) > 0
        assert (entry.share, entry.remark) == (1.0, "")


def test_the_same_command_again_runs_nothing(data, done, tmp_path, monkeypatch):
    shutil.copytree(done[0], tmp_path / "again")
    for module, name in ((board, "repeat"), (board, "apart"), (budget, "apart")):
        monkeypatch.setattr(module, name, never)
    leaderboard(options(data, tmp_path / "again"))
    for name in ("leaderboard.html", "leaderboard.md"):
        assert (tmp_path / "again" / name).read_bytes() == (done[0] / name).read_bytes()


def stop_in(name, fold, how):
    """Make the first step of that fold of a row press Ctrl-C, or kill the process."""
    step = loop.step

    def pressed(run, batch, begun):
        if run.output.parent.name == name and run.output.name == fold and run.progress.patches >= 4:
            os.kill(os.getpid(), how)
        return step(run, batch, begun)

    return pressed


def without(done, output, *names):
    """A copy of the finished leaderboard in which these rows are not begun."""
    shutil.copytree(done[0], output)
    for name in names:
        shutil.rmtree(output / "rows" / name)
    (output / "leaderboard.md").unlink()
    return output


def test_ctrl_c_leaves_a_page_without_the_row_in_its_ranks_and_the_same_command_comes_to_the_same(
    data, done, tmp_path, monkeypatch
):
    output = without(done, tmp_path / "out", ABLATION)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "step", stop_in(ABLATION, "fold_1", signal.SIGINT))
        with pytest.raises(Interrupted, match="the same command continues"):
            leaderboard(options(data, output))
    text = (output / "leaderboard.md").read_text()
    assert "2 of 3 rows are finished" in text
    assert f"| {ABLATION} | ablation of {FULL} | 75 % | interrupted |" in text
    assert ABLATION not in text[: text.index("## Costs")]
    result = leaderboard(options(data, output))
    assert set(result.board.order) == set(NAMES)
    assert scores(output) == scores(done[0])


def be_killed(data, output):
    """For a process of its own: kill -9 in the second fold of the last row."""
    with small_things():
        loop.step = stop_in(ABLATION, "fold_1", signal.SIGKILL)
        leaderboard(options(Path(data), Path(output)))


def test_a_killed_run_continues_and_comes_to_the_same(data, done, tmp_path):
    output = without(done, tmp_path / "out", ABLATION)
    code = f"from test_leaderboard import be_killed; be_killed({str(data)!r}, {str(output)!r})"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert not (output / "rows" / ABLATION / "challenge.csv").exists()
    leaderboard(options(data, output))
    assert scores(output) == scores(done[0])


def test_a_row_that_fails_is_listed_with_the_reason_and_the_others_go_on(data, done, tmp_path, monkeypatch):
    output = without(done, tmp_path / "out", FULL)
    monkeypatch.setattr(board, "repeat", Mock(side_effect=InputError("the loss is not finite")))
    result = leaderboard(options(data, output))
    assert result.failed == {FULL: "the loss is not finite"}
    assert set(result.board.order) == {PLAIN, ABLATION}
    unfinished = next(one for one in sections(result.board) if one.name == "unfinished")
    assert [(row[0], row[3]) for row in unfinished.rows] == [(FULL, "the loss is not finite")]


def test_a_row_of_another_budget_is_not_ranked(data, done, tmp_path, monkeypatch):
    shutil.copytree(done[0], tmp_path / "out")
    place = tmp_path / "out" / "rows" / PLAIN / "fold_1" / "run.json"
    place.write_text(json.dumps(read(place) | {"patches": 6}))
    monkeypatch.setattr(board, "repeat", never)
    result = leaderboard(options(data, tmp_path / "out"))
    assert set(result.board.order) == {FULL, ABLATION}
    assert next(e.share for e in result.board.entries if e.name == PLAIN) == 18 / 24


def test_a_row_that_cannot_even_be_tried_fails_alone(data, done, tmp_path, monkeypatch):
    bad = replace(budget.RECIPES[FULL], network=NetworkSpec("attention_resunet", {"base": 0}))
    monkeypatch.setattr(budget, "RECIPES", budget.RECIPES | {FULL: bad})
    result = leaderboard(options(data, without(done, tmp_path / "out", FULL)))
    assert "base is 0" in result.failed[FULL]
    assert set(result.board.order) == {PLAIN, ABLATION}


def trials(monkeypatch, **seconds):
    """Pretend that rows were tried and took so many seconds per patch, and two for each study."""
    monkeypatch.setattr(budget, "_tried", lambda _, recipe: Trial(seconds.get(recipe.name, 1.0), 2.0, 1.0))


def test_the_budget_is_the_largest_with_which_the_main_rows_end_in_time_and_it_is_kept(data, tmp_path, monkeypatch):
    trials(monkeypatch, unet3d_fair=3.0)
    asked = options(data, tmp_path, patches=None, max_time_s=920.0)
    found = estimate(asked)
    assert (
        found.patches == 84
    )  # the largest multiple of 12 up to (0.85 * 920 - 2 rows * 4 studies * 2 s) / (2 folds * (1 + 3) s)
    assert [found.row_s(name) for name in NAMES] == [84 * 2 + 8, 84 * 6 + 8, 84 * 2 + 8]
    assert estimate(replace(asked, max_time_s=9000.0)).patches == found.patches
    with pytest.raises(UsageError, match=f"has a budget of {found.patches} patches"):
        estimate(replace(asked, patches=12))


def test_without_a_limit_the_budget_is_the_protocols_own(data, tmp_path, monkeypatch):
    trials(monkeypatch)
    assert estimate(options(data, tmp_path, patches=None)).patches == 19_992


def test_too_short_a_time_says_how_long_it_takes(data, tmp_path, monkeypatch):
    trials(monkeypatch)
    with pytest.raises(UsageError, match=r"1 min are too short for 2 rows.*take about 1 min; give a longer --max-time"):
        estimate(options(data, tmp_path, patches=None, max_time_s=60.0))
    assert not (tmp_path / "leaderboard.json").exists()


def test_a_row_that_will_not_end_in_time_is_not_begun_and_not_ranked(data, done, tmp_path, monkeypatch):
    output = without(done, tmp_path / "out", PLAIN)
    trials(monkeypatch, unet3d_fair=1e3)
    monkeypatch.setattr(board, "repeat", never)
    result = leaderboard(options(data, output, max_time_s=3600.0))
    entry = next(entry for entry in result.board.entries if entry.name == PLAIN)
    assert entry.remark.startswith("it needs about 400 min more, and ")
    assert set(result.board.order) == {FULL, ABLATION}
    assert not result.failed


def test_another_question_is_refused(data, done, tmp_path):
    shutil.copytree(done[0], tmp_path / "out")
    for changes, name in (
        ({"seed": 1}, "seed"),
        ({"spacing_mm": 2.0}, "spacing_mm"),
        ({"studies": 3}, "labels_sha256"),
    ):
        with pytest.raises(UsageError, match=f"holds a leaderboard that differs in .*{name}"):
            leaderboard(options(data, tmp_path / "out", **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": ("unet",)}, "the leaderboard has no row unet; it has dual_fusion_fair"),
        ({"patches": 20}, "expected a multiple of 12"),
        ({"settings": ("*.training.patches=20",)}, "give it with --patches"),
        ({"settings": ("training.batch_size=3",)}, "give it with --patches"),
    ],
)
def test_what_would_make_budgets_unequal_is_refused(data, tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        estimate(options(data, tmp_path, **changes))


@pytest.mark.parametrize("patches", [12, 996, 19_992])
def test_every_row_spends_exactly_the_budget(patches):
    for name in ROWS:
        recipe = with_budget(RECIPES[name], patches)
        stages = [recipe, *trained_before(recipe)]
        if name == "dual_fusion_late_fair":  # which has nothing to train itself
            stages = stages[1:]
        assert sum(stage.training.patches for stage in stages) == patches, name
        assert all(stage.name.endswith(f"_{stage.training.patches}") for stage in trained_before(recipe))
        assert all(stage.training.validate_every == stage.training.patches for stage in stages)
        assert all(stage.training.patches % stage.training.batch_size == 0 for stage in stages)


def test_at_another_voxel_size_patches_and_windows_cover_as_many_millimetres_and_fit_the_networks():
    for name in ROWS:
        whole, recipe = RECIPES[name], with_budget(RECIPES[name], 120, 2.0)
        check(recipe)
        assert [2 * n for n in recipe.training.patch_size] == list(whole.training.patch_size)
        assert [2 * n for n in (recipe.inference.window or ())[1:]] == list((whole.inference.window or ())[1:])
        assert recipe.preprocessing.spacing_mm == 2.0
        assert all(stage.preprocessing.spacing_mm == 2.0 for stage in trained_before(recipe))


def test_a_loss_term_that_waits_for_an_epoch_counts_where_there_is_one_only():
    assert RECIPES["cga_unet_fair"].training.loss.settings["inter_from_epoch"] == 1
    assert with_budget(RECIPES["cga_unet_fair"], 12).training.loss.settings["inter_from_epoch"] == 0


def test_the_rows_are_the_five_systems_and_three_baselines_first_and_each_ablation_with_its_network():
    assert list(ROWS)[:8] == list(MAIN)
    assert set(ROWS) <= set(RECIPES)
    assert set(ABLATED) < set(ROWS)
    assert set(ABLATED.values()) < set(MAIN)


def test_what_is_apart_has_a_process_of_its_own():
    assert own_process(os.getpid) != os.getpid()


def test_the_command_refuses_the_leaderboards_options_for_a_papers_table(data, tmp_path):
    with pytest.raises(UsageError, match="--patches and --spacing are of the leaderboard"):
        command("002/table4", data, tmp_path, patches=12)
    with pytest.raises(UsageError, match="the leaderboard needs DATA"):
        command("leaderboard", None, tmp_path)


def test_the_command_prints_the_estimate_first_and_then_the_tables(data, done, tmp_path, monkeypatch, capsys):
    shutil.copytree(done[0], tmp_path / "out")
    before = []

    def run(_):
        before.append(capsys.readouterr().out)
        return done[1]

    monkeypatch.setattr(board, "leaderboard", run)
    asked = partial(command, "leaderboard", data, tmp_path / "out", rows=",".join(NAMES), folds="2", device="cpu")
    assert asked() == 0
    (estimated,), shown = before, capsys.readouterr().out
    assert "Budget: 12 patches for every row in each of 2 folds of 4 studies" in estimated
    assert all(name in estimated for name in NAMES)
    assert "3 of 3 rows are finished" in shown
    assert "Place" in shown
    monkeypatch.setattr(board, "leaderboard", lambda _: replace(done[1], failed={"a": "why"}))
    assert asked(json=True) == 5
    told = json.loads(capsys.readouterr().out)
    assert {row["row"]: row["place"] is not None for row in told["rows"]} == dict.fromkeys(NAMES, True)
