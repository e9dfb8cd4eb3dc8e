"""What happens to a class map after the network. numpy and scipy only."""

from typing import Any

import numpy as np
from scipy import ndimage

from gliomap.classes import ET, NCR
from gliomap.recipe import Postprocessing
from gliomap.volume import bounding_box

Array = np.ndarray[Any, np.dtype[Any]]


def postprocess(classes: Array, settings: Postprocessing) -> Array:
    """The class map (D, H, W) after the recipe's steps, in their order; the input is left as it is."""
    if settings.min_component_voxels > 1:
        classes = remove_small_components(classes, settings.min_component_voxels)
    if 0 < np.count_nonzero(classes == ET) < settings.min_et_voxels:
        classes = np.where(classes == ET, np.uint8(NCR), classes)  # as the released code of paper 002 does
    return classes


def remove_small_components(classes: Array, min_voxels: int) -> Array:
    """The class map without 26-connected components of a class that have fewer than ``min_voxels`` voxels (paper 004, 3.4)."""
    out = classes.copy()
    box = bounding_box(classes != 0)
    if box is None:
        return out
    inner = out[box.slices]
    for value in np.unique(inner[inner != 0]):
        components, _ = ndimage.label(inner == value, np.ones((3, 3, 3)))
        sizes = np.bincount(components.ravel())
        small = sizes < min_voxels
        small[0] = False
        inner[small[components]] = 0
    return out
