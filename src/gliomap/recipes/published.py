"""published: every number that the five papers print about their networks, and the recipe that makes it."""

import csv
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal, cast

How = Literal["hold-out", "cross-validation", "official server", "quoted", "counted", "timed"]


@dataclass(frozen=True)
class Published:
    """One number as a paper prints it; docs/published.md says which may be compared.

    ``paper`` 000 to 004, ``table`` its number there, or the section where there is none; ``recipe`` is empty where gliomap
    has none for the row. ``region`` is empty where a number has none or the paper does not say. ``unit`` is empty for
    fractions. ``how`` scores came about, sizes ``counted``, times ``timed``. ``note``: what is wrong with the number.
    """

    paper: str
    table: str
    row: str
    recipe: str
    dataset: str
    region: str
    metric: str
    value: float
    unit: str
    how: How
    note: str


def published() -> list[Published]:
    """All of them, in the order of the papers."""
    text = files("gliomap.recipes").joinpath("published.csv").read_text("utf-8")
    return [_number(row) for row in csv.DictReader(text.splitlines(), strict=True)]


def _number(row: dict[str, str]) -> Published:
    words = {name: text for name, text in row.items() if name not in ("value", "how")}
    return Published(**words, value=float(row["value"]), how=cast("How", row["how"]))
