"""A small study as a page shows it, and what a test asks of the page."""

import base64
import io
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from gliomap.classes import ED, ET, NCR
from gliomap.report.study import StudyReport

SPACING_MM = (1.0, 1.0, 1.0)


def phantom_report(**changes) -> StudyReport:
    """A brain (an ellipsoid) with a tumour at the patient's right, and all that a page needs."""
    z, y, x = np.mgrid[-1:1:40j, -1:1:48j, -1:1:44j]
    brain = (z**2 + y**2 + x**2) < 0.8
    images = np.stack([np.where(brain, mean + 50 * x, 0) for mean in (100, 120, 140, 160)])
    radius = np.sqrt(z**2 + y**2 + (x - 0.45) ** 2)
    classes = np.select([radius < 0.12, radius < 0.2, radius < 0.33], [NCR, ET, ED], 0).astype(np.uint8)
    report = StudyReport(
        study="phantom-1",
        modalities=("t1", "t1c", "t2", "flair"),
        images=images,
        classes=classes,
        spacing_mm=SPACING_MM,
        volumes_ml={"ET": 12.345, "TC": 23.456, "WT": 45.678, "NCR": 11.111, "ED": 22.222},
        facts={"Model sha256": "0123456789abcdef" * 4, "Recipe": "u-net <b>"},
    )
    return replace(report, **changes)


class PageReader(HTMLParser):
    """Collects what the tests ask about: pictures by alt text, colours of swatches, visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.images: list[tuple[str, np.ndarray]] = []
        self.colours: set[str] = set()
        self.text = ""
        self.scripts: list[str] = []
        self.hidden = False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.hidden = tag in ("style", "script")
        if tag == "img":
            png = base64.b64decode(values["src"].removeprefix("data:image/png;base64,"))
            pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
            assert pixels.shape[:2] == (int(values["height"]), int(values["width"]))
            self.images.append((values["alt"], pixels))
        if values.get("class") == "swatch":
            self.colours.add(values["style"].removeprefix("background:"))

    def handle_endtag(self, tag):
        self.hidden = self.hidden and tag not in ("style", "script")

    def handle_data(self, data):
        if self.lasttag == "script" and self.hidden:
            self.scripts.append(data)
        self.text += "" if self.hidden else f"{data} "

    def picture(self, *words: str) -> np.ndarray:
        return next(pixels for alt, pixels in self.images if all(word in alt for word in words))


def has_colour(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (picture == np.asarray(colour)).all(axis=-1)
