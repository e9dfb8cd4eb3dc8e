"""gliomap segment: studies in; label maps, volumes and a report out."""

import glob
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gliomap import __version__
from gliomap.cluster import on_cluster
from gliomap.data.datasets import count_layouts, find_studies, parse_labels, study_from_files
from gliomap.data.study import Study
from gliomap.engines import model_segmenter
from gliomap.errors import InputError, Interrupted, UsageError, reason
from gliomap.files import json_bytes, read_json, sha256, write_files
from gliomap.manifest import RunRecord, plain
from gliomap.model_file import Model, default_model, load_model
from gliomap.progress import Bar, progress_bar
from gliomap.rows import Row, read_rows, rows_csv
from gliomap.segmenter import Segmenter
from gliomap.segmenting import (
    FILES,
    Asked,
    ReadStudy,
    SegmentedStudy,
    SegmentOptions,
    StudyResult,
    build_segmenter,
    known_labels,
    material_options,
    read_study,
    segment_elsewhere,
    segment_study,
    study_files,
    study_inputs,
    without_surroundings,
)

TABLES = ("scores.csv", "volumes.csv")


@dataclass(frozen=True)
class SegmentResult:
    """What `segment` did: the studies that are done, those that failed with the reason, and where everything is.

    ``continued`` of those that are done were finished before; ``again`` are those that had results which this run could not
    keep, with the reason.
    """

    done: list[StudyResult]
    failed: dict[str, str]
    output: Path
    layouts: dict[str, int]
    continued: int
    again: dict[str, str]


def segment(options: SegmentOptions) -> SegmentResult:
    """Segment one study or a folder of studies.

    A single study's files go to ``output`` itself, those of a folder of studies to ``output/ID``; ``run.json`` records all.
    While one study is computed, the next is read and the last is written. With ``resume`` a study is left out if its record
    says that this version made its files of the same inputs with the same model and options, and all are as they were written.

    Raises:
        UsageError: neither a folder nor files, or no model.
        InputError: the only study cannot be used; then nothing is written.
        IntegrityError: the model file is not what it says.
        Interrupted: somebody pressed Ctrl-C; what was finished is kept.
    """
    record = RunRecord("segment", options)
    studies = _find(options)
    path = options.model or default_model()
    single = len(studies) == 1 and _is_study_folder(studies[0], options)
    asked = Asked(load_model(path), sha256(path), options, single)
    kept, again = _finished_before(studies, asked) if options.resume else ({}, {})
    outcomes: dict[str, StudyResult | Exception] = {**kept}
    interrupted = False
    left = [study for study in studies if study.id not in kept]
    with progress_bar("segmenting", len(studies), quiet=options.quiet) as bar:
        bar.advance(len(kept))
        try:
            for study, outcome in _outcomes(left, asked, bar):
                outcomes[study.id] = outcome
                bar.advance()
        except KeyboardInterrupt:
            interrupted = True
    found = [(study.id, outcomes[study.id]) for study in studies if study.id in outcomes]
    done = [outcome for _, outcome in found if isinstance(outcome, StudyResult)]
    failed = {study: outcome for study, outcome in found if isinstance(outcome, Exception)}
    if not done:
        raise _nothing_done(failed, len(studies), asked)
    reasons = {study: reason(error) for study, error in failed.items()}
    result = SegmentResult(done, reasons, options.output, count_layouts(studies), len(kept), again)
    if not asked.single:
        _write_summary(record, asked, result)
    if interrupted:
        raise Interrupted(
            f"interrupted; {len(done)} of {len(studies)} studies are done and recorded in {options.output}; "
            "--continue does the others"
        )
    return result


def _outcomes(studies: Sequence[Study], asked: Asked, bar: Bar) -> Iterator[tuple[Study, StudyResult | Exception]]:
    if not studies:
        return iter(())
    if asked.options.ray:
        return _on_cluster(studies, asked)
    limited = asked.options.max_memory_gb is not None
    return (_one_by_one if limited else _pipelined)(studies, asked, bar)


def _nothing_done(failed: Mapping[str, Exception], count: int, asked: Asked) -> Exception:
    if not failed:
        return Interrupted("interrupted before a study was finished; nothing was written")
    first, error = next(iter(failed.items()))
    if asked.single:
        return error
    return InputError(f"none of the {count} studies can be segmented; the first failure is {first}: {reason(error)}")


def _pipelined(studies: Sequence[Study], asked: Asked, bar: Bar) -> Iterator[tuple[Study, StudyResult | Exception]]:
    """Each study with what came of it, in order; while one is computed here, a thread reads the next and one writes the last.

    The first is read while the engine is made ready. Three studies are in memory at most. Ctrl-C ends the study that is
    computed, not the one that is written.
    """
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        ahead = [reader.submit(_read, study, asked) for study in studies[:1]]
        behind: list[tuple[Study, Future[StudyResult]]] = []
        segmenter = build_segmenter(asked.model, asked.options)
        try:
            for number, study in enumerate(studies):
                reading = ahead.pop()
                ahead += [reader.submit(_read, following, asked) for following in studies[number + 1 : number + 2]]
                segmented = _segmented(reading, segmenter, asked, bar)
                yield from _settled(behind)
                behind = [(study, writer.submit(_written, segmented, asked))]
                del segmented, reading  # or they would be kept in memory while the next one is computed
        except KeyboardInterrupt:
            yield from _settled(behind)
            raise
        yield from _settled(behind)


def _one_by_one(studies: Sequence[Study], asked: Asked, bar: Bar) -> Iterator[tuple[Study, StudyResult | Exception]]:
    """Each study with what came of it, in order; no other is in memory meanwhile."""
    segmenter = build_segmenter(asked.model, asked.options)
    for study in studies:
        try:
            segmented = segment_study(
                _read(study, asked), segmenter, uncertainty=asked.options.uncertainty, say=bar.say
            )
            made = _written(segmented, asked)
            del segmented
        except Exception as error:  # one bad study never ends a folder
            yield study, error
        else:
            yield study, made


def _on_cluster(studies: Sequence[Study], asked: Asked) -> Iterator[tuple[Study, StudyResult | Exception]]:
    """Each study with what came of it, as they are done on the machines of a cluster; their files are written here."""
    for study, made in on_cluster(asked.options.ray or "auto", segment_elsewhere, asked, studies):
        try:
            if isinstance(made, Exception):
                raise made
            result, contents = made
            _replace_files(asked.options.output / asked.record(study), contents, asked)
            yield study, result
        except Exception as error:  # one bad study never ends a folder
            yield study, error


def _read(study: Study, asked: Asked) -> ReadStudy:
    return without_surroundings(read_study(study, asked), asked.model.recipe)


def _segmented(reading: Future[ReadStudy], segmenter: Segmenter, asked: Asked, bar: Bar) -> SegmentedStudy | Exception:
    try:
        return segment_study(reading.result(), segmenter, uncertainty=asked.options.uncertainty, say=bar.say)
    except Exception as error:  # one bad study never ends a folder
        return error


def _written(segmented: SegmentedStudy | Exception, asked: Asked) -> StudyResult:
    """Write a study's files, and remove tables that an earlier run left beside them."""
    if isinstance(segmented, Exception):
        raise segmented
    result, contents = study_files(segmented, asked)
    _replace_files(asked.options.output / asked.record(segmented.read.study), contents, asked)
    return result


def _settled(writing: Sequence[tuple[Study, Future[StudyResult]]]) -> Iterator[tuple[Study, StudyResult | Exception]]:
    for study, future in writing:
        error = future.exception()
        if error is not None and not isinstance(error, Exception):
            raise error
        yield study, error or future.result()


def _replace_files(record: Path, contents: Mapping[Path, bytes], asked: Asked) -> None:
    """Write a study's or a run's files with their record, and remove those that an earlier one left and these do not replace.

    Files that are not as the earlier record says are somebody else's, and stay.
    """
    written = {asked.options.output / path: content for path, content in contents.items()}
    left = _left_before(record, asked)
    stale = [path for path, digest in left.items() if path not in written and _is_as_written(path, digest)]
    write_files(written)
    for path in stale:
        path.unlink()


def _left_before(record: Path, asked: Asked) -> dict[Path, str]:
    """The tables, and of a study all files, that an earlier record says were written, with their SHA-256."""
    try:
        run = read_json(record)
        if run["verb"] != "segment":
            return {}
        left = {record.with_name(name): digest for name, digest in run["tables"].items() if name in TABLES}
        if record.name == "record.json" or asked.single:
            named = run["studies"][0]["outputs"].items()
            left |= {record.with_name(Path(name).name): digest for name, digest in named if Path(name).name in FILES}
    except (InputError, LookupError, TypeError, ValueError, AttributeError):  # none, or somebody else's
        return {}
    return left


def _is_as_written(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest


def _write_summary(record: RunRecord, asked: Asked, result: SegmentResult) -> None:
    """The tables and the record of a folder's studies."""
    tables = {Path("volumes.csv"): rows_csv(_volume_rows(result.done, asked.model.name))}
    if asked.options.score:
        tables[Path("scores.csv")] = rows_csv([row for one in result.done for row in one.scores])
    rows = [one.record for one in result.done]
    rows += [{"study": study, "status": "failed", "error": why} for study, why in result.failed.items()]
    told = {path.name: hashlib.sha256(content).hexdigest() for path, content in tables.items()}
    run = record.content(model=asked.model_facts(), studies=rows, tables=told, continued=result.continued)
    _replace_files(result.output / "run.json", {**tables, Path("run.json"): json_bytes(run)}, asked)


def _finished_before(studies: Iterable[Study], asked: Asked) -> tuple[dict[str, StudyResult], dict[str, str]]:
    """The studies that need not be done again, and those that must be although they have results, with the reason.

    What a killed run left of files that it was writing is removed.
    """
    kept: dict[str, StudyResult] = {}
    again: dict[str, str] = {}
    outputs = [Path(name) for name in ("run.json", "volumes.csv", "scores.csv")]
    for study in studies:
        outputs += asked.outputs(study)
        found = _finished(study, asked)
        if isinstance(found, StudyResult):
            kept[study.id] = found
        elif found:
            again[study.id] = found
    for place in {asked.options.output / path for path in outputs}:
        for left in place.parent.glob(f".{glob.escape(place.name)}.*.part"):  # as `write_files` names them
            left.unlink(missing_ok=True)
    return kept, again


def _finished(study: Study, asked: Asked) -> StudyResult | str:
    """A study's result if its files are what this run would make; otherwise why they are not, nothing if it has no record."""
    output = asked.options.output
    record = output / asked.record(study)
    if not record.exists():
        return ""
    try:
        run = read_json(record)
        (row,) = run["studies"]
        why = _difference(run, row, study, asked)
        scores = asked.folder(study) / "scores.csv"
        rows: list[Row] = [] if why or scores.name not in run["tables"] else list(read_rows(output / scores))
        return why or StudyResult(row["study"], row["volumes_ml"], rows, row["warnings"], row)
    except (InputError, LookupError, TypeError, ValueError, AttributeError) as error:
        return f"a record that cannot be used ({error})"


def _difference(run: Mapping[str, Any], row: Mapping[str, Any], study: Study, asked: Asked) -> str:
    """What is not as this run would make it in a study's record or files; nothing if all is."""
    if run["versions"]["gliomap"] != __version__:
        return f"results of gliomap {run['versions']['gliomap']}"
    if run["model"]["sha256"] != asked.model_sha256:
        return "results of another model"
    options = plain(material_options(asked.options))
    if other := [name for name, value in options.items() if run["options"][name] != value]:
        return f"results of other options ({', '.join(other)})"
    now = study_inputs(study, asked)
    if (row["study"], row["known_labels"], _contents(row["inputs"])) != (study.id, known_labels(study), _contents(now)):
        return "results of other images or labels"
    files = row["outputs"] | {(asked.folder(study) / name).as_posix(): digest for name, digest in run["tables"].items()}
    for name, digest in files.items():
        if not _is_as_written(asked.options.output / name, digest):
            return f"{Path(name).name} is not as it was written"
    return ""


def _contents(inputs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """A study's inputs without where they lie."""
    return {name: {key: value for key, value in file.items() if key != "path"} for name, file in inputs.items()}


def load_segmenter(path: Path | None, device: str = "auto", engine: str = "auto") -> tuple[Model, Segmenter]:
    """The model in a file, or the one that ships, and a segmenter that runs it.

    Raises:
        UsageError: no file is given and none ships.
        InputError, IntegrityError: as `load_model`.
    """
    model = load_model(path or default_model())
    return model, model_segmenter(model, device, engine)


def _find(options: SegmentOptions) -> list[Study]:
    labels = parse_labels(options.labels)
    if options.files:
        if options.study is not None:
            raise UsageError("give either a folder or files (--t1 --t1c --t2 --flair), not both")
        return [study_from_files(options.files, options.reference, labels)]
    if options.study is None:
        raise UsageError("nothing to segment; give a study's folder, a folder of studies, or --t1 --t1c --t2 --flair")
    return [s for s in find_studies(options.study, labels) if s.images or s.problem] or _no_images(options.study)


def _no_images(path: Path) -> list[Study]:
    raise InputError(f"{path} has label maps only; expected images named by modality, such as t1.nii.gz")


def _is_study_folder(study: Study, options: SegmentOptions) -> bool:
    return bool(options.files) or any(f.path.parent == options.study for f in study.images.values())


def _volume_rows(done: list[StudyResult], model: str) -> list[Row]:
    return [
        Row(r.study, model, region, "volume", ml, "ml", "of the prediction", "", "ok")
        for r in done
        for region, ml in r.volumes_ml.items()
    ]
