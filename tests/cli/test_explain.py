import json

import typer
from follower import follower_model, follower_recipe
from studies import brain_images, nested_tumour, save
from typer.testing import CliRunner

from gliomap.cli.explain import explain

RUNNER = CliRunner()
APP = typer.Typer()
APP.command()(explain)


def _case(folder, monkeypatch):
    images, tumour = brain_images(), nested_tumour()
    images[3][tumour > 0] += 2000
    for name, one in zip(("t1", "t1c", "t2", "flair", "seg"), (*images, tumour), strict=True):
        save(folder / "study" / f"{name}.nii", one)
    model = follower_model(folder / "m.safetensors", follower_recipe(monkeypatch))
    return [str(folder / "study"), "-m", str(model), "--engine", "torch", "--labels", "brats2023"]


def test_the_maps_are_printed_with_what_the_checks_say_and_where_everything_is(tmp_path, monkeypatch):
    result = RUNNER.invoke(APP, [*_case(tmp_path, monkeypatch), "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    head, *rows = result.stdout.splitlines()
    for column in ("randomised weights", "more than randomised", "deletion", "insertion", "inside the reference ET"):
        assert column in head
    assert rows[0].startswith("AG_1")
    assert "1.00, failed" in rows[0]  # the weights of this network do not matter
    assert ", passed" in rows[0]
    assert any(line.startswith("AG_3: Attention gate of level 3") for line in rows)
    assert rows[-1] == f"written to {tmp_path / 'out'}/"


def test_as_json_and_quietly(tmp_path, monkeypatch):
    words = [*_case(tmp_path, monkeypatch), "--checks", "none"]
    told = json.loads(RUNNER.invoke(APP, [*words, "-o", str(tmp_path / "a"), "--json"]).stdout)
    assert told["maps"] == {"AG_1": {}, "AG_2": {}, "AG_3": {}}
    assert str(tmp_path / "a" / "maps" / "AG_1.nii.gz") in told["files"]
    assert RUNNER.invoke(APP, [*words, "-o", str(tmp_path / "b"), "--quiet"]).stdout == ""
