"""Tissue classes, the tumour regions made of them, and the label conventions that files use for them.

The class map is canonical everywhere inside gliomap: uint8, 0 background, 1 NCR (necrosis and non-enhancing core),
2 ED (oedema), 3 ET (enhancing tumour), 4 RC (resection cavity). A label convention maps a file's values to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from gliomap.errors import InputError, UsageError

Array = np.ndarray[Any, np.dtype[Any]]

BACKGROUND, NCR, ED, ET, RC = range(5)
CLASS_NAMES = {NCR: "NCR", ED: "ED", ET: "ET", RC: "RC"}
CLASS_TITLES = {
    NCR: "necrosis and non-enhancing core",
    ED: "oedema and infiltration",
    ET: "enhancing tumour",
    RC: "resection cavity",
}

REGIONS: dict[str, tuple[int, ...]] = {"ET": (ET,), "TC": (NCR, ET), "WT": (NCR, ED, ET)}
"""The BraTS regions, always in the order ET, TC, WT. A resection cavity is in none of them."""

PARTS: dict[str, tuple[int, ...]] = REGIONS | {"NCR": (NCR,), "ED": (ED,), "RC": (RC,)}
"""Everything that can be scored on its own: the regions, and the classes that are none (ET is both)."""

CONVENTIONS: dict[str, dict[int, int]] = {
    "brats2021": {1: NCR, 2: ED, 4: ET},
    "brats2023": {1: NCR, 2: ED, 3: ET},
    "brats2024": {1: NCR, 2: ED, 3: ET, 4: RC},
    "msd": {1: ED, 2: NCR, 3: ET},
    "audit": {1: ET, 2: NCR, 3: ED},
}
"""File value -> class. ``brats2021`` serves BraTS 2017 to 2021, ``brats2024`` the post-treatment studies."""


@dataclass(frozen=True)
class Convention:
    """What the values of a label file mean, why we think so, and what speaks against it, if anything."""

    name: str
    values: tuple[tuple[int, int], ...]
    evidence: str
    doubt: str = ""

    @property
    def classes(self) -> frozenset[int]:
        """The classes that it has a value for."""
        return frozenset(tissue for _, tissue in self.values)

    def decode(self, labels: Array) -> Array:
        """File values -> class map (uint8, same shape).

        Raises:
            InputError: a value is outside the convention or not a whole number.
        """
        table = dict(self.values)
        present = np.unique(labels)
        unknown = [v for v in present.tolist() if v != 0 and v not in table]
        if unknown:
            raise InputError(
                f"label values {_listed(unknown)} are outside the convention {self}; expected only {_listed([0, *table])}. "
                f"If the file means something else, say so: --labels NAME ({', '.join(CONVENTIONS)}) or --labels 1=ET,2=NCR,3=ED"
            )
        lookup = np.zeros(256, np.uint8)
        for value, tissue in table.items():
            lookup[value] = tissue
        return lookup[labels.astype(np.uint8)]

    def encode(self, classes: Array) -> Array:
        """Class map -> file values (uint8, same shape).

        Raises:
            InputError: a class is present that the convention has no value for.
        """
        lookup = np.zeros(5, np.uint8)
        for value, tissue in self.values:
            lookup[tissue] = value
        missing = [CLASS_NAMES[c] for c in np.unique(classes).tolist() if c and not lookup[c]]
        if missing:
            raise InputError(
                f"the convention {self.name!r} has no value for {', '.join(missing)}; "
                "ask for another with --output-labels (brats2024 has all classes)"
            )
        return lookup[classes]

    def __str__(self) -> str:
        meaning = ", ".join(f"{value} {CLASS_NAMES[tissue]}" for value, tissue in self.values)
        return f"{self.name} ({meaning})"


def named_convention(name: str, evidence: str) -> Convention:
    """The convention of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in CONVENTIONS:
        raise UsageError(f"no label convention is called {name!r}; expected one of {', '.join(CONVENTIONS)}")
    return Convention(name, tuple(CONVENTIONS[name].items()), evidence)


def parse_convention(text: str, evidence: str) -> Convention:
    """A convention from ``--labels``: a name, or pairs such as ``1=ET,2=NCR,3=ED``.

    Raises:
        UsageError: the text is neither.
    """
    if "=" not in text:
        return named_convention(text, evidence)
    by_name = {name: tissue for tissue, name in CLASS_NAMES.items()}
    values: dict[int, int] = {}
    for pair in text.split(","):
        value, _, tissue = (part.strip() for part in pair.partition("="))
        if not value.isdigit() or not 0 < int(value) < 256 or int(value) in values or tissue.upper() not in by_name:
            raise UsageError(f"cannot read {pair!r} in the labels {text!r}; expected pairs such as 1=ET,2=NCR,3=ED")
        values[int(value)] = by_name[tissue.upper()]
    if len(set(values.values())) != len(values):
        raise UsageError(f"the labels {text!r} give one class two values; expected each class once")
    return Convention(name_of(values) or "custom", tuple(sorted(values.items())), evidence)


def name_of(values: Mapping[int, int]) -> str | None:
    """The name of the convention with exactly these values, if there is one."""
    return next((name for name, table in CONVENTIONS.items() if table == dict(values)), None)


def convention_from_values(labels: Array) -> Convention | None:
    """The convention that a label map's values leave no choice about; None if several would read them differently.

    Exactly 1, 2, 4 is taken for BraTS 2017 to 2021, with a doubt that is printed: a post-treatment study of 2024 without
    enhancement has them too. Values 1, 2, 3 mean three different things and are never decided here.
    """
    present = {v for v in np.unique(labels).tolist() if v}
    if present == set(CONVENTIONS["brats2021"]):
        doubt = (
            "label values 1, 2, 4 were read as brats2021, 4 as ET. In a post-treatment study of BraTS 2024 without "
            "enhancement 4 is the resection cavity: then say --labels brats2024"
        )
        return replace(named_convention("brats2021", "its values (1, 2, 4)"), doubt=doubt)
    fitting = {name: table for name, table in CONVENTIONS.items() if present <= set(table)}
    readings = {tuple(table[v] for v in sorted(present)) for table in fitting.values()}
    if len(readings) != 1:
        return None
    name = next(iter(fitting)) if present else "brats2023"
    return named_convention(name, f"its values ({_listed(sorted(present)) or 'none'})")


def refuse_ambiguous(labels: Array, hint: str) -> InputError:
    """The error for label values that several conventions read differently; names the candidates and the hint."""
    present = {v for v in np.unique(labels).tolist() if v}
    candidates = [str(named_convention(n, "")) for n, table in CONVENTIONS.items() if present <= set(table)]
    meaning = "; ".join(candidates) if candidates else "no known convention"
    return InputError(
        f"label values {_listed(sorted(present))} with nothing that says what they mean: they fit {meaning}. {hint} "
        "Nothing is guessed: say it with --labels NAME or --labels 1=ET,2=NCR,3=ED"
    )


def _listed(values: list[Any]) -> str:
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


@dataclass(frozen=True)
class Target:
    """What a network's output channels mean.

    ``kind`` softmax: channels exclude each other (the first is background). sigmoid: each stands alone (regions may nest).
    ``channels``: the classes that make each channel.
    """

    kind: Literal["sigmoid", "softmax"]
    channels: tuple[tuple[int, ...], ...]

    def decode(self, probabilities: Array) -> Array:
        """(K, D, H, W) probabilities -> class map (D, H, W) uint8.

        softmax takes the most probable channel (every channel must be one class). sigmoid thresholds at 0.5 and lets a
        channel with fewer classes overwrite one with more, each writing the class its smaller channels lack.
        """
        if self.kind == "softmax":
            return np.array([c[0] for c in self.channels], np.uint8)[probabilities.argmax(0)]
        out = np.zeros(probabilities.shape[1:], np.uint8)
        for channel in sorted(range(len(self.channels)), key=lambda k: -len(self.channels[k])):
            out[probabilities[channel] > 0.5] = self._own_class(channel)
        return out

    @property
    def regions(self) -> tuple[str, ...]:
        """The regions that a class map decoded from these channels can tell."""
        return tuple(region for region in REGIONS if self.tells(region))

    def tells(self, part: str) -> bool:
        """Whether a region, or a single class, can be told: some of the channels make it up, or what they have of their own."""
        members = set(PARTS[part])
        own = [self._own_classes(k) for k in range(len(self.channels))]
        return any({c for one in sets if set(one) <= members for c in one} == members for sets in (self.channels, own))

    def region_probability(self, probabilities: Array, region: str) -> Array:
        """(D, H, W) probability of a region, or of a single class, from (K, D, H, W).

        softmax: the sum of its channels. sigmoid: the channel that is the region; where there is none the largest of the
        channels that make it up, which is over 0.5 just where one of them is.
        """
        members = set(PARTS[region])
        inside = [k for k, channel in enumerate(self.channels) if set(channel) <= members]
        if self.kind == "softmax":
            return probabilities[inside].sum(0)
        whole = [k for k in inside if set(self.channels[k]) == members]
        return probabilities[whole or inside].max(0)

    def _own_class(self, channel: int) -> int:
        own = self._own_classes(channel)
        return ED if ED in own else own[0]

    def _own_classes(self, channel: int) -> list[int]:
        """The classes of a channel that no smaller one has."""
        inner = {c for other in self.channels if len(other) < len(self.channels[channel]) for c in other}
        return [c for c in self.channels[channel] if c not in inner]


ALL_CLASSES = Target("softmax", ((BACKGROUND,), (NCR,), (ED,), (ET,)))
NESTED_REGIONS = Target("sigmoid", tuple(REGIONS.values()))
WHOLE_TUMOUR = Target("sigmoid", (REGIONS["WT"],))


def region_mask(classes: Array, region: str) -> Array:
    """Boolean mask of a region (ET, TC, WT), or of a class (NCR, ED, RC), in a class map of any shape."""
    return np.isin(classes, PARTS[region])
