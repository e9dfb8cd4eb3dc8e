"""What the five papers print of a model's recipe, beside what was measured, and whether the two may be compared."""

import math
import re
from typing import NamedTuple

import numpy as np

from gliomap.recipes import RECIPES
from gliomap.recipes.published import Published, published
from gliomap.report.scores import Scores
from gliomap.report.wording import metric_title, number
from gliomap.rows import metric

NOT_COMPARABLE = {
    "hold-out": "Not comparable: scored on studies that the authors split off themselves, which nobody else has.",
    "cross-validation": "Not comparable, unless these are all five folds of the same training studies: it is the authors' "
    "cross-validation.",
    "official server": "Not comparable: scored by the challenge's server on studies whose labels are secret, with its own rule "
    "for empty regions.",
    "quoted": "Not comparable: quoted from another publication, on its own data.",
}
"""Why, by how a published number came about. There is none that could be compared without these words."""

_HASH = re.compile(r"-[0-9a-f]{8}")


class Line(NamedTuple):
    """One published number beside the model's own, as text; ``measured`` is empty where that was not measured here."""

    row: str
    dataset: str
    score: str
    printed: str
    measured: str
    note: str


class Beside(NamedTuple):
    """What one table of a paper prints of one model's recipe, and whether it may be compared."""

    model: str
    place: str
    statement: str
    lines: list[Line]


def recipe_of(model: str) -> str | None:
    """The recipe that a model's name begins with: NAME, NAME_fair, either with a hash; None for any other name."""
    name = model[:-9] if _HASH.fullmatch(model[-9:]) else model
    return name if name in RECIPES else None


def published_beside(scores: Scores) -> list[Beside]:
    """The published scores of all models that are recipes, model by model in the order of the papers."""
    found: dict[tuple[str, str, str], Beside] = {}
    for model in scores.models:
        recipe = recipe_of(model)
        if recipe is None:
            continue
        base = recipe.removesuffix("_fair")
        for printed in published():
            if printed.how not in NOT_COMPARABLE or printed.metric.endswith("_sd") or not _is_of(printed.recipe, base):
                continue
            place = f"paper {printed.paper}, {'table ' if printed.table.isdigit() else ''}{printed.table}"
            fair = (
                " Nor was this model trained as the paper's: it had the protocol common to all."
                if recipe != base
                else ""
            )
            group = Beside(model, place, NOT_COMPARABLE[printed.how] + fair, [])
            found.setdefault((model, place, printed.how), group).lines.append(_line(scores, model, printed))
    return list(found.values())


def _is_of(recipe: str, base: str) -> bool:
    """Whether a published row is of this recipe, or of its twin with a single modality, which the fair one has not."""
    return recipe in {base, *(f"{base}_{modality}" for modality in ("t1", "t1c", "t2", "flair"))}


def _line(scores: Scores, model: str, printed: Published) -> Line:
    score = " ".join(part for part in (metric_title(printed.metric), printed.region) if part)
    shown = f"{printed.value:g}{' ' if printed.unit else ''}{printed.unit}"
    return Line(printed.row, printed.dataset, score, shown, _measured(scores, model, printed), printed.note)


def _measured(scores: Scores, model: str, printed: Published) -> str:
    """The model's mean in the printed number's unit, with the studies that have one; empty where there is no such score."""
    values = scores.values.get((printed.region, printed.metric))
    if values is None:
        return ""
    known = values[:, scores.models.index(model)]
    known = known[~np.isnan(known)]
    mean = float(known.mean()) if known.size else math.nan
    text = number(100 * mean, "%") + " %" if printed.unit == "%" else number(mean, metric(printed.metric).unit)
    return f"{text}{' mm' if printed.unit == 'mm' else ''} ({known.size})"
