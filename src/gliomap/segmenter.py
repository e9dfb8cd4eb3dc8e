"""From a study's Volume to a class map on its grid: prepare, run the network, combine windows, decode. No torch in here."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from scipy.special import entr, expit

from gliomap.classes import Target
from gliomap.errors import InputError, UsageError
from gliomap.machine import available_memory_bytes, memory_bytes
from gliomap.postprocess import Change, postprocess
from gliomap.preprocess import brain_mask, prepare, resample, study_box, voxel_ratio
from gliomap.recipe import ALL_FLIPS, Recipe, Size
from gliomap.volume import Box, Volume, bounding_box
from gliomap.voting import majority, staple
from gliomap.windows import (
    at_least,
    centre_slices,
    gaussian_weight,
    in_batches,
    pad_to,
    padded_size,
    turn,
    turn_back,
    window_starts,
)

Array = np.ndarray[Any, np.dtype[Any]]

FREE_SHARE = 0.8
"""How much of the free memory a pass may take."""
PRESETS = ("fast", "balanced", "accurate")
_COPIES = 4
"""Arrays as large as the logits at the same time: themselves, their probabilities, the mean of these, and windows' sum."""
_PLANES = 16
"""Planes of a study's grid whose probabilities are in memory at a time."""
WINDOWS_PER_BATCH = 2
"""torch sends small 3-D convolutions of a single sample down a slow path on a CPU; two at a time avoid it."""
SLICES_PER_BATCH = 8
"""Windows of one slice are for 2-D networks, and small."""


@dataclass(frozen=True)
class Engine:
    """A trained network that is ready to run.

    ``run`` takes images (B, C, D, H, W) float32 to logits (B, K, D, H, W) float32. ``divisors``: what D, H, W must be
    multiples of; ``only_size``: the one size that it takes, if it takes no other. ``bytes_per_voxel``: the memory that a
    pass takes for each voxel of the images, beyond the weights; 0 if it is not known. ``name``: what runs it.
    ``seconds_per_voxel`` of a pass, on this machine; 0 if it is not known. ``channels``: K, if it is not the target's.
    ``release`` gives back the memory that passes have taken.
    """

    run: Callable[[Array], Array]
    divisors: Size
    bytes_per_voxel: float = 0.0
    only_size: Size | None = None
    name: str = "torch"
    seconds_per_voxel: float = 0.0
    channels: int | None = None
    release: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Uncertainty:
    """Where a segmentation is in doubt, on the part of the grid that the network is shown, (1, D, H, W) float32 in [0, 1].

    ``entropy`` of the mean probabilities, 1 where all channels are as probable as can be. ``disagreement``: the share of
    the ``opinions``, the class maps (1, D, H, W) of each view and network by itself, that say another class than the result.
    """

    entropy: Volume
    disagreement: Volume
    opinions: tuple[Volume, ...]


class Segmentation(NamedTuple):
    """A study's class map (1, D, H, W) uint8 on its grid, what post-processing changed, and where it is in doubt, if asked."""

    classes: Volume
    changes: tuple[Change, ...]
    uncertainty: Uncertainty | None


class Part(NamedTuple):
    """The part of a study that a network is shown, and the study's `voxel_ratio`."""

    shown: Volume
    ratio: tuple[float, float, float] | None


class _Found(NamedTuple):
    """The mean probabilities (K, *) on the network's grid, and each view's and network's class map on the study's."""

    mean: Array
    maps: list[Array]


@dataclass(frozen=True)
class Segmenter:
    """A recipe and an engine for its trained network, or for each of an ensemble.

    ``max_memory_bytes``: what the process may use in all. Where one pass, or the recipe's windows, would need more, windows
    are made as small as they must; without it, as small as the free memory needs. ``coarse`` finds the tumour first, where
    the recipe says so.
    """

    recipe: Recipe
    engines: tuple[Engine, ...]
    max_memory_bytes: int | None = None
    coarse: "Segmenter | None" = None

    def __call__(self, volume: Volume, truth: Volume | None = None) -> Volume:
        """The class map (1, D, H, W) uint8 of a study's Volume (C, D, H, W), on the same grid; see `segmentation`."""
        return self.segmentation(volume, truth).classes

    def segmentation(
        self,
        volume: Volume,
        truth: Volume | None = None,
        *,
        uncertainty: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> Segmentation:
        """What a study's Volume (C, D, H, W) is found to be; 0 outside the brain.

        Probabilities are brought to the study's grid a few planes at a time. ``truth`` is the true class map
        (1, D, H, W), for recipes that crop about it (see `study_box`). ``say`` is told how the study goes through the
        networks, and how long they should take, before they run; see `plan`.

        Raises:
            InputError: not even the smallest window fits into the memory.
        """
        part = self.part(volume, truth)
        found = self._found(part, self.tumour_box(volume, truth, say), say, keep_maps=uncertainty)
        classes, changes = self._tidied(self._elected(found, part), part.shown)
        doubt = self._doubt(found, classes, part) if uncertainty else None
        return Segmentation(classes.placed_on(volume), changes, doubt)

    def with_probabilities(self, volume: Volume, truth: Volume | None = None) -> tuple[Volume, Volume]:
        """The class map, and the probabilities (K, D, H, W) float32 on the part of the grid that the network is shown.

        Probabilities are the mean over views and engines, whatever these are combined by; they are summed up as they come and
        never all in memory.
        """
        part = self.part(volume, truth)
        found = self._found(part, self.tumour_box(volume, truth))
        classes, _ = self._tidied(self._elected(found, part), part.shown)
        return classes.placed_on(volume), part.shown.with_array(on_grid(found.mean, part))

    def logits(self, images: Array, engine: Engine, whole: Size | None = None) -> Array:
        """An engine's logits (K, D, H, W) of prepared images (C, D, H, W), in one pass or in windows; see `window`.

        Voxels that only windows without brain would cover have logits of 0.
        """
        d, h, w = images.shape[1:]
        window = self.window((d, h, w), engine, whole)
        if window is None:
            padded = pad_to(images, padded_size((d, h, w), engine.divisors))
            del images  # a copy of their own takes memory during the pass
            return engine.run(padded[None])[0][(slice(None), *centre_slices(padded.shape[1:], (d, h, w)))]
        return self._windowed(images, window, engine)

    def plan(self, size: Size, whole: Size | None = None) -> str:
        """How prepared images of that size (D, H, W) will go through the networks, and how long that should take, in words.

        Windows without brain are counted, too, though they are left out. ``whole`` as for `window`.

        Raises:
            InputError: not even the smallest window fits into the memory.
        """
        windows = [self.window(size, engine, whole) for engine in self.engines]
        shapes = [window or padded_size(size, e.divisors) for window, e in zip(windows, self.engines, strict=True)]
        counts = [
            1 if window is None else len(window_starts(at_least(size, window), window, self.recipe.inference.overlap))
            for window in windows
        ]
        views, in_words = len(self.recipe.inference.views), " x ".join(map(str, shapes[0]))
        text = f"one pass of {in_words} voxels" if counts == [1] * len(counts) else f"{counts[0]} windows of {in_words}"
        text += f", {len(self.engines)} networks" * (len(self.engines) > 1) + f", {views} views" * (views > 1)
        each = zip(self.engines, counts, shapes, strict=True)
        times = [views * count * math.prod(shape) * engine.seconds_per_voxel for engine, count, shape in each]
        return f"{text}, about {sum(times):.2g} s" if all(times) else text

    def window(self, images: Size, engine: Engine, whole: Size | None = None) -> Size | None:
        """The windows (D, H, W) that prepared ``images`` of that size go through an engine in; None is one pass.

        They are the recipe's, or smaller where these do not fit into the memory: the longest axis is halved until they do.
        ``whole``: the size of the grid on which the images are a box, which has to be in memory afterwards.

        Raises:
            InputError: not even the smallest fits.
        """
        if engine.only_size is not None:
            return engine.only_size
        wanted = self.recipe.inference.window
        free = self._free_bytes(whole or images)
        size = list(wanted or padded_size(images, engine.divisors))
        together = 1
        while engine.bytes_per_voxel * math.prod(size) * together > free:
            axis = max(range(3), key=lambda a: size[a] / engine.divisors[a])
            if size[axis] <= 2 * engine.divisors[axis]:
                raise InputError(
                    f"the smallest window of this model, {size[0]} x {size[1]} x {size[2]} voxels, needs "
                    f"{engine.bytes_per_voxel * math.prod(size) * together / 1e6:.0f} MB and {max(free, 0) / 1e6:.0f} MB are "
                    "left for it; close other programs or raise --max-memory"
                )
            size[axis] = -(-size[axis] // 2 // engine.divisors[axis]) * engine.divisors[axis]
            wanted, together = (size[0], size[1], size[2]), WINDOWS_PER_BATCH
        return wanted

    def part(self, volume: Volume, truth: Volume | None) -> Part:
        """What of a study's Volume the network is shown; ``truth`` as for `segmentation`."""
        settings = self.recipe.preprocessing
        return Part(volume.crop(study_box(volume, settings, truth)), voxel_ratio(volume, settings))

    def prepared(self, part: Part, tumour: Box | None) -> tuple[Array, Box, Size]:
        """The images (C, *) that the network is shown, which of a part's prepared voxels these are, and the size of all."""
        images = prepare(part.shown, self.recipe, part.ratio).array
        d, h, w = images.shape[1:]
        box = Box((0, 0, 0), (d, h, w))
        if tumour is not None:
            least = self.engines[0].only_size or self.recipe.inference.window or self.recipe.training.patch_size
            box = _widened(tumour, part.ratio, least, self.engines[0].divisors, (d, h, w))
        return np.ascontiguousarray(images[(slice(None), *box.slices)]), box, (d, h, w)

    def _found(
        self, part: Part, tumour: Box | None, say: Callable[[str], None] = lambda _: None, *, keep_maps: bool = False
    ) -> _Found:
        """What each engine finds in each view, put together as it comes; class maps only if they are asked for or vote."""
        target, views = self.recipe.target, list(product(self.recipe.inference.views, self.engines))
        keep_maps = keep_maps or self.recipe.inference.combine != "mean"
        images, box, size = self.prepared(part, tumour)
        prepared = [images]
        del images
        say(self.plan(box.shape, size))
        total, maps = np.zeros((), np.float32), []
        for number, (view, engine) in enumerate(views, 1):
            # the last pass takes them with it: once they are padded, nobody needs them
            logits = self.logits(turn(prepared[0] if number < len(views) else prepared.pop(), view), engine, size)
            logits = turn_back(logits, view)
            engine.release()  # before anything is made of the logits, and before the next engine takes as much
            probabilities = activate(logits, target)
            del logits
            if keep_maps:
                maps.append(_decoded(_in_background(probabilities, box, size, target), part, target))
            total = np.add(total, probabilities, out=probabilities)
            del probabilities  # or they would be kept in memory during the next pass
        total /= len(views)
        return _Found(_in_background(total, box, size, target), maps)

    def tumour_box(
        self, volume: Volume, truth: Volume | None, say: Callable[[str], None] = lambda _: None
    ) -> Box | None:
        """Where on the grid of what the network is shown another has found the tumour before; None if nothing says."""
        if self.coarse is None or self.recipe.coarse is None:
            return None
        found = self.coarse.segmentation(volume, truth, say=say).classes
        shown = found.crop(study_box(volume, self.recipe.preprocessing, truth))
        return bounding_box(
            shown.array[0] > 0, [math.ceil(self.recipe.coarse.margin_mm / s) for s in volume.spacing_mm]
        )

    def _elected(self, found: _Found, part: Part) -> Array:
        """The class map (D, H, W) that the recipe's rule makes of what was found."""
        match self.recipe.inference.combine:
            case "mean":
                return _decoded(found.mean, part, self.recipe.target)
            case "vote":
                return majority(found.maps)
            case "staple":
                return staple(found.maps)

    def _doubt(self, found: _Found, classes: Volume, part: Part) -> Uncertainty:
        shown = part.shown
        entropy = on_grid(relative_entropy(found.mean, self.recipe.target)[None], part)
        opinions = tuple(self._tidied(one, shown)[0] for one in found.maps)
        others = np.stack([one.array != classes.array for one in opinions]).mean(0, np.float32)
        return Uncertainty(shown.with_array(entropy * brain_mask(shown)), shown.with_array(others), opinions)

    def _tidied(self, classes: Array, shown: Volume) -> tuple[Volume, tuple[Change, ...]]:
        """A class map after the recipe's post-processing, 0 outside the brain, and what that changed."""
        tidy, changes = postprocess(classes * brain_mask(shown), self.recipe.postprocessing, shown.voxel_ml)
        return shown.with_array(tidy), changes

    def _free_bytes(self, whole: Size) -> float:
        """What is left for a pass through a network, beside its logits and what is made of them, of 4 bytes a voxel."""
        kept = _COPIES * len(self.recipe.target.channels) * math.prod(whole) * 4
        free = FREE_SHARE * available_memory_bytes()
        if self.max_memory_bytes is not None:
            free = min(free, self.max_memory_bytes - memory_bytes())
        return free - kept

    def _windowed(self, images: Array, window: Size, engine: Engine) -> Array:
        padded = pad_to(images, at_least(images.shape[1:], window))
        weight = gaussian_weight(window)
        total = np.zeros((engine.channels or len(self.recipe.target.channels), *padded.shape[1:]), np.float32)
        weights = np.zeros(padded.shape[1:], np.float32)
        per_batch = SLICES_PER_BATCH if window[0] == 1 else WINDOWS_PER_BATCH
        starts = window_starts(padded.shape[1:], window, self.recipe.inference.overlap)
        places = [tuple(slice(s, s + w) for s, w in zip(start, window, strict=True)) for start in starts]
        for some in in_batches([at for at in places if padded[(slice(None), *at)].any()], per_batch):
            logits = engine.run(np.stack([padded[(slice(None), *at)] for at in some]))
            for at, part in zip(some, logits, strict=True):
                total[(slice(None), *at)] += part * weight
                weights[at] += weight
        total /= np.where(weights, weights, 1)
        return total[(slice(None), *centre_slices(padded.shape[1:], images.shape[1:]))]


def with_preset(segmenter: Segmenter, preset: str) -> Segmenter:
    """A segmenter that takes less or more care than its recipe: one of `PRESETS`.

    ``fast``: one pass of the first network, as far as the memory allows. ``balanced``: what the recipe says. ``accurate``:
    every network sees the study flipped in all eight ways, and the mean of the probabilities counts. What finds the tumour
    first takes as much care.

    Raises:
        UsageError: there is no such preset.
    """
    if segmenter.coarse is not None:
        segmenter = replace(segmenter, coarse=with_preset(segmenter.coarse, preset))
    recipe, inference = segmenter.recipe, segmenter.recipe.inference
    match preset:
        case "fast":
            quick = replace(inference, window=None, views=("identity",), combine="mean")
            return replace(segmenter, recipe=replace(recipe, inference=quick), engines=segmenter.engines[:1])
        case "balanced":
            return segmenter
        case "accurate":
            careful = replace(inference, views=ALL_FLIPS, combine="mean")
            return replace(segmenter, recipe=replace(recipe, inference=careful))
    raise UsageError(f"no preset is called {preset!r}; expected {', '.join(PRESETS)}")


def _widened(box: Box, ratio: tuple[float, float, float] | None, least: Size, divisors: Size, size: Size) -> Box:
    """A box of a study's grid on the network's, of that size: no smaller than ``least`` and a multiple of the divisors.

    What it has more is what is around it; it is smaller only where the study has no more.
    """
    starts, stops = list[int](), list[int]()
    for start, stop, r, wanted, divisor, n in zip(*box, ratio or (1.0, 1.0, 1.0), least, divisors, size, strict=True):
        low, high = math.floor(start / r), min(math.ceil(stop / r), n)
        length = min(-(-max(high - low, wanted) // divisor) * divisor, n)
        starts.append(min(max(low - (length - (high - low)) // 2, 0), n - length))
        stops.append(starts[-1] + length)
    return Box((starts[0], starts[1], starts[2]), (stops[0], stops[1], stops[2]))


def _in_background(probabilities: Array, box: Box, size: tuple[int, ...], target: Target) -> Array:
    """Probabilities (K, *) of a box on a grid of that size, on which all else is background."""
    if box.shape == size:
        return probabilities
    out = np.zeros((len(probabilities), *size), np.float32)
    if target.kind == "softmax":
        out[0] = 1
    out[(slice(None), *box.slices)] = probabilities
    return out


def _decoded(probabilities: Array, part: Part, target: Target) -> Array:
    """The class map (D, H, W) on a study's grid of probabilities on the network's, a few planes at a time."""
    depth = part.shown.shape[0]
    out = np.empty(part.shown.shape, np.uint8)
    for planes in (slice(z, min(z + _PLANES, depth)) for z in range(0, depth, _PLANES)):
        out[planes] = target.decode(on_grid(probabilities, part, planes))
    return out


def on_grid(array: Array, part: Part, planes: slice = slice(None)) -> Array:
    """(C, *) on the network's grid, on that of a study: its planes along D."""
    if part.ratio is None:
        return array[:, planes]
    z, y, x = part.ratio
    return resample(array, part.shown.shape, (1 / z, 1 / y, 1 / x), planes)


def relative_entropy(probabilities: Array, target: Target) -> Array:
    """The entropy (D, H, W) of probabilities (K, D, H, W), as a share of the largest: of the classes of a softmax, or the
    mean of each sigmoid's own.
    """
    if target.kind == "softmax":
        return entr(probabilities).sum(0) / np.log(len(probabilities))
    return (entr(probabilities) + entr(1 - probabilities)).mean(0) / np.log(2)


def activate(logits: Array, target: Target) -> Array:
    """Probabilities (K, D, H, W) of logits: softmax over the channels or a sigmoid each."""
    if target.kind == "sigmoid":
        return expit(logits)
    out = logits - logits.max(0)
    np.exp(out, out=out)
    out /= out.sum(0)
    return out
