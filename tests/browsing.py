"""Pages in a headless Chromium without a network, for the tests of what they draw."""

import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from gliomap.report import pictures

CHROMIUM = os.environ.get("GLIOMAP_CHROMIUM") or shutil.which("chromium")
ARGUMENTS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
PATIENCE_S = 120


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser; a test that needs it is skipped where there is none."""
    if not CHROMIUM:
        pytest.skip("there is no Chromium; say where with GLIOMAP_CHROMIUM")
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield found
        found.close()


class Opened(NamedTuple):
    """A page in a browser, with what it asked for and what the console and the page complained of."""

    page: Any
    requests: list[str]
    complaints: list[str]

    def pixels(self) -> np.ndarray:
        """What the canvas shows, (rows, columns, 3)."""
        shot = self.page.locator("#viewer canvas").first.screenshot()
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)

    def amount(self, colour: pictures.Colour) -> float:
        """The share of the canvas that is nearly of a colour."""
        return float((np.abs(self.pixels() - colour).max(axis=-1) < 24).mean())

    def at(self, name: str, pane: int = 0) -> str:
        return self.page.locator(f'#viewer [data-at="{name}"][data-pane="{pane}"]').inner_text()

    def cell(self, table: str, row: str) -> str:
        return self.page.locator(f"{table} tr", has_text=row).first.locator("td").first.inner_text()


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


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
