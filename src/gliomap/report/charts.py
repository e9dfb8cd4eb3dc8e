"""Charts as inline SVG text: curves, box and strip plots, differences by study.

Nothing but numbers and names goes in; colours are the page's style sheet's, so that a chart follows dark mode and print.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from gliomap.report.svg import WIDTH, dot, drawing, element, line, text

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

MOST_HOVERED = 200
"""Up to so many studies each dot has the study's name; beyond it dots are one path, or a page would weigh megabytes."""

MOST_POINTS = 400
"""About so many points has a drawn curve; of more, only the lowest and the highest of each stretch are drawn."""
MOST_RINGED = 30
"""Up to so many points of a curve each has a dot of its own."""

_ROW, _LABEL, _LINE, _BOX, _JITTER, _LANE = 46, 13, 13, 7.0, 8.0, 72
_ALONG, _ACROSS = math.sqrt(2) - 1, (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Axis:
    """Values from ``low`` to ``high``, drawn from ``start`` to ``end`` in pixels."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Where a value lies, in pixels."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


@dataclass(frozen=True)
class Curve:
    """Values (N,) at rising places (N,), drawn in the style sheet's class ``style``; a value that is not finite is a gap.

    A curve without a name is an addition to another: it has no label and is not described.
    """

    name: str
    places: Array
    values: Array
    style: str


def axis(values: Sequence[float] | Array, start: float, end: float) -> Axis:
    """An axis that has room for all values that are numbers, and for something where they are all equal."""
    known = np.asarray(values, float)
    known = known[np.isfinite(known)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    room = 0.04 * (high - low) or 0.1 * abs(high) or 1e-3
    return Axis(low - room, high + room, start, end)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from ``low`` to ``high``: two at least, and at most ``most`` + 1."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * factor for factor in (1, 2, 5, 10) if (high - low) / (power * factor) <= most)
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def shortened(name: str, most: int) -> str:
    """A name of at most so many letters, its middle left out: both ends tell models apart."""
    if len(name) <= most:
        return name
    tail = (most - 1) // 2
    return f"{name[: most - 1 - tail]}…{name[len(name) - tail :]}"


def curve_chart(
    title: str, curves: Sequence[Curve], unit: str = "", *, logarithmic: bool = False, best: float | None = None
) -> Markup:
    """Curves over the same places, which are counts, each with its name at its end; ``best`` is a place to mark.

    ``logarithmic`` is for values above 0; others are left out. Curves that have no value leave the chart empty, and it says so.
    """
    curves = [_logarithm(curve) for curve in curves] if logarithmic else curves
    known = np.concatenate([np.empty(0), *(curve.values[np.isfinite(curve.values)] for curve in curves)])
    places = np.concatenate([np.zeros(1), *(curve.places for curve in curves)])
    named = [curve for curve in curves if curve.name and np.isfinite(curve.values).any()]
    room = max([6.6 * len(shortened(curve.name, 16)) for curve in named if len(named) > 1], default=0.0)
    bottom = 190.0
    up = axis(known, bottom - 6, 20)
    levels = _powers(up) if logarithmic else [(v, f"{v:.4g}") for v in ticks(up.low, up.high, 5)]
    left = max(52.0, *(8 + 6.4 * len(words) for _, words in levels))
    across = Axis(0.0, max(float(places.max()), 1.0), left, WIDTH - 16 - room)
    parts = [text(unit, 0, 11, "tick")]
    for level, words in levels:
        parts += [line(left, up.at(level), across.end, up.at(level), "grid")]
        parts += [text(words, left - 5, up.at(level) + 4, "tick", "end")]
    for place in ticks(0, across.high, 4):
        parts.append(text(_count(place), across.at(place), bottom + 14, "tick", "middle"))
    if best is not None:
        parts.append(line(across.at(best), 20, across.at(best), bottom - 6, "best"))
    for curve in curves:
        parts += _curve(across, up, curve)
    parts += _end_labels(across, up, named) if len(named) > 1 else []
    if not known.size:
        parts.append(text("no value yet", (left + across.end) / 2, bottom / 2, "tick", "middle"))
    described = "; ".join(_described(curve, logarithmic) for curve in named) or "no value yet"
    return drawing(title, described, bottom + 20, parts)


def _logarithm(curve: Curve) -> Curve:
    above = np.where(curve.values > 0, curve.values, np.nan)
    return replace(curve, values=np.log10(above))


def _powers(up: Axis) -> list[tuple[float, str]]:
    """Levels of a logarithmic axis: powers of ten, with what is between them where there are few."""
    for factors in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
        decades = range(math.floor(up.low), math.ceil(up.high) + 1)
        found = [(decade + math.log10(f), f * 10.0**decade) for decade in decades for f in factors]
        inside = [(level, f"{value:.4g}") for level, value in found if up.low <= level <= up.high]
        if len(inside) >= 3:
            break
    else:
        return [(level, f"{10**level:.3g}") for level in ticks(up.low, up.high, 5)]
    return inside[:: math.ceil(len(inside) / 7)]


def _count(number: float) -> str:
    """A count in few letters: 500, 1.5k, 2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.4g}{letter}"
    return f"{number:.4g}"


def _curve(across: Axis, up: Axis, curve: Curve) -> list[Markup]:
    """Its line, broken at gaps, with a dot for each point where there are few, and for each that stands alone."""
    found, alone = [], []
    finite = np.isfinite(curve.values)
    runs = np.split(np.arange(finite.size), np.flatnonzero(np.diff(finite)) + 1)
    for run in (run for run in runs if run.size and finite[run[0]]):
        x, y = (values[run][_thinned(curve.values[run])] for values in (curve.places, curve.values))
        points = [(across.at(a), up.at(b)) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
        if len(points) > 1:
            found.append("M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points))
        if len(points) == 1 or finite.sum() <= MOST_RINGED:
            alone += [f"M{a:.1f} {b:.1f}h0" for a, b in points]
    lines = [element("path", cls=f"curve {curve.style}", d="".join(found))] if found else []
    return lines + ([element("path", cls=f"points {curve.style}", d="".join(alone))] if alone else [])


def _thinned(values: Array) -> NDArray[np.int64]:
    """Which of many values are drawn: the first, the last, and the lowest and the highest of each stretch."""
    if values.size <= MOST_POINTS:
        return np.arange(values.size)
    stretches = np.array_split(np.arange(values.size), MOST_POINTS // 2)
    ends = [stretch[[values[stretch].argmin(), values[stretch].argmax()]] for stretch in stretches]
    return np.unique(np.concatenate([[0, values.size - 1], *ends]))


def _end_labels(across: Axis, up: Axis, curves: Sequence[Curve]) -> list[Markup]:
    """The names beside the last values, moved up or down until each has its line."""
    ends = [up.at(float(curve.values[np.isfinite(curve.values)][-1])) + 4 for curve in curves]
    order = sorted(range(len(curves)), key=lambda i: ends[i])
    highest, lowest = -math.inf, up.start + 4
    for i in order:
        ends[i] = highest = max(ends[i], highest + _LINE)
    for i in order[::-1]:
        ends[i] = min(ends[i], lowest)
        lowest = ends[i] - _LINE
    return [
        text(shortened(curve.name, 16), across.end + 6, y, f"name {curve.style}")
        for curve, y in zip(curves, ends, strict=True)
    ]


def _described(curve: Curve, logarithmic: bool) -> str:
    finite = np.isfinite(curve.values)
    values = curve.values[finite]
    values = 10.0**values if logarithmic else values
    at = f"{values[-1]:.4g} after {curve.places[finite][-1]:.0f}"
    return f"{curve.name}: {at}, from {values.min():.4g} to {values.max():.4g} in {values.size} values"


def box_chart(
    title: str, values: Array, models: Sequence[str], studies: Sequence[str], empty: Flags | bool = False
) -> Markup:
    """A row per model of values (N, K): median, quartiles, whiskers to 1.5 times their distance, a dot per study.

    What is missing (NaN) has a lane of its own on the right, but not what is correctly ``empty`` (N, K): that is counted.
    Fewer than 5 values are dots alone.
    """
    empty = np.broadcast_to(empty, values.shape)
    lane = _LANE if (np.isnan(values) & ~empty).any() else 0
    across = axis(values.ravel(), 6, WIDTH - 6 - lane)
    bottom = _ROW * len(models) + 4.0
    parts = [_grid(across, bottom)]
    if lane:
        parts.append(element("rect", cls="lane", x=WIDTH - lane, y=0, width=lane, height=bottom))
        parts.append(text("missing", WIDTH - lane / 2, bottom + 14, "tick", "middle"))
    for row, model in enumerate(models):
        shown = np.flatnonzero(~empty[:, row])
        name = shortened(model, 36) + f" ({len(values) - shown.size} correctly empty)" * bool(empty[:, row].any())
        parts += _box_row(across, values[shown, row], name, [studies[i] for i in shown.tolist()], _ROW * row)
    described = "; ".join(
        f"{model}: {_summary(values[~empty[:, k], k], int(empty[:, k].sum()))}" for k, model in enumerate(models)
    )
    return drawing(title, described, bottom + 20, parts)


def _box_row(across: Axis, values: Array, model: str, studies: Sequence[str], top: float) -> list[Markup]:
    middle = top + _LABEL + _JITTER + 10
    known = values[~np.isnan(values)]
    dots = [
        (
            WIDTH - _LANE / 2 + _spread(i * _ALONG, 24) if math.isnan(v) else across.at(v),
            middle + _spread(i * _ACROSS, _JITTER),
        )
        for i, v in enumerate(values)
    ]
    names = [f"{study}: {'missing' if math.isnan(v) else f'{v:.4g}'}" for study, v in zip(studies, values, strict=True)]
    label = text(shortened(model, 58), 6, top + _LABEL, "name")
    return [label, *_dots(dots, names), *(_box(across, known, middle) if known.size >= 5 else [])]


def _box(across: Axis, known: Array, middle: float) -> list[Markup]:
    low, median, high = (float(q) for q in np.percentile(known, (25, 50, 75)))
    reach = 1.5 * (high - low)
    inside = known[(known >= low - reach) & (known <= high + reach)]
    ends = float(inside.min()), float(inside.max())
    x, width = across.at(low), max(across.at(high) - across.at(low), 1.0)
    lines = [(ends[0], low), (high, ends[1])]
    return [
        *(line(across.at(a), middle, across.at(b), middle, "whisker") for a, b in lines if a != b),
        element("rect", cls="box", x=x, y=middle - _BOX, width=width, height=2 * _BOX),
        line(across.at(median), middle - _BOX, across.at(median), middle + _BOX, "median"),
    ]


def difference_chart(
    title: str,
    differences: Array,
    studies: Sequence[str],
    interval: tuple[float, float],
    sides: tuple[str, str],
    empty: Flags | bool = False,
) -> Markup:
    """Differences by study (N,), sorted, with their mean and its interval (low, high) as a band.

    ``sides`` says what is above and below 0. Studies without a difference (NaN) stand in a lane of their own, but those in
    which nothing is missing since a side is correctly ``empty`` (N,).
    """
    known = np.flatnonzero(~np.isnan(differences))
    order = known[np.argsort(differences[known], kind="stable")]
    missing = np.flatnonzero(np.isnan(differences) & ~np.asarray(empty))
    left, bottom, lane = 46.0, 212.0, _LANE if missing.size else 0
    up = axis([*differences, 0.0, *interval], bottom - 18, 18)
    step = (WIDTH - left - lane - 8) / max(order.size, 1)
    parts = [*_levels(up, left, WIDTH - lane), *_mean_band(up, differences[known], interval, left, WIDTH - lane)]
    dots = [(left + 4 + (i + 0.5) * step, up.at(float(differences[study]))) for i, study in enumerate(order)]
    if order.size <= MOST_HOVERED:
        parts += [line(x, up.at(0), x, y, "stem") for x, y in dots]
    parts += _dots(dots, [f"{studies[s]}: {differences[s]:+.4g}" for s in order.tolist()])
    if lane:
        parts.append(element("rect", cls="lane", x=WIDTH - lane, y=0, width=lane, height=bottom))
        middle = WIDTH - lane / 2, bottom / 2
        spots = [
            (middle[0] + _spread(i * _ALONG, 24), middle[1] + _spread(i * _ACROSS, 60)) for i in range(missing.size)
        ]
        parts += _dots(spots, [f"{studies[s]}: missing" for s in missing.tolist()])
        parts.append(text(f"missing {missing.size}", WIDTH - lane / 2, bottom - 4, "tick", "middle"))
    parts += [
        text(shortened(sides[0], 52), left + 4, 12, "tick"),
        text(shortened(sides[1], 52), left + 4, bottom - 4, "tick"),
    ]
    shown = differences[[*known, *missing]]
    described = f"{_summary(shown, len(differences) - shown.size)}; {np.count_nonzero(differences[known] > 0)} above 0"
    return drawing(title, described, bottom, parts)


def _levels(up: Axis, left: float, right: float) -> list[Markup]:
    found = []
    for level in ticks(up.low, up.high, 5):
        found.append(line(left, up.at(level), right, up.at(level), "zero" if abs(level) < 1e-12 else "grid"))
        found.append(text(f"{level:.4g}", left - 5, up.at(level) + 4, "tick", "end"))
    return found


def _mean_band(up: Axis, known: Array, interval: tuple[float, float], left: float, right: float) -> list[Markup]:
    low, high = interval
    if not known.size or not math.isfinite(low + high):
        return []
    mean = up.at(float(known.mean()))
    height = max(up.at(low) - up.at(high), 1.0)
    return [
        element("rect", cls="band", x=left, y=up.at(high), width=right - left, height=height),
        line(left, mean, right, mean, "mean"),
    ]


def _grid(across: Axis, bottom: float) -> Markup:
    found = []
    for level in ticks(across.low, across.high):
        x = across.at(level)
        found += [line(x, 0, x, bottom, "grid"), text(f"{level:.4g}", x, bottom + 14, "tick", "middle")]
    return Markup("").join(found)


def _dots(places: Sequence[tuple[float, float]], names: Sequence[str]) -> list[Markup]:
    """A circle with a name each, or one path of round points where there are too many."""
    if len(places) > MOST_HOVERED:
        points = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in places)
        return [element("path", cls="dots", d=points)]
    return [dot(x, y, name, "dot") for (x, y), name in zip(places, names, strict=True)]


def _spread(number: float, reach: float) -> float:
    """A place between -reach and reach by the fraction of a number: multiples of an irrational one spread evenly."""
    return reach * (2 * (number % 1) - 1)


def _summary(values: Array, empty: int) -> str:
    known = values[~np.isnan(values)]
    rest = f"{values.size - known.size} missing" + (f", {empty} correctly empty" if empty else "")
    if not known.size:
        return f"no value, {rest}"
    low, median, high = np.percentile(known, (25, 50, 75))
    return f"median {median:.4g}, quartiles {low:.4g} and {high:.4g}, {known.size} values, {rest}"
