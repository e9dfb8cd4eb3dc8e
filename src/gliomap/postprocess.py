"""What happens to a class map after the network: named steps, in the recipe's order. numpy and scipy only."""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pydantic
from scipy import ndimage

from gliomap.classes import BACKGROUND, CLASS_NAMES, ET, NCR, RC, region_mask
from gliomap.errors import UsageError
from gliomap.recipe import StepSpec, setting_problems
from gliomap.volume import bounding_box

Array = np.ndarray[Any, np.dtype[Any]]
Step = Callable[[Array, float], Array]
"""A class map (D, H, W) and the volume of a voxel in ml -> the class map after the step; the input is left as it is."""

_Millilitres = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
_NAMES = {BACKGROUND: "background"} | CLASS_NAMES
_CORNERS = np.ones((3, 3, 3), bool)
_FACES = ndimage.generate_binary_structure(3, 1)
_LIMITS = ("min_voxels", "min_ml")


@dataclass(frozen=True)
class Change:
    """How many voxels a step moved from one class to another, and their volume."""

    step: str
    before: str
    after: str
    voxels: int
    volume_ml: float

    def __str__(self) -> str:
        became = "was removed" if self.after == _NAMES[BACKGROUND] else f"became {self.after}"
        count = f"{self.voxels} {'voxel' if self.voxels == 1 else 'voxels'}"
        return f"{self.step}: {self.volume_ml:.3g} ml of {self.before} ({count}) {became}"


def postprocess(classes: Array, steps: Sequence[StepSpec], voxel_ml: float) -> tuple[Array, tuple[Change, ...]]:
    """The class map (D, H, W) uint8 after the steps, in their order, and what each of them changed; the input is left as it is.

    No step labels a voxel outside the box around the tumour, so that only this box is looked at.

    Raises:
        UsageError: there is no such step, or it does not take these settings.
    """
    built = build_steps(steps)
    box = bounding_box(classes != BACKGROUND)
    if box is None or not built:
        return classes, ()
    inner, changes = classes[box.slices], list[Change]()
    for spec, step in zip(steps, built, strict=True):
        before, inner = inner, step(inner, voxel_ml)
        changes += _changes(spec.name, before, inner, voxel_ml)
    out = classes.copy()
    out[box.slices] = inner
    return out, tuple(changes)


def build_steps(steps: Sequence[StepSpec]) -> list[Step]:
    """The steps of a recipe.

    Raises:
        UsageError: there is none of a name, or it does not take these settings.
    """
    return [_built(spec) for spec in steps]


def remove_small_components(
    classes: Array,
    voxel_ml: float,
    *,
    min_voxels: pydantic.PositiveInt | None = None,
    min_ml: _Millilitres | None = None,
) -> Array:
    """26-connected components of a class that are smaller than the limit become background (paper 004, 3.4)."""
    limit = _limit(min_voxels, min_ml, voxel_ml)
    out = classes.copy()
    for value in np.unique(classes[classes != BACKGROUND]):
        components, _ = ndimage.label(classes == value, _CORNERS)
        small = np.bincount(components.ravel()) < limit
        small[0] = False
        out[small[components]] = BACKGROUND
    return out


def small_et_to_ncr(
    classes: Array,
    voxel_ml: float,
    *,
    min_voxels: pydantic.PositiveInt | None = None,
    min_ml: _Millilitres | None = None,
) -> Array:
    """All ET becomes NCR where there is less of it in the whole study than the limit (released code of paper 002)."""
    enhancing = classes == ET
    if np.count_nonzero(enhancing) >= _limit(min_voxels, min_ml, voxel_ml):
        return classes
    return np.where(enhancing, np.uint8(NCR), classes)


def fill_holes(classes: Array, voxel_ml: float) -> Array:  # noqa: ARG001 - steps are called alike
    """Background that the tumour encloses takes the class that most of the voxels around it have, the first of equals.

    A hole is a 6-connected component of background that does not reach the edge of the map.
    """
    out = classes.copy()
    holes, count = _enclosed(classes == BACKGROUND)
    for number, place in enumerate(ndimage.find_objects(holes, count), 1):
        if place is None:  # it reaches the edge
            continue
        around = tuple(slice(s.start - 1, s.stop + 1) for s in place)  # a hole ends before the edge
        hole = holes[around] == number
        rim = ndimage.binary_dilation(hole, _FACES) & ~hole
        out[around][hole] = np.bincount(classes[around][rim]).argmax()
    return out


def enclosed_to_ncr(classes: Array, voxel_ml: float) -> Array:  # noqa: ARG001 - steps are called alike
    """ED and background that TC encloses become NCR; a resection cavity stays.

    Enclosed is what is in a 6-connected component of the rest that does not reach the edge of the map.
    """
    enclosed, _ = _enclosed(~region_mask(classes, "TC"))
    return np.where((enclosed > 0) & (classes != RC), np.uint8(NCR), classes)


def largest_component(classes: Array, voxel_ml: float) -> Array:  # noqa: ARG001 - steps are called alike
    """Only the largest 26-connected component of WT stays, the first of equals; a resection cavity stays."""
    components, _ = ndimage.label(region_mask(classes, "WT"), _CORNERS)
    sizes = np.bincount(components.ravel())
    if len(sizes) <= 2:  # the background, and one component at most
        return classes
    sizes[0] = 0
    return np.where((components > 0) & (components != sizes.argmax()), np.uint8(BACKGROUND), classes)


STEPS: dict[str, Callable[..., Array]] = {
    step.__name__: step
    for step in (remove_small_components, small_et_to_ncr, fill_holes, enclosed_to_ncr, largest_component)
}


def _built(spec: StepSpec) -> Step:
    if spec.name not in STEPS:
        raise UsageError(f"no post-processing step is called {spec.name!r}; expected one of {', '.join(STEPS)}")
    step = STEPS[spec.name]
    known = {p.name: p.annotation for p in inspect.signature(step).parameters.values() if p.kind == p.KEYWORD_ONLY}
    problems = setting_problems(spec.settings, known)
    if set(_LIMITS) <= set(known) and sum(spec.settings.get(name) is not None for name in _LIMITS) != 1:
        problems.append(f"expected either {' or '.join(_LIMITS)}")
    if problems:
        raise UsageError(f"the step {spec.name} does not take these settings: {'; '.join(problems)}")
    return functools.partial(step, **spec.settings)


def _limit(min_voxels: int | None, min_ml: float | None, voxel_ml: float) -> int:
    """The smallest number of voxels that is not too few; the affine of a file is not exact, and 1 ml is 1 ml for all that."""
    return min_voxels if min_voxels is not None else math.ceil((min_ml or 0.0) / voxel_ml * (1 - 1e-6))


def _enclosed(mask: Array) -> tuple[Array, int]:
    """The 6-connected components of a mask (D, H, W) by number, 0 for those that reach the edge; and the largest number."""
    components, count = ndimage.label(mask, _FACES)
    inside = np.ones(count + 1, bool)
    for axis in range(3):
        for end in (0, -1):
            inside[np.unique(components.take(end, axis))] = False
    inside[0] = False
    return np.where(inside[components], components, 0), count


def _changes(step: str, before: Array, after: Array, voxel_ml: float) -> list[Change]:
    """What became what, in the order of the classes."""
    moved = before != after
    counts = np.bincount(before[moved] * np.uint8(len(_NAMES)) + after[moved], minlength=len(_NAMES) ** 2)
    return [
        Change(step, _NAMES[pair // len(_NAMES)], _NAMES[pair % len(_NAMES)], count, round(count * voxel_ml, 3))
        for pair, count in enumerate(counts.tolist())
        if count
    ]
