"""The interactive viewer of a study's page: its volumes as compact text, its settings, and the scripts that draw them.

The drawing is NiiVue's (https://github.com/niivue/niivue, BSD 2-Clause), from the copy that nilearn installs.
"""

import base64
import hashlib
import zlib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from gliomap.classes import CLASS_NAMES, CLASS_TITLES, RC, REGIONS
from gliomap.errors import InputError
from gliomap.report.pictures import CLASS_COLOURS, DIFFERENCE_COLOURS, REGION_COLOURS

MOST_CHARACTERS = 20_000_000
"""Of all volumes as text: a page of 25 MB has the pictures and the scripts, too."""

NIIVUE = Path("_assets", "js", "niivue.umd.js")


class Layers(NamedTuple):
    """What the viewer shows, all on one grid (D, H, W), which is a box of the study's.

    Attributes:
        images: The grey volume of each modality: 0 background, 1..255 tissue.
        windows: By modality the intensities that 1 and 255 stand for.
        classes: The class map.
        truth: That of the reference, if there is one.
        uncertainty: By name, in [0, 1].
        regions: Those that can be told apart, from the inside to the outside.
        affine: (4, 4), from a voxel (x, y, z, 1) of the box to mm.
        start: The box's first voxel (z, y, x) on the study's grid.
        shown: The modality that is shown first.
        crosshair: Where the crosshair is at first, a voxel (z, y, x) of the study's grid.
    """

    images: list[NDArray[np.uint8]]
    windows: tuple[tuple[float, float], ...]
    classes: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None
    uncertainty: Mapping[str, np.ndarray]
    regions: tuple[str, ...]
    affine: np.ndarray
    start: tuple[int, int, int]
    shown: int
    crosshair: tuple[int, int, int]


class Viewer(NamedTuple):
    """What a page needs for the viewer.

    Attributes:
        settings: What the script is told, as JSON.
        volumes: By name, each as text; see `packed`.
        step: The viewer has every step-th voxel in each direction.
        overlays: Their titles, by the value of the choice.
        toggles: What can be switched on and off of the segmentation.
        scripts: What the page runs, NiiVue first.
        policy: The Content-Security-Policy that lets these scripts run and no other, and nothing be fetched.
    """

    settings: dict[str, Any]
    volumes: dict[str, Markup]
    step: int
    overlays: dict[str, str]
    toggles: list[dict[str, Any]]
    scripts: list[Markup]
    policy: Markup


def viewer_of(layers: Layers) -> Viewer:
    """Pack volumes and settings, and fetch the scripts.

    Raises:
        InputError: NiiVue is not where nilearn keeps it.
    """
    volumes = {f"image-{number}": volume for number, volume in enumerate(layers.images)}
    volumes |= {"classes": layers.classes} | ({} if layers.truth is None else {"truth": layers.truth})
    for name, doubt in layers.uncertainty.items():
        volumes[name] = np.rint(255 * np.clip(doubt, 0, 1)).astype(np.uint8)
    step, texts = embedded(volumes)
    overlays, toggles = _overlays(layers), _toggles(layers)
    affine = layers.affine @ np.diag([step, step, step, 1.0])
    settings = {
        "shape": [len(range(0, size, step)) for size in reversed(layers.classes.shape)],
        "affine": affine.tolist(),
        "spacing_mm": np.linalg.norm(affine[:3, :3], axis=0).tolist(),
        "start": list(reversed(layers.start)),
        "step": step,
        "shown": layers.shown,
        "crosshair": list(reversed(layers.crosshair)),
        "windows": layers.windows,
        "overlays": overlays,
        "uncertainty": list(layers.uncertainty),
        "toggles": toggles,
        "tissues": {number: f"{name}, {CLASS_TITLES[number]}" for number, name in CLASS_NAMES.items()},
        "differences": list(DIFFERENCE_COLOURS.values()),
    }
    scripts = [niivue(), viewer_script()]
    titles = {name: str(overlay["title"]) for name, overlay in overlays.items()}
    return Viewer(settings, texts, step, titles, toggles, [Markup(text) for text in scripts], policy(scripts))


def embedded(
    volumes: Mapping[str, NDArray[np.uint8]], most_characters: int = MOST_CHARACTERS
) -> tuple[int, dict[str, Markup]]:
    """Pack volumes (D, H, W), with as few voxels left out as it takes: every step-th stays in each direction.

    Returns:
        The step, and the texts by name.
    """
    step = 1
    while sum(volume[::step, ::step, ::step].size for volume in volumes.values()) > 3 * most_characters:
        step += 1  # packed to a quarter they would be too large, still
    while True:
        texts = {name: packed(volume[::step, ::step, ::step]) for name, volume in volumes.items()}
        if sum(map(len, texts.values())) <= most_characters:
            return step, texts
        step += 1


def packed(volume: NDArray[np.uint8]) -> Markup:
    """Return a volume (D, H, W) as text: each voxel's difference from the one before (modulo 256), zlib, base64.

    Neighbours differ little: that makes a fifth less of it. Only runs of one byte are looked for, which is twice as fast.
    """
    flat = volume.ravel()
    coder = zlib.compressobj(strategy=zlib.Z_RLE)
    content = coder.compress(np.diff(flat, prepend=np.uint8(0)).tobytes()) + coder.flush()
    return Markup(base64.b64encode(content).decode("ascii"))


def policy(scripts: Iterable[str]) -> Markup:
    """Return the Content-Security-Policy of a page that runs these scripts only."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii") for text in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return Markup(f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}")


@cache
def niivue() -> str:
    """Return NiiVue's script as nilearn installs it, without importing nilearn.

    Raises:
        InputError: it is not there.
    """
    spec = find_spec("nilearn")
    path = Path(((spec and spec.submodule_search_locations) or ["nilearn"])[0]) / NIIVUE
    if not path.is_file():
        raise InputError(
            f"the viewer of the report needs {path.name}, expected in {path.parent}: pip install 'nilearn>=0.14,<0.15'"
        )
    return _inlined(path.read_text("utf-8"))


@cache
def viewer_script() -> str:
    """Return the script that puts the study into NiiVue."""
    return _inlined(files("gliomap.report").joinpath("templates", "viewer.js").read_text("utf-8"))


def _inlined(script: str) -> str:
    """A script as it may stand in a page: what would end it, or begin a comment of HTML, is spelt otherwise in its strings."""
    return script.replace("\r\n", "\n").replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _overlays(layers: Layers) -> dict[str, dict[str, Any]]:
    """The choices of what lies over the images."""
    found: dict[str, dict[str, Any]] = {"classes": {"kind": "classes", "title": "Segmentation"}}
    if layers.truth is not None:
        found["truth"] = {"kind": "classes", "title": "Reference"}
        for region in layers.regions:
            found[f"difference-{region}"] = {
                "kind": "difference",
                "title": f"{region}: differences from the reference",
                "classes": list(REGIONS[region]),
            }
    return found | {name: {"kind": "uncertainty", "title": f"Uncertainty: {name}"} for name in layers.uncertainty}


def _toggles(layers: Layers) -> list[dict[str, Any]]:
    """What can be switched on and off: a voxel has the colour of the first that is on and has its class."""
    found: list[dict[str, Any]] = [
        {"name": region, "colour": REGION_COLOURS[region], "classes": list(REGIONS[region])}
        for region in layers.regions
    ]
    if any((volume == RC).any() for volume in (layers.classes, layers.truth) if volume is not None):
        found.append({"name": CLASS_NAMES[RC], "colour": CLASS_COLOURS[RC], "classes": [RC]})
    return found
