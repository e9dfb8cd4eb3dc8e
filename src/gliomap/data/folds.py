"""Which patients train and which validate."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gliomap.data.study import Study
from gliomap.errors import InputError, UsageError
from gliomap.files import read_json


def patient_folds(studies: Sequence[Study], count: int, seed: int) -> list[list[str]]:
    """The study ids of each of ``count`` folds: all studies of a patient in one, every stratum spread over all.

    Raises:
        UsageError: there are fewer patients than folds.
    """
    strata = _shuffled_patients(studies, seed)
    total = sum(len(members) for members in strata)
    if not 2 <= count <= total:
        raise UsageError(
            f"cannot make {count} folds of {total} patients; expected at least 2 folds and no more than patients"
        )
    folds: list[list[str]] = [[] for _ in range(count)]
    for place, ids in enumerate(ids for members in strata for ids in members):
        folds[place % count] += ids
    return [sorted(fold) for fold in folds]


def draw_split(
    studies: Sequence[Study], validation_share: float, test_share: float, fold: int, seed: int
) -> tuple[list[Study], list[Study], list[Study]]:
    """Studies that train, validate and test, in these shares of the patients of every stratum; each ``fold`` validates others.

    The test is the same in all folds.
    At least one patient validates, and one tests where a share does; a single patient trains alone.

    Raises:
        UsageError: there are fewer folds.
    """
    strata = _shuffled_patients(studies, seed)
    spread = [((n + 0.5) / len(members), ids) for members in strata for n, ids in enumerate(members)]
    patients = [ids for _, ids in sorted(spread)]  # every stretch of them has about every stratum's share
    count = len(patients)
    if count == 1:
        return list(studies), [], []
    validating = min(max(round(validation_share * count), 1), count - 1)
    testing = min(max(round(test_share * count), 1) if test_share else 0, count - validating - 1)
    others = count - testing
    if fold >= others // validating:
        raise UsageError(f"without --folds there are folds 0 to {others // validating - 1}; got --fold {fold}")
    first = testing + fold * validating  # the test is the same in every fold
    place = {i: n for n, ids in enumerate(patients) for i in ids}
    validation = [s for s in studies if first <= place[s.id] < first + validating]
    training = [s for s in studies if place[s.id] >= testing and not first <= place[s.id] < first + validating]
    return training, validation, [s for s in studies if place[s.id] < testing]


def _shuffled_patients(studies: Sequence[Study], seed: int) -> list[list[list[str]]]:
    """For each stratum its patients in random order, each as the ids of its studies."""
    patients: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    stratum_of: dict[str, str] = {}
    for study in sorted(studies, key=lambda s: s.id):
        stratum = stratum_of.setdefault(study.patient, study.stratum)
        patients[stratum][study.patient].append(study.id)
    rng = np.random.default_rng(seed)
    shuffled = []
    for stratum in sorted(patients):
        members = sorted(patients[stratum])
        shuffled.append([patients[stratum][members[n]] for n in rng.permutation(len(members))])
    return shuffled


def read_fold(path: Path, fold: int, studies: Sequence[Study]) -> tuple[list[Study], list[Study]]:
    """The studies that train and those that validate in fold ``fold`` of a folds.json.

    Raises:
        InputError: the file is no folds.json, or names studies that are not there.
        UsageError: it has no such fold.
    """
    content: Any = read_json(path)
    folds = content.get("folds") if isinstance(content, dict) else None
    if not isinstance(folds, list) or not all(isinstance(ids, list) for ids in folds):
        raise InputError(f"{path} is no folds.json; make one with: gliomap split DATA -o folds.json")
    if not 0 <= fold < len(folds):
        raise UsageError(f"{path} has folds 0 to {len(folds) - 1}; got --fold {fold}")
    by_id = {s.id: s for s in studies}
    unknown = [i for ids in folds for i in ids if i not in by_id]
    if unknown:
        raise InputError(
            f"{path} names {len(unknown)} studies that the data does not have, such as {unknown[0]}; split that data again"
        )
    listed = [i for ids in folds for i in ids]
    if len(set(listed)) != len(listed):
        raise InputError(f"{path} has a study in two folds; expected each in one. Split that data again")
    training = [by_id[i] for number, ids in enumerate(folds) for i in ids if number != fold]
    return training, [by_id[i] for i in folds[fold]]
