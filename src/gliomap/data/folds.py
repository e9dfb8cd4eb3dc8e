"""Which patients train and which validate."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gliomap.data.study import Study
from gliomap.errors import InputError, UsageError
from gliomap.files import read_json

MOST_SIZES = 3
"""Groups by tumour size in which the patients of a stratum are spread: thirds where there are enough of them."""


@dataclass(frozen=True)
class Patient:
    """One person: ``studies`` has the ids of all examinations; ``enhancing`` and ``volume_ml`` (whole tumour) are their labels'."""

    name: str
    studies: tuple[str, ...]
    stratum: str
    enhancing: bool
    volume_ml: float


def patient_folds(patients: Sequence[Patient], count: int, seed: int) -> list[list[Patient]]:
    """The patients of each of ``count`` folds.

    Patients are lined up by stratum, then by enhancement, then by third of tumour size, at random within, and dealt in turn.
    So the folds' numbers of patients differ by one at most, as do those of each stratum, of its enhancing tumours, and of
    each size among these. The order of ``patients`` does not matter.

    Raises:
        UsageError: there are fewer patients than folds.
    """
    if not 2 <= count <= len(patients):
        raise UsageError(
            f"cannot make {count} folds of {len(patients)} patients; expected at least 2 folds and no more than patients"
        )
    rng = np.random.default_rng(seed)
    folds: list[list[Patient]] = [[] for _ in range(count)]
    turns = rng.permutation(count)
    for place, patient in enumerate(_lined_up(patients, count, rng)):
        folds[turns[place % count]].append(patient)
    return folds


def _lined_up(patients: Sequence[Patient], count: int, rng: np.random.Generator) -> list[Patient]:
    """Patients with like neighbours. A stratum of one patient is none: it would fix that patient's place."""
    sizes = Counter(p.stratum for p in patients)
    runs: dict[tuple[str, bool], list[Patient]] = defaultdict(list)
    for patient in sorted(patients, key=lambda p: (p.volume_ml, p.name)):
        runs[patient.stratum if sizes[patient.stratum] > 1 else "", patient.enhancing].append(patient)
    line: list[Patient] = []
    for number, stratum in enumerate(sorted({stratum for stratum, _ in runs})):
        for enhancing in (False, True) if number % 2 == 0 else (True, False):  # like meets like where strata meet
            run = runs[stratum, enhancing]
            groups = min(max(len(run) // count, 1), MOST_SIZES)
            for group in np.array_split(np.arange(len(run)), groups):
                line += [run[i] for i in rng.permutation(group)]
    return line


def shared_patients(folds: Sequence[Sequence[str]], patient_of: Mapping[str, str]) -> dict[str, list[int]]:
    """The patients whose studies are in more than one fold, with the numbers of those folds; empty is as it should be."""
    found: dict[str, set[int]] = defaultdict(set)
    for number, ids in enumerate(folds):
        for study in ids:
            found[patient_of[study]].add(number)
    return {patient: sorted(numbers) for patient, numbers in sorted(found.items()) if len(numbers) > 1}


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


def read_folds(path: Path, studies: Sequence[Study]) -> tuple[list[list[str]], dict[str, str]]:
    """The folds of a folds.json, as ids of studies, and the patient of each; of a file that does not say, as its id tells.

    Raises:
        InputError: the file is no folds.json, names studies that are not there, or has a study or a patient in two folds.
    """
    content: Any = read_json(path)
    try:
        folds: list[list[str]] = [[str(i) for i in ids] for ids in content["folds"]]
    except (TypeError, KeyError):
        folds = []
    if not folds or any(folds[n] != ids for n, ids in enumerate(content["folds"])):
        raise InputError(f"{path} is no folds.json; make one with: gliomap split DATA -o folds.json")
    patient_of = {s.id: s.patient for s in studies}
    listed = [i for ids in folds for i in ids]
    unknown = [i for i in listed if i not in patient_of]
    if unknown:
        raise InputError(
            f"{path} names {len(unknown)} studies that the data does not have, such as {unknown[0]}; split that data again"
        )
    if len(set(listed)) != len(listed):
        raise InputError(f"{path} has a study in two folds; expected each in one. Split that data again")
    told = content.get("patients")
    patients = {i: str((told if isinstance(told, dict) else {}).get(i, patient_of[i])) for i in listed}
    shared = shared_patients(folds, patients) or shared_patients(folds, patient_of)
    if shared:
        raise InputError(
            f"{path} has the patient {next(iter(shared))} in more than one fold; expected all of a patient's studies in one. "
            "Split that data again"
        )
    return folds, patients


def chosen_studies(
    data: Path, studies: Sequence[Study], folds: Path | None, fold: int | None, ids: Sequence[str]
) -> list[Study]:
    """Those of the labelled studies of ``data`` that validate in fold ``fold`` of a folds.json, or have one of the ids; or all.

    Raises:
        InputError: as `read_folds`.
        UsageError: a fold is given without its file or ids as well, there is no such fold, or nothing has one of the ids.
    """
    if (folds is None) != (fold is None):
        raise UsageError("--folds and --fold go together; expected such as --folds folds.json --fold 0")
    if folds is not None and ids:
        raise UsageError("give either --folds and --fold, or --studies, not both")
    if folds is not None and fold is not None:
        return read_fold(folds, fold, studies)[1]
    unknown = sorted(set(ids) - {study.id for study in studies})
    if unknown:
        raise UsageError(
            f"{data} has no labelled study {', '.join(unknown)}; it has {len(studies)}, such as {studies[0].id}"
        )
    return [study for study in studies if study.id in ids or not ids]


def read_fold(path: Path, fold: int, studies: Sequence[Study]) -> tuple[list[Study], list[Study]]:
    """The studies that train and those that validate in fold ``fold`` of a folds.json.

    Raises:
        InputError: as `read_folds`.
        UsageError: it has no such fold.
    """
    folds, _ = read_folds(path, studies)
    if not 0 <= fold < len(folds):
        raise UsageError(f"{path} has folds 0 to {len(folds) - 1}; got --fold {fold}")
    by_id = {s.id: s for s in studies}
    training = [by_id[i] for number, ids in enumerate(folds) for i in ids if number != fold]
    return training, [by_id[i] for i in folds[fold]]
