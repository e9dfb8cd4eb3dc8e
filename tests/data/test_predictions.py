import pytest
from studies import touch

from gliomap.classes import named_convention
from gliomap.data.predictions import predictions_by_name, predictions_by_pattern, truths_by_pattern
from gliomap.data.study import Study
from gliomap.errors import InputError, UsageError

MSD = named_convention("msd", "the test")


def shown(found):
    return {model: {study: one.label.path.name for study, one in maps.items()} for model, maps in found.items()}


def test_a_pattern_gives_each_model_its_label_map_of_each_study(tmp_path):
    touch(tmp_path / "A_1", ["pred_net.nii.gz", "pred_net_two.nii.gz", "truth.nii.gz", "pred_notes.txt"])
    touch(tmp_path / "A_2", ["pred_net.nii.gz"])
    found = predictions_by_pattern(tmp_path, "{study}/pred_{model}.nii.gz", ["A_1", "A_2"], MSD)
    assert shown(found) == {
        "net": {"A_1": "pred_net.nii.gz", "A_2": "pred_net.nii.gz"},
        "net_two": {"A_1": "pred_net_two.nii.gz"},
    }
    assert found["net"]["A_1"].convention == MSD
    assert found["net"]["A_1"].label.path.parent == tmp_path / "A_1"


def test_study_names_that_begin_alike_are_told_apart(tmp_path):
    touch(tmp_path, ["case_1_x.nii.gz", "case_1_2_x.nii.gz"])
    found = predictions_by_pattern(tmp_path, "{study}_{model}.nii.gz", ["case_1", "case_1_2"], None)
    assert shown(found) == {"x": {"case_1": "case_1_x.nii.gz", "case_1_2": "case_1_2_x.nii.gz"}}


def test_a_pattern_may_name_a_study_twice_and_skip_text(tmp_path):
    touch(tmp_path / "a" / "run7", ["a_seg.nii"])
    touch(tmp_path / "b" / "run7", ["a_seg.nii"])
    found = predictions_by_pattern(tmp_path, "{study}/*/{study}_seg.nii", ["a", "b"], None)
    assert shown(found) == {"": {"a": "a_seg.nii"}}


def test_characters_of_regular_expressions_mean_themselves(tmp_path):
    touch(tmp_path, ["a+b(1).nii.gz", "aab1.nii.gz", "a+b(1)xnii.gz"])
    found = predictions_by_pattern(tmp_path, "{study}(1).nii.gz", ["a+b", "aab"], None)
    assert shown(found) == {"": {"a+b": "a+b(1).nii.gz"}}


def test_two_files_for_one_study_of_a_model_are_a_problem_of_that_study(tmp_path):
    touch(tmp_path / "one", ["a.nii.gz"])
    touch(tmp_path / "two", ["a.nii.gz", "b.nii.gz"])
    found = predictions_by_pattern(tmp_path, "*/{study}.nii.gz", ["a", "b"], None)[""]
    assert "2 files could be its label map" in found["a"].problem
    assert found["b"].problem == ""


@pytest.mark.parametrize("pattern", ["pred.nii.gz", "{model}.nii.gz", "{study}/{fold}.nii.gz", "{study}/{}.nii.gz"])
def test_a_pattern_that_cannot_be_meant_is_wrong_usage(tmp_path, pattern):
    touch(tmp_path, ["a.nii.gz"])
    with pytest.raises(UsageError, match="--match"):
        predictions_by_pattern(tmp_path, pattern, ["a"], None)


def test_a_pattern_that_fits_nothing_says_what_is_there(tmp_path):
    touch(tmp_path / "a", ["other.nii.gz"])
    with pytest.raises(InputError, match=r"none of the 1 image files .* such as a/other\.nii\.gz"):
        predictions_by_pattern(tmp_path, "{study}/pred.nii.gz", ["a"], None)
    with pytest.raises(InputError, match="is no folder"):
        predictions_by_pattern(tmp_path / "nowhere", "{study}.nii.gz", ["a"], None)


def test_a_pattern_finds_truths_without_images(tmp_path):
    touch(tmp_path, ["set__p1_t2_seg.nii.gz", "set__p1_t2_pred.nii.gz", "set__p0_seg.nii.gz"])
    studies = truths_by_pattern(tmp_path, "set__{study}_seg.nii.gz", MSD)
    assert [(s.id, s.label.path.name, s.convention) for s in studies] == [
        ("p0", "set__p0_seg.nii.gz", MSD),
        ("p1_t2", "set__p1_t2_seg.nii.gz", MSD),
    ]
    with pytest.raises(UsageError, match="--match-truth"):
        truths_by_pattern(tmp_path, "{study}_{model}.nii.gz", None)


def test_by_name_finds_files_called_like_the_studies_and_leaves_others(tmp_path):
    touch(tmp_path, ["p1.nii.gz", "p2_seg.nii.gz", "p3.nii.gz"])
    studies = [Study("p1", {}), Study("p2", {})]
    assert {s: one.label.path.name for s, one in predictions_by_name(tmp_path, studies, MSD).items()} == {
        "p1": "p1.nii.gz",
        "p2": "p2_seg.nii.gz",
    }
    with pytest.raises(InputError, match="has no label map for any of the 1 studies"):
        predictions_by_name(tmp_path, [Study("p9", {})], None)
