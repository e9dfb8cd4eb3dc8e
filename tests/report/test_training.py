import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from markupsafe import escape

from gliomap.classes import ED, ET, NCR, WHOLE_TUMOUR
from gliomap.recipes import find_recipe
from gliomap.report import pictures
from gliomap.report.training import (
    LONGEST_EDGE_PX,
    MOST_ROWS,
    Example,
    TrainingProgress,
    duration_text,
    example,
    page,
    smoothed,
    telling,
    time_left_s,
)
from gliomap.volume import Volume

RECIPE = find_recipe("attention_resunet_small")
BUDGET = 10_000
NAN = float("nan")


def step(patches, **changes):
    line = {"patches": patches, "time_s": patches / 10, "memory_mb": 2500.0, "learning_rate": 1e-3}
    return line | {"gradient_norm": 2.0, "loss_cross_entropy": 0.7, "loss_dice": 0.4} | changes


def validated(patches, *dice, **changes):
    line = {"patches": patches, "time_s": patches / 10, "learning_rate": 1e-3, "loss_dice": 0.4}
    regions = ("ET", "TC", "WT") if len(dice) == 3 else ("WT",)
    scores = {f"dice_{region}": value for region, value in zip(regions, dice, strict=True)}
    return line | scores | {"dice_mean": float(np.mean(dice))} | changes


STEPS = [step(patches) for patches in range(100, 4001, 100)]
LOG = [validated(1000, 0.1, 0.2, 0.6), validated(2000, 0.5, 0.6, 0.9), validated(3000, 0.4, 0.5, 0.85)]


def progress(**changes):
    shown = TrainingProgress(RECIPE, BUDGET, "", STEPS, LOG, [], {"seed": "3"}, [])
    return replace(shown, **changes)


def text_of(html):
    """What a reader sees, with one space between words."""
    words = re.sub(r"<style>.*?</style>|<svg.*?</svg>|<title>.*?</title>|<[^>]*>", " ", html, flags=re.DOTALL)
    return " ".join(words.split())


def charts(html):
    """The charts of a page by title."""
    found = [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]
    return {chart.findtext("title"): chart for chart in found}


def styles(chart):
    return {e.get("class") for e in chart.iter("path")}


def an_example(study="study-1", size=48, **changes):
    truth = np.zeros((size, size), np.uint8)
    truth[10:30, 10:30], truth[14:26, 14:26], truth[18:22, 18:22] = ED, NCR, ET
    image = np.random.default_rng(0).normal(100, 10, (size, size))
    one = Example(study, {"flair": image, "t1c": image**2}, truth, np.roll(truth, 3, 1), {"ET": 0.25, "WT": 0.75})
    return replace(one, **changes)


def test_the_state_comes_first_and_says_how_far_how_long_and_how_good():
    words = text_of(page(progress()))
    assert "Running 4,000 of 10,000 (40 %)" in words
    assert "Time so far 6 min 40 s" in words
    assert "Time left about 10 min to the whole budget" in words
    assert "0.667 (mean of ET 0.500, TC 0.600, WT 0.900) after 2,000 patches" in words
    assert words.index("Running") < words.index("Validation Dice by region")


def test_the_page_reloads_itself_until_the_training_has_ended():
    running, ended = page(progress()), page(progress(ended="stopped early"))
    assert '<meta http-equiv="refresh" content="30">' in running
    assert "refresh" not in ended
    assert "Stopped early" in text_of(ended)
    assert "Time left" not in ended
    assert "--resume" in page(progress(ended="interrupted"))
    assert "--resume" in page(progress(ended="time limit reached"))
    assert "--resume" not in ended


def test_each_region_has_a_curve_and_the_best_mean_is_marked():
    html = page(progress())
    chart = charts(html)["Validation Dice by region"]
    assert {f"curve {style}" for style in ("et", "tc", "wt", "mean")} <= styles(chart)
    names = {e.text for e in chart.iter("text") if e.get("class", "").startswith("name")}
    assert names == {"ET", "TC", "WT", "mean"}
    (best,) = [float(e.get("x1")) for e in chart.iter("line") if e.get("class") == "best"]
    (curve,) = [e.get("d") for e in chart.iter("path") if e.get("class") == "curve mean"]
    assert best == pytest.approx(float(curve.split("L")[1].split()[0]), abs=0.1)
    assert "WT: 0.85 after 3000, from 0.6 to 0.9 in 3 values" in chart.findtext("desc")
    assert all(f".curve.{style} {{ stroke-dasharray" in html for style in ("et", "tc"))  # not by colour alone


def test_every_curve_that_is_logged_is_shown():
    found = charts(page(progress()))
    terms = [f"Training loss: {name}" for name in ("sum of all terms", "cross entropy", "dice")]
    assert [*found] == ["Validation Dice by region", *terms, "Learning rate", "Gradient norm", "Peak memory"]
    assert "1.1 after 4000" in found[terms[0]].findtext("desc")
    assert "2.5 after 4000" in found["Peak memory"].findtext("desc")
    clipped = replace(RECIPE, training=replace(RECIPE.training, clip_norm=12.0))
    assert "norm of 12" in text_of(page(progress(recipe=clipped)))


def test_many_lines_are_smoothed_with_what_was_measured_behind_and_said():
    noise = np.exp(np.random.default_rng(0).normal(0, 0.3, 400))
    steps = [step(i + 1, loss_dice=float(value)) for i, value in enumerate(noise)]
    html = page(progress(steps=steps))
    chart = charts(html)["Training loss: dice"]
    assert {"curve raw", "curve plain"} <= styles(chart)
    assert "Thick: mean of 21 lines." in text_of(html)
    assert "Thick" not in text_of(page(progress(steps=steps[:5])))


def test_a_loss_that_falls_far_is_on_a_logarithmic_scale_and_one_that_reaches_0_is_not():
    def drawn(values):
        return text_of(page(progress(steps=[step(100 + i, loss_dice=v) for i, v in enumerate(values)])))

    assert "Training loss: dice Logarithmic scale." in drawn([1.0, 0.1, 0.01])
    assert "Logarithmic" not in drawn([1.0, 0.1, 0.0])
    assert "Logarithmic" not in drawn([1.0, 0.5, 0.2])


def test_the_mean_of_neighbours_is_over_what_there_is():
    values = np.array([1.0, 2.0, np.nan, 4.0, 9.0])
    assert smoothed(values, 3) == pytest.approx([1.5, 1.5, np.nan, 6.5, 6.5], nan_ok=True)
    assert smoothed(values, 1) == pytest.approx(values, nan_ok=True)
    assert smoothed(values, 99) == pytest.approx([4.0, 4.0, np.nan, 4.0, 4.0], nan_ok=True)
    assert smoothed(np.array([3.0]), 1) == pytest.approx([3.0])


@pytest.mark.parametrize(
    ("steps", "log"),
    [([], []), (STEPS[:1], []), ([], LOG[:1]), (STEPS[:1], LOG[:1]), ([step(100, loss_dice=None)], [])],
)
def test_no_line_and_one_line_are_pages_too(steps, log):
    html = page(progress(steps=steps, log=log))
    words = text_of(html)
    assert ("No step was logged yet" in words) == (not steps and not log)
    assert ("No validation yet" in words) == (not log)
    assert "nan" not in html.lower().replace("nance", "")


def test_without_validation_studies_there_is_no_dice_and_no_negated_loss_in_its_place():
    log = [validated(1000, NAN, NAN, NAN, dice_mean=-0.7), validated(2000, NAN, NAN, NAN, dice_mean=-0.5)]
    html = page(progress(log=log))
    assert "There are no validation studies" in text_of(html)
    assert "the weights of the lowest training loss are kept" in text_of(html)
    assert "-0.5" not in text_of(html)
    assert "Validation Dice by region" not in charts(html)


def test_values_that_are_missing_leave_gaps():
    log = [LOG[0], validated(1500, 0.3, 0.3, 0.3) | {"dice_ET": None, "dice_mean": None}, *LOG[1:]]
    html = page(progress(log=log))
    (curve,) = [
        e.get("d") for e in charts(html)["Validation Dice by region"].iter("path") if e.get("class") == "curve et"
    ]
    assert curve.count("M") == 1
    assert curve.count("L") == 1
    assert "after 2,000 patches" in text_of(html)


def test_a_target_of_the_whole_tumour_alone_shows_nothing_else():
    recipe = replace(RECIPE, target=WHOLE_TUMOUR)
    html = page(progress(recipe=recipe, log=[validated(1000, 0.7), validated(2000, 0.8)], examples=[an_example()]))
    assert "Best validation Dice WT 0.800 after 2,000 patches" in text_of(html)
    assert styles(charts(html)["Validation Dice by region"]) == {"curve wt", "points wt"}
    assert "<b>ET</b>" not in html
    assert "<b>WT</b>" in html


def test_thousands_of_lines_and_many_terms_are_under_a_megabyte():
    rng = np.random.default_rng(0)
    many = {f"loss_term_{i}": 0.5 for i in range(12)}
    steps = [step(i, **{name: float(rng.random()) for name in many}) for i in range(1, 8001)]
    log = [validated(i, *rng.random(3).tolist()) for i in range(1, 5001)]
    noise = {name: rng.normal(100, 30, (512, 400)) for name in ("flair", "t1c")}
    classes = rng.integers(0, 4, (512, 400)).astype(np.uint8)
    examples = [an_example(f"s{i}", images=noise, truth=classes, predicted=classes) for i in range(3)]
    assert len(page(progress(steps=steps, log=log, examples=examples)).encode()) < 1_000_000


def test_the_table_has_the_last_validations_and_the_best():
    log = [validated(i, 0.9 if i == 3 else 0.5, 0.5, 0.5) for i in range(1, 101)]
    rows = re.findall(r"<tr>(<td.*?)</tr>", page(progress(log=log)), re.DOTALL)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows if "number" in row]
    assert [row[0] for row in cells] == ["3", *map(str, range(101 - MOST_ROWS, 101))]
    assert [row[-1] for row in cells] == ["best"] + [""] * MOST_ROWS


def test_time_left_follows_the_pace_of_the_last_lines():
    slow = [step(i, time_s=i * 10.0) for i in range(1, 101)]
    fast = [step(100 + i, time_s=1000 + i * 1.0) for i in range(1, 101)]
    assert time_left_s(progress(budget=300, steps=slow + fast, log=[])) == pytest.approx(100)
    assert time_left_s(progress(budget=300, steps=slow, log=[])) == pytest.approx(2000)
    assert time_left_s(progress(budget=300, steps=slow[:1], log=[])) == pytest.approx(2990)
    assert time_left_s(progress(budget=50, steps=slow, log=[])) == 0
    assert np.isnan(time_left_s(progress(steps=[], log=[])))
    assert np.isnan(time_left_s(progress(steps=[step(NAN)], log=[])))


@pytest.mark.parametrize(
    ("time_s", "words"),
    [
        (0, "0 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (7260, "2 h 1 min"),
        (90061, "1 d 1 h"),
        (3601, "1 h"),
    ],
)
def test_durations_have_their_two_largest_units(time_s, words):
    assert duration_text(time_s) == words


def test_examples_have_a_row_per_modality_with_text_alternatives_and_their_dice():
    html = page(progress(examples=[an_example()]))
    alternatives = re.findall(r'<img [^>]*alt="([^"]*)"', html)
    kinds = ("without outlines", "outlines of reference", "outlines of prediction")
    assert alternatives == [f"study-1, {name}, {kind}" for name in ("FLAIR", "T1c") for kind in kinds]
    assert "Dice of the whole study: ET 0.250, WT 0.750" in text_of(html)
    sources = re.findall(r'<img src="([^"]*)" width="(\d+)" height="(\d+)"', html)
    assert len({uri for uri, _, _ in sources}) == 6
    assert all(uri.startswith("data:image/png;base64,") for uri, _, _ in sources)
    assert all(max(int(width), int(height)) == LONGEST_EDGE_PX for _, width, height in sources)


def test_of_all_examples_the_worst_the_best_and_the_first_are_kept_and_marked():
    dice = [0.5, 0.2, 0.9, 0.1, 0.6, 0.9]
    examples = {place: an_example(f"s{place}", dice={"ET": v, "WT": v}) for place, v in enumerate(dice)}
    found = telling(examples)
    assert [(place, one.study, one.why.split(" of all")[0]) for place, one in found.items()] == [
        (3, "s3", "the lowest mean Dice"),
        (2, "s2", "the highest mean Dice"),
        (0, "s0", "the first validation study"),
    ]
    words = text_of(page(progress(examples=list(found.values()))))
    assert "s3: the lowest mean Dice of all validation studies Dice of the whole study: ET 0.100" in words


@pytest.mark.parametrize(
    ("dice", "expected"),
    [
        ([], []),
        ([0.3], [""]),
        ([0.3, 0.4], ["s0", "s1"]),
        ([0.0, 0.0, 0.0], ["s0", "s1"]),
        ([0.9, 0.5, 0.1], ["s2", "s0"]),
    ],
)
def test_the_first_study_may_be_the_best_or_the_worst_and_no_study_is_shown_twice(dice, expected):
    examples = {place: an_example(f"s{place}", dice={"WT": v}) for place, v in enumerate(dice)}
    found = list(telling(examples).values())
    assert [one.study if one.why else "" for one in found] == expected


@pytest.mark.parametrize("seed", range(5))
def test_looking_at_one_study_after_the_other_comes_to_the_same_as_at_all(seed):
    dice = np.random.default_rng(seed).integers(0, 5, 9) / 4
    examples = {place: an_example(f"s{place}", 4, dice={"WT": float(v)}) for place, v in enumerate(dice)}
    kept = {}
    for place in np.random.default_rng(seed).permutation(9).tolist():
        kept = telling(kept | {place: examples[place]})
    assert [one.study for one in kept.values()] == [one.study for one in telling(examples).values()]


def test_pixels_that_are_not_square_keep_their_shape():
    html = page(progress(examples=[an_example(pixel_mm=(2.0, 1.0))]))
    (size, *_) = re.findall(r'width="(\d+)" height="(\d+)" alt', html)
    assert size == (str(LONGEST_EDGE_PX // 2), str(LONGEST_EDGE_PX))


def volumes():
    classes = np.zeros((12, 20, 24), np.uint8)
    classes[3, 5:9, 5:9], classes[7, 4:12, 4:12] = ET, ED
    images = np.zeros((4, 12, 20, 24), np.float32)
    images[:, 3:9, 2:18, 2:22] = np.arange(1, 5)[:, None, None, None] + np.arange(3, 9)[:, None, None] / 100
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    return Volume(images, affine), Volume(classes[None], affine), Volume(np.roll(classes, 1, 2)[None], affine)


def test_an_example_is_the_slice_with_most_tumour_of_flair_and_t1c_and_keeps_nothing_else():
    volume, truth, classes = volumes()
    one = example("s", volume, truth, classes, RECIPE, {"WT": 0.5})
    assert list(one.images) == ["flair", "t1c"]
    assert np.array_equal(one.images["flair"], volume.array[RECIPE.modalities.index("flair"), 7])
    assert np.array_equal(one.truth, truth.array[0, 7])
    assert np.array_equal(one.predicted, classes.array[0, 7])
    assert one.pixel_mm == (2.0, 1.0)
    assert one.dice == {"WT": 0.5}
    assert all(part.base is None for part in (*one.images.values(), one.truth, one.predicted))


def test_an_example_without_a_tumour_is_the_middle_of_the_brain_and_other_modalities_serve():
    volume, truth, classes = volumes()
    recipe = replace(RECIPE, modalities=("t1", "t2", "pd"))
    one = example("s", Volume(volume.array[:3], volume.affine), truth.with_array(0 * truth.array), classes, recipe, {})
    assert list(one.images) == ["t1", "t2"]
    assert float(one.images["t1"].max()) == pytest.approx(1.05)
    assert page(progress(examples=[one]))


def test_a_slice_without_anything_in_it_is_still_a_picture():
    empty = np.zeros((16, 16))
    shown = an_example(images={"t2": empty}, truth=empty.astype(np.uint8), predicted=empty.astype(np.uint8), dice={})
    assert page(progress(examples=[shown])).count("<img") == 3


def test_nothing_that_is_shown_can_break_the_page_and_nothing_is_fetched():
    odd = '<script>alert("1")</script>'
    recipe = replace(RECIPE, source=odd)
    html = page(
        progress(
            recipe=recipe,
            ended=odd,
            examples=[an_example(odd, dice={odd: 0.5})],
            facts={odd: odd},
            warnings=[odd],
            written=odd,
            steps=[step(100, **{f"loss_{odd}": 1.0})],
        )
    )
    assert "<script" not in html.lower()

    class Links(HTMLParser):
        def handle_starttag(self, tag, attrs):  # noqa: ARG002
            for name, value in attrs:
                assert name not in ("src", "href") or (value or "").startswith(("data:", "#"))

    Links().feed(html)
    assert "default-src 'none'" in html


def test_facts_settings_warnings_and_the_time_of_writing_are_shown():
    words = text_of(page(progress(warnings=["the disk is full"], written="at noon")))
    for text in ("Warning the disk is full", "Written at noon", "Seed 3", "Network attention_resunet"):
        assert text in words
    assert str(escape(RECIPE.source)) in words


def test_regions_have_the_colours_of_their_outlines():
    html = page(progress(examples=[an_example()]))
    for region, colour in pictures.REGION_COLOURS.items():
        assert f'style="background:{pictures.hexadecimal(colour)}"></span> <b>{region}</b>' in html
