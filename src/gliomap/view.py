"""gliomap view: studies and segmentations in the browser, at full resolution, served to this machine alone."""

import secrets
import socketserver
import threading
import webbrowser
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from gliomap.data.datasets import parse_labels
from gliomap.data.examinations import Examination, find_examinations, read_examination
from gliomap.errors import InputError, UsageError
from gliomap.report.examination import examination_report
from gliomap.report.study import served_study
from gliomap.report.study_list import ListedStudy, study_list_page

HOST = "127.0.0.1"
HOST_NAMES = (HOST, "localhost")
"""What a browser that means this machine calls it; a page of another name may not read (DNS rebinding)."""
STUDIES_KEPT = 2
"""A page and its volumes are made when they are first asked for, and those of so many studies are kept."""
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class ViewOptions:
    """What `view` is asked for.

    ``studies`` are studies' folders, folders of studies, outputs of `gliomap segment` or label maps. ``port`` 0 is any that is
    free. ``labels`` says what label values mean where no record does.
    """

    studies: tuple[Path, ...]
    port: int = 0
    browser: bool = True
    labels: str | None = None


class File(NamedTuple):
    """What is answered."""

    kind: str
    content: bytes


def view(options: ViewOptions, ready: Callable[[str], None], trouble: Callable[[str], None]) -> None:
    """Serve the studies until Ctrl-C; ``ready`` is told the address, ``trouble`` what a study cannot be shown for.

    Raises:
        UsageError: the port is taken, or there is no such convention.
        InputError: a path holds no study, or the only study cannot be shown.
    """
    labels = parse_labels(options.labels)
    find = files_of([one for path in options.studies for one in find_examinations(path, labels)], trouble)
    find("")  # what is wrong with the only study is told before a browser opens
    token = secrets.token_urlsafe(16)
    try:
        server = LoopbackServer((HOST, options.port), handler(token, find))
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen on port {options.port} of {HOST}: {error}; leave out --port") from error
    with server:
        address = f"http://{HOST}:{server.server_address[1]}/{token}/"
        try:
            ready(address)
            if options.browser:
                # a browser of the terminal does not come back before it is left, and must be answered
                threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
            server.serve_forever()
        except KeyboardInterrupt:
            return


def files_of(studies: list[Examination], trouble: Callable[[str], None]) -> Callable[[str], File | None]:
    """What answers an address: the page of the only study, or the list of several, below it their pages and volumes."""
    lock = threading.Lock()

    @lru_cache(maxsize=STUDIES_KEPT)
    def made(number: int) -> tuple[str, Mapping[str, bytes]]:
        study = studies[number]
        return served_study(examination_report(study.study.id, read_examination(study)), "volumes")

    def find(place: str) -> File | None:
        number, below = 0, place
        if len(studies) > 1:
            if not place:
                return _html(study_list_page([_listed(study) for study in studies]))
            name, _, below = place.partition("/")
            if not name.isdecimal() or not 1 <= int(name) <= len(studies) or place == name:
                return None
            number = int(name) - 1
        with lock:  # a page asks for its volumes at once
            try:
                page, files = made(number)
            except InputError as error:
                if len(studies) == 1:
                    raise
                trouble(f"{studies[number].study.id}: {error}")
                return None
        return _html(page) if not below else _volume(files.get(below))

    return find


def _html(page: str) -> File:
    return File("text/html; charset=utf-8", page.encode())


def _volume(content: bytes | None) -> File | None:
    return None if content is None else File("application/octet-stream", content)


def _listed(one: Examination) -> ListedStudy:
    return ListedStudy(one.study.id, tuple(one.study.images), one.study.label is not None, one.study.layout)


class LoopbackServer(ThreadingHTTPServer):
    """Answers each request in a thread that ends with the process."""

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's would ask a name server for this machine's name
        self.server_name, self.server_port = HOST, self.server_address[1]


def handler(token: str, find: Callable[[str], File | None]) -> type[BaseHTTPRequestHandler]:
    """What answers requests: GET alone, below the token alone, of this machine's browsers alone."""
    start = f"/{token}/"

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "gliomap", ""

        def do_GET(self) -> None:
            try:
                if self.headers.get("Host", "").partition(":")[0] not in HOST_NAMES:
                    self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
                    return
                allowed = secrets.compare_digest(self.path[: len(start)].encode(), start.encode())
                found = find(self.path[len(start) :]) if allowed else None
                if found is None:
                    self.send_error(HTTPStatus.NOT_FOUND)
                    return
                self.send_response(HTTPStatus.OK)
                for name, value in HEADERS.items():
                    self.send_header(name, value)
                self.send_header("Content-Type", found.kind)
                self.send_header("Content-Length", str(len(found.content)))
                self.end_headers()
                self.wfile.write(found.content)
            except ConnectionError:
                return  # the browser left

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
            """Nothing: what is looked at is nobody's business."""

    return Handler
