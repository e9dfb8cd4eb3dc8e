"""How far a region's probabilities can be taken at their word: calibration error, Brier score, shares of confidence."""

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

BINS = 10

CONFIDENCE = {
    "confidence_0_10": (0, 1),
    "confidence_10_50": (1, 5),
    "confidence_50_90": (5, 9),
    "confidence_90_100": (9, 10),
}
"""The four intervals of figure 8 of paper 002, each as the first of the ten bins it has, and the first after it."""


def calibrate(probability: Array, truth: Array, brain: Array) -> dict[str, float]:
    """Calibration of one region: ece, brier, and the shares of the brain's voxels in four intervals of probability.

    ``probability`` (D, H, W) from 0 to 1 against a mask, both looked at inside the mask of the brain only; all NaN where
    that is empty. A bin holds its lower edge and not its upper one, but the last has 1, too. ``ece`` weighs every bin by
    its voxels. Source of the shares: paper 002, figure 8, which does not say of which voxels and of which channel.
    """
    inside = np.asarray(brain, bool)
    confidence, hit = probability[inside], truth[inside].astype(bool)
    if not confidence.size:
        return dict.fromkeys(("ece", "brier", *CONFIDENCE), math.nan)
    edges = (np.arange(1, BINS) / BINS).astype(confidence.dtype)  # as 0.7 is written in this precision, it is 0.7
    bins = np.searchsorted(edges, confidence, side="right")
    confidence = confidence.astype(np.float64)
    surplus = np.bincount(bins, confidence - hit, minlength=BINS)
    shares = np.bincount(bins, minlength=BINS) / confidence.size
    return {
        "ece": float(np.abs(surplus).sum() / confidence.size),
        "brier": float(np.square(confidence - hit).mean()),
        **{name: float(shares[first:end].sum()) for name, (first, end) in CONFIDENCE.items()},
    }
