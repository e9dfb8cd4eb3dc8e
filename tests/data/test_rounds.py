import json
from dataclasses import replace

import pytest

from gliomap.data.folds import draw_split
from gliomap.data.rounds import (
    cross_validation,
    dependences,
    draw_patients,
    hold_out,
    read_cross_validation,
    shortfalls,
)
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


def in_a_file(folder, **content):
    path = folder / "folds.json"
    path.write_text(json.dumps(content))
    return path


def test_folds_of_a_file_are_taken_as_they_are_with_their_patients(tmp_path):
    every = studies(4)
    ids = [s.id for s in every]
    found = read_cross_validation(in_a_file(tmp_path, folds=[ids[2:3], ids[:2]]), every)
    assert found.folds == ((ids[2],), (ids[0], ids[1]))
    assert found.patients == {s.id: s.patient for s in every[:3]}
    named = {ids[0]: "x", ids[1]: "x", ids[2]: "y"}
    assert read_cross_validation(in_a_file(tmp_path, folds=found.folds, patients=named), every).patients == named


IDS = [s.id for s in studies(2, times=2)]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({}, "is no folds.json"),
        ({"folds": [IDS]}, "fewer than 2 folds or an empty one"),
        ({"folds": [IDS, []]}, "fewer than 2 folds or an empty one"),
        ({"folds": [["a"], ["b"]]}, "names 2 studies that the data does not have, such as a"),
        ({"folds": [IDS[:2], IDS[1:2]]}, "a study in two folds"),
        ({"folds": [IDS[:1], IDS[1:2]]}, "has the patient BraTS-GLI-00000 in more than one fold"),
        ({"folds": [IDS[:2], IDS[2:]], "patients": dict.fromkeys(IDS, "one")}, "has the patient one in more than one"),
    ],
)
def test_other_files_are_refused(tmp_path, content, why):
    with pytest.raises(InputError, match=why):
        read_cross_validation(in_a_file(tmp_path, **content), studies(2, times=2))


def test_all_rounds_say_who_is_of_whom():
    every = studies(6, times=2)
    expected = {s.id: s.patient for s in every}
    assert cross_validation(every, 3, 0).patients == hold_out(every, 0.2, 0.2, 0).patients == expected


def test_what_keeps_rounds_from_being_the_papers_experiment(tmp_path):
    every = studies(10)
    assert shortfalls(cross_validation(every, 5, 0), every, 5) == []
    assert shortfalls(hold_out(every, 0.2, 0.2, 0), every, 5) == []
    assert shortfalls(cross_validation(every, 3, 0), every, 5) == ["3 folds and not 5"]
    folds = [[s.id] for s in every[:5]]
    few = read_cross_validation(in_a_file(tmp_path, folds=folds), every)
    assert shortfalls(few, every, 5) == ["5 of 10 studies are in no fold"]
    made = [*every[:9], Study("BraTS-PhantomV1-00000-000", {})]
    assert shortfalls(cross_validation(made, 5, 0), made, 5) == ["1 of 10 studies are phantoms"]


def test_studies_of_several_years_may_share_patients_unless_their_names_were_joined(tmp_path):
    every = [replace(s, layout=f"brats20{20 + n % 2}") for n, s in enumerate(studies(4))]
    (text,) = dependences(cross_validation(every, 2, 0), every)
    assert "the studies are of brats2020, brats2021, and" in text
    assert "gliomap split --mapping" in text
    assert dependences(hold_out(every, 0.3, 0.0, 0), every) == [text]
    ids = [s.id for s in every]
    joined = {i: s.patient for i, s in zip(ids, every, strict=True)} | {ids[1]: every[0].patient}
    path = in_a_file(tmp_path, folds=[ids[:2], ids[2:]], patients=joined)
    (other,) = dependences(read_cross_validation(path, every), every)
    assert other.startswith("1 of 3 scored patients, such as BraTS-GLI-00000, have several studies")
    assert not dependences(cross_validation(every[::2], 2, 0), every)


def test_several_studies_of_a_patient_are_warned_of_where_they_are_scored():
    every = [*studies(1, times=3), *studies(9)[1:]]
    assert "1 of 9 scored patients" in dependences(cross_validation(every, 3, 0), every)[0]
    seen = [bool(dependences(found, every)) for found in (hold_out(every, 0.1, 0.2, seed) for seed in range(12))]
    scored = [every[0].id in hold_out(every, 0.1, 0.2, seed).studies for seed in range(12)]
    assert seen == scored
    assert len(set(seen)) == 2
