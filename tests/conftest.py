"""One thread per test process: the suite runs two at once on two cores, and more threads only wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
