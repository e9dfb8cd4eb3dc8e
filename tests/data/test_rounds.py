import json

import pytest

from gliomap.data.folds import draw_split
from gliomap.data.rounds import cross_validation, draw_patients, hold_out, read_cross_validation
from gliomap.data.study import Study
from gliomap.errors import InputError, UsageError


def studies(count, times=1):
    """Studies of so many patients, each examined so often."""
    ids = [f"BraTS-GLI-{n:05d}-{t:03d}" for n in range(count) for t in range(times)]
    return [Study(i, {}, stratum="HGG" if int(i[10:15]) % 3 else "LGG") for i in ids]


def test_a_hold_out_is_the_split_that_training_draws_and_scores_its_test():
    every = studies(20)
    training, validation, test = draw_split(every, 0.1, 0.2, 0, 3)
    rounds = hold_out(every, 0.1, 0.2, 3)
    assert rounds.folds == (tuple(s.id for s in validation), tuple(s.id for s in training))
    assert rounds.scored == (tuple(s.id for s in test),)
    assert rounds.studies == rounds.scored[0]
    assert "14 studies train and 2 validate; 4 others are scored" in rounds.remark


def test_without_a_test_the_studies_that_validate_are_scored_and_that_is_said():
    rounds = hold_out(studies(10), 0.2, 0.0, 0)
    assert rounds.scored == (rounds.folds[0],)
    assert len(rounds.folds[0]) == 2
    assert "they also choose the best weights" in rounds.remark


def test_a_cross_validation_scores_every_study_once_and_keeps_patients_together():
    every = studies(11, times=2)
    rounds = cross_validation(every, 4, 0)
    assert sorted(rounds.studies) == sorted(s.id for s in every)
    assert rounds.folds == rounds.scored
    assert len(rounds.folds) == 4
    patient = {s.id: s.patient for s in every}
    owners = [{patient[i] for i in ids} for ids in rounds.folds]
    assert sum(map(len, owners)) == 11
    assert cross_validation(every[::-1], 4, 0) == rounds != cross_validation(every, 4, 1)


def test_patients_are_drawn_by_the_seed_with_all_their_studies():
    every = studies(9, times=2)
    drawn = draw_patients(every, 4, 0)
    assert len(drawn) == 8
    assert len({s.patient for s in drawn}) == 4
    assert draw_patients(every[::-1], 4, 0)[::-1] == drawn != draw_patients(every, 4, 1)
    assert draw_patients(every, 9, 0) == every


@pytest.mark.parametrize("count", [0, 1, 10])
def test_too_few_or_too_many_patients_are_refused(count):
    with pytest.raises(UsageError, match=f"cannot draw {count} of 9 patients"):
        draw_patients(studies(9), count, 0)


def test_a_single_patient_cannot_be_held_out():
    with pytest.raises(UsageError, match="at least 2 patients"):
        hold_out(studies(1, times=3), 0.2, 0.0, 0)


def test_folds_of_a_file_are_taken_as_they_are(tmp_path):
    path, every = tmp_path / "folds.json", studies(4)
    ids = [s.id for s in every]
    path.write_text(json.dumps({"folds": [ids[2:3], ids[:2]]}))
    assert read_cross_validation(path, every).folds == ((ids[2],), (ids[0], ids[1]))


@pytest.mark.parametrize(
    ("content", "why"),
    [([], "is no folds.json"), ({"folds": [["a"]]}, "is no folds.json"), ({"folds": [["a"], []]}, "is no folds.json"),
     ({"folds": [["a"], ["b"]]}, "names 2 studies that the data does not have, such as a")],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, content, why):
    path = tmp_path / "folds.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=why):
        read_cross_validation(path, studies(4))
