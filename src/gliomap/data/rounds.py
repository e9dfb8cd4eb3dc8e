"""Who trains and who is scored, for trainings that are to be compared on the same studies."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gliomap.data.folds import Patient, draw_split, patient_folds
from gliomap.data.study import Study
from gliomap.errors import InputError, UsageError
from gliomap.files import read_json


@dataclass(frozen=True)
class Rounds:
    """Trainings of one recipe that together score every study once: ``scored`` has the ids for each of them.

    ``folds`` is what a folds.json has; training n validates fold n and trains on the others. ``remark`` says it in words.
    """

    folds: tuple[tuple[str, ...], ...]
    scored: tuple[tuple[str, ...], ...]
    remark: str

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
    return Rounds((validation, training), (test or validation,), remark)


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
    return _crossed(tuple(tuple(sorted(i for patient in fold for i in patient.studies)) for fold in made))


def read_cross_validation(path: Path, studies: Sequence[Study]) -> Rounds:
    """`cross_validation` with the folds of a folds.json.

    Raises:
        InputError: the file is no folds.json, or names studies that are not there.
    """
    content = read_json(path)
    folds = content.get("folds") if isinstance(content, dict) else None
    if not isinstance(folds, list) or len(folds) < 2 or not all(isinstance(ids, list) and ids for ids in folds):
        raise InputError(f"{path} is no folds.json; make one with: gliomap split DATA -o folds.json")
    if unknown := {i for ids in folds for i in ids} - {s.id for s in studies}:
        raise InputError(f"{path} names {len(unknown)} studies that the data does not have, such as {min(unknown)}")
    return _crossed(tuple(tuple(ids) for ids in folds))


def _crossed(folds: tuple[tuple[str, ...], ...]) -> Rounds:
    remark = f"{len(folds)} folds pooled; a study is scored by the model that did not train on it, though it chose the best weights"
    return Rounds(folds, folds, remark)
