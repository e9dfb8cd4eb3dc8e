import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from study_pages import SPACING_MM, PageReader, has_colour, phantom_report

from gliomap.classes import ED, ET, NCR, RC
from gliomap.report import pictures
from gliomap.report.lesion_table import find_lesions
from gliomap.report.study import LONGEST_EDGE_PX, study_page, volumes_of


@cache
def phantom_page() -> str:
    return study_page(phantom_report())


def test_everything_from_outside_is_escaped():
    attack = "<script>alert(1)</script>"
    page = study_page(
        phantom_report(
            study=attack,
            modalities=(attack, '"><script>', "t2", "flair"),
            facts={attack: attack},
            warnings=(attack,),
            volumes_ml={"ET": 1.0, attack: 2.0},
            scores=({"region": attack, "metric": attack, "value": attack, "unit": attack, "definition": attack},),
            uncertainty={attack: np.zeros((40, 48, 44))},
            card={attack: attack, "data": {attack: [attack] * 9}},
        )
    )
    assert "<script>alert" not in page.lower()
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 10
    assert attack in PageReader(page).text


def test_page_is_one_file_without_links_to_anywhere():
    page = phantom_page()
    page = page[: page.index("<script")] + "".join(PageReader(page).scripts[:-2])  # NiiVue's has addresses in comments
    targets = re.findall(r"""(?:src|href|srcset|action)\s*=\s*["']([^"']*)|url\(([^)]*)""", page)
    assert len(targets) > 20
    assert all(attribute.startswith(("data:image/png;base64,", "#")) and not url for attribute, url in targets)
    assert not re.search("://|@import", page)
    assert "default-src 'none'; img-src data:;" in page


def test_bright_and_labelled_voxels_at_the_right_anterior_superior_corner():
    report = phantom_report()
    images = report.images.copy()
    images[3][images[3] != 0] = 50
    images[3, 24:28, 34:38, 30:34] = 1000
    classes = np.zeros_like(report.classes)
    classes[26, 36, 32] = ET
    reader = PageReader(study_page(replace(report, images=images, classes=classes)))
    for plane in pictures.AXES:
        picture = reader.picture("FLAIR", plane, "with the segmentation")
        rows, columns = np.nonzero(has_colour(picture, pictures.CLASS_COLOURS[ET]))
        assert rows.mean() < picture.shape[0] / 2
        assert columns.mean() < picture.shape[1] / 2
    bright = np.argwhere(reader.picture("FLAIR", "without overlay").min(axis=-1)[40:-20] > 250)  # not letters, not bar
    assert 0 < bright[:, 1].mean() < picture.shape[1] / 2


def test_thick_slices_keep_the_shape_of_the_head():
    report = phantom_report()
    cube = PageReader(phantom_page()).picture("FLAIR", "coronal")
    thick = replace(report, images=report.images[:, ::4], classes=report.classes[::4], spacing_mm=(8.0, 2.0, 2.0))
    reader = PageReader(study_page(thick))
    ratios = [picture.shape[0] / picture.shape[1] for picture in (cube, reader.picture("FLAIR", "coronal"))]
    assert ratios[1] == pytest.approx(ratios[0], rel=0.15)
    assert max(max(pixels.shape) for _, pixels in reader.images) == LONGEST_EDGE_PX


def test_pictures_are_cropped_to_the_brain():
    report = phantom_report()
    pad = ((0, 0), (30, 30), (30, 30), (30, 30))
    padded = replace(report, images=np.pad(report.images, pad), classes=np.pad(report.classes, pad[1:]))
    assert (PageReader(study_page(padded)).picture("T2", "axial").max(axis=-1) > 0).mean() > 0.5


def test_labels_outside_the_brain_are_still_shown():
    report = phantom_report()
    images = np.pad(report.images, ((0, 0), (0, 40), (0, 0), (0, 0)))
    classes = np.zeros(images.shape[1:], np.uint8)
    classes[70:73, 5:9, 5:9] = ET
    reader = PageReader(study_page(replace(report, images=images, classes=classes)))
    assert has_colour(reader.picture("FLAIR", "with the segmentation"), pictures.CLASS_COLOURS[ET]).any()


def test_legend_has_the_colours_of_the_pictures():
    reader = PageReader(phantom_page())
    drawn = reader.picture("T2", "with the segmentation")
    for number in (ET, ED, NCR):
        colour = pictures.CLASS_COLOURS[number]
        assert has_colour(drawn, colour).any()
        assert pictures.hexadecimal(colour) in reader.colours
    plain = reader.picture("T2", "without overlay")
    assert (plain == plain[..., :1]).all()
    cavity = pictures.CLASS_COLOURS[RC]
    assert pictures.hexadecimal(cavity) not in reader.colours
    report = phantom_report()
    reader = PageReader(study_page(replace(report, classes=np.where(report.classes == NCR, RC, report.classes))))
    assert has_colour(reader.picture("T2", "with the segmentation"), cavity).any()
    assert pictures.hexadecimal(cavity) in reader.colours


def test_all_modalities_planes_and_a_strip_are_shown():
    reader = PageReader(phantom_page())
    alts = [alt for alt, _ in reader.images]
    for modality in ("T1,", "T1c,", "T2,", "FLAIR,"):
        assert any(alt.startswith(modality) and "without overlay" in alt for alt in alts)
        assert any(alt.startswith(modality) and "with the segmentation" in alt for alt in alts)
    for modality in ("T1c", "FLAIR"):
        assert all(any(alt.startswith(f"{modality}, {plane} slice") for alt in alts) for plane in pictures.AXES)
    assert len({alt for alt in alts if alt.startswith("FLAIR, axial slice")}) >= 9


@pytest.mark.parametrize("with_truth", [False, True])
def test_empty_segmentation_says_so(with_truth):
    empty, zeros = np.zeros((40, 48, 44), np.uint8), {"ET": 0.0, "TC": 0.0, "WT": 0.0}
    truth = empty if with_truth else None
    reader = PageReader(study_page(phantom_report(classes=empty, volumes_ml=zeros, truth=truth)))
    assert "No tumour was found" in reader.text
    assert any("Reference" in alt for alt, _ in reader.images) == with_truth
    assert all((pixels == pixels[..., :1]).all() for _, pixels in reader.images)
    assert "No tumour was found" not in phantom_page()


@pytest.mark.parametrize("value", [0, 9])
def test_constant_image_of_another_name(value):
    constant = np.full((1, 40, 48, 44), value)
    reader = PageReader(study_page(phantom_report(images=constant, modalities=("ct",))))
    assert len(reader.images) > 10
    assert all(alt.startswith("ct,") for alt, _ in reader.images)


def test_volumes_are_printed_regions_first():
    report = phantom_report(volumes_ml={"NCR": 11.111, "ED": 0.004, "ET": 12.344, "TC": float("nan"), "WT": 1234.567})
    text = " ".join(PageReader(study_page(report)).text.split())
    positions = [text.index(word) for word in ("12.34", "1234.57", "11.11", "< 0.01")]
    assert positions == sorted(positions)
    assert "not known" in text
    assert text.index("Enhancing tumour") < text.index("Tumour core") < text.index("Whole tumour")


def test_differences_from_the_reference_are_coloured():
    report = phantom_report()
    truth = np.roll(report.classes, 4, axis=1)  # the reference lies farther anterior
    reader = PageReader(study_page(replace(report, truth=truth)))
    picture = reader.picture("WT differences")
    rows = {name: np.nonzero(has_colour(picture, colour))[0] for name, colour in pictures.DIFFERENCE_COLOURS.items()}
    assert 0 < rows["false negative"].mean() < rows["false positive"].mean()  # no such voxel: a warning, so an error
    assert {pictures.hexadecimal(colour) for colour in pictures.DIFFERENCE_COLOURS.values()} <= reader.colours
    assert "Reference, ml" in reader.text
    assert "differences" not in " ".join(alt for alt, _ in PageReader(phantom_page()).images)


def test_perfect_segmentation_has_no_differences():
    report = phantom_report()
    reader = PageReader(study_page(replace(report, truth=report.classes)))
    for name in ("false positive", "false negative"):
        assert not has_colour(reader.picture("WT differences"), pictures.DIFFERENCE_COLOURS[name]).any()
    assert sum("WT differences" in alt for alt, _ in reader.images) == 1


def test_images_without_a_label_map_are_no_study_without_a_tumour():
    empty = np.zeros((40, 48, 44), np.uint8)
    text = " ".join(PageReader(study_page(phantom_report(classes=empty, volumes_ml={}))).text.split())
    assert "There is no label map: these are the images alone. The pictures show axial slice" in text
    assert "No tumour was found" not in text
    assert "not known" not in text


def test_volumes_of_counts_voxels_once():
    classes = np.array([[[NCR, ED, ET, ET, RC, 0]]], np.uint8)
    volumes = volumes_of(classes, (10.0, 10.0, 5.0))
    assert volumes == {"NCR": 0.5, "ED": 0.5, "ET": 1.0, "RC": 0.5, "TC": 1.5, "WT": 2.0}


def test_warnings_scores_facts_and_research_line_are_printed():
    score = {"region": "WT", "metric": "HD95", "value": "3.16", "unit": "mm", "definition": "95th percentile"}
    page = study_page(phantom_report(warnings=("labels were guessed",), scores=(score,)))
    text = PageReader(page).text
    for words in ("labels were guessed", *score.values(), "Not a medical device", "u-net <b>", "0123456789abcdef" * 4):
        assert words in text
    assert text.index("labels were guessed") < text.index("Volume, ml")
    assert "Warning" not in PageReader(phantom_page()).text


def test_images_have_alternative_text_and_tables_have_headers():
    page = study_page(phantom_report(scores=({"region": "ET", "metric": "Dice", "value": "0.9"},)))
    assert page.startswith('<!doctype html>\n<html lang="en">')
    assert len(re.findall(r"<img [^>]*alt=\"[^\"]{10,}\"", page)) == page.count("<img ")
    assert page.count("<th scope=") == page.count("<th ") + page.count("<th>")
    assert all(query in page for query in ("prefers-color-scheme: dark", "@media print"))


def test_lesions_are_listed_with_their_diameters_and_the_card_with_its_lists_folded():
    report = phantom_report(card={"patches": 3000, "validation": {"dice_ET": 0.78901}, "training_studies": ["a"] * 48})
    text = " ".join(PageReader(study_page(report)).text.split())
    assert "Lesions: 1" in text
    lesion = find_lesions(report.classes, SPACING_MM, report.regions)[1][0]
    diameters = lesion.diameters
    for words in (f"{diameters.largest_mm:.1f}", f"{diameters.perpendicular_mm:.1f}", f"{diameters.product_mm2:.0f}"):
        assert words in text[text.index("Lesions: 1") :]
    for words in ("Patches 3000", "dice ET 0.789", "Training studies 48 a, a, a"):
        assert words in text[text.index("Model card", text.index("How it was made", 500)) :]
    assert "Lesions:" not in PageReader(study_page(phantom_report(classes=np.zeros_like(report.classes)))).text


@pytest.mark.parametrize("name", ["modalities", "classes", "truth", "uncertainty"])
def test_arrays_that_do_not_fit_are_refused(name):
    wrong = ("t1",) if name == "modalities" else np.zeros((3, 4, 5), np.uint8)
    wrong = {"entropy": wrong} if name == "uncertainty" else wrong
    with pytest.raises(ValueError, match="expected"):
        study_page(phantom_report(**{name: wrong}))
