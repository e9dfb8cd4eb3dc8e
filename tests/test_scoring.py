import pytest
from studies import DeadlyStudy, small_pairs

from gliomap.classes import REGIONS
from gliomap.data.study import ImageFile, Study
from gliomap.errors import InputError
from gliomap.rows import DEFAULT_METRICS
from gliomap.scoring import Question, Task, score_all

QUESTION = Question(("a",), tuple(REGIONS), DEFAULT_METRICS, "plain", "all")


def tasks_of(folder, count, deadly=()):
    found = []
    for number, study in enumerate(small_pairs(folder, count, models=("a",))):
        truth, prediction = (ImageFile(folder / study / f"{name}.nii.gz") for name in ("truth", "pred_a"))
        kind = DeadlyStudy if number in deadly else Study
        found.append(Task(kind(study, {}, truth), {"a": Study(study, {}, prediction)}))
    return found


@pytest.mark.parametrize("jobs", [1, 2, 9])
def test_every_task_is_scored_once_whatever_the_number_of_processes(tmp_path, jobs):
    tasks = tasks_of(tmp_path, 5)
    scored = list(score_all(tasks, QUESTION, None, jobs))
    assert sorted(task.truth.id for task, _ in scored) == [task.truth.id for task in tasks]
    for task, (_, rows, failed, _) in scored:
        assert failed == {}
        assert {(r.study, r.region, r.metric) for r in rows} == {
            (task.truth.id, region, m) for region in REGIONS for m in DEFAULT_METRICS
        }


def test_a_process_that_is_killed_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match="fewer --jobs"):
        list(score_all(tasks_of(tmp_path, 3, deadly=(1,)), QUESTION, None, 2))


def test_no_more_tasks_are_taken_than_there_are_processes_to_do_them(tmp_path):
    taken = []

    class Watched(list):
        def __iter__(self):
            for task in super().__iter__():
                taken.append(task)
                yield task

    scored = score_all(Watched(tasks_of(tmp_path, 9)), QUESTION, None, 2)
    next(scored)
    assert len(taken) <= 4
    assert len(list(scored)) == 8


def test_files_are_hashed_and_one_that_cannot_be_read_says_why(tmp_path):
    (task,) = tasks_of(tmp_path, 1)
    before = task.inputs()
    assert set(before) == {"truth", "prediction of a"}
    assert all(len(digest) == 64 for digest in before.values())
    task.truth.label.path.write_bytes(b"other")
    after = task.inputs()
    assert [name for name in before if before[name] != after[name]] == ["truth"]
    task.truth.label.path.unlink()
    assert "No such file" in task.inputs()["truth"]


def test_what_is_finished_when_ctrl_c_comes_is_given_before_it_ends(tmp_path):
    scored = score_all(tasks_of(tmp_path, 6), QUESTION, None, 2)
    next(scored)
    given = [scored.throw(KeyboardInterrupt)]
    with pytest.raises(KeyboardInterrupt):
        given += scored
    assert given  # the two that were running, at least
