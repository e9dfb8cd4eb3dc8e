import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import psutil
import pytest

from gliomap.workers import worker_pool

ORPHANED = """
import os, sys
from pathlib import Path
from gliomap.workers import worker_pool
if __name__ == "__main__":
    with worker_pool(1, "killed") as pool:
        Path(sys.argv[1]).write_text(str(pool.submit(os.getpid).result()))
        os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_workers_end_with_the_process_that_began_them(tmp_path):
    script, told = tmp_path / "orphaned.py", tmp_path / "worker"
    script.write_text(ORPHANED)
    ended = subprocess.run([sys.executable, script, told], check=False)
    assert ended.returncode == -signal.SIGKILL
    worker = int(told.read_text())
    for _ in range(100):
        if not psutil.pid_exists(worker):
            break
        time.sleep(0.1)
    alive = psutil.pid_exists(worker)
    if alive:
        os.kill(worker, signal.SIGKILL)
    assert not alive


def test_workers_leave_ctrl_c_to_the_process_that_began_them(monkeypatch):
    begun = []

    class Watched(ProcessPoolExecutor):
        def submit(self, *task):
            begun.append(signal.getsignal(signal.SIGINT))
            return super().submit(*task)

    monkeypatch.setattr("gliomap.workers.ProcessPoolExecutor", Watched)
    with worker_pool(1, "killed") as pool:
        assert begun == [signal.SIG_IGN]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert pool.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN
