"""How a volume changes from one examination to the next: differences in ml and per cent, and nothing that judges them."""

from collections.abc import Sequence
from typing import NamedTuple


class Difference(NamedTuple):
    """From an earlier volume to this one; from 0 ml there is no percentage."""

    ml: float
    percent: float | None


class Change(NamedTuple):
    """A region's volume at one time point, against earlier ones.

    Attributes:
        volume_ml: None where the label map does not tell the region.
        since_first: Against the first time point; None at the first itself, and where one of the two is not known.
        since_previous: Against the time point before.
        since_smallest: Against the smallest volume of all time points before: below 0 where this one is the smallest so far.
        note: "new" where the time point before has none of it, "gone" where only this one has none, else nothing.
    """

    volume_ml: float | None
    since_first: Difference | None
    since_previous: Difference | None
    since_smallest: Difference | None
    note: str


def difference(earlier_ml: float | None, later_ml: float | None) -> Difference | None:
    """The change from one volume to another; None where one of them is not known."""
    if earlier_ml is None or later_ml is None:
        return None
    return Difference(later_ml - earlier_ml, 100 * (later_ml / earlier_ml - 1) if earlier_ml > 0 else None)


def changes_of(volumes_ml: Sequence[float | None]) -> list[Change]:
    """A region's changes over time; a volume that is not known is None."""
    found: list[Change] = []
    for number, volume_ml in enumerate(volumes_ml):
        earlier = volumes_ml[:number]
        previous = earlier[-1] if earlier else None
        smallest = min((ml for ml in earlier if ml is not None), default=None)
        since = (difference(ml, volume_ml) for ml in (earlier[0] if earlier else None, previous, smallest))
        found.append(Change(volume_ml, *since, note=_note(previous, volume_ml)))
    return found


def _note(previous_ml: float | None, volume_ml: float | None) -> str:
    if previous_ml is None or volume_ml is None or (previous_ml > 0) == (volume_ml > 0):
        return ""
    return "new" if volume_ml > 0 else "gone"
