import sys

import numpy as np

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
