"""What runs long: progress bars on the terminal, and a way to be stopped that loses nothing."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


class Bar:
    """One running bar: `advance` it by the amount done, `say` what is happening."""

    def __init__(self, progress: Progress, total: float, description: str) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=total)

    def advance(self, amount: float = 1) -> None:
        """Move the bar on."""
        self._progress.advance(self._task, amount)

    def say(self, description: str) -> None:
        """Change the text beside the bar."""
        self._progress.update(self._task, description=description)


@contextmanager
def progress_bar(description: str, total: float, *, quiet: bool = False) -> Iterator[Bar]:
    """A bar on standard error that disappears when done; nothing if ``quiet`` or not on a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        yield Bar(progress, total, description)


@contextmanager
def interruptible(stop: threading.Event) -> Iterator[None]:
    """Ctrl-C sets ``stop``, so that the step at hand can end and what is saved is whole; a second one leaves at once."""

    def press(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():  # only the main thread is told of Ctrl-C
        yield
        return
    previous = signal.signal(signal.SIGINT, press)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
