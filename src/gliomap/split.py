"""gliomap split: patients into folds, written down once and used by every training."""

from dataclasses import dataclass
from pathlib import Path

from gliomap.data.datasets import count_layouts, find_studies
from gliomap.data.folds import patient_folds
from gliomap.files import json_bytes, write_file
from gliomap.manifest import RunRecord


@dataclass(frozen=True)
class SplitOptions:
    """What `split` is asked for: the labelled studies in ``data`` into ``folds`` folds, written to ``output``."""

    data: Path
    output: Path
    folds: int = 5
    seed: int = 0


@dataclass(frozen=True)
class SplitResult:
    """The folds as study ids, and what was found by layout."""

    folds: list[list[str]]
    layouts: dict[str, int]


def split(options: SplitOptions) -> SplitResult:
    """Split the labelled studies of a folder into folds by patient, each stratum (folder) spread over all folds.

    Raises:
        InputError: the folder has no studies, or the file cannot be written.
        UsageError: there are fewer patients than folds.
    """
    record = RunRecord("split", options)
    studies = [s for s in find_studies(options.data) if s.label is not None]
    folds = patient_folds(studies, options.folds, options.seed)
    write_file(options.output, json_bytes(record.content(seed=options.seed, folds=folds)))
    return SplitResult(folds, count_layouts(studies))
