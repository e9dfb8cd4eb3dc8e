"""A Ray cluster that does the work of a run: one function of one item, on any of its machines."""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from gliomap import __version__
from gliomap.errors import InputError, import_extra

Item = TypeVar("Item")
Result = TypeVar("Result")

RETRIES = 3
"""How often an item is given to another machine after the one that had it died."""
_AHEAD = 2
"""Items that each place of the cluster has been given, the one it works at included."""

_kept: dict[Any, Any] = {}


def on_cluster(
    address: str, function: Callable[[Any, Item], Result], shared: Any, items: Sequence[Item]
) -> Iterator[tuple[Item, Result | Exception]]:
    """Each item with what ``function(shared, item)`` made of it on a machine of the cluster, as they are done.

    ``function`` is one of gliomap's; what is ``shared`` goes to each machine once. The machines have this version of gliomap,
    and the files under the same paths. An item whose machine dies is done on another; an error comes in place of a result.

    Raises:
        UsageError: Ray is not installed.
        InputError: no cluster answers at the address.
    """
    with _connected(address) as ray:
        asked = ray.put((function, shared, os.getcwd(), __version__))
        cores = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
        each = min((count for count in cores if count), default=1)  # a machine is shared by as many as are smaller
        remote = ray.remote(num_cpus=each, max_retries=RETRIES)(_there)
        waiting, running = iter(items), {}
        while True:
            for item in waiting:
                running[remote.remote(asked, item)] = item
                if len(running) >= _AHEAD * max(sum(cores) // each, 1):
                    break
            if not running:
                return
            for done in ray.wait(list(running))[0]:
                yield running.pop(done), _result(ray, done)


def kept(key: Any, make: Callable[[], Result]) -> Result:
    """What a process of the cluster makes once and keeps for its next items, such as an engine; the last one only."""
    if key not in _kept:
        _kept.clear()
        _kept[key] = make()
    return _kept[key]


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # no telemetry
    ray = import_extra("ray", "cluster")
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"no Ray cluster can be used at {address!r} ({str(error).splitlines()[0]}); begin one with: ray start --head "
            "--disable-usage-stats, and give the address that it prints"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _result(ray: Any, done: Any) -> Any:
    try:
        return ray.get(done)
    except ray.exceptions.RayError as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return InputError(f"the machines that worked at it died, {RETRIES + 1} times: {why}")


def _there(asked: tuple[Callable[[Any, Any], Any], Any, str, str], item: Any) -> Any:
    """What the function makes of an item, or the error, on the machine that was chosen."""
    function, shared, folder, version = asked
    try:
        if version != __version__:
            raise InputError(f"{socket.gethostname()} has gliomap {__version__}; expected {version}, as here")
        if not Path(folder).is_dir():
            raise InputError(
                f"{socket.gethostname()} has no folder {folder}; a cluster needs files under the same paths"
            )
        os.chdir(folder)  # paths are as they were given here
        return function(shared, item)
    except Exception as error:  # one bad item never ends a run
        return error
