"""Who is who: tables of the names that one patient has in several datasets, such as the name_mapping.csv of BraTS."""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from gliomap.data.names import DATASETS
from gliomap.data.study import Study
from gliomap.errors import InputError
from gliomap.files import sha256

MOST_VISITS = 30
"""A value in more rows of a table than this is no patient's name but a placeholder or a group's."""

_ALIKE = {"brats2018", "brats2019"}
"""The namings of BraTS 2017 to 2019, by which a patient is told in all of them."""
_NAME_WORDS = ("brats", "patient", "subject", "case", "study", "tcga", "tcia")
_OTHER_WORDS = {
    "age", "batch", "center", "centre", "cohort", "collection", "date", "day", "days", "fold", "gender", "grade", "group",
    "institution", "scanner", "sex", "site", "status", "survival",
}  # fmt: skip


@dataclass(frozen=True)
class NameMapping:
    """A table of names: each of the ``rows`` has the names of one patient.

    ``columns`` are those whose values are names, ``others`` the rest. ``crowded`` are values of the former that are in too
    many rows to be one patient's, with the number of rows; they are not in ``rows``.
    """

    path: Path
    sha256: str
    columns: list[str]
    others: list[str]
    crowded: dict[str, int]
    rows: list[list[str]]


def read_mapping(path: Path, studies: Sequence[Study]) -> NameMapping:
    """The names in a CSV file with a header, separated by commas, semicolons or tabs.

    A column has names if its header says so (BraTS_2020_subject_ID, TCIA, patient, ID; but not a site, date or cohort), or if
    it has ids of the ``studies``. A value without any digit (HGG, NA, n/a) is no name. A bare number is one only within its
    own column, unless it is the id of a study.

    Raises:
        InputError: the file cannot be read, is no table, or none of its columns has names.
    """
    header, lines = _table(path)
    known = {name.casefold() for study in studies for name in (study.id, study.patient)}
    columns = [n for n, name in enumerate(header) if _names_patients(name, [line[n] for line in lines], known)]
    if not columns:
        raise InputError(
            f"{path} has no column of patients' names: its columns are {', '.join(header)}; expected a header such as "
            "BraTS_2020_subject_ID or patient_id, or ids of the studies"
        )
    counts = Counter((n, line[n].casefold()) for line in lines for n in columns if _is_name(line[n]))
    crowded = {name: count for (_, name), count in counts.items() if count > MOST_VISITS}
    rows = []
    for line in lines:
        named = [(n, line[n]) for n in columns if 1 <= counts[n, line[n].casefold()] <= MOST_VISITS]
        rows.append([name if _has_letter(name) or name in known else f"{path}, {n}: {name}" for n, name in named])
    others = [name for n, name in enumerate(header) if n not in columns]
    return NameMapping(path, sha256(path), [header[n] for n in columns], others, crowded, rows)


def name_patients(studies: Sequence[Study], mappings: Sequence[NameMapping]) -> dict[str, str]:
    """The patient of every study, by the study's id: names that the tables join, also over several rows, are one patient's.

    A patient is called by the first, in the order of the alphabet, of the names that the studies themselves tell. Names are
    compared without regard to case.
    """
    if not mappings:
        return {s.id: s.patient for s in studies}
    parents: dict[str, str] = {}
    for row in (row for mapping in mappings for row in mapping.rows):
        for name in row:
            _join(parents, row[0], name)
            _join(parents, name, Study(name, {}).patient)
    for study in studies:
        _join(parents, study.id, study.patient)
    called: dict[str, str] = {}
    for name in sorted((s.patient for s in studies), reverse=True):
        called[_root(parents, name)] = name
    return {s.id: called[_root(parents, s.id)] for s in studies}


def named_studies(ids: Iterable[str]) -> list[Study]:
    """Studies of which no more than the names are known, each with the layout that its name tells."""
    found = []
    for name in ids:
        layouts = [layout for layout, dataset in DATASETS.items() if re.fullmatch(dataset.pattern, name, re.IGNORECASE)]
        found.append(Study(name, {}, layout=layouts[0]) if layouts else Study(name, {}))
    return found


def unjoined_years(*groups: Iterable[Study]) -> list[str]:
    """The years of BraTS that the studies are of, if a patient of several of these has names that do not tell it; else none.

    None, too, where a group has no study of any year. Phantoms are not counted: they are nobody.
    """
    found = [
        {s.layout for s in group if s.layout.startswith("brats") and "phantom" not in s.id.casefold()}
        for group in groups
    ]
    years = set[str]().union(*found)
    return sorted(years) if all(found) and len(years) > 1 and years - _ALIKE else []


def named_in(mapping: NameMapping, studies: Sequence[Study]) -> set[str]:
    """The ids of the studies that a table names, or names the patient of."""
    names = {name for row in mapping.rows for name in row}
    names = {name.casefold() for name in names | {Study(name, {}).patient for name in names}}
    return {s.id for s in studies if s.id.casefold() in names or s.patient.casefold() in names}


def _table(path: Path) -> tuple[list[str], list[list[str]]]:
    """The header, and the other rows, each with as many values as the header."""
    try:
        text = path.read_text("utf-8-sig")
        first = text.split("\n", 1)[0]
        lines = csv.reader(StringIO(text), delimiter=max(",;\t", key=first.count), strict=True)
        rows = [row for line in lines if any(row := [value.strip() for value in line])]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path} is no CSV file ({error}); save it as one, with UTF-8 text, if it is a spreadsheet"
        ) from error
    if len(rows) < 2:
        raise InputError(f"{path} has {len(rows)} rows; expected a header and a row for each patient")
    header, *values = rows
    for row in values:
        if any(row[len(header) :]):
            raise InputError(
                f"{path} has a row of {len(row)} values under {len(header)} headers, beginning with {row[0]!r}; mend the file"
            )
    return header, [(row + [""] * len(header))[: len(header)] for row in values]


def _names_patients(header: str, values: Sequence[str], known: set[str]) -> bool:
    words = {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", header)}
    if words & _OTHER_WORDS:
        return False
    said = bool(words & {"id", "ids"}) or any(word in header.lower() for word in _NAME_WORDS)
    return said or any(value.casefold() in known and _has_letter(value) for value in values)


def _is_name(value: str) -> bool:
    return any(character.isdigit() for character in value)


def _has_letter(value: str) -> bool:
    return any(character.isalpha() for character in value)


def _join(parents: dict[str, str], first: str, second: str) -> None:
    parents[_root(parents, first)] = _root(parents, second)


def _root(parents: dict[str, str], name: str) -> str:
    """The name that stands for all names joined with this one; what is passed on the way is tied to it at once."""
    name = name.casefold()
    while parents.setdefault(name, name) != name:
        parents[name] = parents[parents[name]]
        name = parents[name]
    return name
