"""What a network attends to in a study: its attention maps on the grid of the images that it is shown."""

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gliomap.networks import Network, as_slices, fast_layout
from gliomap.recipe import Size
from gliomap.segmenter import Engine, Segmenter
from gliomap.torch_engine import SLICES_PER_BATCH, only_size

Array = np.ndarray[Any, np.dtype[Any]]

BEFORE, AFTER = " before", " after"
MEANINGS = {
    r"AG_(\d+)": "Attention gate of level {} (1 is the finest): how much of the skip connection passes at each place.",
    r"SA_(\d+)": "Spatial attention of level {} (1 is the finest): the weight of each place in the decoder.",
    r"SAM_(\w+)": "Supervised attention: how much the attention path takes each place for {}.",
    r"A_(\d+)_mean": "Attention gate of encoder stage {} (1 is the finest), the mean of its channels' weights at each place.",
    r"A_(\d+)": "Attention gate of encoder stage {} (1 is the finest): the weight of each channel.",
    r"ASPP_1x1": "The share of the pyramid's features that its 1x1 convolution makes, the mean over its blocks.",
    r"ASPP_mean": "The share of the pyramid's features that its global mean makes, the mean over its blocks.",
    r"ASPP_(\d+)": "The share of the pyramid's features that its convolution of rate {} makes, the mean over its blocks.",
    r"key_weight": "How much each key is attended to in the mean over all queries, as a share of the most attended one.",
    r"self_attention": "How much attention each place receives from all others, as a share of the largest.",
    r"context_prior": "How much of each place goes into the others, as a share of the largest.",
    r"saliency_(\w+)": "How much the mean logit of the {} that was found changes with the images at each place.",
    r"modalities_(\w+)": "The share of saliency_{} that each modality has.",
}
"""What a map of a name shows, in one sentence."""


@dataclass(frozen=True)
class Shown:
    """Prepared images (C, D, H, W), a box of a grid of ``size``, and what sends them through networks like ``segmenter``'s.

    ``bytes_per_voxel``: what a pass through the network takes in torch (see `Engine`).
    """

    images: Array
    size: Size
    segmenter: Segmenter
    bytes_per_voxel: float = 0.0

    @property
    def brain(self) -> Array:
        """True (D, H, W) where any image is not zero."""
        return (self.images != 0).any(0)


@dataclass(frozen=True)
class NetworkMaps:
    """What a network attends to in images (C, D, H, W).

    ``maps`` (D, H, W) by name on the images' grid, the finest first, and ``own_size``, what each has in the network, of a
    window if the images went through it in windows. ``channels``: weights (C',). ``features``: before and after each module
    that updates them, the mean over their channels (D, H, W).
    """

    maps: dict[str, Array]
    own_size: dict[str, Size]
    channels: dict[str, Array]
    features: dict[str, tuple[Array, Array]]


def network_maps(network: Network, shown: Shown, *, features: bool = False) -> NetworkMaps:
    """The attention maps of a network, in one pass or in the recipe's windows, whose maps are combined as logits are.

    A map of several channels with a weight for every place is their mean, its name ending in _mean. Weights of channels
    are the mean over the windows. ``features`` are left out if they are not asked for.

    Raises:
        InputError: not even the smallest window fits into the memory.
    """
    sizes: dict[str, Size] = {}
    weights: dict[str, list[Array]] = defaultdict(list)
    names = [name for name, one in _seen(network, _least_images(network), features).items() if _has_places(one)]

    def run(images: Array) -> Array:
        found = _seen(network, images, features)
        for name in found.keys() - set(names):
            weights[name] += list(found[name].flatten(1).cpu().numpy())
        out = np.zeros((len(images), max(len(names), 1), *images.shape[2:]), np.float32)
        for channel, name in enumerate(names):
            d, h, w = found[name].shape[2:]
            sizes[name] = (d, h, w)
            enlarged = F.interpolate(found[name], images.shape[2:], mode="trilinear", align_corners=False)
            out[:, channel] = enlarged[:, 0].cpu().numpy()
        return out

    engine = Engine(run, network.divisors, shown.bytes_per_voxel, only_size(network), channels=max(len(names), 1))
    values = dict(zip(names, shown.segmenter.logits(shown.images, engine, shown.size), strict=False))
    pairs = {name.removesuffix(BEFORE): values[name] for name in names if name.endswith(BEFORE)}
    finest_first = sorted(
        (n for n in names if not n.endswith((BEFORE, AFTER))), key=lambda n: -np.prod(sizes[n], dtype=int)
    )
    return NetworkMaps(
        {name: values[name] for name in finest_first},
        {name: sizes[name] for name in finest_first},
        {name: np.mean(each, 0) for name, each in sorted(weights.items())},
        {name: (before, values[name + AFTER]) for name, before in pairs.items()},
    )


def has_attention(network: Network) -> tuple[bool, bool]:
    """Whether a network has attention with a weight for every place, and whether it has any at all."""
    found = _seen(network, _least_images(network), features=False)
    return any(map(_has_places, found.values())), bool(found)


def meaning(name: str) -> str:
    """What a map, or the weights, of that name show, in one sentence."""
    for pattern, text in MEANINGS.items():
        if found := re.fullmatch(pattern, name):
            return text.format(*found.groups())
    return "A part of the network's attention."


def _seen(network: Network, images: Array, features: bool) -> dict[str, Tensor]:
    """The attention of images (B, C, D, H, W) by name: (B, 1, d, h, w) each, or (B, C', 1, 1, 1) for weights of channels."""
    batch = torch.from_numpy(np.ascontiguousarray(images)).to(next(network.parameters()).device)
    with torch.inference_mode():
        if network.spatial_dims == 3:
            return _attention(network, fast_layout(batch), features)
        parts = [_attention(network, fast_layout(part), features) for part in as_slices(batch).split(SLICES_PER_BATCH)]
        return {
            name: torch.cat([part[name] for part in parts]).unflatten(0, (len(batch), -1)).movedim(1, 2)
            for name in parts[0]
        }


def _attention(network: Network, x: Tensor, features: bool) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, weight in network.attention(x).items():
        several = _has_places(weight) and weight.shape[1] > 1
        found[f"{name}_mean" if several else name] = weight.mean(1, keepdim=True) if several else weight
    for name, both in network.updated_features(x).items() if features else ():
        found |= {name + end: one.mean(1, keepdim=True) for end, one in zip((BEFORE, AFTER), both, strict=True)}
    return {name: one.float() for name, one in found.items()}


def _has_places(weight: Tensor) -> bool:
    return weight.shape[2:].numel() > 1


def _least_images(network: Network) -> Array:
    """Images of zeros that are as small as tells maps from weights of channels."""
    size = only_size(network) or tuple(2 * n for n in network.divisors)
    return np.zeros((1, network.in_channels, *size), np.float32)
