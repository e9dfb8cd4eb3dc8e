import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from models import small_model_file

from gliomap import cli

VERBS = (
    "demo", "segment", "view", "report", "explain", "train", "tune", "evaluate", "compare", "reproduce", "models", "export",
    "split", "phantom",
)  # fmt: skip
HEAVY = ("torch", "monai", "numpy", "nibabel", "scipy", "pydantic", "lightning_fabric")


def _gliomap(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """What a command line prints and ends with, in this process; one of its own takes seconds to import what a verb needs."""
    words, out, err = ["gliomap", *map(str, arguments)], io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return subprocess.CompletedProcess(words, int(ended.value.code or 0), out.getvalue(), err.getvalue())


def _process(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gliomap", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_help_lists_every_verb_and_imports_nothing_heavy() -> None:
    code = f"""
import sys
from gliomap.cli import app
sys.argv = ["gliomap", "--help"]
try:
    app()
finally:
    print("HEAVY", [m for m in {HEAVY!r} if m in sys.modules])
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(verb in shown for verb in VERBS)
    assert "HEAVY []" in shown


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    result = _gliomap(verb, "--help")
    assert result.returncode == 0
    assert f"gliomap {verb}" in result.stdout.split("Example:")[1]


def test_the_version_is_the_packages() -> None:
    from gliomap import __version__  # noqa: PLC0415

    assert _process("--version").stdout == f"gliomap {__version__}\n"


@pytest.mark.parametrize("arguments", [["nonsense"], ["segment"], ["train", "no_such_recipe", ".", "-o", "x"]])
def test_wrong_usage_ends_with_2(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _gliomap(*arguments).returncode == 2
    assert not list(tmp_path.iterdir())


def test_bad_input_is_one_red_line_with_3_and_a_traceback_only_with_debug(tmp_path: Path) -> None:
    plain = _process("segment", tmp_path / "nowhere", "-o", tmp_path / "out")
    assert plain.returncode == 3
    assert plain.stderr.count("\n") == 1
    assert "does not exist" in plain.stderr
    assert not (tmp_path / "out").exists()
    debug = _gliomap("segment", tmp_path / "nowhere", "-o", tmp_path / "out", "--debug")
    assert debug.returncode == 3
    assert "Traceback" in debug.stderr


def test_a_model_that_is_not_one_ends_with_4(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("this is not a model file")
    _gliomap("phantom", "-o", tmp_path / "data", "--size", "32")
    result = _gliomap("segment", tmp_path / "data", "-o", tmp_path / "out", "-m", tmp_path / "model.safetensors")
    assert result.returncode == 4
    assert not (tmp_path / "out").exists()


def test_part_of_a_folder_failing_ends_with_5_and_the_rest_is_done(tmp_path: Path) -> None:
    assert _gliomap("phantom", "-o", tmp_path / "data", "--size", "32", "--studies", "2").returncode == 0
    bad, good = sorted(p for p in (tmp_path / "data").iterdir() if p.is_dir())
    (bad / f"{bad.name}_t2.nii.gz").unlink()
    model = small_model_file(tmp_path / "model.safetensors")
    words = ["segment", tmp_path / "data", "-o", tmp_path / "out", "-m", model, "--engine", "torch", "--json"]
    result = _gliomap(*words)
    assert result.returncode == 5
    assert bad.name in result.stderr
    assert (tmp_path / "out" / good.name / "segmentation.nii.gz").is_file()
    assert not (tmp_path / "out" / bad.name).exists()
    rows = json.loads(result.stdout)
    assert [row["study"] for row in rows] == [good.name, bad.name]


def test_json_is_all_there_is_on_standard_output(tmp_path: Path) -> None:
    made = _gliomap("phantom", "-o", tmp_path / "data", "--size", "32", "--studies", "2", "--json")
    assert json.loads(made.stdout) == ["BraTS2021_PhantomV1_00000", "BraTS2021_PhantomV1_00001"]
    settings = [
        "--set",
        "training.patches=2",
        "--set",
        "network.settings.base=2",
        "--set",
        "training.patch_size=[16,16,16]",
    ]
    trained = _gliomap(
        "train", "attention_resunet_small", tmp_path / "data", "-o", tmp_path / "run", *settings, "--json"
    )
    assert json.loads(trained.stdout)["model"] == str(tmp_path / "run" / "model.safetensors")


def test_split_and_evaluate_from_the_command_line(tmp_path: Path) -> None:
    _gliomap("phantom", "-o", tmp_path / "data", "--size", "32", "--studies", "3")
    assert _gliomap("split", tmp_path / "data", "-o", tmp_path / "folds.json", "--folds", "3").returncode == 0
    assert len(json.loads((tmp_path / "folds.json").read_text())["folds"]) == 3
    scored = _gliomap("evaluate", tmp_path / "data", tmp_path / "data", "-o", tmp_path / "scores.csv")
    assert scored.returncode == 0
    assert (tmp_path / "scores.csv").is_file()


def test_a_dry_run_says_what_a_training_takes_and_needs_no_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gliomap.plan.patch_time_s", lambda *_: 0.5)
    small = [
        "--set",
        "network.settings.base=4",
        "--set",
        "training.patch_size=[16,16,16]",
        "--set",
        "training.patches=8",
    ]
    shown = _gliomap("train", "attention_resunet_small", "--dry-run", *small)
    assert shown.returncode == 0
    assert '"learning_rate": 0.002' in shown.stdout
    assert ["attention_resunet_small", "8", "4", "1"] in [line.split()[:4] for line in shown.stdout.splitlines()]
    assert "in several processes BatchNorm takes its statistics over each one's own patches" in shown.stdout
    (stage,) = json.loads(_gliomap("train", "attention_resunet_small", "--dry-run", "--json", *small).stdout)["stages"]
    assert (stage["steps"], stage["patches"]) == (4, 8)
    assert stage["memory_bytes"] > 1e6
    assert stage["time_s"] == 8 * 0.5
    assert not list(tmp_path.iterdir())
    nothing = _gliomap("train", "attention_resunet_small")
    assert nothing.returncode == 2
    assert "training needs -o" in nothing.stderr
