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
    patients: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    stratum_of: dict[str, str] = {}
    for study in sorted(studies, key=lambda s: s.id):
        stratum = stratum_of.setdefault(study.patient, study.stratum)
        patients[stratum][study.patient].append(study.id)
    total = sum(len(members) for members in patients.values())
    if not 2 <= count <= total:
        raise UsageError(
            f"cannot make {count} folds of {total} patients; expected at least 2 folds and no more than patients"
        )
    rng = np.random.default_rng(seed)
    folds: list[list[str]] = [[] for _ in range(count)]
    place = 0
    for stratum in sorted(patients):
        members = sorted(patients[stratum])
        for index in rng.permutation(len(members)):
            folds[place % count] += patients[stratum][members[index]]
            place += 1
    return [sorted(fold) for fold in folds]


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
