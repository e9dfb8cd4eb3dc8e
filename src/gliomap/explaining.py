"""One study of `gliomap explain`: what its network attends to, on the study's grid, and whether that means anything."""

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from gliomap.attention_maps import NetworkMaps, Shown, has_attention, meaning, network_maps
from gliomap.classes import Target, region_mask
from gliomap.data.study import Study
from gliomap.engines import KERNELS, members, model_segmenter
from gliomap.errors import UsageError, import_extra
from gliomap.networks import Network, build_network
from gliomap.networks.counting import count_step, mean_logit
from gliomap.preprocess import brain_mask, resample_classes, study_box
from gliomap.progress import Bar
from gliomap.recipe import Recipe
from gliomap.report.explanation import AttentionMap, ChannelWeights, Check, Curve, Explanation, FeatureMaps
from gliomap.report.study import MODALITY_TITLES
from gliomap.saliency import saliency
from gliomap.sanity import RANDOM_ORDERS, SHARES, area, lead, likeness, ordered_answers, ranking_areas, shuffled
from gliomap.segmenter import Part, Segmenter, activate, on_grid
from gliomap.segmenting import (
    Asked,
    SegmentedStudy,
    StudyResult,
    read_study,
    segment_study,
    study_report,
    volumes_ml,
)
from gliomap.torch_engine import bytes_per_voxel, find_device, load_networks, only_size
from gliomap.volume import Box, Volume

Array = np.ndarray[Any, np.dtype[Any]]
Checks = Literal["all", "cheap", "none"]

SHUFFLES = 3
SIMILAR = 0.5
"""A map whose rank correlation with those of shuffled weights is this or more, either way, tells little of what was learnt."""
AHEAD = 0.1
"""A map that tells the tumour better than those of shuffled weights by no more than this does so by chance."""
CURVES = 4
"""Attention maps, the finest first, whose voxels are taken away and brought back; each takes ten passes."""
BLOCK_MM = 10.0
INTERVALS = 10
_INSIDE = 99.9
"""Percent of the brain's voxels below the upper end of a map's colours, and as many above the lower one."""


@dataclass(frozen=True)
class ExplainOptions:
    """What `explain` is asked for.

    ``study`` is one study's folder. ``checks``: ``all``; the ``cheap`` ones, which leave out deletion and insertion; or
    ``none``. ``saliency`` also for a network whose attention makes maps. ``seed`` of everything random.
    """

    study: Path
    output: Path
    model: Path | None = None
    labels: str | None = None
    checks: str = "all"
    saliency: bool = False
    skull_on_anyway: bool = False
    device: str = "auto"
    engine: str = "auto"
    seed: int = 0
    quiet: bool = False


@dataclass(frozen=True)
class Case:
    """A segmented study, its network, and what that network is shown: a ``box`` of a ``part`` of the study.

    ``shown_backward`` is the same with the memory that gradients take; None where nobody wants gradients.
    """

    asked: Asked
    segmented: SegmentedStudy
    segmenter: Segmenter
    network: Network
    part: Part
    box: Box
    shown: Shown
    shown_backward: Shown | None

    @property
    def target(self) -> Target:
        return self.segmenter.recipe.target

    def probabilities(self, images: Array) -> Array:
        """The network's probabilities (K, D, H, W) of prepared images, in one view."""
        return activate(self.segmenter.logits(images, self.segmenter.engines[0], self.shown.size), self.target)

    def placed(self, values: Array) -> Array:
        """A map (D, H, W) of the prepared images on the study's grid, 0 outside the brain."""
        whole = np.zeros((1, *self.shown.size), np.float32)
        whole[(0, *self.box.slices)] = values
        shown = self.part.shown
        there = shown.with_array(on_grid(whole, self.part) * brain_mask(shown))
        return _rounded(there.placed_on(self.segmented.read.volume).array[0])


def segmented_case(study: Study, asked: Asked, options: ExplainOptions) -> tuple[Case, tuple[str, ...]]:
    """The study as it is segmented, what of it the network is shown, and what is odd about all that."""
    model = asked.model
    read = read_study(study, asked)
    where = find_device(options.device)
    network = load_networks(next(members(model)), where)[0]
    gradients, odd = _wants_gradients(network, options)
    segmenter = model_segmenter(model, options.device, options.engine)
    if len(segmenter.engines) > 1:
        odd.append(
            f"this model is {len(segmenter.engines)} networks together; the first alone is explained, and segments here"
        )
        segmenter = replace(segmenter, engines=segmenter.engines[:1])
    segmented = segment_study(read, segmenter)
    part = segmenter.part(read.volume, read.truth)
    images, box, size = segmenter.prepared(part, segmenter.tumour_box(read.volume, read.truth))
    recipe = model.recipe
    shown = Shown(images, size, segmenter, KERNELS * bytes_per_voxel(recipe))
    backward = replace(shown, bytes_per_voxel=KERNELS * _step_bytes_per_voxel(recipe)) if gradients else None
    case = Case(asked, segmented, segmenter, network, part, box, shown, backward)
    return case, (*read.warnings, *odd)


def _wants_gradients(network: Network, options: ExplainOptions) -> tuple[bool, list[str]]:
    """Whether gradients are shown: where they are asked for, and where there is no other map; and what is odd about that."""
    maps, attention = has_attention(network)
    if maps and not options.saliency:
        return False, []
    try:
        import_extra("captum.attr", "explain")
    except UsageError as error:
        if options.saliency:
            raise
        if not attention:
            raise UsageError(
                f"this model's network has no attention, and saliency maps need Captum: {error}"
            ) from error
        return False, [f"its attention weighs channels and makes no map; for saliency maps {error}"]
    return True, []


def _step_bytes_per_voxel(recipe: Recipe) -> float:
    """The memory that a forward and a backward pass take for each voxel of the images."""
    with torch.device("meta"):
        network = build_network(recipe)
    size = only_size(network) or tuple(2 * n for n in network.divisors)
    shown = size[-network.spatial_dims :]
    return count_step(network, shown, 1, mean_logit).memory_bytes / math.prod(shown)


def explain_case(case: Case, options: ExplainOptions, bar: Bar) -> Explanation:
    """Everything that the page shows, with the checks that are asked for."""
    read, images, target = case.segmented.read, case.shown.images, case.target
    start = time.perf_counter()
    probabilities = case.probabilities(images)
    segment_s = time.perf_counter() - start
    found = {region: target.region_probability(probabilities, region) > 0.5 for region in target.regions}
    bar.say("looking at what the network attends to")
    start = time.perf_counter()
    looked = _look(case, case.network, found, features=True)
    look_s = time.perf_counter() - start
    bar.advance()
    checks: dict[str, list[Check]] = defaultdict(list)
    curves: list[Curve] = []
    if options.checks != "none":
        bar.say(f"looking with {SHUFFLES} networks of shuffled weights, about {SHUFFLES * look_s:.0f} s")
        _add(checks, _randomised(case, looked, found, options.seed))
        bar.advance()
    if options.checks == "all" and (chosen := _chosen(looked)) and any(mask.any() for mask in found.values()):
        passes = 2 + 2 * (len(SHARES) - 2) * (len(chosen) + RANDOM_ORDERS)
        bar.say(f"deletion and insertion, {passes} passes, about {passes * segment_s:.0f} s")
        curves, verdicts = _curves(case, chosen, found, options.seed)
        _add(checks, verdicts)
    bar.advance()
    maps = [_attention_map(case, name, looked, checks[name]) for name in looked.maps]
    if options.checks != "none" and read.truth is not None:
        maps = [_compared(one, case, read.truth) for one in maps]
    result = StudyResult(read.study.id, volumes_ml(case.segmented.found.classes, target), [], read.warnings, {})
    return Explanation(
        study_report(result, case.segmented, case.asked),
        tuple(maps),
        tuple(_channel_weights(case, name, weights, checks[name]) for name, weights in looked.channels.items()),
        tuple(curves),
        tuple(FeatureMaps(n, *map(case.placed, pair)) for n, pair in looked.features.items()),
        _confidence(probabilities[:, case.shown.brain], target),
    )


def _look(case: Case, network: Network, found: dict[str, Array], *, features: bool = False) -> NetworkMaps:
    """The network's attention, and the gradients of what was found, if they are wanted."""
    looked = network_maps(network, case.shown, features=features)
    if case.shown_backward is None:
        return looked
    gradients = saliency(network, case.shown_backward, found, case.target)
    d, h, w = case.shown.images.shape[1:]
    sums = {region: one[:, case.shown.brain].sum(1, dtype=float) for region, one in gradients.items()}
    return replace(
        looked,
        maps=looked.maps | {f"saliency_{region}": one.sum(0) for region, one in gradients.items()},
        own_size=looked.own_size | {f"saliency_{region}": (d, h, w) for region in gradients},
        channels=looked.channels
        | {f"modalities_{region}": each / max(each.sum(), np.finfo(float).tiny) for region, each in sums.items()},
    )


def _add(checks: dict[str, list[Check]], more: Mapping[str, Sequence[Check]]) -> None:
    for name, some in more.items():
        checks[name] += some


def _randomised(case: Case, looked: NetworkMaps, found: dict[str, Array], seed: int) -> dict[str, list[Check]]:
    """How alike each map, or the weights of channels, are to those of shuffled networks."""
    brain = case.shown.brain

    def flat(maps: NetworkMaps) -> dict[str, Array]:
        weights = {name: one for name, one in maps.channels.items() if not name.startswith("modalities_")}
        return {name: one[brain] for name, one in maps.maps.items()} | weights

    own = flat(looked)
    others = [flat(_look(case, shuffled(case.network, SHUFFLES * seed + n), found)) for n in range(SHUFFLES)]
    whose, tumour = _tumour(case, found)
    checks: dict[str, list[Check]] = {}
    for name, values in own.items():
        alike = likeness(values, [other[name] for other in others])
        over = "the brain" if name in looked.maps else "the channels"
        definition = f"size of the rank correlation over {over} with {SHUFFLES} networks of shuffled weights, the mean"
        checks[name] = [Check("randomised weights", alike, definition, None if alike is None else alike < SIMILAR)]
        if name in looked.maps and tumour[brain].any() and not tumour[brain].all():
            ahead = lead(values, [other[name] for other in others], tumour[brain])
            definition = f"how well it tells {whose} from the brain (|2 AUC - 1|), beyond the best shuffled network"
            checks[name].append(Check("more than randomised", ahead, definition, ahead > AHEAD))
    return checks


def _tumour(case: Case, found: dict[str, Array]) -> tuple[str, Array]:
    """The whole tumour (D, H, W) of the reference on the grid of the prepared images, or of what was found if there is none."""
    read, part = case.segmented.read, case.part
    if read.truth is None:
        return "the tumour found", next(reversed(found.values()), np.zeros(case.shown.images.shape[1:], bool))
    settings = case.segmenter.recipe.preprocessing
    classes = read.truth.crop(study_box(read.volume, settings, read.truth)).array[0]
    if part.ratio is not None:
        classes = resample_classes(classes, case.shown.size, part.ratio)
    return "the reference's tumour", region_mask(classes, "WT")[case.box.slices]


def _chosen(looked: NetworkMaps) -> dict[str, Array]:
    """The maps whose voxels are taken away and brought back."""
    attention = [name for name in looked.maps if not name.startswith("saliency_")][:CURVES]
    return {name: one for name, one in looked.maps.items() if name in attention or name.startswith("saliency_")}


def _curves(
    case: Case, maps: Mapping[str, Array], found: dict[str, Array], seed: int
) -> tuple[list[Curve], dict[str, list[Check]]]:
    """What taking voxels away and bringing them back does to the answer, the most attended first."""
    region, inside = next((name, mask) for name, mask in reversed(found.items()) if mask.any())

    def score(changed: Array) -> float:
        return float(case.target.region_probability(case.probabilities(changed), region)[inside].mean())

    shown = case.part.shown
    voxel_mm = float(np.mean(np.multiply(shown.spacing_mm, case.part.ratio or 1.0)))
    blocks = max(round(BLOCK_MM / voxel_mm), 1)
    own, random = ordered_answers(case.shown.images, maps, score, blocks, seed)
    curves: list[Curve] = []
    checks: dict[str, list[Check]] = {}
    for name, both in own.items():
        checks[name] = []
        for kind, sign in (("deletion", 1), ("insertion", -1)):
            scores, drawn = getattr(both, kind), [getattr(one, kind) for one in random]
            mean = tuple(float(np.mean(at)) for at in zip(*drawn, strict=True))
            curves.append(Curve(name, kind, SHARES, scores, mean))
            ahead = sign * (area(mean) - area(scores))
            definition = (
                f"area between the curves of random blocks and of the map, of the mean {region} probability found"
            )
            better = all(sign * (area(one) - area(scores)) > 0 for one in drawn)
            checks[name].append(Check(kind, ahead, definition, better))
    return curves, checks


def _attention_map(case: Case, name: str, looked: NetworkMaps, checks: Sequence[Check]) -> AttentionMap:
    values = case.placed(looked.maps[name])
    low, high = (float(v) for v in np.percentile(looked.maps[name][case.shown.brain], (100 - _INSIDE, _INSIDE)))
    return AttentionMap(name, meaning(name), looked.own_size[name], values, (low, max(high, low + 1e-9)), tuple(checks))


def _compared(one: AttentionMap, case: Case, truth: Volume) -> AttentionMap:
    """The map with how well it tells each region of the reference, where that has a voxel."""
    brain = brain_mask(case.segmented.read.volume)
    masks = {region: region_mask(truth.array[0], region)[brain] for region in case.target.regions}
    definition = "probability that the map is higher at a voxel of the region than at another of the brain (AUC)"
    areas = ranking_areas(one.values[brain], masks)
    more = (Check(f"inside the reference {region}", value, definition, None) for region, value in areas.items())
    return replace(one, checks=(*one.checks, *more))


def _channel_weights(case: Case, name: str, weights: Array, checks: Sequence[Check]) -> ChannelWeights:
    shares = name.startswith("modalities_")
    labels = [MODALITY_TITLES.get(m, m) for m in case.segmenter.recipe.modalities] if shares else ()
    return ChannelWeights(name, meaning(name), weights, tuple(checks), tuple(labels))


def _confidence(probabilities: Array, target: Target) -> tuple[tuple[float, float, float], ...]:
    """The share of voxels in each interval of the probability of what is said of them, of (K, N); figure 8 of paper 002.

    Of regions the probability of the least certain answer.
    """
    softmax = target.kind == "softmax"
    surest = probabilities.max(0) if softmax else np.maximum(probabilities, 1 - probabilities).min(0)
    edges = np.linspace(0, 1, INTERVALS + 1)
    shares = np.histogram(surest, edges)[0] / max(surest.size, 1)
    return tuple((float(a), float(b), float(n)) for a, b, n in zip(edges, edges[1:], shares, strict=False))


def _rounded(values: Array) -> Array:
    """To about a thousandth of the largest value, which takes a tenth of the space in a file."""
    largest = float(np.abs(values).max())
    return values if largest == 0 else values.round(3 - math.ceil(math.log10(largest)))
