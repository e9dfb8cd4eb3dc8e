"""Other processes that do a part of the work, and end with this one."""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process

from gliomap.errors import InputError


@contextmanager
def worker_pool(count: int, killed: str) -> Iterator[ProcessPoolExecutor]:
    """Processes that leave Ctrl-C to this one and end with it, whatever ends it.

    Raises:
        InputError: one of them was killed; ``killed`` says which they were and what to do.
    """
    pool = ProcessPoolExecutor(count, get_context("spawn"), _begin)
    try:
        with _deaf_children():
            for _ in range(count):
                pool.submit(os.getpid)  # begins a process
        yield pool
    except BrokenProcessPool as error:
        raise InputError(f"{killed}. In a script of your own, call gliomap below: if __name__ == '__main__'") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that are begun inside do not hear Ctrl-C from the start; this one does again afterwards."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread is told of Ctrl-C
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
