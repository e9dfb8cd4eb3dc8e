"""The critical-difference diagram (Demsar 2006, JMLR 7, figure 1): mean ranks on an axis, bars over those not told apart."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from gliomap.report.charts import Array, Axis, shortened, ticks
from gliomap.report.svg import dot, drawing, element, line, text

WIDTH = 600
_LABELS = 176
"""Pixels on either side for the models' names."""
_LETTERS = 18
_AXIS, _BAR, _ROW = 34.0, 12.0, 20.0
_OVER = 5.0
"""By so many pixels a bar reaches over its first and its last model, so that it is one where they tie."""


def rank_chart(
    title: str, mean_ranks: Array, models: Sequence[str], groups: Sequence[tuple[int, ...]] | None
) -> Markup:
    """Models at their mean ranks (K,), 1 is best, the better half of the names on the left.

    ``groups`` are the indices of models that are not told apart, a bar each with a dot at each of them: a model without a
    dot that a bar goes over is not in its group. None where that is not known of all.
    """
    order: list[int] = np.argsort(mean_ranks, kind="stable").tolist()
    across = Axis(1, max(len(models), 2), _LABELS + 14, WIDTH - _LABELS - 14)
    at = [across.at(float(rank)) for rank in mean_ranks]
    lanes = _lanes([(min(at[m] for m in group), max(at[m] for m in group)) for group in groups or ()])
    below = _AXIS + 18 + _BAR * (max(lanes, default=-1) + 1)
    left = order[: -(-len(order) // 2)]
    parts = _axis(across, len(models))
    parts += [part for row, m in enumerate(left) for part in _name(models[m], mean_ranks[m], at[m], below + _ROW * row)]
    for row, m in enumerate(order[: len(left) - 1 : -1]):
        parts += _name(models[m], mean_ranks[m], at[m], below + _ROW * row, right=True)
    for group, lane in zip(groups or (), lanes, strict=True):
        parts += _bar([(at[m], models[m]) for m in group], _AXIS + 16 + _BAR * lane)
    parts += [dot(at[m], _AXIS, f"{models[m]}: mean rank {mean_ranks[m]:.2f}", "rank") for m in order]
    ranked = ", ".join(f"{models[m]} {mean_ranks[m]:.2f}" for m in order)
    joined = "; ".join(", ".join(models[m] for m in group) for group in groups or ()) or "none"
    known = "" if groups is None else f". Not told apart: {joined}"
    return drawing(title, f"Mean ranks: {ranked}{known}", below + _ROW * len(left), parts, WIDTH)


def _axis(across: Axis, models: int) -> list[Markup]:
    """A line with a mark at each whole rank, as far as there is room for its number, and which end is the better one."""
    levels = [level for level in ticks(1, across.high, min(models, 12)) if level == round(level)]
    marks = [line(across.at(level), _AXIS - 5, across.at(level), _AXIS, "ruler") for level in levels]
    numbers = [text(f"{level:.0f}", across.at(level), _AXIS - 9, "tick", "middle") for level in levels]
    ends = [
        text("best", across.start - 12, _AXIS + 4, "tick", "end"),
        text("worst", across.end + 12, _AXIS + 4, "tick"),
    ]
    return [line(across.start, _AXIS, across.end, _AXIS, "ruler"), *marks, *numbers, *ends]


def _name(model: str, rank: float, x: float, y: float, *, right: bool = False) -> list[Markup]:
    """The line from a model's place on the axis to its name at one side."""
    side = WIDTH - _LABELS + 6 if right else _LABELS - 6
    words = f"{rank:.2f} {shortened(model, _LETTERS)}" if right else f"{shortened(model, _LETTERS)} {rank:.2f}"
    return [
        element("path", cls="elbow", d=f"M{x:.1f} {_AXIS:.1f}V{y:.1f}H{side - 2 if right else side + 2}"),
        text(words, side, y + 4, "name", "start" if right else "end"),
    ]


def _bar(members: Sequence[tuple[float, str]], y: float) -> list[Markup]:
    places = [x for x, _ in members]
    bar = line(min(places) - _OVER, y, max(places) + _OVER, y, "group")
    return [bar, *(dot(x, y, model, "rank") for x, model in members)]


def _lanes(spans: Sequence[tuple[float, float]]) -> list[int]:
    """For each span the first lane in which it touches none before it."""
    ends: list[float] = []
    found = []
    for start, end in spans:
        lane = next((n for n, last in enumerate(ends) if start - last > 4 * _OVER), len(ends))
        ends[lane : lane + 1] = [end]
        found.append(lane)
    return found
