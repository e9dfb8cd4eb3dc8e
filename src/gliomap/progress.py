"""Progress bars on the terminal, for whatever takes longer than two seconds."""

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
