"""A model's network in another program's format, compared with torch before anybody gets it.

`convert_apart` does it in a process of its own: the tools need torch, which segmenting does without, and a conversion that
is wrong about a size may write where it should not and crash.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from gliomap.data.cache import Cache, Entry, load
from gliomap.errors import UsageError
from gliomap.model_file import Model, save_model

FORMATS = ("openvino", "onnx", "torchscript")
RESULT = "converted"
"""The key of what the other process leaves in its folder."""


def convert_apart(model: Model, to: str) -> Entry:
    """The only network of a model in a format of `FORMATS`, and what is known of it, made in a process of its own.

    Arrays are whole files by suffix: ``xml`` and ``bin``, ``onnx`` or ``pt``. ``about`` has ``spatial_dims``, what an
    `Engine` knows of itself, and ``largest_difference``, of the probabilities from torch's.

    Raises:
        UsageError: the network cannot be converted, or the result disagrees with torch; the message says why.
    """
    with tempfile.TemporaryDirectory(prefix="gliomap-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.safetensors"
        save_model(path, model.recipe, model.weights, {})
        command = [sys.executable, "-P", "-m", "gliomap.tracing", str(path), to, folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        entry = load(Cache(Path(folder)), RESULT)
        if entry is None:
            said = (done.stderr.strip().splitlines() or ["nothing was printed"])[-1]
            raise UsageError(f"converting {model.name} to {to} ended with {done.returncode}: {said}")
    if problem := entry.about.get("problem"):
        raise UsageError(f"{model.name} cannot be converted to {to}: {problem}")
    return Entry({suffix: np.array(array) for suffix, array in entry.arrays.items()}, entry.about)


def failure(problem: str) -> Entry:
    """What is kept of a conversion that came to nothing: why."""
    return Entry({"none": np.zeros(1, np.uint8)}, {"problem": problem})
