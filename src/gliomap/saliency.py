"""Where, and in which modality, a network's answer depends on the images: gradients, by Captum (extra ``explain``).

The map is the absolute gradient (Simonyan et al. 2014) of the mean logit of a region over the voxels that were found to be of
it. Of the methods that Captum has it is one of the two that Adebayo et al. (2018) find to depend on the weights; gradient times
input shows the images' own edges, guided backpropagation too, and integrated gradients take twenty passes where this takes one.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gliomap.attention_maps import Shown
from gliomap.classes import PARTS, Target
from gliomap.errors import import_extra
from gliomap.networks import Network, as_slices, fast_layout
from gliomap.segmenter import Engine
from gliomap.torch_engine import only_size

Array = np.ndarray[Any, np.dtype[Any]]


def saliency(network: Network, shown: Shown, found: Mapping[str, Array], target: Target) -> dict[str, Array]:
    """For each region that was ``found`` (D, H, W), how much its mean logit changes with each image: (C, D, H, W).

    Images are in standard scores, so that modalities can be compared. In windows it is the weighted mean of each window's
    own. A region without a voxel is left out.

    Raises:
        UsageError: Captum is not installed.
        InputError: not even the smallest window fits into the memory.
    """
    captum = import_extra("captum.attr", "explain")
    masks = {region: mask for region, mask in found.items() if mask.any()}
    if not masks:
        return {}
    channels = len(shown.images)
    device = next(network.parameters()).device

    def run(stacked: Array) -> Array:
        images, inside = torch.from_numpy(np.ascontiguousarray(stacked)).to(device).split([channels, len(masks)], 1)
        gradients = []
        for index, (region, mask) in enumerate(masks.items()):
            share = inside[:, index] / float(np.count_nonzero(mask))

            def mean_logit(x: Tensor, region: str = region, share: Tensor = share) -> Tensor:
                return (_region_logit(_logits(network, x), target, region) * share).sum((1, 2, 3))

            x = images.clone().requires_grad_()
            gradients.append(captum.Saliency(mean_logit).attribute(x, abs=True).detach().cpu().numpy())
        return np.concatenate(gradients, 1)

    engine = Engine(run, network.divisors, shown.bytes_per_voxel, only_size(network), channels=channels * len(masks))
    stacked = np.concatenate([shown.images, np.stack(list(masks.values())).astype(np.float32)])
    values = shown.segmenter.logits(stacked, engine, shown.size)
    return dict(zip(masks, values.reshape(len(masks), channels, *values.shape[1:]), strict=True))


def _logits(network: Network, x: Tensor) -> Tensor:
    """(B, K, D, H, W) of images (B, C, D, H, W); a 2-D network sees their slices."""
    if network.spatial_dims == 3:
        return network(fast_layout(x))
    return network(fast_layout(as_slices(x))).unflatten(0, (len(x), -1)).movedim(1, 2)


def _region_logit(logits: Tensor, target: Target, region: str) -> Tensor:
    """(B, D, H, W): the logit of `Target.region_probability`."""
    members = set(PARTS[region])
    inside = [k for k, classes in enumerate(target.channels) if set(classes) <= members]
    if target.kind == "softmax":
        outside = [k for k in range(len(target.channels)) if k not in inside]
        return torch.logsumexp(logits[:, inside], 1) - torch.logsumexp(logits[:, outside], 1)
    whole = [k for k in inside if set(target.channels[k]) == members]
    return logits[:, whole or inside].amax(1)
