from pathlib import Path

import pytest

from gliomap import view as module
from gliomap.cli.view import view
from gliomap.view import ViewOptions


def test_options_are_passed_on_and_the_address_is_printed(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    asked: list[ViewOptions] = []

    def served(options: ViewOptions, ready, trouble) -> None:
        asked.append(options)
        ready("http://127.0.0.1:1/token/")
        trouble("a study: why")

    monkeypatch.setattr(module, "view", served)
    view([Path("a"), Path("b")], port=8000, no_browser=True, labels="msd")
    assert asked == [ViewOptions((Path("a"), Path("b")), 8000, False, "msd")]
    assert capsys.readouterr().out.splitlines() == [
        "http://127.0.0.1:1/token/", "Ctrl-C ends it.", "not shown: a study: why"
    ]  # fmt: skip
    view([Path("a")])
    assert asked[1] == ViewOptions((Path("a"),), 0, True, None)
