import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from browsing import Opened, chromium, eventually
from studies import brain_images, loose_study, nested_tumour, save, write_study

from gliomap import view as module
from gliomap.errors import InputError, UsageError
from gliomap.report.pictures import REGION_COLOURS
from gliomap.view import ViewOptions, view

PATIENCE_S = 120
LABELS = np.array([0, 1, 2, 4], np.uint8)[nested_tumour()]
PROGRAM = """
import sys
from pathlib import Path
from gliomap.view import ViewOptions, view
view(ViewOptions((Path(sys.argv[1]),), browser=False), lambda address: print(address, flush=True), print)
print("ended")
"""


class Running(NamedTuple):
    """A server in this process, which a test asks over a real socket."""

    address: str
    troubles: list[str]

    @property
    def port(self) -> int:
        return int(self.address.split("/")[2].rpartition(":")[2])

    @property
    def start(self) -> str:
        return "/" + self.address.split("/", 3)[3]

    def ask(self, path: str, host: str = "127.0.0.1:1", verb: str = "GET") -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        connection.putrequest(verb, path, skip_host=True)
        connection.putheader("Host", host)
        connection.endheaders()
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content, dict(answer.getheaders())


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Begins servers in threads, and ends them."""
    servers: list[Any] = []
    threads: list[threading.Thread] = []

    class Server(module.LoopbackServer):
        def server_activate(self) -> None:
            super().server_activate()
            servers.append(self)

    monkeypatch.setattr(module, "LoopbackServer", Server)

    def start(*paths: Path, **options: Any) -> Running:
        ready, addresses, troubles = threading.Event(), list[str](), list[str]()

        def told(address: str) -> None:
            addresses.append(address)
            ready.set()

        asked = ViewOptions(paths, **{"browser": False} | options)
        threads.append(threading.Thread(target=view, args=(asked, told, troubles.append), daemon=True))
        threads[-1].start()
        assert ready.wait(PATIENCE_S)
        return Running(addresses[0], troubles)

    yield start
    for server in servers:
        server.shutdown()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_page_and_its_volumes_are_served_below_the_token_alone(tmp_path: Path, serve: Any) -> None:
    write_study(tmp_path, "brats2021", "BraTS2021_00001")
    one = serve(tmp_path / "BraTS2021_00001")
    status, page, headers = one.ask(one.start)
    assert status == 200
    assert b"BraTS2021_00001" in page
    assert str(tmp_path).encode() not in page
    assert (headers["Cache-Control"], headers["Referrer-Policy"]) == ("no-store", "no-referrer")
    assert "Python" not in headers["Server"]
    for name in ("0-classes", *(f"0-image-{number}" for number in range(4))):
        status, content, headers = one.ask(f"{one.start}volumes/{name}")
        assert (status, headers["Content-Type"]) == (200, "application/octet-stream")
        assert content
    token = one.start.strip("/")
    assert len(token) >= 20
    seg = f"{tmp_path}/BraTS2021_00001/BraTS2021_00001_seg.nii.gz"
    for path in (
        "/", "", "/volumes/0-classes", f"/{token[:-1]}/", f"/{token.swapcase()}/", f"/{token}x/", f"{one.start}volumes/1-classes",
        f"{one.start}../{token}/", f"{one.start}{seg}", f"{one.start}/../../../../etc/passwd", f"{one.start}?a",
    ):  # fmt: skip
        assert one.ask(path)[0] in (400, 404), path
    assert serve(tmp_path / "BraTS2021_00001").start != one.start


def test_other_hosts_and_other_verbs_are_refused(tmp_path: Path, serve: Any) -> None:
    one = serve(save(tmp_path / "BraTS2021_00001_seg.nii.gz", LABELS))
    for host, status in (
        ("localhost:80", 200),
        ("127.0.0.1", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example:1", 421),
        ("", 421),
    ):
        assert one.ask(one.start, host)[0] == status, host
    for verb in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS"):
        assert one.ask(one.start, verb=verb)[0] == 501
    listening = socket.create_connection(("127.0.0.1", one.port))
    listening.close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", one.port), timeout=PATIENCE_S)


def test_several_studies_have_a_list_and_one_that_is_broken_costs_no_other(tmp_path: Path, serve: Any) -> None:
    write_study(tmp_path / "data", "brats2021", "BraTS2021_00001")
    images = brain_images()
    images[2] = images[0]
    loose_study(tmp_path / "data" / "<b>broken", images)
    loose_study(tmp_path / "data" / "unlabelled")
    several = serve(tmp_path / "data")
    status, page, _ = several.ask(several.start)
    assert (status, page.count(b'<a href="')) == (200, 3)
    assert b"&lt;b&gt;broken" in page
    assert b"<b>broken" not in page
    answers = {number: several.ask(f"{several.start}{number}/") for number in range(5)}
    assert [answers[number][0] for number in range(5)] == [404, 404, 200, 200, 404]
    assert several.troubles == [
        "<b>broken: t1 and t2 are the same image; expected one image per modality. Give the right file for each"
    ]
    assert b"BraTS2021_00001" in answers[2][1]
    assert several.ask(f"{several.start}2/volumes/0-image-3")[0] == 200
    assert several.ask(f"{several.start}2")[0] == 404


def test_only_study_that_cannot_be_shown_and_a_taken_port_are_told_at_once(tmp_path: Path) -> None:
    images = brain_images()
    images[2] = images[0]
    loose_study(tmp_path / "broken", images)
    with pytest.raises(InputError, match="same image"):
        view(ViewOptions((tmp_path / "broken",), browser=False), print, print)
    label = save(tmp_path / "BraTS2021_00001_seg.nii.gz", LABELS)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="leave out --port"):
        view(ViewOptions((label,), port=taken.getsockname()[1], browser=False), print, print)


def test_a_browser_that_waits_to_be_answered_is_answered(
    tmp_path: Path, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[int] = []
    looked = threading.Event()

    def look(address: str) -> None:
        with urllib.request.urlopen(address, timeout=PATIENCE_S) as answer:
            answers.append(answer.status)
        looked.set()

    monkeypatch.setattr(module.webbrowser, "open", look)
    serve(save(tmp_path / "BraTS2021_00001_seg.nii.gz", LABELS), browser=True)
    assert looked.wait(PATIENCE_S)
    assert answers == [200]


def test_interrupting_ends_it_with_nothing_left(tmp_path: Path) -> None:
    label = save(tmp_path / "BraTS2021_00001_seg.nii.gz", LABELS)
    command = [sys.executable, "-c", PROGRAM, str(label)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        port = int(process.stdout.readline().split("/")[2].rpartition(":")[2])
        hanging = socket.create_connection(("127.0.0.1", port))  # a browser that says nothing
        process.send_signal(signal.SIGINT)
        told, errors = process.communicate(timeout=PATIENCE_S)
        hanging.close()
    assert (process.returncode, told.strip(), errors) == (0, "ended", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == [label.name]


def test_browser_draws_served_volumes_in_full(tmp_path: Path, serve: Any) -> None:
    write_study(tmp_path, "brats2021", "BraTS2021_00001")
    one = serve(tmp_path / "BraTS2021_00001")
    with ThreadPoolExecutor(
        1
    ) as pool:  # Playwright has one browser in a thread, and other tests have theirs in this one
        settings, requests, complaints = pool.submit(look_at, one.address).result()
    assert settings["panes"][0]["step"] == 1
    assert complaints == []
    assert set(requests) >= {one.address, f"{one.address}volumes/0-classes"}
    assert all(url.startswith(one.address) for url in requests)


def look_at(address: str) -> tuple[Any, list[str], list[str]]:
    """See that the tumour is drawn; returns the viewer's settings, what the page asked for, and what the console complained of."""
    requests: list[str] = []
    complaints: list[str] = []
    with chromium() as browser:
        page = browser.new_page()
        page.set_default_timeout(1000 * PATIENCE_S)
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address, wait_until="commit")
        page.wait_for_selector("#viewer[data-state=ready]")
        page.select_option("#viewer select[name=view]", "AXIAL")
        page.fill("#viewer input[name=opacity]", "100")
        page.wait_for_function("document.querySelector('[data-at=classes]').textContent !== ''")
        assert page.inner_text("[data-at=classes]") == "NCR, necrosis and non-enhancing core"
        found = Opened(page, requests, complaints)
        eventually(lambda: all(found.amount(colour) > 0.001 for colour in REGION_COLOURS.values()))
        assert (found.pixels().max(axis=-1) > 20).mean() > 0.1
        return json.loads(page.locator("script[data-settings=viewer]").inner_text()), requests, complaints
