"""Patches of prepared studies: a pure function of (seed, sample index), cut ahead of their use."""

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from gliomap.data.prepared import LatePhantom, PreparedStudy, preparing_pool
from gliomap.recipe import Training

Array = np.ndarray[Any, np.dtype[Any]]

_SLICES = 4
_SIGN_EXPONENT_FRACTION = np.int32(-0x70002000)  # 0x8FFFE000


@dataclass(frozen=True)
class Batch:
    """Patches side by side: ``images`` (B, C, D, H, W) float32, ``classes`` (B, D, H, W) uint8, their studies' ids, and
    the generator that what else is random about each is drawn from.
    """

    images: Array
    classes: Array
    ids: list[str]
    generators: list[np.random.Generator]


@dataclass(frozen=True)
class PatchSampler:
    """Patches of prepared studies. Every pass over the studies is a new permutation of them."""

    studies: Sequence[PreparedStudy | LatePhantom]
    training: Training
    seed: int

    @property
    def ids(self) -> list[str]:
        """The ids of all studies; no phantom is grown for them."""
        return [study.id for study in self.studies]

    def batch(self, indices: Sequence[int], pool: Executor | None = None) -> Batch:
        """The samples of these numbers. Phantoms among them that are not grown yet are grown by a pool, or here.

        Raises:
            InputError: a phantom cannot be grown.
        """
        size, count = self.training.patch_size, len(indices)
        studies = [self._study(index, pool) for index in indices]
        images = np.zeros((count, len(studies[0].images), *size), np.float32)
        classes = np.zeros((count, *size), np.uint8)
        generators = [np.random.default_rng([self.seed, 2, index]) for index in indices]
        for place, (study, rng) in enumerate(zip(studies, generators, strict=True)):
            start = patch_start(study, self.training, rng)
            cut(study.images, start, images[place])
            cut(study.classes[None], start, classes[place : place + 1])
        return Batch(images, classes, [study.id for study in studies], generators)

    def _study(self, index: int, pool: Executor | None) -> PreparedStudy:
        turn, place = divmod(index, len(self.studies))
        order = np.random.default_rng([self.seed, 1, turn]).permutation(len(self.studies))
        study = self.studies[int(order[place])]
        return study.prepared(pool) if isinstance(study, LatePhantom) else study


def batches(sampler: PatchSampler, samples: Iterable[Sequence[int]], workers: int = 0) -> Generator[Batch, None, None]:
    """The batches of these sample numbers, in their order and the same for any number of ``workers``.

    With workers, twice as many batches are cut ahead by threads, and the phantoms in them are grown by processes; without,
    each when it is asked for. Closing the generator ends them.

    Raises:
        InputError: a phantom cannot be grown, or a process that grew one was killed.
    """
    if workers < 1:
        yield from map(sampler.batch, samples)
        return
    waiting: deque[Future[Batch]] = deque()
    late = sum(isinstance(study, LatePhantom) and not study.grown for study in sampler.studies)
    with preparing_pool(min(workers, late)) if late else nullcontext() as pool:
        threads = ThreadPoolExecutor(workers)
        try:
            for indices in samples:
                waiting.append(threads.submit(sampler.batch, indices, pool))
                if len(waiting) == 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            if pool:
                pool.shutdown(wait=False, cancel_futures=True)  # so that no thread begins to grow another
            threads.shutdown(cancel_futures=True)


def patch_start(study: PreparedStudy, training: Training, rng: np.random.Generator) -> tuple[int, int, int]:
    """The first voxel of a patch: about a tumour voxel for ``foreground_share`` of the draws, else where the recipe says."""
    shape, size = study.classes.shape, training.patch_size
    if study.tumour and rng.random() < training.foreground_share:
        points = study.tumour[int(rng.integers(len(study.tumour)))]
        centre = points[int(rng.integers(len(points)))]
        wanted = [int(c) - s // 2 for c, s in zip(centre, size, strict=True)]
    else:
        wanted = [int(rng.integers(min(n - s, 0), max(n - s, 0) + 1)) for n, s in zip(shape, size, strict=True)]
        if training.patch_place == "middle":
            wanted[0] = study.middle - size[0] // 2
        elif training.patch_place == "largest_tumour":
            wanted[0] = int((study.classes > 0).sum((1, 2)).argmax()) - size[0] // 2
    d, h, w = (min(max(a, min(n - s, 0)), max(n - s, 0)) for a, n, s in zip(wanted, shape, size, strict=True))
    return d, h, w


def cut(array: Array, start: Sequence[int], out: Array) -> None:
    """Copy the window of (C, D, H, W) that begins at ``start`` into ``out``, zeros of its size, as far as there are voxels."""
    source, target = [slice(None)], [slice(None)]
    for first, length, n in zip(start, out.shape[1:], array.shape[1:], strict=True):
        low, high = max(first, 0), min(first + length, n)
        if low >= high:
            return
        source.append(slice(low, high))
        target.append(slice(low - first, high - first))
    if array.dtype == np.float16 and out.dtype == np.float32:
        _widen(array[tuple(source)], out[tuple(target)])
    else:
        out[tuple(target)] = array[tuple(source)]


def _widen(source: Array, target: Array) -> None:
    """Copy finite float16 to float32, exactly as numpy's cast does and three times as fast, which has no instruction for it.

    The bits of exponent and fraction are moved to their places; what is then 112 too low in the exponent is made up for by
    a multiplication, which is right for subnormal numbers, too.
    """
    halves, bits = source.view(np.int16), target.view(np.int32)
    for channel in range(len(target)):
        for d in range(0, target.shape[1], _SLICES):  # few enough to stay in the processor's cache
            part, values = bits[channel, d : d + _SLICES], target[channel, d : d + _SLICES]
            part[...] = halves[channel, d : d + _SLICES]
            part <<= 13
            part &= _SIGN_EXPONENT_FRACTION
            values *= np.float32(2.0**112)
