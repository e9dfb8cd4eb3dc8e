import hashlib
import io
import os
import random
from pathlib import Path

import pytest
import torch

from gliomap.checkpoint import CHECKPOINT, PREVIOUS, has_checkpoint, load_checkpoint, save_checkpoint
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


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    """Two checkpoints, of 100 and of 120 patches."""
    save_checkpoint(tmp_path, STATE | {"patches": 100})
    save_checkpoint(tmp_path, STATE)
    return tmp_path


def _damage(path: Path, share: float = 0.9) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])


def test_round_trip(tmp_path):
    save_checkpoint(tmp_path, STATE)
    state, odd = load_checkpoint(tmp_path)
    assert torch.equal(state["network"]["w"], STATE["network"]["w"])
    assert torch.equal(state["network"]["n"], STATE["network"]["n"])
    assert state["optimizer"]["groups"] == STATE["optimizer"]["groups"]
    assert list(state["optimizer"]["state"]) == [0]
    assert state["patches"] == 120
    assert str(state["log"]) == str(STATE["log"])
    assert odd == []
    assert os.listdir(tmp_path) == [CHECKPOINT]


def test_the_one_before_is_kept(folder):
    assert sorted(os.listdir(folder)) == sorted([CHECKPOINT, PREVIOUS])
    assert load_checkpoint(folder)[0]["patches"] == 120
    (folder / CHECKPOINT).unlink()
    assert has_checkpoint(folder)
    assert load_checkpoint(folder)[0]["patches"] == 100


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95, 0.9999])
def test_a_truncated_checkpoint_falls_back_to_the_one_before_it_and_says_so(folder, share):
    _damage(folder / CHECKPOINT, share)
    state, odd = load_checkpoint(folder)
    assert state["patches"] == 100
    (text,) = odd
    assert "checkpoint.pt is damaged" in text
    assert f"continues from {PREVIOUS}" in text


def test_a_flipped_bit_is_damage(folder):
    raw = bytearray((folder / CHECKPOINT).read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / CHECKPOINT).write_bytes(raw)
    assert load_checkpoint(folder)[0]["patches"] == 100


def test_where_both_are_damaged_nothing_is_resumed(folder):
    for name in (CHECKPOINT, PREVIOUS):
        _damage(folder / name)
    with pytest.raises(IntegrityError, match="Nothing can be resumed") as caught:
        load_checkpoint(folder)
    assert caught.value.exit_code == 4


def test_a_full_disk_keeps_what_was_there(folder, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gliomap.files.os.fsync", full)
    with pytest.raises(InputError, match="No space left"):
        save_checkpoint(folder, STATE | {"patches": 140})
    assert sorted(os.listdir(folder)) == sorted([CHECKPOINT, PREVIOUS])
    assert load_checkpoint(folder)[0]["patches"] == 120


def test_one_that_does_not_read_back_as_it_was_written_never_takes_the_place_of_a_good_one(folder, monkeypatch):
    written = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: written(path)[:-1])
    with pytest.raises(InputError, match="The one before it is kept"):
        save_checkpoint(folder, STATE | {"patches": 140})
    monkeypatch.undo()
    assert load_checkpoint(folder)[0]["patches"] == 120


@pytest.mark.parametrize("kill_at", [1, 2, 3])
def test_a_kill_at_any_moment_of_saving_leaves_a_whole_one(folder, monkeypatch, kill_at):
    """At each rename of the three: that of the file as it is written, and those of the two checkpoints."""
    rename, seen = os.replace, []

    def killed(*arguments: object) -> None:
        seen.append(1)
        if len(seen) == kill_at:
            raise KeyboardInterrupt
        rename(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(folder, STATE | {"patches": 140})
    monkeypatch.undo()
    assert load_checkpoint(folder)[0]["patches"] == 120
    save_checkpoint(folder, STATE | {"patches": 160})
    assert load_checkpoint(folder)[0]["patches"] == 160


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path):
    sprung, buffer = tmp_path / "sprung", io.BytesIO()
    torch.save({"network": Trap(sprung)}, buffer)
    content = buffer.getvalue()
    (tmp_path / CHECKPOINT).write_bytes(content + hashlib.sha256(content).digest())
    with pytest.raises(IntegrityError, match="not a checkpoint") as caught:
        load_checkpoint(tmp_path)
    assert caught.value.exit_code == 4
    assert not sprung.exists()


def test_missing_checkpoint_says_what_to_do(tmp_path):
    assert not has_checkpoint(tmp_path)
    with pytest.raises(InputError, match="without --resume"):
        load_checkpoint(tmp_path)


def test_any_other_bytes_are_refused(tmp_path):
    rng = random.Random(0)
    noise = [rng.randbytes(rng.randrange(1, 200)) for _ in range(200)]
    for content in (b"hello", b"\x80\x02}.", b"text\n" * 20, *noise):
        (tmp_path / CHECKPOINT).write_bytes(content)
        with pytest.raises(IntegrityError):
            load_checkpoint(tmp_path)
