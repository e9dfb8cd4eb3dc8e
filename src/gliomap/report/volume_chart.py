"""A region's volume over time as what a template draws: a line, a dot with its value for each time point, and two axes."""

from collections.abc import Sequence
from typing import NamedTuple

from gliomap.report.charts import Axis, shortened, ticks

WIDTH, HEIGHT = 400, 210
LEFT, RIGHT, TOP, BOTTOM, INSET = 46.0, 22.0, 22.0, 44.0, 18.0
LETTER_PX, LINE_PX, DOT_PX = 6.6, 12.0, 5.0
MOST_LETTERS = 12


class Dot(NamedTuple):
    """A time point's volume in the chart; its value stands at ``label_y``, or nowhere where there is no room."""

    x: float
    y: float
    words: str
    label_y: float | None


class Tick(NamedTuple):
    """A place on an axis, in pixels, and what is written there, perhaps nothing."""

    at: float
    words: str


class VolumeChart(NamedTuple):
    """What is drawn, in pixels of a picture of `WIDTH` by `HEIGHT`; ``line`` is an SVG path, broken where a volume is not known.

    ``described`` says the same in words.
    """

    line: str
    dots: list[Dot]
    across: list[Tick]
    up: list[Tick]
    axis_title: str
    described: str


class TimeAxis(NamedTuple):
    """Where time points lie on an axis, in rising order, what is written there, and what the axis is."""

    places: tuple[float, ...]
    words: tuple[str, ...]
    title: str


class _Box(NamedTuple):
    left: float
    right: float
    top: float
    bottom: float

    def meets(self, other: "_Box") -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


def volume_chart(volumes_ml: Sequence[float | None], time: TimeAxis) -> VolumeChart:
    """Lay out a region's volumes, one per time point; None is one that is not known. The axis begins at 0 ml."""
    low, high = min(time.places), max(time.places)
    across = Axis(low, high if high > low else low + 1, LEFT + INSET, WIDTH - RIGHT)
    up = Axis(0, 1.12 * (max((ml for ml in volumes_ml if ml is not None), default=0.0) or 1.0), HEIGHT - BOTTOM, TOP)
    known = [
        (across.at(x), up.at(ml), f"{ml:.1f}") for x, ml in zip(time.places, volumes_ml, strict=True) if ml is not None
    ]
    told = [
        f"{time.title} {words}: {'not told' if ml is None else f'{ml:.2f} ml'}"
        for words, ml in zip(time.words, volumes_ml, strict=True)
    ]
    return VolumeChart(
        _line(
            [None if ml is None else (across.at(x), up.at(ml)) for x, ml in zip(time.places, volumes_ml, strict=True)]
        ),
        _dots(known),
        _time_ticks([across.at(place) for place in time.places], time.words),
        [Tick(up.at(level), f"{level:g}") for level in ticks(0, up.high, 4)],
        time.title,
        "; ".join(told),
    )


def _line(points: Sequence[tuple[float, float] | None]) -> str:
    """Neighbours that are both known are joined."""
    path, pen = "", "M"
    for point in points:
        path += "" if point is None else f"{pen}{point[0]:.1f} {point[1]:.1f}"
        pen = "M" if point is None else "L"
    return path


def _dots(points: Sequence[tuple[float, float, str]]) -> list[Dot]:
    """Values stand above their dots, or below, where no other value and no other dot is."""
    taken = [_Box(x - DOT_PX, x + DOT_PX, y - DOT_PX, y + DOT_PX) for x, y, _ in points]
    found: list[Dot] = []
    for number, (x, y, words) in enumerate(points):
        half, label_y = LETTER_PX * len(words) / 2, None
        others = [*taken[:number], *taken[number + 1 :]]
        for baseline in (y - 8, y + 8 + LINE_PX - 3):
            box = _Box(x - half, x + half, baseline - LINE_PX + 2, baseline + 2)
            if box.bottom < HEIGHT - BOTTOM and not any(box.meets(other) for other in others):
                taken.append(box)
                label_y = baseline
                break
        found.append(Dot(x, y, words, label_y))
    return found


def _time_ticks(places: Sequence[float], words: Sequence[str]) -> list[Tick]:
    """A tick for each time point; the first and the last are named, and those between that have room."""
    named: dict[int, tuple[float, float]] = {}
    for number in dict.fromkeys((0, len(places) - 1, *range(len(places)))):
        half = LETTER_PX * len(shortened(words[number], MOST_LETTERS)) / 2 + 2
        left, right = places[number] - half, places[number] + half
        if all(right <= a or b <= left for a, b in named.values()):
            named[number] = left, right
    return [
        Tick(place, shortened(words[number], MOST_LETTERS) if number in named else "")
        for number, place in enumerate(places)
    ]
