"""One class map from several: by majority, or by STAPLE. numpy only."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

STAPLE_ROUNDS = 100
STAPLE_CHANGE = 1e-5
"""Expectation maximisation ends after so many rounds, or when no rate of a map changes by more."""
_TRUSTED = 0.99
"""What every map is right with at first, in every class."""
_LEAST = 1e-12
"""No rate is taken to be smaller."""


def majority(maps: Sequence[Array]) -> Array:
    """At each voxel the class that most class maps (D, H, W) have; ties go to the earliest map among them."""
    elected, most = maps[0].copy(), np.zeros(maps[0].shape, np.uint16)
    for one in maps:
        votes = np.zeros_like(most)
        for other in maps:
            votes += one == other
        ahead = votes > most
        elected[ahead], most[ahead] = one[ahead], votes[ahead]
    return elected


def staple(maps: Sequence[Array]) -> Array:
    """The most probable true class map (D, H, W), if each map errs at its own rates from class to class.

    STAPLE for several classes (Warfield, Zou and Wells 2004): expectation maximisation over the truth and over how often
    each map calls class a what is b. Only voxels on which the maps disagree are in question; the others count as what all
    of them say. Ties go to the class with the lower number.
    """
    out = maps[0].copy()
    disputed = np.zeros(out.shape, bool)
    for other in maps[1:]:
        disputed |= other != out
    if not disputed.any():
        return out
    classes = np.unique(np.concatenate([np.unique(one) for one in maps]))
    said = np.stack([np.searchsorted(classes, one[disputed]) for one in maps])  # (M, N)
    agreed = np.array([np.count_nonzero((out == value) & ~disputed) for value in classes], float)  # (K,)
    shares = np.array([sum(np.count_nonzero(one == value) for one in maps) for value in classes], float)
    truth = _probable_truth(said, agreed, shares / shares.sum())
    out[disputed] = classes[truth.argmax(0)]
    return out


def _probable_truth(said: Array, agreed: Array, prior: Array) -> Array:
    """The probability of each class at each disputed voxel (K, N), from what each map says there (M, N).

    ``agreed``: how many other voxels all maps give each class; ``prior``: the share of each class.
    """
    count = len(prior)
    votes = np.stack([said == k for k in range(count)], 1).astype(float)  # (M, K, N)
    others = (1 - _TRUSTED) / (count - 1)
    rates = np.tile(others + (_TRUSTED - others) * np.eye(count), (len(said), 1, 1))  # (M, said, true)
    truth = np.zeros(votes.shape[1:])
    for _ in range(STAPLE_ROUNDS):
        logs = np.log(np.maximum(rates, _LEAST))
        belief = np.log(prior)[:, None] + sum(own[says].T for own, says in zip(logs, said, strict=True))  # (K, N)
        truth = np.exp(belief - belief.max(0))
        truth /= truth.sum(0)
        counts = votes @ truth.T + np.diag(agreed)
        before, rates = rates, counts / np.maximum(truth.sum(1) + agreed, _LEAST)
        if np.abs(rates - before).max() < STAPLE_CHANGE:
            break
    return truth
