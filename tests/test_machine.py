import sys

import numpy as np
import psutil

from gliomap import machine


def test_versions_name_what_results_depend_on():
    found = machine.versions()
    assert {"gliomap", "python", "system", "numpy", "torch", "safetensors"} <= set(found)
    assert found["numpy"] == np.__version__
    assert found["python"].split(".")[:2] == [str(n) for n in sys.version_info[:2]]


def test_peak_memory_is_in_megabytes_and_never_falls():
    before = machine.peak_memory_mb()
    assert 20 < before < 200_000
    block = np.ones(6_000_000)  # 48 MB
    after = machine.peak_memory_mb()
    assert after >= before
    assert block.all()


def test_there_is_a_core():
    assert machine.cores() >= 1


def test_available_memory_is_within_the_control_group_and_counts_read_files_as_free(tmp_path, monkeypatch):
    monkeypatch.setattr("gliomap.machine.CONTROL_GROUP", tmp_path)
    free = machine.available_memory_bytes()
    assert 0 < free <= psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 100000\ninactive_file 700000\n")
    assert machine.available_memory_bytes() == 800_000
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.available_memory_bytes() > 1_000_000
