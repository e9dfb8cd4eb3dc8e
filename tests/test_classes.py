import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gliomap.classes import (
    ALL_CLASSES,
    BACKGROUND,
    CONVENTIONS,
    ED,
    ET,
    NCR,
    NESTED_REGIONS,
    PARTS,
    RC,
    REGIONS,
    WHOLE_TUMOUR,
    Target,
    convention_from_values,
    name_of,
    named_convention,
    parse_convention,
    refuse_ambiguous,
    region_mask,
)
from gliomap.errors import InputError, UsageError

EVERY_CLASS = np.array([0, NCR, ED, ET, RC], np.uint8)
SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)


def test_regions_are_nested_in_the_order_et_tc_wt():
    assert list(REGIONS) == ["ET", "TC", "WT"]
    et, tc, wt = (region_mask(EVERY_CLASS, region) for region in REGIONS)
    assert et.tolist() == [False, False, False, True, False]
    assert tc.tolist() == [False, True, False, True, False]
    assert wt.tolist() == [False, True, True, True, False]


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.uint8, SHAPES, elements=st.integers(0, 4)))
def test_region_masks_nest_in_any_class_map(classes):
    et, tc, wt = (region_mask(classes, region) for region in REGIONS)
    assert not (et & ~tc).any()
    assert not (tc & ~wt).any()
    assert not (wt & (classes == RC)).any()


@pytest.mark.parametrize("name", CONVENTIONS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_file_values_to_classes_and_back_is_the_identity(name, data):
    convention = named_convention(name, "said so")
    values = st.sampled_from([0, *CONVENTIONS[name]])
    labels = data.draw(hnp.arrays(np.uint8, SHAPES, elements=values))
    classes = convention.decode(labels)
    assert classes.dtype == np.uint8
    assert classes.shape == labels.shape
    np.testing.assert_array_equal(convention.encode(classes), labels)
    np.testing.assert_array_equal(convention.decode(labels.astype(np.float32)), classes)
    np.testing.assert_array_equal(convention.decode(labels.astype(np.int16)), classes)


def test_published_conventions_mean_what_their_challenges_say():
    def meaning(name):
        return named_convention(name, "").decode(np.array(sorted(CONVENTIONS[name]))).tolist()

    assert meaning("brats2021") == [NCR, ED, ET]
    assert meaning("brats2023") == [NCR, ED, ET]
    assert meaning("brats2024") == [NCR, ED, ET, RC]
    assert meaning("msd") == [ED, NCR, ET]
    assert meaning("audit") == [ET, NCR, ED]
    assert sorted(CONVENTIONS["brats2021"]) == [1, 2, 4]


@pytest.mark.parametrize("bad", [3, 7, -1, 300, 1.5, float("nan")])
def test_values_outside_a_convention_are_refused(bad):
    with pytest.raises(InputError, match="outside the convention brats2021"):
        named_convention("brats2021", "").decode(np.array([0, 1, bad]))


def test_classes_without_a_file_value_are_refused():
    with pytest.raises(InputError, match="no value for RC"):
        named_convention("brats2023", "").encode(EVERY_CLASS)
    np.testing.assert_array_equal(named_convention("brats2024", "").encode(EVERY_CLASS), EVERY_CLASS)


def test_convention_is_parsed_from_its_name_or_from_pairs():
    assert parse_convention("msd", "option").values == tuple(CONVENTIONS["msd"].items())
    audit = parse_convention("1=ET, 2=ncr,3=ED", "option")
    assert (audit.name, audit.evidence) == ("audit", "option")
    custom = parse_convention("10=WT,20=ET".replace("WT", "ED"), "option")
    assert custom.name == "custom"
    assert custom.decode(np.array([0, 10, 20])).tolist() == [0, ED, ET]
    assert str(custom) == "custom (10 ED, 20 ET)"


@pytest.mark.parametrize(
    "text", ["brats1999", "", "1=XX", "a=ET", "0=ET", "256=ET", "1=ET,1=ED", "1=ET,2=ET", "1=ET,", "=ET", "-1=ET"]
)
def test_unreadable_conventions_are_refused(text):
    with pytest.raises(UsageError):
        parse_convention(text, "option")


def test_name_of_a_table():
    assert name_of({1: NCR, 2: ED, 3: ET}) == "brats2023"
    assert name_of({1: ET}) is None


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ([0, 1, 2, 4], "brats2021"),
        ([4], None),
        ([2, 4], None),
        ([1, 2, 3, 4], "brats2024"),
        ([3, 4], "brats2024"),
        ([0], "brats2023"),
        ([0, 1, 2, 3], None),
        ([1], None),
        ([2, 3], None),
        ([5], None),
        ([1.0, 2.0, 4.0], "brats2021"),
        ([0, 1.5, 4], None),
        ([0, float("nan")], None),
    ],
)
def test_convention_that_values_leave_no_choice_about(values, name):
    found = convention_from_values(np.array(values))
    assert (found.name if found else None) == name


@pytest.mark.parametrize(("values", "fit"), [([1, 2, 3], "brats2023"), ([9], "no known convention"), ([2.5], "2.5")])
def test_ambiguous_values_name_the_candidates_and_what_to_say(values, fit):
    message = str(refuse_ambiguous(np.array(values), "A hint."))
    assert fit in message
    assert "A hint." in message
    assert "--labels" in message


def test_softmax_takes_the_most_probable_channel():
    probabilities = np.eye(4)[:, [0, 2, 3, 1]].reshape(4, 1, 2, 2)
    assert ALL_CLASSES.decode(probabilities).tolist() == [[[0, 2], [3, 1]]]
    shuffled = Target("softmax", ((0,), (ET,), (NCR,)))
    decoded = shuffled.decode(np.eye(3).reshape(3, 1, 1, 3))
    assert decoded.dtype == np.uint8
    assert decoded.ravel().tolist() == [0, ET, NCR]


def test_sigmoid_regions_write_the_class_that_only_they_have():
    #           nothing, WT, WT+TC, all, ET alone, exactly one half
    et = [0, 0, 0, 0.9, 0.9, 0.5]
    tc = [0, 0, 0.9, 0.9, 0, 0.5]
    wt = [0, 0.9, 0.9, 0.9, 0, 0.5]
    probabilities = np.array([et, tc, wt]).reshape(3, 1, 1, 6)
    wanted = [0, ED, NCR, ET, ET, 0]
    assert NESTED_REGIONS.decode(probabilities).ravel().tolist() == wanted
    backwards = Target("sigmoid", NESTED_REGIONS.channels[::-1])
    assert backwards.decode(probabilities[::-1]).ravel().tolist() == wanted


def test_sigmoid_of_single_labels_and_of_the_whole_tumour():
    labels = Target("sigmoid", ((NCR,), (ED,), (ET,)))
    assert labels.decode(np.eye(3).reshape(3, 1, 1, 3)).ravel().tolist() == [NCR, ED, ET]
    whole = Target("sigmoid", (REGIONS["WT"],))
    assert whole.decode(np.array([0.2, 0.8]).reshape(1, 1, 1, 2)).ravel().tolist() == [0, ED]


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.uint8, (2, 3, 2), elements=st.integers(0, 3)))
def test_encoding_then_decoding_a_class_map_is_the_identity(classes):
    for target in (ALL_CLASSES, NESTED_REGIONS):
        channels = np.stack([np.isin(classes, members) for members in target.channels]).astype(float)
        np.testing.assert_array_equal(target.decode(channels), classes)


@pytest.mark.parametrize(
    ("target", "regions"),
    [
        (ALL_CLASSES, ("ET", "TC", "WT")),
        (NESTED_REGIONS, ("ET", "TC", "WT")),
        (WHOLE_TUMOUR, ("WT",)),
        (Target("sigmoid", ((NCR,), (ED,), (ET,))), ("ET", "TC", "WT")),
        (Target("softmax", ((BACKGROUND,), (NCR, ED), (ET,))), ("ET", "WT")),
    ],
)
def test_a_target_tells_the_regions_that_its_channels_make_up(target, regions):
    assert target.regions == regions


@pytest.mark.parametrize(
    ("target", "told"),
    [
        (ALL_CLASSES, {"ET", "TC", "WT", "NCR", "ED"}),
        (NESTED_REGIONS, {"ET", "TC", "WT", "NCR", "ED"}),
        (WHOLE_TUMOUR, {"WT"}),
        (Target("sigmoid", ((NCR,), (ED,), (ET,))), {"ET", "TC", "WT", "NCR", "ED"}),
        (Target("sigmoid", ((NCR, ET), (NCR, ED, ET))), {"TC", "WT", "ED"}),
        (Target("softmax", ((0,), (NCR,), (ED,), (ET,), (RC,))), {"ET", "TC", "WT", "NCR", "ED", "RC"}),
    ],
)
def test_a_target_tells_what_its_channels_make_up_or_have_of_their_own(target, told):
    assert {part for part in PARTS if target.tells(part)} == told
    assert set(target.regions) == told & set(REGIONS)


def test_the_probability_of_a_region_is_over_a_half_just_where_the_region_is_decoded():
    rng = np.random.default_rng(0)
    probabilities = rng.random((3, 4, 5, 6))
    nested = np.sort(probabilities, 0)
    single = Target("sigmoid", ((NCR,), (ED,), (ET,)))  # of which one voxel may have several, all of them in WT
    for target, values, regions in ((NESTED_REGIONS, nested, REGIONS), (single, probabilities, ["WT"])):
        for region in regions:
            np.testing.assert_array_equal(
                target.region_probability(values, region) > 0.5, region_mask(target.decode(values), region)
            )


def test_the_probability_of_a_region_of_exclusive_classes_is_their_sum():
    probabilities = np.array([0.1, 0.2, 0.3, 0.4]).reshape(4, 1, 1, 1)
    found = [ALL_CLASSES.region_probability(probabilities, region).item() for region in ("ET", "TC", "WT", "ED")]
    assert found == pytest.approx([0.4, 0.6, 0.9, 0.3])
