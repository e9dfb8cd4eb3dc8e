import base64
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import PATIENCE_S, Opened, eventually, opened

from gliomap.classes import ED, ET, NCR
from gliomap.data.datasets import labelled_studies
from gliomap.errors import InputError
from gliomap.report import pictures, viewer
from gliomap.report.lesion_table import find_lesions
from gliomap.report.study import StudyReport, layers_of, scene_of, served_study, study_page, template, volumes_of

REAL_DATA = Path(os.environ.get("GLIOMAP_REAL_DATA") or Path(__file__).parents[3] / "shared" / "data")
STUDY = "<script>document.title = 'run'</script>"


def phantom_report() -> StudyReport:
    """A brain with a tumour, two modalities that look different, a grid that does not start at 0 mm."""
    z, y, x = np.mgrid[-1:1:40j, -1:1:48j, -1:1:44j]
    brain = (z**2 + y**2 + x**2) < 0.8
    images = np.stack([np.where(brain, 100 + 90 * x, 0), np.where(brain, 500 - 300 * y, 0)])
    radius = np.sqrt(z**2 + y**2 + (x - 0.45) ** 2)
    classes = np.select([radius < 0.12, radius < 0.2, radius < 0.33], [NCR, ET, ED], 0).astype(np.uint8)
    air = ((12, 0), (8, 0), (5, 0))  # another width on each axis: the viewer shows the brain's box
    images, classes = np.pad(images, ((0, 0), *air)), np.pad(classes, air)
    affine = np.array([[2.0, 0, 0, -30], [0, 2, 0, -60], [0, 0, 3, 10], [0, 0, 0, 1]])
    volumes_ml = {name: ml for name, ml in volumes_of(classes, (3.0, 2.0, 2.0)).items() if name != "RC"}
    return StudyReport(
        study=STUDY,
        modalities=("t1c", "flair"),
        images=images,
        classes=classes,
        spacing_mm=(3.0, 2.0, 2.0),
        volumes_ml={name: volumes_ml[name] for name in ("ET", "TC", "WT", "NCR", "ED")},
        facts={"Model sha256": "0123456789abcdef" * 4},
        truth=np.roll(classes, 3, axis=1),
        affine=affine,
        uncertainty={"entropy": np.where(classes == ED, 0.6, 0.0)},
    )


def unpacked(text: str, shape: tuple[int, ...]) -> np.ndarray:
    differences = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    return np.cumsum(differences, dtype=np.uint8).reshape(shape)


def test_packed_volumes_come_back():
    volume = np.random.default_rng(0).integers(0, 256, (5, 6, 7), np.uint8)
    assert (unpacked(viewer.packed(volume[::2, ::2, ::2]), (3, 3, 4)) == volume[::2, ::2, ::2]).all()


def test_voxels_are_left_out_only_where_the_volumes_are_too_large():
    noise = {name: np.random.default_rng(0).integers(0, 256, (24, 24, 24), np.uint8) for name in "ab"}
    assert viewer.embedded(noise, {}).step == 1
    for limit, step in ((25_000, 2), (2_500, 3), (500, 5)):
        found = viewer.embedded(noise, {}, limit)
        assert found.step >= step
        assert sum(map(len, found.texts.values())) <= limit
        assert_thinned(found.texts["b"], noise["b"], found.step)


def test_maps_become_coarser_before_the_images_do():
    volumes = {name: np.random.default_rng(0).integers(0, 256, (24, 24, 24), np.uint8) for name in "ab"}
    image, shown = {"a": volumes["a"]}, {"b": volumes["b"]}
    whole = len(viewer.packed(volumes["a"]))
    steps = []
    for limit in (2.5 * whole, 1.2 * whole, 1.08 * whole, 0.2 * whole):
        found = viewer.embedded(image, shown, int(limit))
        steps.append((found.step, found.map_step))
        assert sum(map(len, found.texts.values())) <= limit
        assert_thinned(found.texts["a"], volumes["a"], found.step)
        assert_thinned(found.texts["b"], volumes["b"], found.map_step)
    assert steps == [(1, 1), (1, 2), (1, 3), (2, 4)]


def assert_thinned(text: str, volume: np.ndarray, step: int) -> None:
    thinned = volume[::step, ::step, ::step]
    assert (unpacked(text, thinned.shape) == thinned).all()


def test_large_studies_keep_their_place_in_mm(monkeypatch):
    monkeypatch.setattr(viewer, "embedded", lambda volumes, _: viewer.Embedded(2, 6, dict.fromkeys(volumes, "")))
    page = study_page(phantom_report())
    settings = json.loads(re.search(r'data-settings="viewer">(.*?)</script>', page)[1])["panes"][0]
    assert len(set(settings["start"])) == 3
    expected = phantom_report().affine @ [*settings["start"], 1]
    assert np.allclose(np.array(settings["affine"]) @ [0, 0, 0, 1], expected)
    assert settings["spacing_mm"] == [4.0, 4.0, 6.0]
    assert settings["coarser"] == 3
    assert "has every 2. voxel in each direction" in page
    assert "Maps have every 6. voxel" in page


def test_only_the_scripts_of_the_page_run():
    page = study_page(phantom_report())
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    assert len(scripts) == 2
    assert re.findall(r"'sha256-([^']*)'", policy) == digests
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe-eval" not in policy
    assert "script-src 'unsafe-inline'" not in policy
    assert viewer._inlined("'</script>' '<!--'") == r"'<\/script>' '<\!--'"


def test_served_study_has_its_volumes_beside_it_in_full():
    report = phantom_report()
    page, files = served_study(report, "volumes")
    assert set(files) == {f"volumes/0-{name}" for name in ("image-0", "image-1", "classes", "truth", "map-0")}
    assert "text/plain" not in page
    assert "; connect-src 'self'" in page
    box = scene_of(report).box
    classes = unpacked(base64.b64encode(files["volumes/0-classes"]), report.classes[box].shape)
    assert (classes == report.classes[box]).all()
    assert "connect-src" not in study_page(report)


def test_niivue_is_where_nilearn_keeps_it(monkeypatch):
    assert "Niivue" in viewer.niivue()
    viewer.niivue.cache_clear()
    monkeypatch.setattr(viewer, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="pip install 'nilearn"):
        viewer.niivue()


@pytest.fixture(scope="module")
def phantom(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    path = tmp_path_factory.mktemp("page") / "report.html"
    found = opened(browser, path, study_page(phantom_report()))
    found.page.select_option("select[name=view]", "AXIAL")  # the 3-D view takes a processor long to draw
    found.page.fill("input[name=opacity]", "100")
    yield found
    assert found.complaints == []
    assert found.requests == [path.as_uri()]
    found.page.context.close()


def test_regions_are_drawn_and_can_be_switched_off(phantom):
    colours = pictures.REGION_COLOURS
    eventually(lambda: all(phantom.amount(colour) > 0.001 for colour in colours.values()))
    assert (phantom.pixels().max(axis=-1) > 20).mean() > 0.1
    core = phantom.amount(colours["TC"])
    phantom.page.uncheck("input[name=toggle-ET]")
    eventually(lambda: phantom.amount(colours["ET"]) < 1e-4)
    assert phantom.amount(colours["TC"]) > 1.5 * core  # what was ET is still in TC
    phantom.page.check("input[name=toggle-ET]")
    phantom.page.uncheck("input[name=toggle-WT]")
    eventually(lambda: phantom.amount(colours["WT"]) < 1e-4 < phantom.amount(colours["ET"]))
    phantom.page.check("input[name=toggle-WT]")


def test_modalities_are_switched(phantom):
    flair = phantom.pixels()
    phantom.page.check("input[name=image] >> nth=0")
    eventually(lambda: np.abs(phantom.pixels() - flair).mean() > 5)
    phantom.page.check("input[name=image] >> nth=1")
    eventually(lambda: np.abs(phantom.pixels() - flair).mean() < 1)


def test_differences_and_uncertainty_are_shown_with_their_legends(phantom):
    phantom.page.select_option("select[name=overlay]", "difference-WT")
    eventually(lambda: all(phantom.amount(colour) > 0.001 for colour in pictures.DIFFERENCE_COLOURS.values()))
    assert phantom.page.locator("[data-kind=difference]").is_visible()
    assert not phantom.page.locator("[data-kind=classes]").is_visible()
    phantom.page.select_option("select[name=overlay]", label="Uncertainty: entropy")
    assert phantom.page.locator("div[data-kind=map]").is_visible()
    entropy = tuple(pictures.map_colours()[round(254 * 0.6)].tolist())
    eventually(lambda: phantom.amount(entropy) > 0.005)
    phantom.page.fill("input[name=threshold]", "70")
    assert phantom.page.locator("[data-scale=hidden]").inner_text() == "0.7008"
    eventually(lambda: phantom.amount(entropy) < 1e-4)
    phantom.page.fill("input[name=threshold]", "20")
    eventually(lambda: phantom.amount(entropy) > 0.005)
    phantom.page.select_option("select[name=overlay]", "classes")
    eventually(lambda: phantom.amount(pictures.REGION_COLOURS["WT"]) > 0.001)


def test_crosshair_tells_mm_slices_intensities_and_tissue(phantom):
    report = phantom_report()
    lesion = find_lesions(report.classes, report.spacing_mm, report.regions)[1][0]
    z, y, x = lesion.centre
    phantom.page.click("button[data-voxel]")
    place = f"axial {z + 1}, coronal {y + 1}, sagittal {x + 1}"
    eventually(lambda: phantom.at("slices") == place and phantom.at("image-0"))
    assert phantom.at("position") == mm_text(report, (x, y, z))
    low, high = np.percentile(report.images[0][report.images[0] != 0], pictures.WINDOW_PERCENTILES)
    assert float(phantom.at("image-0")) == pytest.approx(report.images[0, z, y, x], abs=(high - low) / 254)
    assert phantom.at("classes") == "NCR, necrosis and non-enhancing core"
    assert phantom.page.evaluate("document.activeElement.tagName") == "CANVAS"
    phantom.page.keyboard.press("ArrowLeft")  # the viewer's left is the patient's right
    phantom.page.keyboard.press("PageUp")
    phantom.page.keyboard.press("ArrowUp")
    eventually(lambda: phantom.at("slices") == f"axial {z + 2}, coronal {y + 2}, sagittal {x + 2}")
    assert phantom.at("position") == mm_text(report, (x + 1, y + 1, z + 1))


def mm_text(report: StudyReport, voxel: tuple[int, int, int]) -> str:
    mm = report.affine @ [*voxel, 1]
    sides = zip(("LR", "PA", "IS"), mm, strict=False)
    return "  ".join(f"{letters[int(value >= 0)]} {abs(value):.1f}" for letters, value in sides)


def test_page_is_read_as_text_and_reached_by_keyboard(phantom):
    assert phantom.page.locator("h1").inner_text() == STUDY
    assert phantom.page.title() != "run"
    volumes_ml = phantom_report().volumes_ml
    for row, region in (("Whole tumour", "WT"), ("Enhancing tumour", "ET")):
        assert phantom.cell("#volumes", row) == f"{volumes_ml[region]:.2f}"
    phantom.page.focus("nav a >> nth=0")
    reached = set()
    for _ in range(30):
        phantom.page.keyboard.press("Tab")
        reached.add(phantom.page.evaluate("document.activeElement.name || document.activeElement.tagName"))
    assert {"CANVAS", "image", "overlay", "opacity", "toggle-ET", "view", "cut"} <= reached


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ viewer.policy }}">
{% import "viewer.html.j2" as viewer_html %}<style>{{ viewer_html.style() }}</style>
{{ viewer_html.parts(viewer) }}{{ viewer_html.parts(second) }}
{{ viewer_html.data(viewer) }}{{ viewer_html.data(second) }}{{ viewer_html.scripts(viewer) }}</html>"""


def pane_of(report: StudyReport, title: str, maps: tuple[viewer.ScalarMap, ...] = ()) -> viewer.Layers:
    scene = scene_of(report)
    return layers_of(scene, 0, pictures.choose_slices(report.classes, scene.box, report.spacing_mm).centre, maps, title)


def test_served_panes_beside_each_other_have_one_crosshair_where_their_grid_is_one(browser):
    """Two panes of one grid, one of another without the map, and a second viewer; every volume is fetched."""
    report = replace(phantom_report(), truth=None)
    other = replace(
        report, images=report.images[:, :-4], classes=np.roll(report.classes, -4, axis=0)[:-4], uncertainty={}
    )
    shown = (viewer.ScalarMap("A_1", np.where(report.classes == NCR, 3.0, -1.0), (-1.0, 4.0)),)
    panes = [pane_of(report, "<b>one", shown), pane_of(report, "two", shown), pane_of(other, "three")]
    first = viewer.viewer_of(panes, address="volumes/0")
    second = viewer.viewer_of(panes[:1], name="second", address="volumes/1")
    assert (first.volumes, first.step) == ({}, 1)
    answers = first.files | second.files
    html = template("study.html.j2").environment.from_string(PAGE).render(viewer=first, second=second)

    def answer(route: Any) -> None:
        name = route.request.url.removeprefix("http://viewer.test/token/")
        found.requests.append(name)
        body = html.encode() if name == "" else answers.get(name)
        kind = "text/html" if name == "" else "application/octet-stream"
        route.fulfill(status=404 if body is None else 200, body=body or b"", content_type=kind)

    page = browser.new_context(viewport={"width": 960, "height": 600}).new_page()
    page.set_default_timeout(1000 * PATIENCE_S)
    page.route("**/*", answer)
    found = Opened(page, [], [])
    page.on("console", lambda message: found.complaints.append(message.text))
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    page.goto("http://viewer.test/token/")
    page.wait_for_selector("#second[data-state=ready]")
    page.wait_for_selector("#viewer[data-state=ready]")
    assert page.locator("#viewer canvas").count() == 3
    assert page.locator("#viewer figcaption").all_inner_texts() == ["<b>one", "two", "three"]
    eventually(lambda: (found.pixels().max(axis=-1) > 20).mean() > 0.1)
    page.select_option("#viewer select[name=overlay]", label="A_1")
    eventually(lambda: found.at("map", 1) == "2.996")  # to 1/254 of its scale
    assert found.at("map", 2) == ""
    before = found.at("slices", 2)
    page.locator("#viewer canvas").first.focus()
    page.keyboard.press("PageUp")
    eventually(lambda: found.at("slices", 0) == found.at("slices", 1) != before)
    assert found.at("slices", 2) == before
    assert set(found.requests) <= {"", *answers}
    assert found.complaints == []
    del answers["volumes/1/0-map-0"]
    page.select_option("#second select[name=overlay]", label="A_1")
    eventually(lambda: page.locator("#second .trouble").is_visible())
    assert not page.locator("#viewer .trouble").is_visible()
    page.context.close()


def test_without_javascript_or_webgl_the_pictures_remain(browser, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(study_page(phantom_report()), "utf-8")
    for options, script in (
        ({"java_script_enabled": False}, ""),
        ({}, "HTMLCanvasElement.prototype.getContext = () => null"),
    ):
        context = browser.new_context(offline=True, **options)
        context.add_init_script(script)
        page = context.new_page()
        page.goto(path.as_uri())
        assert page.locator("#viewer .missing").is_visible()
        assert not page.locator("#viewer .parts").is_visible()
        assert not page.locator("button[data-voxel]").first.is_visible()
        assert page.locator("#pictures img").count() > 10
        context.close()


def test_page_of_a_real_study_opens(browser, tmp_path):
    folder = REAL_DATA / "brats2021"
    if not folder.is_dir():
        pytest.skip("the real studies brats2021 are not there; say where with GLIOMAP_REAL_DATA")
    study = labelled_studies(folder, None)[0]
    volume = study.read(("t1c", "flair"))[0]
    classes = study.read_classes(volume)[0].array[0]
    report = replace(
        phantom_report(),
        images=volume.array,
        classes=classes,
        truth=None,
        uncertainty={},
        spacing_mm=volume.spacing_mm,
        affine=volume.affine,
        volumes_ml=volumes_of(classes, volume.spacing_mm),
    )
    found = opened(browser, tmp_path / "report.html", study_page(report))
    shown = found.pixels()
    assert (shown.max(axis=-1) > 20).mean() > 0.1
    assert (np.ptp(shown, axis=-1) > 60).mean() > 0.005
    eventually(lambda: found.at("classes"))
    assert found.at("classes") != "none"  # the crosshair begins in the tumour
    assert (found.complaints, len(found.requests)) == ([], 1)
    found.page.context.close()
