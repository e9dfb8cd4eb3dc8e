import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from models import tiny_ensemble, tiny_model

from gliomap import engines, torch_engine, tracing
from gliomap.conversion import convert_apart
from gliomap.data.synthetic import make_phantom
from gliomap.engines import load_engines
from gliomap.errors import UsageError
from gliomap.metrics import dice
from gliomap.model_file import save_model
from gliomap.phantom import PhantomOptions, phantom
from gliomap.preprocess import prepare
from gliomap.segmenter import Segmenter
from gliomap.tracing import convert
from gliomap.volume import Volume

BLOCK = """
import atexit, os, socket, sys

def refuse(self, address):
    with open(os.environ["SEEN"], "a") as seen:
        seen.write(f"socket {address}\\n")
    raise OSError("no network here")

socket.socket.connect = socket.socket.connect_ex = refuse

@atexit.register
def tell():
    found = [name for name in ("torch", "monai", "openvino") if name in sys.modules]
    with open(os.environ["SEEN"], "a") as seen:
        seen.write(f"{os.path.basename(sys.argv[0])} {found}\\n")
"""


def images(seed=0):
    return np.random.default_rng(seed).standard_normal((1, 4, 16, 16, 32), np.float32)


@pytest.fixture
def conversions(monkeypatch, tmp_path):
    """The models converted during a test, in its own cache and process."""
    seen = []

    def convert_here(model, to):
        seen.append(model.name)
        return convert(model, to)

    monkeypatch.setattr(engines, "convert_apart", convert_here)
    monkeypatch.setenv("GLIOMAP_CACHE", str(tmp_path / "cache"))
    return seen


@pytest.fixture
def cannot_convert(monkeypatch, tmp_path):
    """How often a conversion was tried that never succeeds."""
    tried = []

    def fail(model, to):
        tried.append(model.name)
        raise UsageError("it has an odd layer")

    monkeypatch.setattr(engines, "convert_apart", fail)
    monkeypatch.setenv("GLIOMAP_CACHE", str(tmp_path / "cache"))
    return tried


def is_torch(engine, model):
    """Whether an engine gives torch's logits to the last bit."""
    (reference,) = load_engines(model, "cpu", "torch")
    return np.array_equal(engine.run(images()), reference.run(images()))


def test_auto_is_openvino_converted_once_for_each_network(conversions):
    for _ in range(2):
        (engine,) = load_engines(tiny_model())
        assert not is_torch(engine, tiny_model())
        assert conversions == ["unet2d"]
    load_engines(tiny_model(seed=1))
    assert len(conversions) == 2


def test_the_key_follows_from_all_that_makes_the_network(conversions, monkeypatch):
    load_engines(tiny_model())
    monkeypatch.setattr(engines, "_sources_sha256", lambda: "another program")
    load_engines(tiny_model())
    monkeypatch.setattr(engines.metadata, "version", lambda _: "0.0")
    load_engines(tiny_model())
    assert len(conversions) == 3


def test_both_engines_say_the_same_of_the_network(conversions):
    model = tiny_model()
    (found,), (expected,) = load_engines(model, "cpu", "openvino"), load_engines(model, "cpu", "torch")
    assert found.divisors == expected.divisors == (1, 4, 4)
    assert 0 < found.bytes_per_voxel == expected.bytes_per_voxel / engines.KERNELS
    assert found.only_size is expected.only_size is None


def test_an_ensemble_has_an_engine_for_each_network_and_shares_those_of_its_members(conversions):
    load_engines(tiny_model(seed=1))
    found = load_engines(tiny_ensemble(), "cpu", "openvino")
    assert len(conversions) == 2
    for seed, engine in enumerate(found):
        (alone,) = load_engines(tiny_model(seed=seed), "cpu", "openvino")
        np.testing.assert_array_equal(engine.run(images()), alone.run(images()))


def test_a_damaged_conversion_is_made_again(conversions, tmp_path):
    model = tiny_model()
    (first,) = load_engines(model)
    expected = first.run(images())
    (kept,) = (tmp_path / "cache" / "engines").glob("*.safetensors")
    content = bytearray(kept.read_bytes())
    for damaged in (content[:-5] + bytes([content[-5] ^ 64]) + content[-4:], content[: len(content) // 2], b""):
        kept.write_bytes(damaged)
        before = len(conversions)
        (engine,) = load_engines(model)
        assert len(conversions) == before + 1
        np.testing.assert_array_equal(engine.run(images()), expected)


def test_without_a_cache_auto_converts_nothing_and_openvino_each_time(conversions, monkeypatch):
    monkeypatch.setenv("GLIOMAP_CACHE", "off")
    model = tiny_model()
    (engine,) = load_engines(model)
    assert is_torch(engine, model)
    assert not conversions
    for _ in range(2):
        load_engines(model, "cpu", "openvino")
    assert len(conversions) == 2


def test_what_cannot_be_converted_runs_with_torch_and_is_not_tried_again(cannot_convert):
    for _ in range(2):
        (engine,) = load_engines(tiny_model())
        assert is_torch(engine, tiny_model())
        with pytest.raises(UsageError, match=r"it has an odd layer\. Use --engine torch"):
            load_engines(tiny_model(), "cpu", "openvino")
    assert len(cannot_convert) == 1


def test_torch_alone_needs_no_openvino(cannot_convert, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    (engine,) = load_engines(tiny_model())
    assert is_torch(engine, tiny_model())
    with pytest.raises(UsageError, match=r"gliomap\[fast\]"):
        load_engines(tiny_model(), "cpu", "openvino")
    assert not cannot_convert


def test_names_and_devices_that_do_not_exist_are_refused(monkeypatch):
    with pytest.raises(UsageError, match="expected one of auto, openvino, torch"):
        load_engines(tiny_model(), "cpu", "tensorrt")
    with pytest.raises(UsageError, match="expected auto, cpu or cuda"):
        load_engines(tiny_model(), "gpu0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no CUDA device"):
        load_engines(tiny_model(), "cuda")


def test_a_gpu_is_torchs(cannot_convert, monkeypatch):
    monkeypatch.setattr(engines, "_has_gpu_driver", lambda: True)
    monkeypatch.setattr(torch_engine, "find_device", lambda name: torch.device("meta" if name == "auto" else name))
    monkeypatch.setattr(torch_engine, "load_networks", lambda *_: ())
    assert load_engines(tiny_model()) == ()
    assert not cannot_convert
    with pytest.raises(UsageError, match="choose --device cpu"):
        load_engines(tiny_model(), "auto", "openvino")
    load_engines(tiny_model(), "cpu")
    assert cannot_convert


def test_the_process_that_converts_may_crash_without_ending_this_one(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho the last words >&2\nkill -SEGV $$\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(UsageError, match="ended with -11: the last words"):
        convert_apart(tiny_model(), "openvino")


def test_why_the_other_process_could_not_convert_is_told_here(monkeypatch):
    def run_here(command, **_):
        assert command[:4] == [sys.executable, "-P", "-m", "gliomap.tracing"]
        monkeypatch.setattr(sys, "argv", ["tracing.py", *command[4:]])
        tracing.main()

    monkeypatch.setattr(subprocess, "run", run_here)
    model = tiny_model()
    model.weights.popitem()
    with pytest.raises(UsageError, match=r"cannot be converted to openvino: the weights .* do not fit its recipe"):
        convert_apart(model, "openvino")


def test_class_maps_of_both_engines_agree(conversions):
    made, model = make_phantom(3, size=48), tiny_model()
    study = Volume(made.images, made.affine)
    (torchs,) = load_engines(model, "cpu", "torch")
    *_, bias = (name for name, array in model.weights.items() if array.shape == (len(model.recipe.target.channels),))
    typical = Segmenter(model.recipe, (torchs,)).logits(prepare(study, model.recipe, None).array, torchs)
    model.weights[bias] = model.weights[bias] - np.median(
        typical[:, study.array[0] > 0], 1
    )  # several classes, finely mixed
    found, expected = (
        Segmenter(model.recipe, load_engines(model, "cpu", name))(study).array[0] for name in ("openvino", "torch")
    )
    assert len(np.unique(expected)) > 2
    for tissue in np.unique(expected):
        assert dice(found == tissue, expected == tissue) >= 0.999


def test_segmenting_never_imports_torch_nor_tries_the_network(tmp_path: Path):
    """The first study converts, in a process of its own that may import torch; nothing may connect to anything."""
    phantom(PhantomOptions(tmp_path / "data", size=32, quiet=True))
    model = tiny_model()
    save_model(tmp_path / "model.safetensors", model.recipe, model.weights, {})
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCK)
    told = {
        "PYTHONPATH": str(tmp_path / "site"),
        "GLIOMAP_CACHE": str(tmp_path / "cache"),
        "SEEN": str(tmp_path / "seen"),
    }
    for output in ("cold", "warm"):
        words = ["segment", tmp_path / "data", "-o", tmp_path / output, "-m", tmp_path / "model.safetensors"]
        command = [sys.executable, "-m", "gliomap", *map(str, words), "--engine", "openvino", "--json"]
        done = subprocess.run(command, env=os.environ | told, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)[0]["status"] == "done"
    assert (tmp_path / "seen").read_text().splitlines() == [
        "tracing.py ['torch', 'openvino']",
        "__main__.py ['openvino']",
        "__main__.py ['openvino']",
    ]
