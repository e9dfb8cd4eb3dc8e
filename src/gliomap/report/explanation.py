"""The page of `gliomap explain`: what a network attended to, over the images, with what tells whether that means anything."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from gliomap.classes import region_mask
from gliomap.report import charts, pictures, svg
from gliomap.report.study import (
    FLAIR_NAMES,
    Cut,
    Figure,
    Scene,
    StudyReport,
    check_shapes,
    class_slice,
    displayed,
    finished,
    grey_slice,
    layers_of,
    modality_index,
    modality_title,
    place,
    scaled,
    scene_of,
    template,
    uncertainty_maps,
)
from gliomap.report.viewer import ScalarMap, viewer_of

RANDOMISED = "randomised"
"""In the name of every check that says whether a map can be believed at all (Adebayo et al. 2018)."""

CLASS_MAP = "SAM_"
"""How the names of a supervised attention module's maps of classes begin (paper 002, figure 7)."""

CARD_EDGE_PX = 330
MAP_OPACITY = 0.6
FEATURE_PERCENTILES = (1, 99)
CURVE_WORDS = {
    "deletion": "The map's highest voxels are taken away first: the faster it falls below the random order, the more they matter.",
    "insertion": "The map's highest voxels are brought back first: the faster it rises above the random order, the more they tell.",
}


class Check(NamedTuple):
    """One answer to whether a map means anything.

    Attributes:
        name: What was asked: "randomised weights", "deletion", "insertion", "inside the reference WT".
        value: None where it could not be computed.
        definition: What the number is, in one short sentence.
        passed: None is a number without a verdict.
    """

    name: str
    value: float | None
    definition: str
    passed: bool | None


@dataclass(frozen=True)
class AttentionMap:
    """A map that an explanation shows, on the study's grid.

    Attributes:
        name: As the paper has it: AG_1, SA_2, SAM_ET, A_1, key_weight, ASPP_4, saliency_ET.
        meaning: One sentence.
        own_size: Its size in the network (d, h, w).
        values: (D, H, W) float32, finite.
        limits: What the colours' ends stand for.
        checks: What was asked about it.
    """

    name: str
    meaning: str
    own_size: tuple[int, ...]
    values: np.ndarray
    limits: tuple[float, float]
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True)
class ChannelWeights:
    """Attention that weighs channels: a bar each.

    Attributes:
        name: As the paper has it.
        meaning: One sentence.
        weights: (C,).
        checks: What was asked about them.
        labels: What each weighs, where that is not a channel's number.
    """

    name: str
    meaning: str
    weights: np.ndarray
    checks: tuple[Check, ...] = ()
    labels: tuple[str, ...] = ()


class Curve(NamedTuple):
    """What is left of the network's answer while a map's highest voxels are taken away first, or brought back.

    Attributes:
        map_name: Of the map that says the order.
        kind: "deletion" or "insertion".
        share: Of the brain's voxels taken away or brought back, 0..1.
        score: Mean probability of WT inside the tumour that was found on the whole images.
        random: The same in a random order.
    """

    map_name: str
    kind: str
    share: tuple[float, ...]
    score: tuple[float, ...]
    random: tuple[float, ...]


class FeatureMaps(NamedTuple):
    """Features before and after a module, the mean over channels, on the study's grid (paper 002, figure 6).

    Attributes:
        name: Of the module.
        before: (D, H, W).
        after: (D, H, W).
    """

    name: str
    before: np.ndarray
    after: np.ndarray


@dataclass(frozen=True)
class Explanation:
    """What the page of an explanation shows.

    Attributes:
        study: Images, classes, reference, facts, warnings and card.
        maps: Over the images.
        channels: Beside them.
        curves: What taking voxels away does.
        features: Before and after a module.
        confidence: (from, to, share) of voxels by the largest probability (paper 002, figure 8).
    """

    study: StudyReport
    maps: tuple[AttentionMap, ...]
    channels: tuple[ChannelWeights, ...] = ()
    curves: tuple[Curve, ...] = ()
    features: tuple[FeatureMaps, ...] = ()
    confidence: tuple[tuple[float, float, float], ...] = ()


class Card(NamedTuple):
    """A map as the page has it: its overlay in the viewer, the voxel (z, y, x) where it is highest, and a picture."""

    map: AttentionMap
    overlay: str
    peak: tuple[int, int, int]
    figure: Figure


class Chart(NamedTuple):
    """A chart with what stands under it."""

    name: str
    words: str
    drawn: Markup
    checks: tuple[Check, ...] = ()


class Belief(NamedTuple):
    """The names of what passed every test with randomised weights, of what failed one, and of what was not tested."""

    passed: list[str]
    failed: list[str]
    untested: list[str]


def explanation_page(explanation: Explanation) -> str:
    """Return the page as HTML text, with its pictures and volumes inside.

    Raises:
        ValueError: Arrays do not fit together, two maps have one name, or a curve's lengths differ.
    """
    report = explanation.study
    check_shapes(report)
    maps = _scalar_maps(explanation)
    _check_maps(maps, report.images.shape[1:])
    scene = scene_of(report)
    choice = pictures.choose_slices(report.classes, scene.box, report.spacing_mm)
    flair = modality_index(report.modalities, FLAIR_NAMES)
    cut = Cut("axial", choice.whole_tumour)
    viewer = viewer_of([layers_of(scene, flair, choice.centre, maps)])
    overlays = {str(overlay["title"]): key for key, overlay in viewer.settings["overlays"].items()}
    own = zip(explanation.maps, maps[: len(explanation.maps)], strict=True)
    cards = [
        Card(each, overlays[each.name], _peak(scene, each.values), _map_figure(scene, shown, cut, flair))
        for each, shown in own
    ]
    return template("explanation.html.j2").render(
        report=report,
        viewer=viewer,
        belief=belief_of(explanation),
        shown=place(scene, cut),
        cards=cards,
        class_maps=_class_map_figures(scene, cards, cut, flair),
        features=[_feature_figures(scene, each, cut, flair) for each in explanation.features],
        channels=[_channel_chart(each) for each in explanation.channels],
        curves=[_curve_chart(each) for each in explanation.curves],
        confidence=_confidence_chart(explanation.confidence) if explanation.confidence else None,
    )


def belief_of(explanation: Explanation) -> Belief:
    """Sort maps and channel weights by the tests with randomised weights; see `Belief`."""
    found = Belief([], [], [])
    for each in (*explanation.maps, *explanation.channels):
        verdicts = [check.passed for check in each.checks if RANDOMISED in check.name and check.passed is not None]
        names = (found.passed if all(verdicts) else found.failed) if verdicts else found.untested
        names.append(each.name)
    return found


def _scalar_maps(explanation: Explanation) -> list[ScalarMap]:
    """What lies over the images in the viewer: the maps first, in their order."""
    maps = [ScalarMap(each.name, each.values, each.limits) for each in explanation.maps]
    for each in explanation.features:
        maps += _features(each)
    return [*maps, *uncertainty_maps(explanation.study)]


def _features(features: FeatureMaps) -> list[ScalarMap]:
    """Both on one scale, without its rarest values."""
    both = np.stack([features.before, features.after])
    known = both[np.isfinite(both) & (both != 0)]
    low, high = np.percentile(known[:: 1 + known.size // 200_000], FEATURE_PERCENTILES) if known.size else (0, 1)
    limits = float(low), float(high)
    return [
        ScalarMap(f"{features.name} before", features.before, limits),
        ScalarMap(f"{features.name} after", features.after, limits),
    ]


def _check_maps(maps: Sequence[ScalarMap], shape: tuple[int, ...]) -> None:
    for each in maps:
        if each.values.shape != shape:
            raise ValueError(f"{each.title} is {each.values.shape}; expected the grid of the images, {shape}")
    titles = [each.title for each in maps]
    if len(set(titles)) < len(titles):
        raise ValueError(f"maps are called {titles}; expected a name of its own for each")


def _peak(scene: Scene, values: np.ndarray) -> tuple[int, int, int]:
    """The voxel (z, y, x) of the study's grid with the highest value, in the box that is shown."""
    inside = values[scene.box]
    z, y, x = (int(index) for index in np.unravel_index(inside.argmax(), inside.shape))
    return scene.box[0].start + z, scene.box[1].start + y, scene.box[2].start + x


def _map_figure(scene: Scene, shown: ScalarMap, cut: Cut, channel: int, opacity: float = MAP_OPACITY) -> Figure:
    """A map over the tissue of one modality, with the whole tumour's outline."""
    levels = pictures.quantised(displayed(scene, shown.values, cut), shown.limits)
    levels = scaled(scene, levels, cut, CARD_EDGE_PX, labels=True)
    picture = pictures.map_picture(grey_slice(scene, channel, cut, CARD_EDGE_PX), levels, opacity)
    tumour = region_mask(class_slice(scene, scene.report.classes, cut, CARD_EDGE_PX), "WT")
    picture = pictures.painted(picture, tumour, (255, 255, 255), fill=0)
    low, high = (f"{end:.3g}" for end in shown.limits)
    words = f"in colours from {low} to {high} over {modality_title(scene, channel)}"
    return finished(scene, picture, cut, shown.title, words, CARD_EDGE_PX)


def _class_map_figures(scene: Scene, cards: Sequence[Card], cut: Cut, channel: int) -> list[Figure]:
    """The maps of the classes beside what they should be, as paper 002's figure 7; nothing where there are none."""
    cards = [card for card in cards if card.map.name.startswith(CLASS_MAP)]
    if not cards:
        return []
    truth = scene.report.truth
    title, classes = ("Segmentation", scene.report.classes) if truth is None else ("Reference", truth)
    grey = grey_slice(scene, channel, cut, CARD_EDGE_PX)
    picture = pictures.class_picture(grey, class_slice(scene, classes, cut, CARD_EDGE_PX))
    words = f"drawn on {modality_title(scene, channel)}"
    return [*(card.figure for card in cards), finished(scene, picture, cut, title, words, CARD_EDGE_PX)]


def _feature_figures(
    scene: Scene, features: FeatureMaps, cut: Cut, channel: int
) -> tuple[tuple[float, float], list[Figure]]:
    """The scale of both, and features before and after a module in one slice, as paper 002's figure 6."""
    maps = _features(features)
    return maps[0].limits, [_map_figure(scene, each, cut, channel, opacity=1) for each in maps]


def _channel_chart(channels: ChannelWeights) -> Chart:
    weights = np.asarray(channels.weights, float).ravel()
    labels = channels.labels or tuple(str(number) for number in range(1, weights.size + 1))
    title = f"{channels.name}: weights"
    return Chart(channels.name, channels.meaning, bar_chart(title, weights, labels), channels.checks)


def _curve_chart(curve: Curve) -> Chart:
    share = 100 * np.asarray(curve.share, float)
    lines = [
        charts.Curve(name, share, np.asarray(values, float), style)
        for name, values, style in (
            (curve.map_name, curve.score, "by-map"),
            ("random order", curve.random, "by-chance"),
        )
    ]
    title = f"{curve.map_name}, {curve.kind}"
    return Chart(title, CURVE_WORDS.get(curve.kind, ""), charts.curve_chart(title, lines))


def _confidence_chart(confidence: Sequence[tuple[float, float, float]]) -> Markup:
    labels = [f"{low:.4g} to {high:.4g}" for low, high, _ in confidence]
    shares = np.array([100 * share for *_, share in confidence])
    return bar_chart("Largest probability, share of voxels in %", shares, labels)


def bar_chart(title: str, values: NDArray[np.float64], labels: Sequence[str]) -> Markup:
    """A bar for each value (N,) from 0, in their order; each label is printed where there is room for all."""
    left, bottom, top = 46.0, 150.0, 16.0
    up = charts.axis([*values, 0.0], bottom, top)
    step = (svg.WIDTH - left - 8) / max(values.size, 1)
    parts = []
    for level in charts.ticks(up.low, up.high, 4):
        parts.append(svg.line(left, up.at(level), svg.WIDTH - 8, up.at(level), "grid"))
        parts.append(svg.text(f"{level:.4g}", left - 5, up.at(level) + 4, "tick", "end"))
    roomy = step > 7 * max(map(len, labels), default=0)
    every = 1 if roomy else max(1, math.ceil(values.size / 8))
    for number, (value, label) in enumerate(zip(values.tolist(), labels, strict=True)):
        x, ends = left + number * step, sorted((up.at(value), up.at(0)))
        name = Markup("<title>{}: {}</title>").format(label, f"{value:.4g}")
        height = max(ends[1] - ends[0], 0.5)
        parts.append(svg.element("rect", name, cls="bar", x=x + 0.1 * step, y=ends[0], width=0.8 * step, height=height))
        if number % every == 0:
            parts.append(svg.text(charts.shortened(label, 14), x + step / 2, bottom + 14, "tick", "middle"))
        if roomy and step > 34:
            parts.append(svg.text(f"{value:.3g}", x + step / 2, ends[0] - 3, "tick", "middle"))
    return svg.drawing(title, _described(values, labels), bottom + 20, parts)


def _described(values: NDArray[np.float64], labels: Sequence[str]) -> str:
    if not values.size:
        return "no value"
    if values.size <= 12:
        return "; ".join(f"{label}: {value:.4g}" for label, value in zip(labels, values.tolist(), strict=True))
    low, high = int(values.argmin()), int(values.argmax())
    ends = f"lowest {values[low]:.4g} ({labels[low]}), highest {values[high]:.4g} ({labels[high]})"
    return f"{values.size} values, mean {values.mean():.4g}, {ends}"
