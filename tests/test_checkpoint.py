import random
from pathlib import Path

import pytest
import torch

from gliomap.checkpoint import load_checkpoint, save_checkpoint
from gliomap.errors import InputError, IntegrityError

STATE = {
    "network": {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(4)},
    "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "groups": [{"lr": 1e-3, "betas": (0.9, 0.999)}]},
    "patches": 120,
    "log": [{"dice": float("nan"), "name": "x", "best": None, "done": True}],
}


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, sprung: Path):
        self.sprung = sprung

    def __reduce__(self):
        return Path.touch, (self.sprung,)


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, STATE)
    return path


def test_round_trip(checkpoint):
    state = load_checkpoint(checkpoint)
    assert torch.equal(state["network"]["w"], STATE["network"]["w"])
    assert torch.equal(state["network"]["n"], STATE["network"]["n"])
    assert state["optimizer"]["groups"] == STATE["optimizer"]["groups"]
    assert list(state["optimizer"]["state"]) == [0]
    assert state["patches"] == 120
    assert str(state["log"]) == str(STATE["log"])
    assert [p.name for p in checkpoint.parent.iterdir()] == ["checkpoint.pt"]


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path):
    sprung = tmp_path / "sprung"
    path = tmp_path / "checkpoint.pt"
    torch.save({"network": Trap(sprung)}, path)
    with pytest.raises(IntegrityError, match="damaged or not a checkpoint") as caught:
        load_checkpoint(path)
    assert caught.value.exit_code == 4
    assert not sprung.exists()


def test_missing_checkpoint_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match="without --resume"):
        load_checkpoint(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95, 0.999])
def test_truncated_checkpoints_are_refused(checkpoint, share):
    raw = checkpoint.read_bytes()
    checkpoint.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(IntegrityError):
        load_checkpoint(checkpoint)


def test_any_other_bytes_are_refused(checkpoint):
    rng = random.Random(0)
    noise = [rng.randbytes(rng.randrange(1, 200)) for _ in range(200)]
    for content in (b"hello", b"\x80\x02}.", b"text\n" * 20, *noise):
        checkpoint.write_bytes(content)
        with pytest.raises(IntegrityError):
            load_checkpoint(checkpoint)
