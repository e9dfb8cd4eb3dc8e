"""The interactive viewer of a page: volumes as compact text or bytes, their settings, and the scripts that draw them.

A viewer has one pane or several side by side, each with the volumes of one grid, and one set of controls for all of them.
A page may have several viewers. Its HTML is in ``templates/viewer.html.j2``, its script in ``templates/viewer.js``. The
drawing is NiiVue's (https://github.com/niivue/niivue, BSD 2-Clause), from the copy that nilearn installs.
"""

import base64
import hashlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
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
from gliomap.report.pictures import CLASS_COLOURS, DIFFERENCE_COLOURS, REGION_COLOURS, map_colours, quantised

MOST_CHARACTERS = 20_000_000
"""Of all volumes as text: a page of 25 MB has the pictures and the scripts, too."""

COARSER = (1, 2, 3)
"""How many times coarser than the images the maps may be, where that makes them small enough."""

NIIVUE = Path("_assets", "js", "niivue.umd.js")


class ScalarMap(NamedTuple):
    """A number for each voxel, shown in colours over the images.

    Attributes:
        title: As the choice of what lies over the images has it; the same in every pane.
        values: (D, H, W); what is not finite is not shown.
        limits: What the first and the last colour stand for; values beyond have the same colours.
    """

    title: str
    values: np.ndarray
    limits: tuple[float, float]


class Layers(NamedTuple):
    """What one pane shows, all on one grid (D, H, W), which is a box of the study's.

    Attributes:
        title: The pane's, where there are several.
        modalities: The images' titles; without any the overlays lie over black.
        images: The grey volume of each modality: 0 background, 1..255 tissue.
        windows: By modality the intensities that 1 and 255 stand for.
        classes: The class map.
        truth: That of the reference, if there is one.
        maps: What else can lie over the images.
        regions: Those that can be told apart, from the inside to the outside.
        affine: (4, 4), from a voxel (x, y, z, 1) of the box to mm.
        start: The box's first voxel (z, y, x) on the study's grid.
        shown: The modality that is shown first.
        crosshair: Where the crosshair is at first, a voxel (z, y, x) of the study's grid.
    """

    title: str
    modalities: tuple[str, ...]
    images: list[NDArray[np.uint8]]
    windows: tuple[tuple[float, float], ...]
    classes: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None
    maps: tuple[ScalarMap, ...]
    regions: tuple[str, ...]
    affine: np.ndarray
    start: tuple[int, int, int]
    shown: int
    crosshair: tuple[int, int, int]


class Viewer(NamedTuple):
    """What a page needs for a viewer.

    Attributes:
        name: The id of its element; another one for each viewer of a page.
        settings: What the script is told, as JSON.
        volumes: By pane and name, each as text; see `packed`. Empty where they are fetched.
        files: What the page fetches, by address relative to it, each of zlib's bytes. Empty where volumes are in the page.
        step: The viewer has every step-th voxel of the images in each direction.
        map_step: And every so many of the maps.
        scripts: What the page runs, NiiVue first; once in a page, however many viewers it has.
        policy: The Content-Security-Policy that lets these scripts run and no other, and nothing else be fetched.
    """

    name: str
    settings: dict[str, Any]
    volumes: dict[str, Markup]
    files: dict[str, bytes]
    step: int
    map_step: int
    scripts: list[Markup]
    policy: Markup


class Embedded(NamedTuple):
    """Volumes as texts by name, every ``step``-th voxel of them, and every ``map_step``-th of the maps."""

    step: int
    map_step: int
    texts: dict[str, Markup]


def viewer_of(panes: Sequence[Layers], name: str = "viewer", address: str | None = None) -> Viewer:
    """Pack volumes and settings, and fetch the scripts.

    Volumes are put into the page, or, with an ``address`` relative to the page's, are all there in full as files below it.

    Raises:
        InputError: NiiVue is not where nilearn keeps it.
    """
    names = _names_of(panes)
    plain: dict[str, NDArray[np.uint8]] = {}
    maps: dict[str, NDArray[np.uint8]] = {}
    for number, pane in enumerate(panes):
        plain |= {f"{number}-{key}": volume for key, volume in _plain_volumes(pane, names).items()}
        maps |= {f"{number}-{names.maps[m.title]}": quantised(m.values, m.limits) for m in pane.maps}
    fetched = {} if address is None else {f"{address}/{key}": compressed(v) for key, v in (plain | maps).items()}
    found = embedded(plain, maps) if address is None else Embedded(1, 1, {})
    settings = {
        "address": address,
        "panes": [_pane_settings(pane, names, found) for pane in panes],
        "images": {key: title for title, key in names.images.items()},
        "shown": next((names.images[pane.modalities[pane.shown]] for pane in panes if pane.modalities), ""),
        "overlays": _overlays(panes, names),
        "toggles": _toggles(panes),
        "tissues": {number: f"{name}, {CLASS_TITLES[number]}" for number, name in CLASS_NAMES.items()},
        "differences": list(DIFFERENCE_COLOURS.values()),
        "colours": map_colours().tolist(),
    }
    scripts = [niivue(), viewer_script()]
    rules = policy(scripts, fetches=address is not None)
    texts = [Markup(text) for text in scripts]
    return Viewer(name, settings, found.texts, fetched, found.step, found.map_step, texts, rules)


class _Names(NamedTuple):
    """By title the names of the volumes: the same title has the same name in every pane."""

    images: dict[str, str]
    maps: dict[str, str]


def _names_of(panes: Sequence[Layers]) -> _Names:
    images = dict.fromkeys(title for pane in panes for title in pane.modalities)
    maps = dict.fromkeys(shown.title for pane in panes for shown in pane.maps)
    return _Names(
        {title: f"image-{number}" for number, title in enumerate(images)},
        {title: f"map-{number}" for number, title in enumerate(maps)},
    )


def _plain_volumes(pane: Layers, names: _Names) -> dict[str, NDArray[np.uint8]]:
    images = {names.images[title]: volume for title, volume in zip(pane.modalities, pane.images, strict=True)}
    return images | {"classes": pane.classes} | ({} if pane.truth is None else {"truth": pane.truth})


def _pane_settings(pane: Layers, names: _Names, found: Embedded) -> dict[str, Any]:
    """What the script must know of one pane. Sizes, voxels and spacing are in the order x, y, z."""
    step = found.step
    affine = pane.affine @ np.diag([step, step, step, 1.0])
    windows = {names.images[title]: window for title, window in zip(pane.modalities, pane.windows, strict=True)}
    return {
        "title": pane.title,
        "shape": [len(range(0, size, step)) for size in reversed(pane.classes.shape)],
        "affine": affine.tolist(),
        "spacing_mm": np.linalg.norm(affine[:3, :3], axis=0).tolist(),
        "start": list(reversed(pane.start)),
        "step": step,
        "coarser": found.map_step // step,
        "crosshair": list(reversed(pane.crosshair)),
        "windows": windows,
        "classes": ["classes"] + ([] if pane.truth is None else ["truth"]),
        "maps": [names.maps[shown.title] for shown in pane.maps],
    }


def _overlays(panes: Sequence[Layers], names: _Names) -> dict[str, dict[str, Any]]:
    """The choices of what lies over the images."""
    found: dict[str, dict[str, Any]] = {"classes": {"kind": "classes", "title": "Segmentation"}}
    if any(pane.truth is not None for pane in panes):
        found["truth"] = {"kind": "classes", "title": "Reference"}
        for region in _regions(panes):
            found[f"difference-{region}"] = {
                "kind": "difference",
                "title": f"{region}: differences from the reference",
                "classes": list(REGIONS[region]),
            }
    for shown in (shown for pane in panes for shown in pane.maps):
        key = names.maps[shown.title]
        found.setdefault(key, {"kind": "map", "title": shown.title, "limits": list(map(float, shown.limits))})
    return found


def _regions(panes: Sequence[Layers]) -> list[str]:
    """From the inside to the outside."""
    return [region for region in REGIONS if any(region in pane.regions for pane in panes)]


def _toggles(panes: Sequence[Layers]) -> list[dict[str, Any]]:
    """What can be switched on and off: a voxel has the colour of the first that is on and has its class."""
    found: list[dict[str, Any]] = [
        {"name": region, "colour": REGION_COLOURS[region], "classes": list(REGIONS[region])}
        for region in _regions(panes)
    ]
    maps = (volume for pane in panes for volume in (pane.classes, pane.truth) if volume is not None)
    if any((volume == RC).any() for volume in maps):
        found.append({"name": CLASS_NAMES[RC], "colour": CLASS_COLOURS[RC], "classes": [RC]})
    return found


def embedded(
    volumes: Mapping[str, NDArray[np.uint8]],
    maps: Mapping[str, NDArray[np.uint8]],
    most_characters: int = MOST_CHARACTERS,
) -> Embedded:
    """Pack volumes and maps (D, H, W), with as few voxels left out as it takes: every step-th stays in each direction.

    Maps are made coarser first: what a network attends to is coarser than its images.
    """
    step = 1
    while True:
        texts = _texts(volumes, step, most_characters)
        room = most_characters - sum(map(len, (texts or {}).values()))
        for coarser in COARSER if texts is not None else ():
            more = _texts(maps, step * coarser, room)
            if texts is not None and more is not None:
                return Embedded(step, step * coarser if maps else step, texts | more)
        step += 1


def _texts(volumes: Mapping[str, NDArray[np.uint8]], step: int, room: int) -> dict[str, Markup] | None:
    """Every step-th voxel of volumes, packed, or None where they take more characters than there is room for."""
    thinned = {name: volume[::step, ::step, ::step] for name, volume in volumes.items()}
    if sum(volume.size for volume in thinned.values()) > 3 * room:
        return None  # packed to a quarter they would be too large, still
    texts: dict[str, Markup] = {}
    for name, volume in thinned.items():
        texts[name] = packed(volume)
        room -= len(texts[name])
        if room < 0:
            return None
    return texts


def compressed(volume: NDArray[np.uint8]) -> bytes:
    """Return a volume (D, H, W) as zlib's bytes of each voxel's difference from the one before, modulo 256.

    Neighbours differ little: that makes a fifth less of it. Only runs of one byte are looked for, which is twice as fast.
    """
    coder = zlib.compressobj(strategy=zlib.Z_RLE)
    return coder.compress(np.diff(volume.ravel(), prepend=np.uint8(0)).tobytes()) + coder.flush()


def packed(volume: NDArray[np.uint8]) -> Markup:
    """Return a volume (D, H, W) as text: what `compressed` gives, in base64."""
    return Markup(base64.b64encode(compressed(volume)).decode("ascii"))


def policy(scripts: Iterable[str], *, fetches: bool = False) -> Markup:
    """Return the Content-Security-Policy of a page that runs these scripts only, and ``fetches`` from its own server or nothing."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii") for text in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests) + ("; connect-src 'self'" if fetches else "")
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
