import base64
import hashlib
import io
import json
import os
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from gliomap.classes import ED, ET, NCR
from gliomap.data.datasets import labelled_studies
from gliomap.errors import InputError
from gliomap.report import pictures, viewer
from gliomap.report.lesion_table import find_lesions
from gliomap.report.study import StudyReport, study_page, volumes_of

CHROMIUM = os.environ.get("GLIOMAP_CHROMIUM") or shutil.which("chromium")
ARGUMENTS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
REAL_DATA = Path(os.environ.get("GLIOMAP_REAL_DATA") or Path(__file__).parents[3] / "shared" / "data")
PATIENCE_S = 120
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
    assert viewer.embedded(noise)[0] == 1
    for limit, step in ((25_000, 2), (2_500, 3), (500, 5)):
        found, texts = viewer.embedded(noise, limit)
        assert found >= step
        assert sum(map(len, texts.values())) <= limit
        size = len(range(0, 24, found))
        assert (unpacked(texts["b"], (size, size, size)) == noise["b"][::found, ::found, ::found]).all()


def test_large_studies_keep_their_place_in_mm(monkeypatch):
    monkeypatch.setattr(viewer, "embedded", lambda volumes: (2, dict.fromkeys(volumes, "")))
    page = study_page(phantom_report())
    settings = json.loads(re.search(r'id="viewer-settings">(.*?)</script>', page)[1])
    assert len(set(settings["start"])) == 3
    expected = phantom_report().affine @ [*settings["start"], 1]
    assert np.allclose(np.array(settings["affine"]) @ [0, 0, 0, 1], expected)
    assert settings["spacing_mm"] == [4.0, 4.0, 6.0]
    assert "every\n    2. voxel in each direction" in page


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


def test_niivue_is_where_nilearn_keeps_it(monkeypatch):
    assert "Niivue" in viewer.niivue()
    viewer.niivue.cache_clear()
    monkeypatch.setattr(viewer, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="pip install 'nilearn"):
        viewer.niivue()


class Opened(NamedTuple):
    """A page in a browser, with what it asked for and what the console and the page complained of."""

    page: Any
    requests: list[str]
    complaints: list[str]

    def pixels(self) -> np.ndarray:
        """What the canvas shows, (rows, columns, 3)."""
        shot = self.page.locator("#viewer-canvas").screenshot()
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)

    def amount(self, colour: pictures.Colour) -> float:
        """The share of the canvas that is nearly of a colour."""
        return float((np.abs(self.pixels() - colour).max(axis=-1) < 24).mean())

    def at(self, name: str) -> str:
        return self.page.locator(f"#at-{name}").inner_text()

    def cell(self, table: str, row: str) -> str:
        return self.page.locator(f"{table} tr", has_text=row).first.locator("td").first.inner_text()


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium without a network."""
    if not CHROMIUM:
        pytest.skip("there is no Chromium; say where with GLIOMAP_CHROMIUM")
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


def opened(browser: Any, path: Path, html: str) -> Opened:
    path.write_text(html, "utf-8")
    page = browser.new_context(offline=True, viewport={"width": 960, "height": 600}).new_page()
    page.set_default_timeout(1000 * PATIENCE_S)
    found = Opened(page, [], [])
    page.on("request", lambda request: found.requests.append(request.url))
    page.on("console", lambda message: found.complaints.append(message.text))
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    page.goto(path.as_uri(), wait_until="commit")
    page.wait_for_selector("#viewer[data-state=ready]")
    return found


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
    phantom.page.select_option("select[name=overlay]", "entropy")
    eventually(lambda: phantom.page.locator("[data-kind=uncertainty]").is_visible())
    eventually(lambda: phantom.amount(pictures.DIFFERENCE_COLOURS["agreement"]) < 1e-4)
    coloured = np.ptp(phantom.pixels(), axis=-1) > 60
    assert coloured.mean() > 0.005
    phantom.page.select_option("select[name=overlay]", "classes")
    eventually(lambda: phantom.amount(pictures.REGION_COLOURS["WT"]) > 0.001)


def test_crosshair_tells_mm_slices_intensities_and_tissue(phantom):
    report = phantom_report()
    lesion = find_lesions(report.classes, report.spacing_mm, report.regions)[1][0]
    z, y, x = lesion.centre
    phantom.page.click("button[data-voxel]")
    place = f"axial {z + 1}, coronal {y + 1}, sagittal {x + 1}"
    eventually(lambda: phantom.at("slices") == place)
    assert phantom.at("position") == mm_text(report, (x, y, z))
    low, high = np.percentile(report.images[0][report.images[0] != 0], pictures.WINDOW_PERCENTILES)
    assert float(phantom.at("image-0")) == pytest.approx(report.images[0, z, y, x], abs=(high - low) / 254)
    assert phantom.at("classes") == "NCR, necrosis and non-enhancing core"
    assert phantom.at("entropy") == "0.00"
    assert phantom.page.evaluate("document.activeElement.id") == "viewer-canvas"
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
        reached.add(phantom.page.evaluate("document.activeElement.name || document.activeElement.id"))
    assert {"viewer-canvas", "image", "overlay", "opacity", "toggle-ET", "view", "cut"} <= reached


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
        assert page.locator("#viewer-missing").is_visible()
        assert not page.locator("#viewer-parts").is_visible()
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
    found.page.wait_for_function("document.getElementById('at-classes').textContent !== ''")
    assert found.at("classes") != "none"  # the crosshair begins in the tumour
    assert (found.complaints, len(found.requests)) == ([], 1)
    found.page.context.close()
