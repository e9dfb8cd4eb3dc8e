"""One training in several processes: on the GPUs or CPUs of a machine, or of several machines."""

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.utilities.rank_zero import rank_zero_only
from torch import nn

from gliomap.errors import UsageError
from gliomap.machine import cores
from gliomap.networks import Network
from gliomap.recipe import Training

PRECISIONS = ("auto", "32-true", "bf16-mixed")
PATIENCE = timedelta(days=1)
"""How long processes wait for one that reads studies or validates; a process that ends takes the others with it at once."""

T = TypeVar("T")


@cache
def start_processes(device: torch.device, count: int = 1, precision: str = "auto") -> Fabric:
    """The processes of a training, once for each program: those that torchrun or SLURM has started, else ``count`` of them.

    Each other one runs the command line of this one again. ``precision`` is one of `PRECISIONS`; ``auto`` computes in bfloat16
    on a GPU that can, with weights and losses in float32, and in float32 on a CPU.

    Raises:
        UsageError: there is no such precision, or several processes cannot train on such a device.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"no precision is called {precision!r}; expected one of {', '.join(PRECISIONS)}")
    half = precision == "bf16-mixed"
    if precision == "auto":
        half = device.type == "cuda" and torch.cuda.is_bf16_supported()
    outer = _outer_processes()
    here, machines = outer or (count, 1)
    if count not in (1, here * machines):
        raise UsageError(
            f"--processes {count} has no meaning under torchrun or srun, which has started {here * machines}; leave it out"
        )
    if here * machines > 1 and device.type not in ("cpu", "cuda"):
        raise UsageError(f"several processes can train on cpu or cuda; got {device.type}")
    fabric = Fabric(
        accelerator=device.type,
        strategy=DDPStrategy(timeout=PATIENCE) if here * machines > 1 else "auto",
        devices=here,
        num_nodes=machines,
        precision="bf16-mixed" if half else "32-true",
        plugins=None if outer else LightningEnvironment(),
    )
    fabric.launch()
    if outer is None and fabric.local_rank:
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    return fabric


def _outer_processes() -> tuple[int, int] | None:
    """Processes on each machine and machines, where something else has started them."""
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        return here, int(os.environ["WORLD_SIZE"]) // here
    by_srun = {"SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"} <= os.environ.keys()
    if by_srun:  # without it there is one process, whatever was allocated
        machines = int(os.environ.get("SLURM_NNODES", "1"))
        return int(os.environ["SLURM_NTASKS"]) // machines, machines
    return None


def _end_with(parent: int) -> None:
    """End this process when the one that has started it is gone, whatever it waits for."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def is_first_process() -> bool:
    """Whether this process is the one of a training that writes and prints."""
    return getattr(rank_zero_only, "rank", 0) in (0, None)


def threads_of_each(fabric: Fabric) -> int:
    """How many threads a process computes with, where nobody says: OMP_NUM_THREADS, or its share of the cores."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return (
        int(told) if told.isdecimal() and int(told) else max(cores() // getattr(fabric.strategy, "num_processes", 1), 1)
    )


@contextmanager
def reproducible(threads: int, *, deterministic: bool) -> Iterator[None]:
    """Compute with so many threads and, if asked for, only by algorithms whose results never differ between runs.

    Raises:
        UsageError: torch has no such algorithm for something on this device.
    """
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if deterministic and "deterministic" in str(error):
            raise UsageError(
                f"--deterministic is not possible here: {str(error).splitlines()[0]} Train on the CPU, or without it"
            ) from error
        raise
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


def share_of_batch(training: Training, processes: int) -> int:
    """How many patches of every batch a process sees.

    Raises:
        UsageError: the batch cannot be divided equally among the processes and the parts.
    """
    parts = processes * training.accumulation
    if training.batch_size % parts:
        legal = -(-training.batch_size // parts) * parts
        raise UsageError(
            f"training.batch_size is {training.batch_size} and cannot be divided equally into {training.accumulation} parts in "
            f"each of {processes} processes; set it to a multiple of {parts}, such as {legal}"
        )
    return training.batch_size // processes


def with_joint_norms(network: Network, fabric: Fabric) -> Network:
    """A network whose BatchNorm, on several GPUs, takes its statistics over all of them; on CPUs each process takes its own."""
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        return cast(Network, nn.SyncBatchNorm.convert_sync_batchnorm(network))
    return network


def own_share(items: Sequence[T], fabric: Fabric) -> list[tuple[int, T]]:
    """The items that are this process's, with their places among all: each is one process's and no other's."""
    return list(enumerate(items))[fabric.global_rank :: fabric.world_size]


def mean_of_all(values: Mapping[str, float], fabric: Fabric) -> dict[str, float]:
    """Numbers by name in the mean over the processes, which is not finite where one of them is not."""
    if fabric.world_size == 1:
        return dict(values)
    joint: Any = fabric.all_reduce(torch.tensor(list(values.values()), dtype=torch.float64), reduce_op="mean")
    return dict(zip(values, joint.tolist(), strict=True))


def gathered(rows: Mapping[int, Sequence[float]], count: int, fabric: Fabric) -> list[list[float]]:
    """Rows of equally many numbers by place, of which each process has some: all ``count`` of them, in all processes."""
    found: list[Any] = [rows]
    if fabric.world_size > 1:
        found = [None] * fabric.world_size
        torch.distributed.all_gather_object(found, dict(rows))
    joint = {place: list(row) for part in found for place, row in part.items()}
    return [joint[place] for place in range(count)]
