"""Who trains and who is scored, for trainings that are to be compared on the same studies."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gliomap.data.folds import Patient, draw_split, patient_folds, read_folds
from gliomap.data.mapping import unjoined_years
from gliomap.data.study import Study
from gliomap.errors import InputError, UsageError


@dataclass(frozen=True)
class Rounds:
    """Trainings of one recipe that together score every study once: ``scored`` has the ids for each of them.

    ``folds`` is what a folds.json has; training n validates fold n and trains on the others. ``remark`` says it in words.
    ``patients`` has who each study is of.
    """

    folds: tuple[tuple[str, ...], ...]
    scored: tuple[tuple[str, ...], ...]
    remark: str
    patients: dict[str, str]

    @property
    def studies(self) -> tuple[str, ...]:
        """The ids of all studies that are scored, in the order of the trainings."""
        return tuple(i for ids in self.scored for i in ids)


def draw_patients(studies: Sequence[Study], count: int, seed: int) -> list[Study]:
    """The studies of ``count`` patients, drawn by the seed.

    Raises:
        UsageError: there are fewer patients, or fewer than 2 are asked for.
    """
    patients = sorted({s.patient for s in studies})
    if not 2 <= count <= len(patients):
        raise UsageError(
            f"cannot draw {count} of {len(patients)} patients; expected at least 2 and no more than there are"
        )
    kept = {patients[n] for n in np.random.default_rng(seed).permutation(len(patients))[:count]}
    return [s for s in studies if s.patient in kept]


def hold_out(studies: Sequence[Study], validation_share: float, test_share: float, seed: int) -> Rounds:
    """One training, whose test studies are scored; without a test, those that validate.

    Raises:
        UsageError: all studies are of one patient.
    """
    parts = draw_split(studies, validation_share, test_share, 0, seed)
    training, validation, test = (tuple(s.id for s in part) for part in parts)
    if not validation:
        raise UsageError("all studies are of one patient; expected at least 2 patients, to train and to score")
    remark = f"{len(training)} studies train and {len(validation)} validate"
    remark += (
        f"; {len(test)} others are scored" if test else " and are scored, though they also choose the best weights"
    )
    return Rounds((validation, training), (test or validation,), remark, {s.id: s.patient for s in studies})


def cross_validation(studies: Sequence[Study], count: int, seed: int) -> Rounds:
    """As many trainings as folds; every study is scored by the one that did not train on it.

    Patients are spread by stratum; for folds alike in tumour size, too, make a folds.json with `gliomap split`.

    Raises:
        UsageError: there are fewer patients than folds.
    """
    members: dict[str, list[Study]] = defaultdict(list)
    for study in studies:
        members[study.patient].append(study)
    patients = [Patient(p, tuple(s.id for s in own), own[0].stratum, False, 0.0) for p, own in members.items()]
    made = patient_folds(patients, count, seed)
    folds = tuple(tuple(sorted(i for patient in fold for i in patient.studies)) for fold in made)
    return _crossed(folds, {s.id: s.patient for s in studies})


def read_cross_validation(path: Path, studies: Sequence[Study]) -> Rounds:
    """`cross_validation` with the folds and patients of a folds.json.

    Raises:
        InputError: the file is no folds.json with 2 folds, names studies that are not there, or has a study or a patient in two.
    """
    folds, patients = read_folds(path, studies)
    if len(folds) < 2 or not all(folds):
        raise InputError(
            f"{path} has fewer than 2 folds or an empty one; make another with: gliomap split DATA -o {path}"
        )
    return _crossed(tuple(tuple(ids) for ids in folds), patients)


def shortfalls(rounds: Rounds, studies: Sequence[Study], count: int) -> list[str]:
    """What keeps the rounds from being an experiment of ``count`` folds with real patients on all of these studies, in words."""
    out = []
    folds = len(rounds.scored)
    if folds not in (1, count):
        out.append(f"{folds} folds and not {count}")
    used = {i for ids in (*rounds.folds, *rounds.scored) for i in ids}
    unused = sum(s.id not in used for s in studies)
    if unused:
        out.append(f"{unused} of {len(studies)} studies are in no fold")
    phantoms = sum("phantom" in i.casefold() for i in used)
    if phantoms:
        out.append(f"{phantoms} of {len(used)} studies are phantoms")
    return out


def dependences(rounds: Rounds, studies: Sequence[Study]) -> list[str]:
    """What makes scored studies depend on each other, or on those that trained: sentences that warn of it."""
    out = []
    own = {s.id: s for s in studies if s.id in rounds.patients}
    years = unjoined_years(own.values())
    if years and all(rounds.patients[i] == s.patient for i, s in own.items()):
        out.append(
            f"the studies are of {', '.join(years)}, and a patient of several years has several names, so the same patient may "
            "train and be scored; take one year, or in a cross-validation --folds with the folds.json of "
            "gliomap split --mapping name_mapping.csv"
        )
    visits = Counter(rounds.patients[i] for i in rounds.studies)
    several = [patient for patient, times in visits.items() if times > 1]
    if several:
        out.append(
            f"{len(several)} of {len(visits)} scored patients, such as {several[0]}, have several studies, which are not "
            "independent: the intervals are too narrow and p too small"
        )
    return out


def _crossed(folds: tuple[tuple[str, ...], ...], patients: dict[str, str]) -> Rounds:
    remark = f"{len(folds)} folds pooled; a study is scored by the model that did not train on it, though it chose the best weights"
    return Rounds(folds, folds, remark, patients)
