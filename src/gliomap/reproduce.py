"""gliomap reproduce: a paper's table, row by row: train its recipes, score them as the paper does, set both side by side."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gliomap import __version__
from gliomap.budget import ReproduceOptions
from gliomap.data.datasets import labelled_studies
from gliomap.data.rounds import (
    Rounds,
    cross_validation,
    dependences,
    draw_patients,
    hold_out,
    read_cross_validation,
    shortfalls,
)
from gliomap.data.study import Study
from gliomap.errors import InputError, Interrupted, UsageError, reason
from gliomap.evaluate import EvaluateOptions, evaluate
from gliomap.files import json_bytes, sha256, write_file, write_files
from gliomap.manifest import RunRecord, plain
from gliomap.plan import check
from gliomap.recipe import Recipe, with_settings
from gliomap.recipes import RECIPES
from gliomap.recipes.claims import Claim, claims_of
from gliomap.recipes.costs import counted
from gliomap.recipes.definitions import definitions, metrics_of
from gliomap.recipes.published import Published
from gliomap.recipes.tables import SCORED, Table, find_table
from gliomap.repeat import read_record, refuse_another, unfinished
from gliomap.report.judgement import Outcome, Trained, judge, lines_of
from gliomap.report.reproduction import Reproduction, claims_csv, lines_csv, markdown, page, share_text
from gliomap.rows import read_rows
from gliomap.starts import FINISHED, MODEL, all_ends, training_time_s
from gliomap.train import TrainOptions, train

QUESTION, FOLDS, SCORES = "reproduce.json", "folds.json", "scores.csv"
FOLD_COUNT = 5
"""Of a cross-validation, as in paper 002."""


@dataclass(frozen=True)
class ReproduceResult:
    """What is beside each other, where its page is, and the rows that could not be run with the reason."""

    reproduction: Reproduction
    page: Path
    failed: dict[str, str]


def reproduce(options: ReproduceOptions) -> ReproduceResult:
    """Train what is not yet trained of a table, score it, and compare it with what the paper prints and claims.

    A finished row is not run again and a training that was cut short is resumed, so the same command continues a run that
    was interrupted. A row that cannot be trained is reported, and the others are run.

    Raises:
        UsageError: there is no such table, row or setting, or the output holds a reproduction on other data or settings.
        InputError: no row could be run, or the data cannot be read.
        Interrupted: Ctrl-C was pressed; everything is saved.
    """
    if options.patches is not None or options.spacing_mm is not None:
        raise UsageError("--patches and --spacing are of the leaderboard; a paper's table has its recipes' own (--set)")
    record = RunRecord("reproduce", options)
    table = find_table(options.table)
    numbers, claims = _wanted(table, options.rows)
    recipes = _recipes(numbers, claims, options.settings)
    trained: dict[str, Trained] = {}
    failed: dict[str, str] = {}
    facts = {"Made by": f"gliomap {__version__}"}
    partial, odd = "", []
    if recipes:
        studies = _studies(options)
        rounds, told = _prepared(options, studies, numbers, recipes)
        facts |= told
        partial, odd = _partial(options, rounds, studies), dependences(rounds, studies)
        trained, failed = _run(options, numbers, recipes, rounds)
    counts = {n: counted(n, RECIPES[n.recipe]) for n in _sizes(numbers, claims)}
    outcome = Outcome(trained, failed, counts.__getitem__, partial)
    statement = _statement(trained, partial) if recipes else ("Sizes are counted; nothing was trained.",)
    reproduction = Reproduction(
        table, statement, lines_of(numbers, outcome), judge(claims, outcome), facts, (*odd, *_warnings(trained, failed)),
    )  # fmt: skip
    place = options.output / "reproduction.html"
    contents = {
        options.output / "reproduction.csv": lines_csv(reproduction),
        options.output / "claims.csv": claims_csv(reproduction),
        options.output / "reproduction.md": markdown(reproduction).encode(),
        place: page(reproduction).encode(),
        options.output / "run.json": json_bytes(record.content(failed=failed, statement=statement, facts=facts)),
    }
    write_files(contents)
    return ReproduceResult(reproduction, place, failed)


def _wanted(table: Table, rows: Sequence[str]) -> tuple[tuple[Published, ...], tuple[Claim, ...]]:
    """The numbers of the rows asked for, and the claims that are about these rows only."""
    claims = claims_of(table.address)
    if not rows:
        return table.numbers, claims
    known = {name.casefold() for row in table.rows for name in row if name}
    if unknown := [name for name in rows if name.casefold() not in known]:
        listed = "; ".join(" = ".join(filter(None, row)) for row in table.rows)
        raise UsageError(f"{table.address} has no row {', '.join(unknown)}; it has: {listed}")
    wanted = {name.casefold() for name in rows}
    numbers = tuple(n for n in table.numbers if {n.row.casefold(), n.recipe.casefold()} & wanted)
    kept = {(n.row, n.recipe) for n in numbers}
    return numbers, tuple(c for c in claims if all((n.row, n.recipe) in kept for n in c.numbers))


def _recipes(numbers: Sequence[Published], claims: Sequence[Claim], settings: Sequence[str]) -> dict[str, Recipe]:
    """The recipes to train, those that others start from first, each checked with its settings before any is begun."""
    sides = [n for claim in claims if claim.testable for n in claim.numbers]
    names = dict.fromkeys(n.recipe for n in (*numbers, *sides) if n.recipe and n.how in SCORED)
    found = {name: with_settings(RECIPES[name], list(settings)) for name in names}
    for recipe in found.values():
        check(recipe)
    return dict(sorted(found.items(), key=lambda item: len(item[1].starts_from)))


def _sizes(numbers: Sequence[Published], claims: Sequence[Claim]) -> set[Published]:
    """What is to be counted."""
    sides = [n for claim in claims for n in claim.numbers]
    return {n for n in (*numbers, *sides) if n.recipe and n.how == "counted"}


def _studies(options: ReproduceOptions) -> list[Study]:
    """The labelled studies, or those of as many patients as were asked for."""
    if options.data is None:
        raise UsageError(f"{options.table} has rows to train: give DATA, a folder of labelled studies")
    studies = labelled_studies(options.data, options.labels)
    if options.studies is None:
        return studies
    if isinstance(options.folds, Path):
        raise UsageError("--studies draws patients and a folds.json names them; give one of both")
    return draw_patients(studies, options.studies, options.seed)


def _prepared(
    options: ReproduceOptions, studies: list[Study], numbers: Sequence[Published], recipes: dict[str, Recipe]
) -> tuple[Rounds, dict[str, str]]:
    """The split of the studies, written down, and what to know about it; refuses an output of another question."""
    crossed = any(n.how == "cross-validation" for n in numbers)
    rounds = _rounds(options, studies, list(recipes.values()), crossed=crossed)
    used = {i for fold in (*rounds.folds, *rounds.scored) for i in fold}
    question = {
        "labels_sha256": {s.id: sha256(s.label.path) if s.label else "" for s in studies if s.id in used},
        "folds": rounds.folds,
        "scored": rounds.scored,
        "seed": options.seed,
        "settings": options.settings,
        "labels": options.labels,
    }
    refuse_another(options.output / QUESTION, plain(question), "a reproduction")
    write_file(options.output / QUESTION, json_bytes(plain(question)))
    write_file(
        options.output / FOLDS,
        json_bytes(plain({"seed": options.seed, "folds": rounds.folds, "patients": rounds.patients})),
    )
    facts = {"Data": str(options.data), "Studies": str(len(used)), "Split": rounds.remark, "Seed": str(options.seed)}
    facts["Settings"] = ", ".join(options.settings) or "the recipes' own"
    facts["Time for training"] = f"{options.max_time_s:g} s" if options.max_time_s else "not limited"
    return rounds, facts


def _rounds(options: ReproduceOptions, studies: list[Study], recipes: Sequence[Recipe], *, crossed: bool) -> Rounds:
    """Who trains and who is scored, the same for every row."""
    if crossed:
        if isinstance(options.folds, Path):
            return read_cross_validation(options.folds, studies)
        return cross_validation(studies, FOLD_COUNT if options.folds is None else options.folds, options.seed)
    if options.folds is not None:
        raise UsageError(f"{options.table} is a hold-out, which has no folds; leave out --folds")
    shares = {(r.training.validation_share, r.training.test_share) for r in recipes}
    if len(shares) > 1:
        raise UsageError(f"the rows have different shares of studies, {shares}; --set them alike")
    ((validation_share, test_share),) = shares
    return hold_out(studies, validation_share, test_share, options.seed)


def _run(
    options: ReproduceOptions, numbers: Sequence[Published], recipes: dict[str, Recipe], rounds: Rounds
) -> tuple[dict[str, Trained], dict[str, str]]:
    """Every row trained and scored, one after the other, and the rows that could not be, with the reason."""
    trained: dict[str, Trained] = {}
    failed: dict[str, str] = {}
    left, spent = len(recipes) * len(rounds.scored), 0.0
    for name, recipe in recipes.items():
        folders = []
        for fold, ids in enumerate(rounds.scored):
            folder = options.output / "rows" / f"fold{fold}" / name  # beside the others: there it looks for its starts
            limit = max(((options.max_time_s or math.inf) - spent) / left, 1e-3)
            left -= 1
            try:
                _train(options, recipe, folder, fold, limit)
                _score(options, numbers, folder, ids)
            except Interrupted as error:
                raise Interrupted("interrupted; everything is saved, and the same command continues") from error
            except Exception as error:  # one bad row never ends a table
                failed[name] = reason(error)
                left -= len(rounds.scored) - fold - 1
                break
            finally:
                spent += training_time_s(folder)
            folders.append(folder)
        if name not in failed:
            trained[name] = _collected(name, folders, rounds)
    if not trained:
        first, why = next(iter(failed.items()))
        raise InputError(f"none of the {len(recipes)} rows could be run; the first, {first}: {why}")
    return trained, failed


def _train(options: ReproduceOptions, recipe: Recipe, folder: Path, fold: int, limit_s: float) -> None:
    """Begin or continue the training of a recipe, unless it came to its end or used up its time."""
    asked = TrainOptions(
        recipe=recipe.name,
        data=options.data or Path(),
        output=folder,
        settings=list(options.settings),
        folds=options.output / FOLDS,
        fold=fold,
        seed=options.seed,
        max_time_s=None if math.isinf(limit_s) else limit_s,
        cut_starts=True,  # the row it starts from had the same limit
        labels=options.labels,
        device=options.device,
        quiet=options.quiet,
    )
    if (left := unfinished(asked)) is not None:
        train(left)


def _score(options: ReproduceOptions, numbers: Sequence[Published], folder: Path, studies: tuple[str, ...]) -> None:
    """Score the model in a folder on these studies, unless it was already, by the same metrics."""
    scored = [n for n in numbers if n.how in SCORED and n.recipe]
    slices = {d.slices for n in scored for d in definitions(n)}
    asked = EvaluateOptions(
        predictions=folder / MODEL,
        truth=options.data or Path(),
        output=folder / SCORES,
        metrics=metrics_of(scored),
        studies=studies,
        slices="middle" if slices == {"middle"} else "all",
        truth_labels=options.labels,
        device=options.device,
        quiet=options.quiet,
    )
    before = read_record((folder / SCORES).with_suffix(".run.json"))
    told = plain({"metrics": asked.metrics, "studies": asked.studies, "slices": asked.slices})
    same = told.items() <= before.get("options", {}).items() if (folder / SCORES).exists() else False
    if not same or before.get("predictions_sha256") != sha256(folder / MODEL):
        evaluate(asked)


def _collected(name: str, folders: Sequence[Path], rounds: Rounds) -> Trained:
    """The scores of all folds together; of trainings that saw different numbers of patches, the smallest counts."""
    rows = [row for folder in folders for row in read_rows(folder / SCORES)]
    runs = [read_record(folder / "run.json") for folder in folders]
    patches = [run["patches"] for run in runs if run["ended"] != "nothing to train"]
    ends = [how for run in runs for how in all_ends(run)]
    return Trained(
        scores={(row.study, row.region, row.metric): row.value for row in rows},
        studies=rounds.studies,
        trained=min(patches, default=None),
        budget=RECIPES[name].training.patches if patches else None,
        whole=all(how in FINISHED for how in ends),
        warnings=tuple(text for folder, run in zip(folders, runs, strict=True) for text in _odd(folder, run)),
    )


def _odd(folder: Path, run: dict[str, Any]) -> list[str]:
    """What a training and its evaluation warned of, and the studies that either left out."""
    left_out = run["studies"]["failed"] | read_record((folder / SCORES).with_suffix(".run.json")).get("failed", {})
    return [*run["warnings"], *(f"{study} is left out: {why}" for study, why in left_out.items())]


def _partial(options: ReproduceOptions, rounds: Rounds, studies: Sequence[Study]) -> str:
    """What keeps a run from being the paper's experiment, before any training is looked at."""
    found = ["--set changed the recipes"] if options.settings else []
    found += [f"{options.studies} patients only"] if options.studies else []
    return ", ".join([*found, *shortfalls(rounds, studies, FOLD_COUNT)])


def _warnings(trained: dict[str, Trained], failed: dict[str, str]) -> tuple[str, ...]:
    """What failed, and each oddity once with the rows that have it."""
    rows: dict[str, list[str]] = {}
    for name, row in trained.items():
        for text in dict.fromkeys(row.warnings):
            rows.setdefault(text, []).append(name)
    odd = [f"{names[0] if len(names) == 1 else f'{len(names)} rows'}: {text}" for text, names in rows.items()]
    return (*(f"{name} could not be run: {why}" for name, why in failed.items()), *odd)


def _statement(trained: dict[str, Trained], partial: str) -> tuple[str, ...]:
    """What to know before any number."""
    shares = {name: row.share for name, row in trained.items() if row.share is not None}
    studies = len(next(iter(trained.values())).studies)
    scored = "1 study" if studies == 1 else f"{studies} studies"
    out = []
    if partial or not all(row.whole for row in trained.values()):
        out.append("This is not the paper's experiment, and no number in it reproduces the paper's or refutes it.")
    else:
        out.append(
            "Every row had its recipe's whole training; whether the data are the paper's cannot be told from here."
        )
    if shares:
        least, most = min(shares, key=lambda name: shares[name]), max(shares.values())
        out.append(
            f"The least trained row, {least}, saw {trained[least].trained:,} of its recipe's {trained[least].budget:,} patches "
            f"({share_text(shares[least])}), the most trained {share_text(most)}; each is scored on {scored}."
        )
    if partial:
        out.append(f"What differs: {partial}.")
    return (*out, "Verdicts are about this run: the same studies, split and seed for all rows, one training of each.")
