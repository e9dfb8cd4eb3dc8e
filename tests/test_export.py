import io
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from models import tiny_ensemble, tiny_model
from typer.testing import CliRunner

from gliomap import export as exporting
from gliomap.cli import app
from gliomap.errors import UsageError
from gliomap.export import ExportOptions, export
from gliomap.files import sha256
from gliomap.model_file import load_model, save_ensemble, save_model
from gliomap.openvino_engine import openvino_core
from gliomap.recipe import recipe_from_json
from gliomap.torch_engine import load_networks
from gliomap.tracing import convert

SHAPE = (3, 4, 12, 20)
"""Slices of a size and number that were neither traced nor compared."""


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    monkeypatch.setattr(exporting, "convert_apart", convert)


@pytest.fixture
def model_file(tmp_path):
    model = tiny_model()
    save_model(tmp_path / "model.safetensors", model.recipe, model.weights, {})
    return tmp_path / "model.safetensors"


def images(shape=SHAPE):
    return np.random.default_rng(5).standard_normal(shape, np.float32)


def expected(model, batch):
    (network,) = load_networks(model)
    with torch.inference_mode():
        return network(torch.from_numpy(batch)).numpy()


def run_openvino(path):
    compiled = openvino_core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled({"images": images()})["logits"]


def run_onnx(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images()})[0]


def run_torchscript(path):
    return torch.jit.load(io.BytesIO(path.read_bytes()))(torch.from_numpy(images())).numpy()


@pytest.mark.parametrize(
    ("to", "names", "run"),
    [
        ("openvino", ["net.xml", "net.bin"], run_openvino),
        ("onnx", ["net.onnx"], run_onnx),
        ("torchscript", ["net.pt"], run_torchscript),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.load.*:DeprecationWarning")
def test_another_program_gets_torchs_logits_from_the_file_at_any_size(to, names, run, model_file, tmp_path):
    result = export(ExportOptions(model_file, tmp_path / "out" / names[0], to, quiet=True))
    assert [path.name for path in result.files] == [*names, "net.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*names, "net.json"])
    assert 0 <= result.largest_difference < 1e-5
    np.testing.assert_allclose(run(result.files[0]), expected(tiny_model(), images()), atol=1e-5)


def test_the_record_says_what_the_images_must_be(model_file, tmp_path):
    *files, record = export(ExportOptions(model_file, tmp_path / "out" / "net.pt", "torchscript", quiet=True)).files
    told, model = json.loads(record.read_text()), load_model(model_file)
    assert told["model"] == {"name": model.name, "content_sha256": model.content_sha256, "networks": 1}
    assert recipe_from_json(json.dumps(told["recipe"])) == model.recipe
    assert told["images"]["modalities"] == ["t1", "t1c", "t2", "flair"]
    assert told["images"]["axes"] == ["batch", "modality", "height", "width"]
    assert told["images"]["multiples_of"] == [4, 4]
    assert told["logits"]["activation"] == "softmax"
    assert told["logits"]["channels"] == [[0], [1], [2], [3]]
    assert told["files"] == {file.name: sha256(file) for file in files}


def test_the_networks_of_an_ensemble_go_to_a_file_each(tmp_path):
    alone = [tiny_model(seed=seed) for seed in (0, 1)]
    save_ensemble(tmp_path / "both.safetensors", alone)
    result = export(ExportOptions(tmp_path / "both.safetensors", tmp_path / "net.onnx", "onnx", quiet=True))
    assert [path.name for path in result.files] == ["net-1.onnx", "net-2.onnx", "net.json"]
    for model, path in zip(alone, result.files, strict=False):
        np.testing.assert_allclose(run_onnx(path), expected(model, images()), atol=1e-5)
    assert json.loads(result.files[-1].read_text())["model"]["networks"] == len(tiny_ensemble().prefixes)


def test_nothing_is_written_if_one_network_cannot_be_converted(tmp_path, monkeypatch):
    save_ensemble(tmp_path / "both.safetensors", [tiny_model(seed=seed) for seed in (0, 1)])
    tried = []

    def fail_the_second(model, to):
        tried.append(model)
        if len(tried) == 2:
            raise UsageError("it disagrees")
        return convert(model, to)

    monkeypatch.setattr(exporting, "convert_apart", fail_the_second)
    with pytest.raises(UsageError, match="it disagrees"):
        export(ExportOptions(tmp_path / "both.safetensors", tmp_path / "out" / "net.pt", "torchscript", quiet=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "to", "message"),
    [
        ("net.onnx", "tensorrt", "expected one of openvino, onnx, torchscript"),
        ("net.onnx", "openvino", r"ends with \.xml"),
        ("net", "torchscript", r"ends with \.pt"),
    ],
)
def test_formats_and_names_that_do_not_fit_are_refused_before_anything_is_read(name, to, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        export(ExportOptions(tmp_path / "absent.safetensors", tmp_path / name, to, quiet=True))


def test_the_command_line_tells_what_was_written(model_file: Path, tmp_path: Path):
    words = ["export", str(model_file), "-o", str(tmp_path / "net.pt"), "--to", "torchscript"]
    plain = CliRunner().invoke(app, words)
    assert plain.exit_code == 0
    assert f"written to {tmp_path / 'net.pt'}" in plain.stdout.splitlines()
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert told["files"] == [str(tmp_path / "net.pt"), str(tmp_path / "net.json")]
    assert told["largest_difference"] < 1e-5
