"""gliomap compare: tables of scores -> which model is better, how sure that is, and a page that shows it."""

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from gliomap.classes import PARTS
from gliomap.errors import InputError, UsageError
from gliomap.files import json_bytes, read_json, sha256, write_files
from gliomap.manifest import RunRecord, plain
from gliomap.report.answers import (
    Answer,
    Array,
    Column,
    Pair,
    Scores,
    answers_to,
    metric_title,
    sentence,
    side_name,
    undirected,
)
from gliomap.report.comparison import ComparisonReport, comparison_page
from gliomap.report.score_table import latex_tables, markdown_tables
from gliomap.rows import Row, metric, read_rows, table_csv
from gliomap.statistics import TESTS, PairedComparison

PREFERRED_METRICS = ("dice", "hd95", "lesion_dice", "lesion_hd95")
OUTPUTS = ("compare.csv", "table.md", "table.tex", "compare.html", "run.json")
TRUTH_TOLERANCE = 1e-4
"""Relative; rows have 6 digits."""

Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class CompareOptions:
    """What `compare` is asked for.

    ``scores`` are tables of rows; models are told apart by their name in the rows. Without ``metrics`` Dice and HD95 are
    compared where they are there, without ``regions`` all. Asked are all pairs of models, or every other model against
    ``baseline``, or the ``pairs``, each "A:B", where a side may be several models joined with "+": their mean in each study.
    ``common`` restricts to the studies, regions and metrics that all models have, instead of refusing.
    """

    scores: tuple[Path, ...]
    output: Path
    metrics: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    baseline: str | None = None
    pairs: tuple[str, ...] = ()
    common: bool = False
    test: str = "wilcoxon"
    seed: int = 0


@dataclass(frozen=True)
class CompareResult:
    """What came of it: ``table`` has a line per pair, region and metric, as in compare.csv."""

    answers: list[Answer]
    sentences: list[str]
    table: list[dict[str, Any]]
    warnings: list[str]
    page: Path


def compare(options: CompareOptions) -> CompareResult:
    """Compare models by their scores and write compare.csv, table.md, table.tex, compare.html and run.json.

    Raises:
        UsageError: a model, metric, region, test or pair that there is not; or nothing to compare.
        InputError: a table cannot be read, or the tables cannot be compared: the same score twice, other studies, another
            truth, protocol or definition; or the output cannot be written.
    """
    record = RunRecord("compare", options)
    if options.test not in TESTS:
        raise UsageError(f"no paired test is called {options.test!r}; expected one of {', '.join(TESTS)}")
    _refuse_taken(options)
    scores, warnings = scores_of(_read(options.scores), options)
    pairs = asked_pairs(scores.models, options.baseline, options.pairs)
    answers = answers_to(pairs, scores, options.test, options.seed)
    if options.baseline is None and not options.pairs:
        answers = [undirected(answer) for answer in answers]
    hashes = {str(path): sha256(path) for path in options.scores}
    report = ComparisonReport(scores, tuple(answers), options.test, options.seed, tuple(warnings), hashes)
    table = [_line(answer, scores.protocol) for answer in answers]
    outcome = {
        "models": scores.models,
        "studies": scores.studies,
        "protocol": scores.protocol,
        "warnings": warnings,
        "inputs_sha256": hashes,
    }
    contents = (
        table_csv([_csv_line(line) for line in table], list(table[0])),
        markdown_tables(scores, answers).encode(),
        latex_tables(scores, answers).encode(),
        comparison_page(report).encode(),
        json_bytes(record.content(**outcome)),
    )
    paths = [options.output / name for name in OUTPUTS]
    write_files(dict(zip(paths, contents, strict=True)))
    sentences = [str(sentence(answer)) for answer in answers]
    return CompareResult(answers, sentences, plain(table), warnings, options.output / "compare.html")


def _refuse_taken(options: CompareOptions) -> None:
    """Never write over what is no output of an earlier comparison."""
    record = options.output / "run.json"
    earlier = read_json(record) if record.is_file() else {"verb": "compare"}
    if not isinstance(earlier, dict) or earlier.get("verb") != "compare":
        raise InputError(
            f"{options.output} holds the output of another command ({record}); choose another folder with -o"
        )
    taken = {(options.output / name).resolve() for name in OUTPUTS} & {path.resolve() for path in options.scores}
    if taken:
        raise InputError(f"{taken.pop()} would be written over, and is one of the tables to compare; choose another -o")


def _read(paths: Iterable[Path]) -> dict[Key, Row]:
    """All rows by study, model, region and metric; a failed study's row has neither region nor metric."""
    found: dict[Key, Row] = {}
    places: dict[Key, Path] = {}
    for path in paths:
        for row in read_rows(path):
            key = (row.study, row.model, row.region, row.metric)
            if key in found:
                raise _twice(f"{row.metric or 'the failure'} {row.region}".strip(), row, {places[key], path})
            found[key], places[key] = row, path
    for key, row in found.items():
        failed = (row.study, row.model, "", "")
        if row.metric and failed in found:
            raise _twice("a score, once failed,", row, {places[key], places[failed]})
    if not any(row.metric for row in found.values()):
        raise InputError(
            f"there are no scores in {', '.join(map(str, paths))}; expected rows that gliomap evaluate wrote"
        )
    return found


def _twice(what: str, row: Row, places: set[Path]) -> InputError:
    return InputError(
        f"{what} of the model {row.model} in {row.study} is there twice, in {' and '.join(sorted(map(str, places)))}. Leave one "
        "out; if they are two models, give them different names with gliomap evaluate --name"
    )


def scores_of(rows: Mapping[Key, Row], options: CompareOptions) -> tuple[Scores, list[str]]:
    """The scores to compare, by study and model, and what has to be said of them.

    Raises:
        UsageError: a metric or region is asked for that is not there, or that has no better and worse.
        InputError: the models were not scored alike, or not on the same studies and ``common`` is not set.
    """
    models = tuple(dict.fromkeys(model for _, model, _, _ in rows))
    columns, warnings = _columns(rows, models, options)
    chosen = [row for row in rows.values() if (row.region, row.metric) in columns]
    protocol = _agreed_protocol(chosen)
    studies, left_out = _studies(rows, models, columns, common=options.common)
    warnings += left_out
    _refuse_other_truths(rows, models, studies)
    values, status = {}, {}
    for region, name in columns:
        found = [[_row(rows, study, model, region, name) for model in models] for study in studies]
        values[region, name] = np.array(
            [[np.nan if r is None or r.value is None else r.value for r in line] for line in found]
        )
        status[region, name] = np.array([["" if r is None else r.status for r in line] for line in found])
    warnings += _absences(models, studies, values, status)
    return Scores(tuple(studies), models, values, status, protocol), warnings


def _absences(
    models: Sequence[str], studies: Sequence[str], values: Mapping[Column, Array], status: Mapping[Column, Any]
) -> list[str]:
    """What is missing, in a line per model that failed and a line per metric."""
    found = []
    for k, model in enumerate(models):
        failed = [
            study for study, text in zip(studies, next(iter(status.values()))[:, k], strict=True) if text == "failed"
        ]
        if failed:
            found.append(f"{model} failed in {len(failed)} of {len(studies)} studies: {_some(failed)}")
    for name in dict.fromkeys(name for _, name in values):
        gone = {
            (m, r): n
            for (r, other), v in values.items()
            if other == name
            for m, n in zip(models, _missing(v), strict=True)
        }
        (model, region), most = max(gone.items(), key=lambda item: item[1])
        if most:
            where = f"{model}, {region}" if region else model
            found.append(
                f"{metric_title(name)} has no value in at most {most} of {len(studies)} studies ({where}); the page counts all"
            )
    return found


def _missing(values: Array) -> list[int]:
    return np.isnan(values).sum(axis=0).tolist()


def _row(rows: Mapping[Key, Row], study: str, model: str, region: str, name: str) -> Row | None:
    return rows.get((study, model, region, name)) or rows.get((study, model, "", ""))


def _columns(rows: Mapping[Key, Row], models: Sequence[str], options: CompareOptions) -> tuple[list[Column], list[str]]:
    """The regions and metrics to compare, metric by metric, and those that some model lacks."""
    have = {(model, (region, name)) for _, model, region, name in rows if name}
    present = {column for _, column in have}
    names = list(dict.fromkeys(row.metric for row in rows.values() if row.metric))
    scored = [name for name in names if metric(name).better != "neither"]
    wanted = options.metrics or [m for m in PREFERRED_METRICS if m in names] or scored
    for name in wanted:
        if metric(name).better == "neither":
            raise UsageError(f"{name} is a quantity, neither better nor worse; compare some of {', '.join(scored)}")
        if name not in names:
            raise UsageError(f"the tables have no {name}; they have {', '.join(scored)}")
    regions = sorted({region for region, _ in present}, key=lambda region: ("", *PARTS, region).index(region))
    if unknown := [region for region in options.regions if region not in regions]:
        has = ", ".join(region for region in regions if region)
        raise UsageError(f"the tables have no region {', '.join(unknown)}; they have {has}")
    asked = [
        (region, name)
        for name in dict.fromkeys(wanted)
        for region in regions
        if (region, name) in present and (not region or not options.regions or region in options.regions)
    ]
    lacking = {c: [model for model in models if (model, c) not in have] for c in asked}
    lacking = {column: without for column, without in lacking.items() if without}
    texts = [f"{name} {region}".strip() + f": not of {', '.join(w)}" for (region, name), w in lacking.items()]
    kept = [column for column in asked if column not in lacking]
    if (texts and not options.common) or not kept:
        raise InputError(
            f"not every model has the same scores ({'; '.join(texts) or 'none at all'}). Score them alike, choose with --metrics "
            "and --regions, or compare what all have with --common"
        )
    return kept, [f"left out, since not every model has it: {text}" for text in texts]


def _agreed_protocol(rows: Sequence[Row]) -> str:
    """The protocol of all rows; refused where there are several, or a metric has several definitions."""
    for words in ({(row.metric, row.unit, row.definition) for row in rows}, {("", "", row.protocol) for row in rows}):
        counted = Counter(name for name, _, _ in words)
        for name, several in counted.items():
            if several > 1:
                told = " | ".join(sorted(f"{unit} {text}".strip() for other, unit, text in words if other == name))
                models = ", ".join(dict.fromkeys(row.model for row in rows))
                what = f"the metric {name} by different definitions" if name else "by different protocols"
                raise InputError(
                    f"the models {models} were scored {what} ({told}); score them again with gliomap evaluate, alike"
                )
    return rows[0].protocol


def _studies(
    rows: Mapping[Key, Row], models: Sequence[str], columns: Sequence[Column], *, common: bool
) -> tuple[list[str], list[str]]:
    """The studies that every model has, failed or scored, and what was left out."""
    kept = {*columns, ("", "")}
    of: dict[str, set[str]] = {model: set() for model in models}
    for study, model, region, name in rows:
        if (region, name) in kept:
            of[model].add(study)
    every = sorted(set().union(*of.values()))
    shared = [study for study in every if all(study in found for found in of.values())]
    if len(shared) == len(every):
        return every, []
    lacking = [
        f"{model} lacks {len(gone)} of {len(every)}: {_some(gone)}"
        for model in models
        if (gone := [study for study in every if study not in of[model]])
    ]
    if not common:
        raise InputError(
            f"the models were scored on different studies. {'. '.join(lacking)}. Score the rest, or compare on the "
            f"{len(shared)} common ones with --common"
        )
    if not shared:
        raise InputError(f"no study was scored for every model. {'. '.join(lacking)}")
    gone = [study for study in every if study not in shared]
    return shared, [f"left out {len(gone)} of {len(every)} studies, which not every model has: {_some(gone)}", *lacking]


def _refuse_other_truths(rows: Mapping[Key, Row], models: Sequence[str], studies: Sequence[str]) -> None:
    """The volumes of the truth are in the rows: models scored against different ones cannot be compared."""
    regions = dict.fromkeys(region for _, _, region, name in rows if name == "volume_truth")
    for study in studies:
        for region in regions:
            found = {
                m: r.value
                for m in models
                if (r := rows.get((study, m, region, "volume_truth"))) and r.value is not None
            }
            if found and max(found.values()) - min(found.values()) > TRUTH_TOLERANCE * max(found.values()):
                told = ", ".join(f"{value:g} ml for {model}" for model, value in found.items())
                raise InputError(
                    f"the models were scored against different truths: {region} of {study} has {told}. Score all with the "
                    "same label maps and --truth-labels"
                )


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def asked_pairs(models: Sequence[str], baseline: str | None, pairs: Sequence[str]) -> list[Pair]:
    """The pairs to compare: the given ones, or each other model against the baseline, or all in the order of the models.

    Raises:
        UsageError: a model that there is not, one pair twice, a model on both sides, both kinds asked, or no pair at all.
    """
    if baseline is not None and pairs:
        raise UsageError("--baseline and --pair are two ways to say what is asked; give one")
    if len(models) < 2:
        raise UsageError(f"the tables have the scores of one model only, {models[0]}; a comparison needs two")
    if baseline is not None:
        _known(baseline, models)
        return [Pair((model,), (baseline,)) for model in models if model != baseline]
    if not pairs:
        return [Pair((a,), (b,)) for i, a in enumerate(models) for b in models[i + 1 :]]
    found = [_pair(text, models) for text in pairs]
    if len({frozenset(map(frozenset, pair)) for pair in found}) < len(found):
        raise UsageError("a pair is asked twice, perhaps once from each side; ask it once")
    return found


def _pair(text: str, models: Sequence[str]) -> Pair:
    """Models joined with + on both sides of a colon, where names may have both signs in them."""
    places = [i for i, letter in enumerate(text) if letter == ":"]
    if not places:
        raise UsageError(f"cannot read the pair {text!r}; expected two models as A:B, or several on a side as A+B:C+D")
    found = [(_side(text[:i], models), _side(text[i + 1 :], models)) for i in places]
    known = [Pair(a, b) for a, b in found if {*a, *b} <= set(models)]
    if not known:
        for name in (*found[0][0], *found[0][1]):
            _known(name, models)
    a, b = known[0]
    if set(a) & set(b) or len(set(a)) < len(a) or len(set(b)) < len(b):
        raise UsageError(f"the pair {text!r} has a model twice; expected each once")
    return known[0]


def _side(text: str, models: Sequence[str]) -> tuple[str, ...]:
    text = text.strip()
    return (text,) if text in models else tuple(part.strip() for part in text.split("+"))


def _known(model: str, models: Sequence[str]) -> None:
    if model not in models:
        near = difflib.get_close_matches(model, models, 1, 0.5)
        hint = f"near it is {near[0]}" if near else f"there are {', '.join(models)}"
        raise UsageError(f"no model is called {model!r} in these tables; {hint}")


def _line(answer: Answer, protocol: str) -> dict[str, Any]:
    """An answer as a line of compare.csv."""
    words = {
        "metric": answer.metric,
        "region": answer.region,
        "unit": metric(answer.metric).unit,
        "a": side_name(answer.pair.a),
        "b": side_name(answer.pair.b),
        "test": answer.test,
    }
    return words | asdict(answer.comparison) | {"verdict": answer.verdict, "protocol": protocol}


def _csv_line(line: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {f.name: line[f.name] for f in fields(PairedComparison)}
    return dict(line) | {
        name: ("" if np.isnan(value) else f"{value:.6g}") if isinstance(value, float) else value
        for name, value in numbers.items()
    }
