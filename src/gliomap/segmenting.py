"""One study of `gliomap segment`: what is read of it, what the network makes of that, and the files that come of it."""

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gliomap import __version__
from gliomap.classes import (
    ALL_CLASSES,
    CLASS_NAMES,
    REGIONS,
    Convention,
    Target,
    convention_from_values,
    named_convention,
)
from gliomap.cluster import kept
from gliomap.data.images import map_bytes
from gliomap.data.study import Study
from gliomap.engines import model_segmenter
from gliomap.errors import InputError
from gliomap.files import json_bytes, sha256
from gliomap.manifest import RunRecord
from gliomap.model_file import Model
from gliomap.preprocess import brain_box, brain_mask, shows_brain_alone
from gliomap.recipe import Recipe, cautions
from gliomap.rows import Row, rows_csv, score_rows
from gliomap.segmenter import Segmentation, Segmenter, Uncertainty, with_preset
from gliomap.volume import Volume

if TYPE_CHECKING:
    from gliomap.report.study import StudyReport

UNCERTAINTY = ("entropy", "disagreement")
"""The maps of an `Uncertainty`, each of which is a file."""
FILES = ("segmentation.nii.gz", "report.html", *(f"{name}.nii.gz" for name in UNCERTAINTY))
"""What a study can leave beside its record and its scores."""


@dataclass(frozen=True)
class SegmentOptions:
    """What `segment` is asked for.

    ``study`` is a study's folder or a folder of studies; ``files`` gives one study's images by modality instead, and
    ``reference`` its label map.
    ``score`` also compares with the study's own label map. ``labels`` and ``output_labels`` as on the command line.
    ``resume`` leaves out the studies that are finished in ``output`` already (see `segment`). ``ray`` is the address of a
    Ray cluster whose machines do the work. ``preset`` is one of `segmenter.PRESETS`. ``max_memory_gb``: what the process may use in
    all, in 10^9 bytes. ``uncertainty`` also says where the segmentation is in doubt, and between what its volumes lie.
    Without ``report`` no page is made.
    """

    study: Path | None
    output: Path
    files: dict[str, Path] = field(default_factory=dict)
    reference: Path | None = None
    model: Path | None = None
    labels: str | None = None
    output_labels: str | None = None
    score: bool = False
    skull_on_anyway: bool = False
    device: str = "auto"
    engine: str = "auto"
    preset: str = "balanced"
    max_memory_gb: float | None = None
    uncertainty: bool = False
    quiet: bool = False
    resume: bool = False
    ray: str | None = None
    report: bool = True


@dataclass(frozen=True)
class Asked:
    """What is asked of every study of a run: a model, the SHA-256 of its file, and the run's options.

    A ``single`` study's files go to the output itself, those of one of several to ``output/ID``.
    """

    model: Model
    model_sha256: str
    options: SegmentOptions
    single: bool

    def folder(self, study: Study) -> Path:
        """Where a study's files go, relative to the output."""
        return Path() if self.single else Path(study.id)

    def record(self, study: Study) -> Path:
        """Where the record of a study goes, relative to the output; that of a single study is the run's."""
        return self.folder(study) / ("run.json" if self.single else "record.json")

    def outputs(self, study: Study) -> list[Path]:
        """Every file that a study can leave, relative to the output."""
        return [self.record(study), *(self.folder(study) / name for name in (*FILES, "scores.csv"))]

    def model_facts(self) -> dict[str, Any]:
        """What records say of the model."""
        return {
            "name": self.model.name,
            "recipe": self.model.recipe.name,
            "networks": len(self.model.prefixes),
            "content_sha256": self.model.content_sha256,
            "sha256": self.model_sha256,
            "regions": list(self.model.recipe.target.regions),
        }


@dataclass(frozen=True)
class StudyResult:
    """One study's outcome: volumes, rows of scores, warnings, and its record in run.json."""

    study: str
    volumes_ml: dict[str, float]
    scores: list[Row]
    warnings: list[str]
    record: dict[str, Any]


@dataclass(frozen=True)
class ReadStudy:
    """A study that is ready for the network.

    ``volume`` (C, D, H, W) is in RAS+, on the study's ``grid`` (without voxels) or a box of it; ``truth`` its own class map
    (1, D, H, W), if that is needed; ``convention`` is what the label map is written in. ``time_s`` is what the steps took.
    """

    study: Study
    volume: Volume
    grid: Volume
    truth: Volume | None
    convention: Convention
    warnings: list[str]
    run: RunRecord
    time_s: dict[str, float]


@dataclass(frozen=True)
class SegmentedStudy:
    """What a study's network found, on the study's RAS grid, which engine ran it, and how (see `Segmenter.plan`)."""

    read: ReadStudy
    found: Segmentation
    engine: str
    plans: list[str]


def read_study(study: Study, asked: Asked) -> ReadStudy:
    """Read what the network is shown, and everything else of the study that is needed.

    Raises:
        InputError: the study cannot be used.
    """
    run, start = RunRecord("segment", asked.options), time.perf_counter()
    recipe, options = asked.model.recipe, asked.options
    volume, warnings = study.read(recipe.modalities, recipe.needs_one_of, skull_on_anyway=options.skull_on_anyway)
    told = recipe.preprocessing.crop == "truth_centre"
    convention, truth, odd = _known_labels(study, volume, options, needed=told)
    missing = [m for m in recipe.modalities if m not in study.images]
    warnings += _expected_without(missing, asked.model.card) + odd
    warnings += [f"reproduction: {text}" for text in cautions(recipe)] + _not_told_apart(recipe.target)
    grid = Volume(np.broadcast_to(np.uint8(0), (1, *volume.shape)), volume.affine)
    return ReadStudy(study, volume, grid, truth, convention, warnings, run, {"read": time.perf_counter() - start})


def without_surroundings(read: ReadStudy, recipe: Recipe) -> ReadStudy:
    """The study with the box of its brain alone, a third of its voxels, where the recipe's networks are shown no more."""
    return replace(read, volume=read.volume.crop(brain_box(read.volume))) if shows_brain_alone(recipe) else read


def _expected_without(missing: Sequence[str], card: Mapping[str, Any]) -> list[str]:
    """What each modality that is missing costs, as the model's card has measured it, a sentence each."""
    scores, found = card.get("scores", {}), []
    for modality in missing:
        without = scores.get(f"without_{modality}")
        if without is not None:
            dice = (
                f"{region} {told['dice']:.2f} instead of {scores['all'][region]['dice']:.2f}"
                for region, told in without.items()
            )
            studies = max(told["studies"] for told in without.values())
            found.append(f"without {modality} this model's mean Dice on {studies} unseen studies was {', '.join(dice)}")
    return found


def segment_study(
    read: ReadStudy, segmenter: Segmenter, *, uncertainty: bool = False, say: Callable[[str], None] = lambda _: None
) -> SegmentedStudy:
    """Run the network on a study; ``say`` is told how, before it begins."""
    start, plans = time.perf_counter(), list[str]()

    def planned(plan: str) -> None:
        plans.append(plan)
        say(f"{read.study.id}: {plan}")

    found = segmenter.segmentation(read.volume, read.truth, uncertainty=uncertainty, say=planned)
    found = found._replace(classes=found.classes.placed_on(read.grid))
    time_s = read.time_s | {"segment": time.perf_counter() - start}
    return SegmentedStudy(replace(read, time_s=time_s), found, segmenter.engines[0].name, plans)


def study_files(segmented: SegmentedStudy, asked: Asked) -> tuple[StudyResult, dict[Path, bytes]]:
    """A study's result, and its files by path relative to the output; the record comes first."""
    read, (classes, changes, doubt), start = segmented.read, segmented.found, time.perf_counter()
    study, folder, target = read.study, asked.folder(read.study), asked.model.recipe.target
    scores: list[Row] = []
    if read.truth and asked.options.score:
        from gliomap.metrics import measure  # noqa: PLC0415 - scipy.spatial takes a tenth of a second

        measured = measure(classes.array[0], read.truth.array[0], classes.spacing_mm, target.regions)
        scores = score_rows(study.id, asked.model.name, measured)
    result = StudyResult(study.id, volumes_ml(classes, target), scores, read.warnings, {})
    labels = classes.with_array(read.convention.encode(classes.array[0]))
    like = next(study.images[m].path for m in asked.model.recipe.modalities if m in study.images)
    maps = {folder / "segmentation.nii.gz": map_bytes(labels, like)}
    if asked.options.report:
        from gliomap.report.study import study_page  # noqa: PLC0415 - jinja2 and PIL take a tenth of a second

        maps[folder / "report.html"] = study_page(study_report(result, segmented, asked)).encode()
    if doubt:
        maps |= {folder / f"{name}.nii.gz": map_bytes(_rounded(getattr(doubt, name)), like) for name in UNCERTAINTY}
    tables = {folder / "scores.csv": rows_csv(scores)} if asked.options.score else {}
    time_s = read.time_s | {"output": time.perf_counter() - start}
    result.record.update(
        study=study.id,
        status="done",
        segmentation=(folder / "segmentation.nii.gz").as_posix(),
        labels={str(value): CLASS_NAMES[tissue] for value, tissue in read.convention.values},
        convention=read.convention.name,
        convention_evidence=read.convention.evidence,
        known_labels=known_labels(study),
        volumes_ml=result.volumes_ml,
        volume_ranges_ml=_ranges(doubt, target),
        engine=segmented.engine,
        passes=segmented.plans,
        postprocessing=[asdict(change) for change in changes],
        warnings=result.warnings,
        time_s={name: round(t, 3) for name, t in (time_s | {"total": sum(time_s.values())}).items()},
        inputs=study_inputs(study, asked),
        outputs={path.as_posix(): hashlib.sha256(content).hexdigest() for path, content in maps.items()},
    )
    told = {path.name: hashlib.sha256(content).hexdigest() for path, content in tables.items()}
    run = read.run.content(model=asked.model_facts(), studies=[result.record], tables=told)
    return result, {asked.record(study): json_bytes(run), **maps, **tables}


def study_inputs(study: Study, asked: Asked) -> dict[str, dict[str, Any]]:
    """The files that a study's results depend on, each with its SHA-256, or why it cannot be read."""
    files = {m: study.images[m] for m in asked.model.recipe.modalities if m in study.images}
    files |= {"label map": study.label} if study.label else {}
    found: dict[str, dict[str, Any]] = {}
    for name, file in files.items():
        try:
            digest = sha256(file.path)
        except OSError as error:
            digest = str(error)
        found[name] = {"path": os.path.abspath(file.path), "sha256": digest}
        if file.channel is not None:
            found[name]["channel"] = file.channel
    return found


def known_labels(study: Study) -> str:
    """What a study's label values mean, where something other than the values says so."""
    return str(study.convention or "")


def build_segmenter(model: Model, options: SegmentOptions) -> Segmenter:
    """What runs a model as a run's options say.

    Raises:
        UsageError, IntegrityError: as `load_engines`.
    """
    limit = None if options.max_memory_gb is None else int(options.max_memory_gb * 1e9)
    return with_preset(model_segmenter(model, options.device, options.engine, limit), options.preset)


def segment_elsewhere(asked: Asked, study: Study) -> tuple[StudyResult, dict[Path, bytes]]:
    """All steps of a study in one, on a machine of a cluster, which leaves the writing to another."""
    segmenter = kept(
        (asked.model_sha256, repr(material_options(asked.options))), lambda: build_segmenter(asked.model, asked.options)
    )
    read = without_surroundings(read_study(study, asked), asked.model.recipe)
    segmented = segment_study(read, segmenter, uncertainty=asked.options.uncertainty)
    return study_files(segmented, asked)


def material_options(options: SegmentOptions) -> dict[str, Any]:
    """The options that a study's results depend on; its files, and the model's, count by what is in them."""
    immaterial = {"study", "output", "files", "reference", "model", "quiet", "resume", "ray"}
    return {name: value for name, value in asdict(options).items() if name not in immaterial}


def _rounded(doubt: Volume) -> Volume:
    """To thousandths, which takes a tenth of the space in a file."""
    return doubt.with_array(doubt.array.round(3))


def _ranges(doubt: Uncertainty | None, target: Target) -> dict[str, list[float]]:
    """The least and the largest volume of each region in ml, of what each view and network finds by itself."""
    if doubt is None:
        return {}
    each = [volumes_ml(one, target) for one in doubt.opinions]
    return {name: [low, max(v[name] for v in each)] for name in each[0] for low in [min(v[name] for v in each)]}


def _not_told_apart(target: Target) -> list[str]:
    """What a map cannot tell that its colours and label values would seem to."""
    if len(target.regions) == len(REGIONS):
        return []
    return [
        f"this model tells {', '.join(target.regions)} only; the tissues inside are not told apart in its label map"
    ]


def _known_labels(
    study: Study, volume: Volume, options: SegmentOptions, *, needed: bool
) -> tuple[Convention, Volume | None, list[str]]:
    """The convention to write in, the reference if it is asked for or ``needed``, and what is odd about it."""
    truth, odd, known = None, [], study.convention
    try:
        if options.score or needed:
            truth, known, odd = study.read_classes(Volume(brain_mask(volume)[None], volume.affine))
        elif known is None and study.label is not None:
            known = convention_from_values(study.label.read().array)
    except InputError as error:
        if needed:
            raise InputError(
                f"{error}. This model's recipe crops about the true tumour: use another for such studies"
            ) from error
        # the images are good, and most segmentations need no label map
        odd = [f"its own label map was not used: {error}"]
    if options.output_labels is not None:
        known = named_convention(options.output_labels, "--output-labels")
    return known or named_convention("brats2023", "the default, since nothing says what the study uses"), truth, odd


def volumes_ml(classes: Volume, target: Target = ALL_CLASSES) -> dict[str, float]:
    """Volume in ml of the regions that the target tells, and, if those are all, of NCR and ED (and RC where present)."""
    voxels = [np.count_nonzero(classes.array == tissue) for tissue in range(5)]  # bincount takes 8 bytes a voxel
    regions = {name: float(sum(voxels[c] for c in REGIONS[name])) for name in target.regions}
    told = CLASS_NAMES.items() if len(regions) == len(REGIONS) else ()
    others = {n: float(voxels[v]) for v, n in told if n in ("NCR", "ED") or (n == "RC" and voxels[v])}
    return {name: round(count * classes.voxel_ml, 3) for name, count in (regions | others).items()}


def _facts(segmented: SegmentedStudy, asked: Asked) -> dict[str, str]:
    read, model, changes = segmented.read, asked.model, segmented.found.changes
    networks = f", {len(model.prefixes)} networks together" if len(model.prefixes) > 1 else ""
    return {
        "Model": f"{model.name} (recipe {model.recipe.name}{networks})",
        "Model sha256": model.content_sha256,
        "Model file sha256": asked.model_sha256,
        "Found as": read.study.layout,
        "Label values": f"{read.convention}, from {read.convention.evidence}",
        "Preset": f"{asked.options.preset}, run by {segmented.engine}: {'; then '.join(segmented.plans)}",
        "Post-processing": "; ".join(map(str, changes)) or "changed nothing",
        "Time": ", ".join(f"{name} {seconds:.1f} s" for name, seconds in read.time_s.items()),
        "gliomap": __version__,
    }


def study_report(result: StudyResult, segmented: SegmentedStudy, asked: Asked) -> "StudyReport":
    """What the page of a segmented study shows."""
    from gliomap.report.study import StudyReport  # noqa: PLC0415 - as in `study_files`

    read, doubt = segmented.read, segmented.found.uncertainty
    maps = {name: getattr(doubt, name).placed_on(read.grid).array[0] for name in UNCERTAINTY} if doubt else {}
    scores = [
        {"region": r.region, "metric": r.metric, "value": _shown(r), "unit": r.unit, "definition": r.definition}
        for r in result.scores
    ]
    modalities = asked.model.recipe.modalities
    there = [channel for channel, name in enumerate(modalities) if name in read.study.images]
    shown = read.volume if read.volume.shape == read.grid.shape else read.volume.placed_on(read.grid)
    return StudyReport(
        study=result.study,
        modalities=tuple(modalities[channel] for channel in there),
        images=shown.array if len(there) == len(modalities) else shown.array[there],
        classes=segmented.found.classes.array[0],
        spacing_mm=read.volume.spacing_mm,
        volumes_ml=result.volumes_ml,
        facts=_facts(segmented, asked),
        warnings=tuple(result.warnings),
        truth=None if read.truth is None else read.truth.array[0],
        scores=tuple(scores),
        affine=read.grid.affine,
        uncertainty=maps,
        card=asked.model.card,
    )


def _shown(row: Row) -> str:
    return row.status.replace("_", " ") if row.value is None else f"{row.value:.3f}"
