"""TABLES: every table of the five papers by its address, such as 002/table4, with the numbers that it prints."""

import difflib
from dataclasses import dataclass

from gliomap.errors import UsageError
from gliomap.recipes.published import Published, published

SCORED = ("hold-out", "cross-validation", "official server")
"""How numbers came about that a training and an evaluation can be put beside."""

_TITLES = {
    "000/table1": "the two backbones, each alone",
    "000/table2": "three ways to fuse the two backbones",
    "000/table3": "the method beside related works, as they published themselves",
    "001/table1": "BraTS 2020 beside related works, as they published themselves",
    "001/table2": "BraTS 2018 beside related works, as they published themselves",
    "001/table3": "BraTS 2019 beside related works, as they published themselves",
    "001/table4": "ablation of spatial attention, attention gate, residual blocks and Swish",
    "001/section5.2": "the full model, in numbers that differ from those of tables 1 and 4",
    "002/table2": "other networks and works, on the challenge's server",
    "002/table3": "what attention modules cost",
    "002/table4": "ablation of the intra-class update and the inter-class loss",
    "002/table5": "standard deviations over the studies of the same ablation",
    "002/section4.3": "size of the network beside nnU-Net's",
    "003/table1": "U-Net, attention gates, SPP and ASPP on one axial slice per study, by modality",
    "003/table2": "run times",
    "004/section3.3": "training time",
    "004/section4.2": "the method beside other networks",
    "004/section4.3": "ablation of attention and multi-scale fusion",
    "004/section5": "size and speed",
    "004/commentary5": "the ablation as the commentary repeats it",
}


@dataclass(frozen=True)
class Table:
    """One table of one paper; ``address`` is what it is asked for by."""

    address: str
    title: str
    numbers: tuple[Published, ...]

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """Each row as printed, with its recipe: empty where there is none, its own for each modality of paper 003."""
        return tuple(dict.fromkeys((n.row, n.recipe) for n in self.numbers))

    @property
    def runnable(self) -> tuple[tuple[str, str], ...]:
        """The rows with a number that gliomap can measure: a score or a size of a recipe."""
        return tuple(dict.fromkeys((n.row, n.recipe) for n in self.numbers if can_be_measured(n)))

    @property
    def how(self) -> tuple[str, ...]:
        """How its numbers came about, each once."""
        return tuple(dict.fromkeys(n.how for n in self.numbers))


def can_be_measured(number: Published) -> bool:
    """Whether a recipe makes it, and it is a score or a size; run times are the authors' machine's."""
    return bool(number.recipe) and number.how in (*SCORED, "counted")


def address(paper: str, table: str) -> str:
    """How a table is asked for: paper/table4 for its table 4, paper/section4.3 for what stands there."""
    return f"{paper}/" + (f"table{table}" if table.isdigit() else table.replace(" ", ""))


def find_table(wanted: str) -> Table:
    """The table of that address.

    Raises:
        UsageError: there is none; the message names near ones.
    """
    if wanted in TABLES:
        return TABLES[wanted]
    near = difflib.get_close_matches(wanted, TABLES, 4, 0.6)
    near = near or [a for a in TABLES if a.startswith(wanted[:3])] if wanted else near
    raise UsageError(
        f"no table is called {wanted!r}; "
        + (f"near it are {', '.join(near)}" if near else "gliomap reproduce --list prints all of them")
    )


def _tables() -> dict[str, Table]:
    numbers: dict[str, list[Published]] = {}
    for number in published():
        numbers.setdefault(address(number.paper, number.table), []).append(number)
    return {place: Table(place, _TITLES[place], tuple(numbers[place])) for place in sorted(numbers)}


TABLES: dict[str, Table] = _tables()
