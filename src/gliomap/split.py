"""gliomap split: patients into folds, written down once and used by every training."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gliomap.classes import region_mask
from gliomap.data.datasets import count_layouts, find_studies, parse_labels
from gliomap.data.folds import Patient, patient_folds
from gliomap.data.mapping import NameMapping, name_patients, named_in, read_mapping, unjoined_years
from gliomap.data.study import Study
from gliomap.errors import InputError, reason
from gliomap.files import json_bytes, sha256, write_file
from gliomap.manifest import RunRecord
from gliomap.progress import progress_bar


@dataclass(frozen=True)
class SplitOptions:
    """What `split` is asked for: the labelled studies in ``data`` into ``folds`` folds, written to ``output``.

    ``mapping``: tables of the names that one patient has in several datasets (see `read_mapping`). ``labels`` says what label
    values mean where nothing else does.
    """

    data: Path
    output: Path
    folds: int = 5
    seed: int = 0
    mapping: tuple[Path, ...] = ()
    labels: str | None = None
    quiet: bool = False


@dataclass(frozen=True)
class FoldSummary:
    """How many patients a fold has, how many of them have enhancing tumour, the median of their whole tumours, and its studies."""

    patients: int
    enhancing: int
    median_volume_ml: float
    studies: int


@dataclass(frozen=True)
class SplitResult:
    """The folds as study ids and in numbers; what was found by layout; each name mapping in a sentence; what could not be read,
    with the reason; and what is odd.
    """

    folds: list[list[str]]
    summary: list[FoldSummary]
    layouts: dict[str, int]
    mappings: list[str]
    failed: dict[str, str]
    warnings: list[str]


@dataclass(frozen=True)
class _Label:
    """What the folds take from a label map."""

    volume_ml: float
    enhancing: bool
    sha256: str


def split(options: SplitOptions) -> SplitResult:
    """Split the labelled studies of a folder into folds by patient, alike in stratum (folder), enhancement and tumour size.

    A study whose label cannot be read is in no fold, and is reported.

    Raises:
        InputError: no study has a label that can be read, a name mapping is none, or the file cannot be written.
        UsageError: there are fewer patients than folds.
    """
    record = RunRecord("split", options)
    found = find_studies(options.data, parse_labels(options.labels))
    studies = [s for s in found if s.label or s.problem]
    if not studies:
        raise InputError(f"{options.data} has no study with a label map; folds are made of labelled studies")
    mappings = [read_mapping(path, studies) for path in options.mapping]
    labels, failed, odd = _read_labels(studies, quiet=options.quiet)
    used = [s for s in studies if s.id in labels]
    patient_of = name_patients(used, mappings)
    folds = patient_folds(_patients(used, patient_of, labels), options.folds, options.seed)
    unlabelled = {s.id: "it has no label map" for s in found if not (s.label or s.problem)}
    warnings = [f"{len(unlabelled)} studies have no label map and are in no fold"] if unlabelled else []
    result = SplitResult(
        [sorted(i for patient in fold for i in patient.studies) for fold in folds],
        [_summary(fold) for fold in folds],
        count_layouts(studies),
        [_sentence(m, used) for m in mappings],
        failed,
        warnings + _mapping_warnings(mappings, used) + _patient_warnings(options, used, patient_of) + odd,
    )
    tables = [{k: v for k, v in asdict(m).items() if k != "rows"} for m in mappings]
    facts = {s.id: {"patient": patient_of[s.id], "stratum": s.stratum} | asdict(labels[s.id]) for s in used}
    told = {"folds": result.folds, "patients": patient_of, "studies": facts, "left_out": failed | unlabelled}
    told |= {"summary": asdict(result)["summary"], "mappings": tables, "warnings": result.warnings}
    write_file(options.output, json_bytes(record.content(seed=options.seed, **told)))
    return result


def _read_labels(studies: Sequence[Study], *, quiet: bool) -> tuple[dict[str, _Label], dict[str, str], list[str]]:
    """What every label says, why some cannot be read, and what is odd, each oddity once; raises InputError where none can."""
    labels: dict[str, _Label] = {}
    failed: dict[str, str] = {}
    odd: dict[str, list[str]] = defaultdict(list)
    with progress_bar("reading labels", len(studies), quiet=quiet) as bar:
        for study in studies:
            try:
                labels[study.id], texts = _read_label(study)
                for text in texts:
                    odd[text].append(study.id)
            except Exception as error:  # one bad study never ends a folder
                failed[study.id] = reason(error)
            bar.advance()
    if not labels:
        first, why = next(iter(failed.items()))
        raise InputError(f"none of the {len(studies)} labels can be read; the first, {first}: {why}")
    shown = [ids[0] if len(ids) == 1 else f"{len(ids)} studies, such as {ids[0]}" for ids in odd.values()]
    return labels, failed, [f"{who}: {text}" for who, text in zip(shown, odd, strict=True)]


def _read_label(study: Study) -> tuple[_Label, list[str]]:
    classes, _, odd = study.read_classes()
    volume_ml = float(region_mask(classes.array, "WT").sum()) * classes.voxel_ml
    enhancing = bool(region_mask(classes.array, "ET").any())
    digest = sha256(study.label.path) if study.label else ""
    return _Label(round(volume_ml, 3), enhancing, digest), odd


def _patients(studies: Sequence[Study], patient_of: Mapping[str, str], labels: Mapping[str, _Label]) -> list[Patient]:
    """Studies by patient: enhancing if any of them is, with the median of their volumes and the stratum of the first."""
    grouped: dict[str, list[Study]] = defaultdict(list)
    for study in sorted(studies, key=lambda s: s.id):
        grouped[patient_of[study.id]].append(study)
    out = []
    for name, members in grouped.items():
        known = [labels[s.id] for s in members]
        volume_ml = float(np.median([label.volume_ml for label in known]))
        ids = tuple(s.id for s in members)
        out.append(Patient(name, ids, members[0].stratum, any(label.enhancing for label in known), volume_ml))
    return out


def _summary(fold: Sequence[Patient]) -> FoldSummary:
    median = float(np.median([p.volume_ml for p in fold]))
    return FoldSummary(len(fold), sum(p.enhancing for p in fold), round(median, 3), sum(len(p.studies) for p in fold))


def _sentence(mapping: NameMapping, studies: Sequence[Study]) -> str:
    known = len(named_in(mapping, studies))
    others = f"; not for names: {', '.join(mapping.others)}" if mapping.others else ""
    return f"{mapping.path} names {known} of {len(studies)} studies, by {', '.join(mapping.columns)}{others}"


def _mapping_warnings(mappings: Sequence[NameMapping], studies: Sequence[Study]) -> list[str]:
    """Tables, or studies, that the names do not reach, and values that are no names."""
    out = []
    named: set[str] = set()
    for mapping in mappings:
        here = named_in(mapping, studies)
        named |= here
        if not here:
            out.append(f"{mapping.path} names none of the studies, so it joins nothing; is it of these datasets?")
        out += [
            f"{mapping.path} has {name!r} in {count} rows, more than a patient can have; it is not taken for a name"
            for name, count in mapping.crowded.items()
        ]
    unknown = [s.id for s in studies if s.id not in named]
    if named and unknown:
        out.append(f"{len(unknown)} studies, such as {unknown[0]}, are in no mapping; they go by their own names")
    return out


def _patient_warnings(options: SplitOptions, studies: Sequence[Study], patient_of: Mapping[str, str]) -> list[str]:
    """Patients that may be several, or that are too many studies' to be one."""
    out = []
    if not options.mapping and (years := unjoined_years(studies)):
        out.append(
            f"the studies are of {', '.join(years)}, and a patient of several years has several names; the folds may share "
            "patients unless the names are given with --mapping name_mapping.csv"
        )
    largest, count = Counter(patient_of.values()).most_common(1)[0]
    if count > 1 and count * options.folds > len(studies):
        out.append(
            f"the patient {largest} has {count} of {len(studies)} studies, more than a fold's share; is that one patient?"
        )
    return out
