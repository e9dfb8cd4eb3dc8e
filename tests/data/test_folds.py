import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gliomap.data.folds import Patient, draw_split, patient_folds, read_fold, shared_patients
from gliomap.data.study import Study
from gliomap.errors import InputError, UsageError
from gliomap.files import json_bytes

PEOPLE = st.lists(
    st.tuples(st.sampled_from(["", "HGG", "LGG", "rare"]), st.booleans(), st.integers(0, 9), st.integers(1, 3)),
    min_size=2,
    max_size=60,
)


def studies(strata=("HGG", "LGG"), patients=7, visits=1):
    return [
        Study(f"BraTS-{stratum}-{patient:05d}-{visit:03d}", {}, stratum=stratum)
        for stratum, patient, visit in itertools.product(strata, range(patients), range(visits))
    ]


def people(facts):
    """Patients of (stratum, enhancing, volume in ml, number of studies)."""
    return [
        Patient(f"p{n:03d}", tuple(f"p{n:03d}-{visit}" for visit in range(visits)), stratum, enhancing, float(volume))
        for n, (stratum, enhancing, volume, visits) in enumerate(facts)
    ]


def plain_people(count, **changes):
    return [replace(p, **changes) for p in people([("HGG", True, n, 1) for n in range(count)])]


def spread(folds, kind):
    """Most less fewest patients of a kind in a fold."""
    counts = [len(set(kind) & set(fold)) for fold in folds]
    return max(counts) - min(counts)


@settings(max_examples=150, deadline=None)
@given(PEOPLE, st.integers(2, 7), st.integers(0, 5))
def test_every_patient_is_in_one_fold_and_folds_are_alike(facts, count, seed):
    everyone = people(facts)
    count = min(count, len(everyone))
    folds = patient_folds(everyone, count, seed)
    assert len(folds) == count
    assert Counter(p for fold in folds for p in fold) == Counter(everyone)
    assert spread(folds, everyone) <= 1
    sizes = Counter(p.stratum for p in everyone)
    everyone_of = {
        stratum: {p for p in everyone if p.stratum == stratum} for stratum, n in sizes.items() if stratum and n > 1
    }
    everyone_of[""] = {p for p in everyone if p.stratum not in everyone_of}
    for members in everyone_of.values():
        assert spread(folds, members) <= 1
        for enhancing in (False, True):
            run = {p for p in members if p.enhancing is enhancing}
            assert spread(folds, run) <= 1
            ordered = sorted(run, key=lambda p: (p.volume_ml, p.name))
            if len(run) >= 3 * count:
                for third in np.array_split(np.arange(len(run)), 3):
                    assert spread(folds, [ordered[i] for i in third]) <= 1
    strata = sum(map(bool, everyone_of.values()))
    assert spread(folds, [p for p in everyone if p.enhancing]) <= max((strata + 1) // 2, 1)


@settings(max_examples=50, deadline=None)
@given(PEOPLE, st.integers(0, 5), st.randoms())
def test_folds_depend_on_the_patients_and_the_seed_not_on_the_order(facts, seed, random):
    everyone = people(facts)
    shuffled = random.sample(everyone, len(everyone))
    assert patient_folds(everyone, 2, seed) == patient_folds(shuffled, 2, seed)


def test_no_two_seeds_of_ten_give_the_same_partition():
    everyone = plain_people(30)
    found = {frozenset(map(frozenset, patient_folds(everyone, 5, seed))) for seed in range(10)}
    assert len(found) == 10


def test_chance_decides_which_folds_have_one_patient_more():
    bigger = {tuple(len(fold) for fold in patient_folds(plain_people(7), 3, seed)) for seed in range(20)}
    assert bigger == {(3, 2, 2), (2, 3, 2), (2, 2, 3)}


def test_every_fold_has_as_many_small_middling_and_large_tumours():
    folds = patient_folds(plain_people(60), 5, seed=0)
    for fold in folds:
        assert Counter(int(p.volume_ml // 20) for p in fold) == {0: 4, 1: 4, 2: 4}


def test_where_patients_are_few_any_two_may_share_a_fold():
    folds = [fold for seed in range(150) for fold in patient_folds(plain_people(6), 5, seed)]
    assert len({frozenset(fold) for fold in folds if len(fold) == 2}) == 15


def test_two_strata_do_not_part_enhancement_unevenly():
    everyone = people([(s, e, 1, 1) for s in ("HGG", "LGG") for e in (False, True) for _ in range(13)])
    for seed in range(5):
        assert spread(patient_folds(everyone, 5, seed), [p for p in everyone if p.enhancing]) <= 1


def test_folders_of_one_patient_each_are_no_strata():
    alone = [replace(p, stratum=p.name, enhancing=n % 2 == 0) for n, p in enumerate(plain_people(40))]
    folds = patient_folds(alone, 4, seed=0)
    assert spread(folds, [p for p in alone if p.enhancing]) <= 1
    assert folds != patient_folds(alone, 4, seed=1)


@pytest.mark.parametrize("count", [-1, 0, 1, 15])
def test_impossible_number_of_folds_is_refused(count):
    with pytest.raises(UsageError, match=f"cannot make {count} folds of 14 patients"):
        patient_folds(plain_people(14), count, seed=0)


def test_as_many_folds_as_patients_leave_one_out():
    assert sorted(map(len, patient_folds(plain_people(6), 6, seed=0))) == [1] * 6


def test_patients_in_two_folds_are_found():
    patient_of = {"a": "p", "b": "p", "c": "q", "d": "r", "e": "r"}
    assert shared_patients([["a", "b"], ["c"], ["d", "e"]], patient_of) == {}
    assert shared_patients([["a", "d"], ["b", "c"], ["e"]], patient_of) == {"p": [0, 1], "r": [0, 2]}


def folds_file(tmp_path, content):
    path = tmp_path / "folds.json"
    path.write_bytes(json_bytes(content))
    return path


def test_fold_is_read_as_training_and_validation(tmp_path):
    path = folds_file(tmp_path, {"folds": [["a"], ["b", "c"]]})
    found = [Study(i, {}) for i in "abcd"]
    training, validation = read_fold(path, 1, found)
    assert [s.id for s in training] == ["a"]
    assert [s.id for s in validation] == ["b", "c"]


@pytest.mark.parametrize("content", [[], {}, {"folds": 3}, {"folds": ["a", "b"]}, {"folds": [1, 2]}])
def test_file_that_is_no_folds_file_is_refused(tmp_path, content):
    with pytest.raises(InputError, match=r"is no folds\.json"):
        read_fold(folds_file(tmp_path, content), 0, [Study("a", {})])


@pytest.mark.parametrize("fold", [-1, 2])
def test_fold_that_is_not_there_is_refused(tmp_path, fold):
    with pytest.raises(UsageError, match="has folds 0 to 1"):
        read_fold(folds_file(tmp_path, {"folds": [["a"], ["b"]]}), fold, [Study("a", {}), Study("b", {})])


def test_folds_of_other_data_are_refused(tmp_path):
    with pytest.raises(InputError, match="names 1 studies that the data does not have, such as b"):
        read_fold(folds_file(tmp_path, {"folds": [["a"], ["b"]]}), 0, [Study("a", {})])


def test_study_in_two_folds_is_refused(tmp_path):
    with pytest.raises(InputError, match="a study in two folds"):
        read_fold(folds_file(tmp_path, {"folds": [["a", "b"], ["b"]]}), 0, [Study("a", {}), Study("b", {})])


def test_patient_in_two_folds_is_refused(tmp_path):
    content = {"folds": [["a"], ["b", "c"]], "patients": {"a": "p", "b": "p", "c": "c"}}
    with pytest.raises(InputError, match="has the patient p in more than one fold"):
        read_fold(folds_file(tmp_path, content), 0, [Study(i, {}) for i in "abc"])
    content["folds"] = [["a", "b"], ["c"]]
    assert [s.id for s in read_fold(folds_file(tmp_path, content), 0, [Study(i, {}) for i in "abc"])[1]] == ["a", "b"]


def shares(found):
    return tuple(len(part) for part in found)


def test_a_drawn_split_has_the_recipes_shares_and_whole_patients():
    everyone = studies(patients=50, visits=2)
    found = draw_split(everyone, 0.2, 0.1, 0, seed=0)
    assert shares(found) == (140, 40, 20)
    assert Counter(s.id for part in found for s in part) == Counter(s.id for s in everyone)
    patients = [{s.patient for s in part} for part in found]
    assert all(not a & b for a, b in itertools.combinations(patients, 2))
    for part in found:
        strata = Counter(s.stratum for s in part)
        assert strata["HGG"] == strata["LGG"]


def test_every_fold_of_a_drawn_split_validates_others():
    everyone = studies(patients=10)
    tests = [draw_split(everyone, 0.2, 0.2, fold, seed=3)[2] for fold in range(4)]
    assert all(test == tests[0] for test in tests)
    for fold in range(4):
        training, validation, test = draw_split(everyone, 0.2, 0.2, fold, seed=3)
        assert Counter(s.id for part in (training, validation, test) for s in part) == Counter(s.id for s in everyone)
    held_out = [draw_split(everyone, 0.2, 0.0, fold, seed=3)[1] for fold in range(5)]
    assert Counter(s.id for part in held_out for s in part) == Counter(s.id for s in everyone)
    with pytest.raises(UsageError, match=r"folds 0 to 4; got --fold 5"):
        draw_split(everyone, 0.2, 0.0, 5, seed=3)


@pytest.mark.parametrize(("patients", "expected"), [(1, (2, 0, 0)), (2, (2, 2, 0)), (3, (2, 2, 2)), (12, (18, 4, 2))])
def test_a_drawn_split_of_few_patients_still_trains_and_validates(patients, expected):
    assert shares(draw_split(studies(("HGG",), patients, visits=2), 0.2, 0.1, 0, seed=0)) == expected
    assert shares(draw_split(studies(("HGG",), 25), 0.16, 0.0, 0, seed=0)) == (21, 4, 0)
    assert shares(draw_split(studies(("HGG",), 3), 0.9, 0.0, 0, seed=0)) == (1, 2, 0)


@pytest.mark.parametrize(
    ("ids", "patient"),
    [
        (("BraTS-GLI-00001-000", "BraTS-GLI-00001-001"), "BraTS-GLI-00001"),
        (("Brats18_CBICA_AAB_1", "BraTS19_CBICA_AAB_1"), "CBICA_AAB_1"),
    ],
)
@pytest.mark.parametrize("tells", [False, True])
def test_a_patient_that_the_ids_show_may_not_be_in_two_folds_whatever_the_file_says(tmp_path, tells, ids, patient):
    told = {"patients": dict(zip(ids, "xy", strict=True))} if tells else {}
    content = {"folds": [ids[:1], ids[1:]]} | told
    with pytest.raises(InputError, match=f"has the patient {patient} in more than one fold"):
        read_fold(folds_file(tmp_path, content), 0, [Study(i, {}) for i in ids])
