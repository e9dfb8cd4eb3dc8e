"""Studies prepared for training: once, into the cache, by as many processes as there are workers."""

import threading
from collections import Counter
from collections.abc import Generator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import nibabel
import numpy as np
import scipy

from gliomap.classes import RC
from gliomap.data.cache import Cache, Entry, entry_key, find_cache, load, sources_sha256, store
from gliomap.data.phantoms import PhantomStudy
from gliomap.data.study import Study
from gliomap.errors import InputError, reason
from gliomap.files import sha256
from gliomap.preprocess import brain_mask, prepare, resample_classes, study_box, voxel_ratio
from gliomap.progress import progress_bar
from gliomap.recipe import Recipe
from gliomap.volume import Volume
from gliomap.workers import worker_pool

Array = np.ndarray[Any, np.dtype[Any]]

PREPARED_BY = (
    "gliomap.classes",
    "gliomap.data.cache",
    "gliomap.data.checks",
    "gliomap.data.images",
    "gliomap.data.prepared",
    "gliomap.data.study",
    "gliomap.preprocess",
    "gliomap.volume",
)
"""The modules whose text decides what a prepared study looks like."""


@dataclass(frozen=True)
class PreparedStudy:
    """One study as training reads it: ``images`` (C, D, H, W) float16, ``classes`` (D, H, W) uint8.

    ``tumour`` has, for each class present, up to 5,000 of its voxels (N, 3). ``middle`` is the index along D of the middle
    of the study's own grid, before any crop, and ``warnings`` what its checks found odd. Out of the cache the arrays are
    memory-mapped and read-only.
    """

    id: str
    images: Array
    classes: Array
    tumour: tuple[Array, ...]
    middle: int
    warnings: Sequence[str] = ()


def prepare_study(study: Study, recipe: Recipe) -> PreparedStudy:
    """Read and prepare one labelled study.

    Raises:
        InputError: the study or its label cannot be used.
    """
    volume, warnings = study.read(recipe.modalities)
    brain = Volume(brain_mask(volume)[None], volume.affine)
    labels, _, odd = study.read_classes(brain)
    box = study_box(volume, recipe.preprocessing, labels)
    ratio = voxel_ratio(volume, recipe.preprocessing)
    images = prepare(volume.crop(box), recipe, ratio)
    classes = labels.crop(box).array[0]
    middle = (volume.shape[0] - 1) // 2 - box.start[0]
    if ratio is not None:
        classes = resample_classes(classes, images.shape, ratio)
        middle = round((middle + 0.5) / ratio[0] - 0.5)
    if (classes == RC).any():
        odd = [*odd, "its resection cavity trains as background"]
    tumour = tuple(_some(np.argwhere(classes == value)) for value in np.unique(classes[classes != 0]))
    return PreparedStudy(study.id, images.array.astype(np.float16), classes, tumour, middle, [*warnings, *odd])


def inputs_sha256(study: Study) -> dict[str, str]:
    """The SHA-256 of each of a study's files, by modality and ``seg``; of a ``phantom`` that of what it follows from.

    Raises:
        OSError: a file cannot be read.
    """
    if isinstance(study, PhantomStudy):
        return {"phantom": study.content_sha256()}
    files = {m: f.path for m, f in {**study.images, "seg": study.label}.items() if f}
    known = {path: sha256(path) for path in dict.fromkeys(files.values())}  # a 4-D file has several modalities
    return {m: known[path] for m, path in files.items()}


def study_key(study: Study, recipe: Recipe, inputs: dict[str, str]) -> str:
    """The key of a prepared study: its files' content, how they are read and prepared, and the program that does it."""
    files = {**study.images, "seg": study.label}
    return entry_key(
        {
            "inputs": inputs,
            "files": {m: [f.path.suffix, f.channel] for m, f in files.items() if f and m in inputs},
            "convention": repr(study.convention),
            "modalities": recipe.modalities,
            "preprocessing": asdict(recipe.preprocessing),
            "sources": sources_sha256(PREPARED_BY),
            "versions": [np.__version__, scipy.__version__, nibabel.__version__],
        }
    )


class _Made(NamedTuple):
    """What came of preparing a study: itself, why it is not in the cache, or why it failed."""

    study: PreparedStudy | None = None
    uncached: str = ""
    failed: str = ""


@dataclass(frozen=True)
class _Job:
    """A study to prepare, the hashes of its files, and its key in the cache."""

    study: Study
    recipe: Recipe
    cache: Cache
    inputs: dict[str, str]
    key: str


def _job(study: Study, recipe: Recipe, cache: Cache) -> _Job:
    try:
        inputs = inputs_sha256(study)
    except OSError:  # reading it will say better what is wrong
        return _Job(study, recipe, Cache(None), {}, "")
    return _Job(study, recipe, cache, inputs, study_key(study, recipe, inputs))


def _load(job: _Job) -> PreparedStudy | None:
    """The study out of the cache, if it is there."""
    entry = load(job.cache, job.key)
    if entry is None:
        return None
    arrays, about = entry
    tumour = tuple(arrays[name] for name in sorted(arrays) if name.startswith("tumour"))
    return PreparedStudy(job.study.id, arrays["images"], arrays["classes"], tumour, about["middle"], about["warnings"])


def _store(job: _Job) -> _Made:
    """Prepare a study, in whichever process, and put it into the cache; it comes along only where that has no room."""
    try:
        study = prepare_study(job.study, job.recipe)
        if inputs_sha256(job.study) != job.inputs:
            raise InputError("its files changed while they were read; train again when they no longer do")
    except Exception as error:  # one bad study never ends a training
        return _Made(failed=reason(error))
    tumour = {f"tumour_{number}": points for number, points in enumerate(study.tumour)}
    arrays = {"images": study.images, "classes": study.classes, **tumour}
    uncached = store(job.cache, job.key, Entry(arrays, {"middle": study.middle, "warnings": study.warnings}))
    return _Made(study if uncached else None, uncached)


def _make(job: _Job, made: _Made) -> _Made:
    """What `_store` did, with the study; prepared again, for the memory, if another run has already pushed it out."""
    if made.study or made.failed:
        return made
    study = _load(job)
    gone = Cache(None, problem="another run has pushed them out of the cache")
    return _Made(study) if study else _store(replace(job, cache=gone))


def _make_all(jobs: Sequence[_Job], workers: int) -> Generator[_Made, None, None]:
    """What came of every job, in their order; closing it ends the processes."""
    count = min(workers, len(jobs))
    with preparing_pool(count) if count > 1 else nullcontext() as pool:
        yield from map(_make, jobs, pool.map(_store, jobs) if pool else map(_store, jobs))


class LatePhantom:
    """A phantom of a training, grown and prepared when it is first used, once, whichever thread comes first."""

    def __init__(self, job: _Job) -> None:
        self.id = job.study.id
        self._job = job
        self._lock = threading.Lock()
        self._study: PreparedStudy | None = None

    @property
    def grown(self) -> bool:
        """Whether it has been used."""
        return self._study is not None

    def prepared(self, pool: Executor | None = None) -> PreparedStudy:
        """The phantom as training reads it, grown in one of the pool's processes or in this one.

        Raises:
            InputError: it cannot be grown.
        """
        with self._lock:
            if self._study is None:
                self._study = _load(self._job) or self._grow(pool)
            return self._study

    def _grow(self, pool: Executor | None) -> PreparedStudy:
        made = _make(self._job, pool.submit(_store, self._job).result() if pool else _store(self._job))
        if made.study is None:
            raise InputError(f"the phantom {self.id} cannot be grown: {made.failed}")
        return made.study


@dataclass(frozen=True)
class PreparedStudies:
    """What a training uses: prepared studies, validation studies that can be read, and what is known of the rest.

    ``failed``: why a study is left out. ``inputs_sha256``: the hashes of the files, by study and modality.
    """

    training: list[PreparedStudy | LatePhantom]
    validation: list[Study]
    failed: dict[str, str]
    warnings: list[str]
    inputs_sha256: dict[str, dict[str, str]]


def prepare_studies(
    training: Sequence[Study], validation: Sequence[Study], recipe: Recipe, *, quiet: bool = False, workers: int = 0
) -> PreparedStudies:
    """Read all studies of a training before hours are spent on it; those that cannot be used are left out.

    What the cache does not have is prepared by ``workers`` processes, or by this one. Phantoms are not grown yet.

    Raises:
        InputError: none of the training studies can be used, or one of the processes was killed.
    """
    cache = find_cache("studies")
    found = PreparedStudies([], [], {}, [cache.problem] if cache.problem else [], {})
    uncached = Counter[str]()
    with progress_bar("reading studies", len(training) + len(validation), quiet=quiet) as bar:
        with ThreadPoolExecutor(workers or 1) as threads:
            jobs = list(threads.map(lambda study: _job(study, recipe, cache), [*training, *validation]))
        known = [LatePhantom(job) if isinstance(job.study, PhantomStudy) else _load(job) for job in jobs]
        missing = [job for job, study in zip(jobs, known, strict=True) if study is None]
        with closing(
            _make_all(missing, workers)
        ) as made:  # all was loaded before, since it pushes out what is not in use
            for number, job in enumerate(jobs):
                study = known[number]
                if study is None:
                    study, problem, failed = next(made)
                    uncached[problem] += 1
                    found.failed.update({job.study.id: failed} if failed else {})
                if study is not None:
                    _add(found, job, study, trains=number < len(training))
                bar.advance()
    if not found.training:
        first = next(iter(found.failed.values()), "none was given")
        raise InputError(f"none of the {len(training)} training studies can be used; the first: {first}")
    del uncached[""]
    if cache.folder is not None:
        found.warnings.extend(f"{n} prepared studies stay in memory: {problem}" for problem, n in uncached.items())
    return found


def _add(found: PreparedStudies, job: _Job, study: PreparedStudy | LatePhantom, *, trains: bool) -> None:
    if trains:
        found.training.append(study)
    else:
        found.validation.append(job.study)
    if isinstance(study, PreparedStudy):
        found.warnings.extend(f"{study.id}: {text}" for text in study.warnings)
    found.inputs_sha256[study.id] = job.inputs


def preparing_pool(count: int) -> AbstractContextManager[ProcessPoolExecutor]:
    """Processes that prepare studies; see `worker_pool`."""
    return worker_pool(
        count,
        "a process that prepared studies was killed, most likely for want of memory. What was finished is in the cache: run the "
        "same command again with fewer --workers",
    )


def _some(points: Array, limit: int = 5000) -> Array:
    return points[:: -(-len(points) // limit)].astype(np.int16) if len(points) else points
