"""Learning-rate schedules: the factor on the recipe's rate, as a function of progress and of the validations so far."""

import math
from collections.abc import Sequence

from gliomap.recipe import Training


def rate_factor(training: Training, progress: float, scores: Sequence[float]) -> float:
    """The factor on ``learning_rate`` at ``progress`` in [0, 1], after validations that scored ``scores`` (higher is better)."""
    progress = min(progress, 1.0)
    if training.schedule == "cosine":
        cycles = training.cosine_cycles
        place = 1.0 if progress == 1 else progress * cycles % 1
        return training.rate_floor + (1 - training.rate_floor) * 0.5 * (1 + math.cos(math.pi * place))
    if training.schedule == "polynomial":
        return max((1 - progress) ** training.polynomial_power, training.rate_floor)
    if training.schedule == "plateau":
        return plateau_factor(scores, training.plateau_factor, training.plateau_patience)
    return 1.0


def plateau_factor(scores: Sequence[float], factor: float, patience: int) -> float:
    """``factor`` once for every time ``patience`` + 1 validations passed without a new best, as torch's ReduceLROnPlateau."""
    best, waited, out = -math.inf, 0, 1.0
    for score in scores:
        if score > best:
            best, waited = score, 0
        else:
            waited += 1
        if waited > patience:
            out, waited = out * factor, 0
    return out
