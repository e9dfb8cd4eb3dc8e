import io
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from browsing import Opened, eventually, opened
from PIL import Image
from study_pages import PageReader, has_colour, phantom_report

from gliomap.classes import ED, ET, NCR
from gliomap.report import pictures
from gliomap.report.explanation import (
    AttentionMap,
    ChannelWeights,
    Check,
    Curve,
    Explanation,
    FeatureMaps,
    bar_chart,
    belief_of,
    explanation_page,
)

SHAPE = (40, 48, 44)
LIMITS = (-2.0, 6.0)
CENTRE = (20, 24, 31)
PEAK = (20, 30, 20)


def planted(value: float = 5.0) -> np.ndarray:
    """0 but in a ball in the tumour."""
    z, y, x = np.mgrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    inside = (z - CENTRE[0]) ** 2 + (y - CENTRE[1]) ** 2 + (x - CENTRE[2]) ** 2 < 36
    return np.where(inside, value, 0).astype(np.float32)


def attention(name: str, passed: bool | None = True, **changes: Any) -> AttentionMap:
    check = Check("randomised weights", 0.125, "Spearman correlation with shuffled weights.", passed)
    found = AttentionMap(name, f"What {name} means.", (5, 6, 7), planted(), LIMITS, (check,))
    return replace(found, **changes)


def explained(**changes: Any) -> Explanation:
    found = Explanation(
        study=phantom_report(warnings=("only the first network",), card={"recipe": "attention <u>"}),
        maps=(attention("AG_1"), attention("AG_2", passed=False), attention("SAM_ET", passed=None, checks=())),
    )
    return replace(found, **changes)


def words(page: str) -> str:
    return " ".join(PageReader(page).text.split())


def test_page_begins_with_what_can_be_believed():
    text = words(explanation_page(explained()))
    assert "1 of 2 maps passed every test with randomised weights" in text
    assert "Do not believe AG_2" in text
    assert "Not tested: SAM_ET" in text
    assert text.index("1 of 2 maps") < text.index("only the first network") < text.index("What AG_1 means")
    untested = explained(maps=(attention("AG_1", checks=()),))
    assert "none can be believed" in words(explanation_page(untested))
    belief = belief_of(explained(channels=(ChannelWeights("SE", "", np.ones(2), attention("").checks),)))
    assert belief == (["AG_1", "SE"], ["AG_2"], ["SAM_ET"])
    both = (*attention("").checks, Check("more than randomised", 0.0, "Ahead of shuffled weights.", False))
    assert belief_of(explained(maps=(attention("AG_1", checks=both),))).failed == ["AG_1"]


def test_cards_say_meaning_size_scale_and_verdicts_in_words():
    checks = (
        Check("randomised weights", 0.125, "First definition.", True),
        Check("deletion", 0.25, "Second definition.", False),
        Check("inside the reference WT", None, "Third definition.", None),
    )
    page = explanation_page(explained(maps=(attention("AG_1", checks=checks),)))
    text = words(page[page.index('<section id="maps"') :])
    expected = (
        "AG_1",
        "What AG_1 means.",
        "Own size 5 \u00d7 6 \u00d7 7",
        "-2",
        "6",
        "First definition. 0.125 ✓ passed",
    )
    for said in (*expected, "Second definition. 0.25 ✗ not passed", "Third definition. not computed \u2013 no verdict"):
        assert said in text, said
    assert "linear-gradient(90deg, #440154" in page


def test_pictures_have_the_maps_colours_over_the_brain_and_the_tumours_outline():
    report = phantom_report()
    below = attention("AG_1", values=np.zeros(SHAPE, np.float32))
    reader = PageReader(explanation_page(explained(maps=(below, attention("AG_2", values=planted(9.0))))))
    low, high = (reader.picture(name, "in colours from -2 to 6 over FLAIR", "axial") for name in ("AG_1", "AG_2"))
    assert low.shape == high.shape
    assert has_colour(low[70:-30], (255, 255, 255)).sum() > 50  # the outline, not the letters
    differ = (low != high).any(axis=-1)
    assert 0 < differ.mean() < 0.2  # where the ball is, and nowhere else
    colours = pictures.map_colours().astype(int)
    assert (high[differ].mean(axis=0)[1] - low[differ].mean(axis=0)[1]) > 0.5 * (colours[-1] - colours[round(254 / 4)])[
        1
    ]
    corner = high[40:60, :20]
    assert (corner == corner[..., :1]).all()  # no colour where there is no brain
    assert report.images[3, 0, 0, 0] == 0


def test_class_maps_stand_beside_the_reference_or_the_segmentation():
    maps = tuple(attention(name) for name in ("SAM_NCR", "SAM_ED", "SAM_ET"))
    for truth, title in ((None, "Segmentation"), (phantom_report().classes, "Reference")):
        page = explanation_page(explained(study=phantom_report(truth=truth), maps=maps))
        section = page[page.index('<section id="classes"') : page.index('<section id="facts"')]
        reader = PageReader(section)
        names = [alt.split(",")[0] for alt, _ in reader.images]
        assert names == ["SAM_NCR", "SAM_ED", "SAM_ET", title]
        assert all(has_colour(reader.images[-1][1], pictures.CLASS_COLOURS[c]).any() for c in (NCR, ED, ET))
    assert '<section id="classes"' not in explanation_page(explained(maps=(attention("AG_1"),)))


def test_features_before_and_after_have_one_scale_and_one_slice():
    brain = phantom_report().images[3] != 0
    ramp = np.linspace(1, 10, SHAPE[2]) * brain
    page = explanation_page(explained(features=(FeatureMaps("SAM", ramp, ramp / 4),)))
    section = page[page.index('<section id="features"') : page.index('<section id="facts"')]
    before, after = (pixels for _, pixels in PageReader(section).images)
    assert before.shape == after.shape
    assert before[..., 0].max() > 230  # its highest values are yellow
    assert section.count('class="scale"') == 1
    settings = page[page.index("data-settings") :]
    limits = re.findall(r'"limits": \[([^\]]*)\], "title": "SAM (?:before|after)"', settings)
    assert len(limits) == 2
    assert limits[0] == limits[1]
    yellow = (after[..., 0] > 200) & (after[..., 2] < 150)
    assert not yellow[30:-20].any()


def test_bars_and_curves_are_drawn_and_described():
    weights = ChannelWeights("SE_1", "How much.", np.array([0.25, 1.0, 0.5]))
    shares = ChannelWeights("modalities", "Which.", np.array([0.3, 0.7]), (), ("T1", "FLAIR"))
    curve = Curve("AG_1", "deletion", (0.0, 0.5, 1.0), (0.9, 0.2, 0.1), (0.9, 0.6, 0.1))
    confidence = ((0.0, 0.1, 0.02), (0.1, 0.5, 0.03), (0.5, 0.9, 0.05), (0.9, 1.0, 0.9))
    page = explanation_page(explained(channels=(weights, shares), curves=(curve,), confidence=confidence))
    assert "1: 0.25; 2: 1; 3: 0.5" in page
    assert "T1: 0.3; FLAIR: 0.7" in page
    assert "AG_1: 0.1 after 100, from 0.1 to 0.9" in page
    assert "0.9 to 1: 90" in page
    assert "taken away first" in page
    assert page.count('role="img" viewBox') == 4


def test_bars_begin_at_zero_and_are_as_long_as_their_values():
    drawn = bar_chart("weights", np.array([1.0, -0.5, 0.0, 2.0]), ("a", "b", "c", "d<"))
    bars = re.findall(r'class="bar" x="([\d.]*)" y="([\d.]*)" width="[\d.]*" height="([\d.]*)"', drawn)
    x, y, height = np.array(bars, float).T
    assert (np.diff(x) > 0).all()
    assert np.allclose(height[[1, 3]] / height[0], [0.5, 2], atol=0.02)
    zero = y[0] + height[0]
    assert np.allclose([y[1], y[3] + height[3]], zero, atol=0.11)
    low, high = (
        float(h) for h in re.findall(r'class="bar".*?height="([\d.]*)"', bar_chart("", np.array([1.0, 2.0]), "ab"))
    )
    assert high / low == pytest.approx(2, abs=0.02)
    assert "d&lt;" in drawn
    assert "d<" not in drawn
    many = bar_chart("many", np.arange(500.0), [str(i) for i in range(500)])
    assert many.count('class="bar"') == 500
    assert many.count('class="tick"') < 20
    assert "500 values, mean 249.5, lowest 0 (0), highest 499 (499)" in many
    assert "no value" in bar_chart("none", np.empty(0), ())


def test_everything_from_outside_is_escaped():
    attack = "<script>alert(1)</script>"
    check = Check(attack, 1.0, attack, True)
    page = explanation_page(
        Explanation(
            study=phantom_report(study=attack, facts={attack: attack}, warnings=(attack,), card={attack: attack}),
            maps=(attention(attack, meaning=attack, checks=(check,)),),
            channels=(ChannelWeights(attack, attack, np.ones(2), (check,), (attack, attack)),),
            curves=(Curve(attack, attack, (0.0, 1.0), (1.0, 0.0), (1.0, 0.0)),),
            features=(FeatureMaps(attack, planted(), planted()),),
        )
    )
    assert "<script>alert" not in page.lower()
    assert page.count("&lt;script&gt;alert(1)") > 12


def test_maps_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"AG_1 is .* expected the grid"):
        explanation_page(explained(maps=(attention("AG_1", values=np.zeros((2, 3, 4), np.float32)),)))
    with pytest.raises(ValueError, match="a name of its own"):
        explanation_page(explained(maps=(attention("AG_1"), attention("AG_1"))))


@pytest.fixture(scope="module")
def page(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    path = tmp_path_factory.mktemp("page") / "explanation.html"
    values = planted()
    values[PEAK] = 6
    html = explanation_page(explained(maps=(attention("AG_1"), attention("AG_2", values=values))))
    found = opened(browser, path, html)
    found.page.select_option("select[name=view]", "AXIAL")
    yield found
    assert found.complaints == []
    assert found.requests == [path.as_uri()]
    found.page.context.close()


def test_a_card_shows_its_map_in_the_viewer_with_the_planted_value(page):
    colour = tuple(pictures.map_colours()[round(254 * 7 / 8)].tolist())
    page.page.fill("input[name=opacity]", "100")
    without = page.pixels()
    assert page.amount(colour) < 1e-4
    page.page.click("#maps button >> nth=1")
    eventually(lambda: page.amount(colour) > 0.003)
    assert np.abs(page.pixels() - without).mean() > 1
    assert page.page.locator("select[name=overlay] option:checked").inner_text() == "AG_2"
    eventually(lambda: page.at("map") == "6" and page.at("slices") == "axial 21, coronal 31, sagittal 21")
    for _ in range(CENTRE[2] - PEAK[2]):
        page.page.keyboard.press("ArrowLeft")
    for _ in range(PEAK[1] - CENTRE[1]):
        page.page.keyboard.press("ArrowDown")
    eventually(lambda: page.at("slices") == "axial 21, coronal 25, sagittal 32")
    eventually(lambda: float(page.at("map")) == pytest.approx(5, abs=4 / 254))
    background = page.amount(tuple(pictures.map_colours()[round(254 / 4)].tolist()))
    assert background > 0.1  # 0 is above the threshold at first
    page.page.fill("input[name=threshold]", "50")
    eventually(lambda: page.amount(tuple(pictures.map_colours()[round(254 / 4)].tolist())) < 0.01)
    assert page.amount(colour) > 0.003
    page.page.fill("input[name=threshold]", "95")
    eventually(lambda: page.amount(colour) < 1e-4)


def test_page_prints_its_pictures_without_the_viewer(page):
    page.page.emulate_media(media="print")
    assert not page.page.locator("#viewer").is_visible()
    assert page.page.locator("#maps img").first.is_visible()
    shot = page.page.locator("#maps img").first.screenshot()
    assert np.ptp(np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int), axis=-1).max() > 60
    page.page.emulate_media(media="screen")
