"""How large a study's page is, how long it takes to make, and how long until its viewer can be used, in headless Chromium.

Run: ``python benchmarks/viewer.py [STUDIES] [--studies 3]`` in gliomap's environment with Playwright; Chromium is the one of
``GLIOMAP_CHROMIUM`` or of the path. STUDIES is a folder of labelled studies; without it one phantom of 240x240x155 is made.
The network is blocked, and a request other than for the page itself, or any message on the console, ends the benchmark.
Without a graphics card Chromium draws with SwiftShader, on the processor: a slow case.

Times in s, medians: ``page`` to make the HTML text, ``ready`` from opening the file until everything is drawn and can be
used, ``processor`` what the browser's processes used until then, ``modality`` and ``region`` from a click until the canvas
is drawn anew. Where the processor draws, the 3-D view waits until it is asked for. The last line is the worst size and the
worst time to readiness.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Browser, Page, sync_playwright

from gliomap.data.datasets import labelled_studies
from gliomap.data.study import Study
from gliomap.phantom import PhantomOptions, phantom
from gliomap.report.study import StudyReport, study_page, volumes_of

MODALITIES = ("t1", "t1c", "t2", "flair")
ARGUMENTS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
DRAWN = """async () => { await new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn)));
  const gl = document.querySelector("#viewer canvas").getContext("webgl2");
  gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4)); }"""
"""Waits for the next frame, and until all that was asked of WebGL is done."""


def report_of(study: Study) -> StudyReport:
    """A page with all that one can have: a segmentation that differs from the reference, and an uncertainty map."""
    volume = study.read(MODALITIES)[0]
    truth = study.read_classes(volume)[0].array[0]
    classes = np.roll(truth, 2, axis=1)
    return StudyReport(
        study=study.id,
        modalities=MODALITIES,
        images=volume.array,
        classes=classes,
        spacing_mm=volume.spacing_mm,
        volumes_ml=volumes_of(classes, volume.spacing_mm),
        facts={},
        truth=truth,
        affine=volume.affine,
        uncertainty={"entropy": np.where(classes != truth, 0.7, 0.1) * (classes > 0)},
    )


def processor_s(browser: Browser) -> float:
    """What the browser's processes have used."""
    session = browser.new_browser_cdp_session()
    processes = session.send("SystemInfo.getProcessInfo")["processInfo"]
    session.detach()
    return sum(process["cpuTime"] for process in processes)


def opened(browser: Browser, path: Path) -> tuple[Page, float, float]:
    """Open a page in a new window; returns the seconds until its viewer is ready, and those of the processors."""
    page = browser.new_context(offline=True, viewport={"width": 1280, "height": 720}).new_page()
    page.set_default_timeout(180_000)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if request.url != path.as_uri() else None)
    before_s = processor_s(browser)
    page.goto(path.as_uri(), wait_until="commit")
    page.wait_for_selector("#viewer[data-state=ready]")
    page.evaluate(DRAWN)
    if complaints:
        raise SystemExit(f"{path}: {complaints}")
    return page, page.evaluate("performance.now()") / 1000, processor_s(browser) - before_s


def timed(page: Page, selector: str) -> float:
    start = time.perf_counter()
    page.click(selector)
    page.evaluate(DRAWN)
    return time.perf_counter() - start


def measured(browser: Browser, study: Study, folder: Path, rounds: int) -> dict[str, float]:
    report = report_of(study)
    start = time.perf_counter()
    content = study_page(report).encode()
    made_s = time.perf_counter() - start
    path = folder / "report.html"
    path.write_bytes(content)
    each: dict[str, list[float]] = {"ready": [], "processor": [], "modality": [], "region": []}
    for _ in range(rounds):
        page, ready_s, used_s = opened(browser, path)
        each["ready"].append(ready_s)
        each["processor"].append(used_s)
        each["modality"].append(timed(page, "input[name=image] >> nth=1"))
        each["region"].append(timed(page, "input[name=toggle-ET]"))
        page.context.close()
    return {"MB": len(content) / 1e6, "page": made_s} | {name: statistics.median(s) for name, s in each.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--studies", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    chromium = os.environ.get("GLIOMAP_CHROMIUM") or shutil.which("chromium")
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, sync_playwright() as driver:
        if asked.folder is None:
            phantom(PhantomOptions(Path(name, "phantom"), studies=1, quiet=True))
        browser = driver.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        for study in labelled_studies(asked.folder or Path(name, "phantom"), None)[: asked.studies]:
            results.append(measured(browser, study, Path(name), asked.rounds))
            print(study.id, ", ".join(f"{key} {value:.2f}" for key, value in results[-1].items()), flush=True)
        browser.close()
    print(f"worst: {max(r['MB'] for r in results):.1f} MB, ready after {max(r['ready'] for r in results):.2f} s")


if __name__ == "__main__":
    main()
