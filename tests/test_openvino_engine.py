import importlib
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from models import tiny_model

from gliomap.errors import InputError
from gliomap.machine import cores
from gliomap.openvino_engine import SLICES_PER_BATCH, in_slices, openvino_engine, threads
from gliomap.torch_engine import load_networks, torch_engine
from gliomap.tracing import convert

openvino_engine_module = importlib.import_module("gliomap.openvino_engine")
RESUNET = tiny_model("attention_resunet")


@pytest.fixture(scope="module")
def resunet():
    return openvino_engine(convert(RESUNET, "openvino"))


def images(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def expected(model, batch):
    (network,) = load_networks(model)
    return torch_engine(network)(batch)


@pytest.mark.parametrize("shape", [(1, 4, 16, 32, 64), (3, 4, 48, 16, 16)])
def test_logits_are_torchs_at_any_size_and_batch(resunet, shape):
    logits = resunet.run(images(shape))
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected(RESUNET, images(shape)), atol=1e-4)


def test_a_result_is_not_overwritten_by_the_next(resunet):
    first = resunet.run(images((1, 4, 16, 16, 32)))
    kept = first.copy()
    resunet.run(images((1, 4, 16, 16, 32), seed=1))
    np.testing.assert_array_equal(first, kept)


def test_a_network_is_compiled_once_for_a_size_whatever_the_batch(resunet, monkeypatch):
    shapes = []

    class Core:
        def compile_model(self, model, *settings):
            shapes.append(tuple(dimension.get_length() for dimension in model.inputs[0].partial_shape))
            return core.compile_model(model, *settings)

    core = openvino_engine_module.openvino_core()
    monkeypatch.setattr(openvino_engine_module, "openvino_core", Core)
    resunet.run(images((1, 4, 80, 16, 16)))
    resunet.run(images((2, 4, 80, 16, 16)))
    resunet.run(images((1, 4, 16, 16, 80)))
    assert shapes == [(1, 4, 80, 16, 16), (1, 4, 16, 16, 80)]


def test_a_result_stays_when_the_memory_of_passes_is_given_back(resunet):
    batch = images((1, 4, 16, 16, 32))
    logits = resunet.run(batch)
    kept = logits.copy()
    resunet.release()
    np.testing.assert_array_equal(logits, kept)
    np.testing.assert_array_equal(resunet.run(batch), kept)


def test_the_memory_of_a_pass_is_given_back():
    """In a process of its own: a training in this one may have made the C library keep what is freed (`keep_heap`)."""
    code = """
import numpy as np
from models import tiny_model
from gliomap.machine import memory_bytes
from gliomap.openvino_engine import openvino_engine
from gliomap.tracing import convert
engine = openvino_engine(convert(tiny_model("attention_resunet"), "openvino"))
batch = np.ones((1, 4, 80, 96, 96), np.float32)
engine.run(batch)
taken = memory_bytes()
engine.release()
print((taken - memory_bytes()) / batch.nbytes)
"""
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    assert float(found.stdout) > 4


def test_strided_images_are_what_they_look_like(resunet):
    turned = images((1, 4, 16, 32, 16)).transpose(0, 1, 3, 4, 2)[:, :, ::-1]
    np.testing.assert_array_equal(resunet.run(turned), resunet.run(np.ascontiguousarray(turned)))


def test_a_size_that_torch_would_refuse_is_refused(resunet):
    assert resunet.divisors == (16, 16, 16)
    with pytest.raises(InputError, match="multiple of"):
        resunet.run(images((1, 4, 16, 24, 16)))


def test_a_two_dimensional_network_sees_every_axial_slice():
    model = tiny_model()
    engine = openvino_engine(convert(model, "openvino"))
    batch = images((2, 4, 7, 8, 12))
    assert engine.divisors == (1, 4, 4)
    np.testing.assert_allclose(engine.run(batch), expected(model, batch), atol=1e-4)


def test_slices_come_back_in_their_places_a_few_at_a_time():
    seen = []

    def run(slices):
        seen.append(len(slices))
        return np.concatenate([slices[:, :1], 2 * slices[:, 1:]], 1)

    batch = images((2, 2, 7, 3, 5))
    np.testing.assert_array_equal(in_slices(run)(batch), np.concatenate([batch[:, :1], 2 * batch[:, 1:]], 1))
    assert sum(seen) == 14
    assert max(seen) == SLICES_PER_BATCH


def test_threads_are_those_of_openmp_or_every_core(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads() == 3
    for nothing in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", nothing)
        assert threads() == cores()


def test_ctrl_c_still_comes_after_engines_that_are_gone(tmp_path):
    """Each plugin of OpenVINO's swaps the stack that signals run on; in the wrong order, the next signal ends all."""
    (tmp_path / "converted").write_bytes(pickle.dumps(convert(RESUNET, "openvino")))
    code = """
import pickle, signal, sys
from pathlib import Path
import numpy as np
from gliomap.openvino_engine import openvino_engine
converted = pickle.loads(Path(sys.argv[1]).read_bytes())
first, second = openvino_engine(converted), openvino_engine(converted)
for engine in (first, second):
    engine.run(np.zeros((1, 4, 16, 16, 16), np.float32))  # which is when its plugin comes
del engine
del first
del second
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever this process was begun with
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    ran = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code, str(tmp_path / "converted")],
        capture_output=True,
        check=False,
        text=True,
    )
    assert (ran.returncode, ran.stdout) == (0, "interrupted\n"), ran.stderr


def test_openvino_comes_without_its_telemetry_and_without_torch():
    code = """
import sys
from gliomap.openvino_engine import import_openvino
import_openvino()
from openvino.tools.ovc import telemetry_utils
print(telemetry_utils.tm.__name__, sys.modules["openvino_telemetry"], "torch" in sys.modules)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["openvino.tools.ovc.telemetry_stub", "None", "False"]
