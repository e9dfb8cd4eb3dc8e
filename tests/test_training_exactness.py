"""What a training promises to be the same: after kill -9, with more workers, in more processes, from its own record."""

import csv
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from programs import gradients

from gliomap import loop
from gliomap.errors import InputError, UsageError
from gliomap.files import read_json
from gliomap.model_file import load_model
from gliomap.phantom import PhantomOptions, phantom
from gliomap.train import TrainOptions, again, train

PROGRAMS = Path(__file__).parent / "programs"
RECIPE = "attention_resunet_small"
SETTINGS = [
    "network.settings.base=4",
    "preprocessing.spacing_mm=null",
    "training.patch_size=[16,32,32]",
    "training.batch_size=2",
    "training.patches=16",
    "training.validate_every=6",
    "training.ema_decay=0.9",
    "training.clip_norm=0.5",
]


@pytest.fixture(scope="module", name="data")
def _data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    phantom(PhantomOptions(folder, studies=5, size=32, quiet=True))
    return folder


def _run(*command: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def _in_two(*command: object) -> None:
    _run(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, *command)


def _lines(path: Path) -> list[dict[str, str]]:
    """A log, but for the columns of time and memory."""
    with path.open() as stream:
        return [{k: v for k, v in line.items() if k not in ("time_s", "memory_mb")} for line in csv.DictReader(stream)]


def _hashes(run: Path) -> dict[str, str]:
    return {name: load_model(run / name).content_sha256 for name in ("model.safetensors", "last.safetensors")}


@pytest.fixture(scope="module", name="whole")
def _whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    train(TrainOptions(RECIPE, data, run, SETTINGS, device="cpu", threads=1, workers=0, quiet=True))
    return run


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize(
    ("workers", "every_s", "kills"),
    [(0, 0, "2,4,12"), (2, 1e9, "4,8,14")],
    ids=["a checkpoint at every step", "workers and a checkpoint at every epoch"],
)
def test_a_training_that_was_killed_at_any_step_ends_as_one_that_was_not(
    data: Path, whole: Path, tmp_path: Path, workers: int, every_s: float, kills: str
) -> None:
    run = tmp_path / "run"
    _run(sys.executable, PROGRAMS / "killed.py", data, run, workers, every_s, kills, RECIPE, *SETTINGS)
    assert _hashes(run) == _hashes(whole)
    for name in ("log.csv", "steps.csv"):
        assert _lines(run / name) == _lines(whole / name)
    assert len(_lines(run / "steps.csv")) == 8
    assert [line["patches"] for line in _lines(run / "log.csv")] == ["6", "12", "16"]


def test_a_run_record_is_enough_to_run_it_again(whole: Path, tmp_path: Path) -> None:
    train(again(TrainOptions(str(whole / "run.json"), None, tmp_path / "again", quiet=True)))
    assert _hashes(tmp_path / "again") == _hashes(whole)
    assert _lines(tmp_path / "again" / "log.csv") == _lines(whole / "log.csv")
    record = read_json(tmp_path / "again" / "run.json")
    assert record["recipe"] == read_json(whole / "run.json")["recipe"]
    assert record["threads"] == 1
    with pytest.raises(UsageError, match=r"all of a training but -o \(got seed\)"):
        again(TrainOptions(str(whole / "run.json"), None, tmp_path / "other", seed=3))


DRUWAS = [
    "network.settings.depth=2",
    "training.patch_size=[16,16,16]",
    "training.batch_size=4",
    "training.patches=4",
    "training.validate_every=4",
    "inference.window=[16,16,16]",
    "training.validation_share=0.6",
]


def test_a_recorded_training_divides_the_studies_as_it_did_and_misses_those_that_are_gone(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    more = tmp_path / "data"
    shutil.copytree(data, more)
    phantom(PhantomOptions(more, studies=2, seed=7, size=32, quiet=True))
    options = again(TrainOptions(str(whole / "run.json"), None, tmp_path / "again", quiet=True))
    train(replace(options, data=more, max_time_s=1e-6))
    before, after = (read_json(run / "run.json")["studies"] for run in (whole, tmp_path / "again"))
    assert before == after
    shutil.rmtree(more / before["training"][0])
    with pytest.raises(InputError, match=f"lacks 1 studies of the recorded training, such as {before['training'][0]}"):
        train(replace(options, data=more, output=tmp_path / "third"))


def test_two_processes_have_the_gradient_of_one_with_the_joint_batch_and_validate_each_study_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(loop, "step", loop.step)  # which the program replaces
    gradients.main("druwas", data, tmp_path / "one", *DRUWAS)
    monkeypatch.undo()
    _in_two(PROGRAMS / "gradients.py", "druwas", data, tmp_path / "two", *DRUWAS)
    one, two = (torch.load(tmp_path / name / "gradients.pt") for name in ("one", "two"))
    assert one["gradients"].keys() == two["gradients"].keys()
    for name, gradient in one["gradients"].items():
        torch.testing.assert_close(two["gradients"][name], gradient, atol=1e-5, rtol=1e-5)
    assert two["line"] == pytest.approx(one["line"], abs=1e-5)
    seen = [(tmp_path / "two" / f"process_{rank}").read_text().split() for rank in (0, 1)]
    assert seen[0] + seen[1] == (tmp_path / "one" / "process_0").read_text().split()
    logs = [_lines(tmp_path / name / "log.csv") for name in ("one", "two")]
    assert len(logs[0]) == len(logs[1]) == 1
    for column in ("dice_ET", "dice_TC", "dice_WT", "dice_mean"):
        assert float(logs[1][0][column]) == pytest.approx(float(logs[0][0][column]), abs=2e-3)
    assert len(read_json(tmp_path / "two" / "run.json")["studies"]["validation"]) == 3
    assert read_json(tmp_path / "two" / "run.json")["processes"] == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_loss_pooled_over_the_batch_is_pooled_over_the_processes(tmp_path: Path) -> None:
    _run(sys.executable, PROGRAMS / "pooled_losses.py", tmp_path / "losses.pt")
    found = torch.load(tmp_path / "losses.pt")
    whole, parts = found["whole"], found["parts"]
    for part in parts:
        for name in ("dice", "inter_class"):
            torch.testing.assert_close(part[name], whole[name])
    for name in ("logits", "prototypes"):  # each process trains with the mean of both gradients
        joint = torch.cat([part[name] for part in parts]) / 2
        torch.testing.assert_close(joint, whole[name], atol=1e-7, rtol=1e-5)
