import itertools
from collections import Counter

import pytest

from gliomap.data.folds import draw_split, patient_folds, read_fold
from gliomap.data.study import Study
from gliomap.errors import InputError, UsageError
from gliomap.files import json_bytes


def studies(strata=("HGG", "LGG"), patients=7, visits=1):
    return [
        Study(f"BraTS-{stratum}-{patient:05d}-{visit:03d}", {}, stratum=stratum)
        for stratum, patient, visit in itertools.product(strata, range(patients), range(visits))
    ]


def test_every_study_is_in_exactly_one_fold():
    folds = patient_folds(studies(visits=2), 5, seed=0)
    assert len(folds) == 5
    assert Counter(i for fold in folds for i in fold) == Counter(s.id for s in studies(visits=2))


def test_all_studies_of_a_patient_are_in_one_fold():
    folds = patient_folds(studies(visits=3), 4, seed=1)
    for fold in folds:
        assert set(Counter(i[:-4] for i in fold).values()) == {3}


def test_every_stratum_is_spread_over_all_folds():
    folds = patient_folds(studies(), 3, seed=2)
    for stratum in ("HGG", "LGG"):
        counts = [sum(stratum in i for i in fold) for fold in folds]
        assert max(counts) - min(counts) <= 1
    sizes = [len(fold) for fold in folds]
    assert max(sizes) - min(sizes) <= 1


def test_folds_depend_on_the_seed_alone():
    assert patient_folds(studies()[::-1], 3, seed=4) == patient_folds(studies(), 3, seed=4)
    assert patient_folds(studies(), 3, seed=4) != patient_folds(studies(), 3, seed=5)


@pytest.mark.parametrize("count", [-1, 0, 1, 15])
def test_impossible_number_of_folds_is_refused(count):
    with pytest.raises(UsageError, match=f"cannot make {count} folds of 14 patients"):
        patient_folds(studies(visits=2), count, seed=0)


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
