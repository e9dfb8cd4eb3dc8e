"""gliomap reproduce leaderboard: every network by one protocol and one budget, cross-validated on the same folds, and ranked."""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gliomap import __version__
from gliomap.budget import (
    ABLATED,
    ROWS,
    Estimate,
    Plan,
    ReproduceOptions,
    apart,
    estimate,
    planned,
    training_options,
)
from gliomap.compare import CompareOptions, compare
from gliomap.data.study import ImageFile, Study
from gliomap.errors import InputError, Interrupted, reason
from gliomap.files import json_bytes, write_file, write_files
from gliomap.machine import peak_memory_mb
from gliomap.manifest import RunRecord
from gliomap.networks import build_network
from gliomap.networks.counting import count_forward
from gliomap.networks.training_cost import patch_size
from gliomap.recipe import Recipe
from gliomap.recipes.fair import PATCHES, with_budget
from gliomap.repeat import LABEL_MAPS, RepeatOptions, read_record, repeat
from gliomap.report.leaderboard import Cost, Entry, Leaderboard, board_csv, markdown, page
from gliomap.report.scores import rows_by_key, scores_of
from gliomap.rows import Protocol, Row, failed_row, rows_csv
from gliomap.scoring import Question, Task, score
from gliomap.segment import load_segmenter
from gliomap.starts import FINISHED, MODEL, NOTHING, STARTS, all_ends, training_time_s

SCORES, COST = "challenge.csv", "cost.json"
PROTOCOL: Protocol = "brats2023"
METRICS = ("dice", "hd95", "lesion_dice", "lesion_hd95")
TIMED_STUDIES = 3


@dataclass(frozen=True)
class LeaderboardResult:
    """What is shown, where its page is, and the rows that failed with the reason."""

    board: Leaderboard
    page: Path
    failed: dict[str, str]


def leaderboard(options: ReproduceOptions) -> LeaderboardResult:
    """Cross-validate every row with the same budget, and rank those that are finished; the page is written after each.

    What is finished is not run again and what was cut short goes on, so the same command continues.

    Raises:
        UsageError, InputError: as `estimate`.
        Interrupted: Ctrl-C was pressed; everything is saved, and the page shows what there is.
    """
    record = RunRecord("reproduce leaderboard", options)
    before_s = float(read_record(options.output / "run.json").get("used_s", 0.0))
    known = estimate(options)
    plan, begun = planned(options), time.perf_counter()
    recipes = {name: with_budget(r, known.patches, options.spacing_mm) for name, r in plan.recipes.items()}
    failed, waiting = dict(known.failed), dict[str, str]()

    def written() -> LeaderboardResult:
        used_s = before_s + time.perf_counter() - begun
        board = _board(options, plan, known, recipes, failed | waiting)
        content = record.content(used_s=used_s, patches=known.patches, failed=failed, statement=board.statement)
        return _written(options.output, board, content, failed)

    latest: LeaderboardResult | None = None
    for name, recipe in recipes.items():
        folder = options.output / "rows" / name
        left_s = (options.max_time_s or math.inf) - before_s - (time.perf_counter() - begun)
        if name in failed or _is_finished(folder, known):
            continue
        if (need_s := max(known.row_s(name) - _trained_s(folder), 0.0)) > left_s:
            waiting[name] = f"it needs about {need_s / 60:.0f} min more, and {max(left_s, 0) / 60:.0f} min are left"
            latest = None
            continue
        try:
            _run(options, plan, recipe, folder)
        except (Interrupted, KeyboardInterrupt) as error:
            waiting[name] = "interrupted"
            written()
            raise Interrupted("interrupted; everything is saved, and the same command continues") from error
        except Exception as error:  # one bad row never ends the others
            failed[name] = reason(error)
        latest = written()
    return latest or written()


def _run(options: ReproduceOptions, plan: Plan, recipe: Recipe, folder: Path) -> None:
    """Train every fold of a row, score what no training saw as the challenge does, and time a few studies."""
    asked = training_options(options, recipe, options.output / "recipes" / f"{recipe.name}.json", folder)
    result = repeat(RepeatOptions(asked, all_folds=True))
    trainings = {f"fold_{n}" for n in range(len(plan.rounds.folds))}
    if bad := {name: why for name, why in result.failed.items() if name in trainings}:
        raise InputError("; ".join(f"{name}: {why}" for name, why in bad.items()))
    rows = [row for study in plan.studies.values() for row in _challenge_rows(study, recipe, folder)]
    write_file(folder / SCORES, rows_csv(rows))
    if not (folder / COST).exists():
        some = list(plan.studies.values())[:TIMED_STUDIES]
        time_s, memory_gb = apart(study_cost, folder / "fold_0" / MODEL, some)
        write_file(folder / COST, json_bytes({"time_s": time_s, "memory_gb": memory_gb}))


def _challenge_rows(study: Study, recipe: Recipe, folder: Path) -> list[Row]:
    """The scores of a study's label map by the network that did not train on it."""
    place = folder / LABEL_MAPS / f"{study.id}.nii.gz"
    if not place.is_file():
        return [failed_row(study.id, recipe.name)]
    _, convention, _ = study.read_classes()
    question = Question((recipe.name,), recipe.target.regions, METRICS, PROTOCOL, "all")
    return score(Task(study, {recipe.name: Study(study.id, {}, ImageFile(place), convention)}), question).rows


def study_cost(model: Path, studies: Sequence[Study]) -> tuple[float, float]:
    """Median seconds to read and segment one of these studies on a CPU, after a first one, and this process's peak memory in GB."""
    _, segmenter = load_segmenter(model, "cpu")
    times = []
    for study in (studies[0], *studies):
        begun = time.perf_counter()
        segmenter(study.read(segmenter.recipe.modalities)[0])
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:]), peak_memory_mb() / 1e3


def _is_finished(folder: Path, known: Estimate) -> bool:
    """Whether every fold came to its end with exactly the budget, and is scored and timed."""
    runs = [folder / f"fold_{n}" for n in range(known.folds)]
    whole = all(end in FINISHED for run in runs for end in all_ends(read_record(run / "run.json")))
    whole = whole and all(_seen(run) == known.patches for run in runs)
    return whole and (folder / SCORES).exists() and (folder / COST).exists()


def _seen(folder: Path) -> int:
    """Patches that a training and what it started from have seen."""
    run = read_record(folder / "run.json")
    own = 0 if run.get("ended") == NOTHING else int(run.get("patches", 0))
    return own + sum(_seen(stage) for stage in (folder / STARTS).glob("*"))


def _trained_s(folder: Path) -> float:
    return sum(training_time_s(fold) for fold in folder.glob("fold_*"))


def _board(
    options: ReproduceOptions, plan: Plan, known: Estimate, recipes: dict[str, Recipe], remarks: dict[str, str]
) -> Leaderboard:
    """What there is by now; only rows that are finished are compared."""
    entries = [_entry(options.output / "rows" / name, recipe, known, remarks) for name, recipe in recipes.items()]
    finished = [entry.name for entry in entries if not entry.remark]
    tables = tuple(options.output / "rows" / name / SCORES for name in finished)
    warnings, scores, compared = plan.warnings, None, None
    if len(tables) > 1:
        compared = compare(CompareOptions(tables, options.output / "compare", METRICS, seed=options.seed))
        scores, odd = scores_of(rows_by_key(tables), METRICS)
        warnings = (*warnings, *odd)
    return Leaderboard(
        statement=_statement(options, known, len(finished), len(entries)),
        entries=tuple(entries),
        scores=scores,
        answers=tuple(compared.answers) if compared else (),
        ablations=tuple(_ablations(options, finished)),
        warnings=warnings,
        facts=_facts(options, plan, known),
        seed=options.seed,
    )


def _ablations(options: ReproduceOptions, finished: Sequence[str]) -> list[str]:
    """What the comparison of each network with the one that lacks a part says, with a correction of its own."""
    pairs = {name: full for name, full in ABLATED.items() if {name, full} <= set(finished)}
    if not pairs:
        return []
    names = dict.fromkeys([*pairs, *pairs.values()])
    tables = tuple(options.output / "rows" / name / SCORES for name in names)
    asked = tuple(f"{full}:{name}" for name, full in pairs.items())
    asked_of = CompareOptions(tables, options.output / "ablations", ("dice",), pairs=asked, seed=options.seed)
    return compare(asked_of).sentences


def _entry(folder: Path, recipe: Recipe, known: Estimate, remarks: dict[str, str]) -> Entry:
    seen = sum(_seen(folder / f"fold_{n}") for n in range(known.folds))
    done = _is_finished(folder, known)
    remark = "" if done else remarks.get(recipe.name, "not begun" if not seen else "not finished")
    cost = (
        _cost(folder, recipe, known.trials[recipe.name].memory_gb, done=done) if recipe.name in known.trials else Cost()
    )
    return Entry(recipe.name, ROWS[recipe.name], seen / (known.folds * known.patches), remark, cost)


def _cost(folder: Path, recipe: Recipe, training_gb: float, *, done: bool) -> Cost:
    """What is counted of a row's network, and what was measured."""
    timed = read_record(folder / COST)
    with torch.device("meta"):
        network = build_network(recipe)
    size, slices = patch_size(network, recipe.training.patch_size)
    return Cost(
        parameters_m=sum(p.numel() for p in network.parameters()) / 1e6,
        gmac=slices * count_forward(network, size).gmac,
        patch=" x ".join(map(str, recipe.training.patch_size)),
        training_s=_trained_s(folder) if done else math.nan,
        training_gb=training_gb,
        study_s=timed.get("time_s", math.nan),
        study_gb=timed.get("memory_gb", math.nan),
    )


def _statement(options: ReproduceOptions, known: Estimate, finished: int, count: int) -> tuple[str, ...]:
    share = 100 * known.patches / PATCHES
    out = [
        f"{finished} of {count} rows are finished; only these are ranked and compared.",
        f"Every row was trained on {known.patches:,} patches in each of {known.folds} folds, what it starts from included: "
        f"{share:.3g} % of the protocol's own {PATCHES:,}. A ranking after so many patches says which network learns fastest; "
        "after more of them it may be another. Patches are equal, time is not: see the costs.",
        f"One training per fold, one seed: the intervals and tests are about the {known.studies} studies, and the luck of a "
        "training, which may be as large, is in none of them.",
        "Each study is scored by the network that did not train on it. Trainings were validated once, at their end, so no score "
        "chose anything.",
    ]
    if options.spacing_mm:
        out.append(f"Networks worked at {options.spacing_mm:g} mm, and were scored on the studies' own grid.")
    if options.settings:
        out.append(f"The protocol was changed: {', '.join(options.settings)}.")
    return tuple(out)


def _facts(options: ReproduceOptions, plan: Plan, known: Estimate) -> dict[str, str]:
    sizes = ", ".join(str(len(fold)) for fold in plan.rounds.folds)
    return {
        "Made by": f"gliomap {__version__}",
        "Studies": f"{known.studies} in {known.folds} folds of {sizes}, the same for every row",
        "Budget": f"{known.patches:,} patches per training, the same for every row",
        "Voxels of the networks": f"{options.spacing_mm:g} mm" if options.spacing_mm else "the studies' own",
        "Seed": str(options.seed),
        "Scores": f"protocol {PROTOCOL}, on the studies' own grid",
        "Time limit": f"{options.max_time_s / 60:.0f} min" if options.max_time_s else "none",
    }


def _written(output: Path, board: Leaderboard, content: dict[str, Any], failed: dict[str, str]) -> LeaderboardResult:
    place = output / "leaderboard.html"
    write_files(
        {
            place: page(board).encode(),
            output / "leaderboard.md": markdown(board).encode(),
            output / "leaderboard.csv": board_csv(board),
            output / "run.json": json_bytes(content),
        }
    )
    return LeaderboardResult(board, place, dict(failed))
