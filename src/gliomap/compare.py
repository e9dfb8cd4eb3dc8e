"""gliomap compare: tables of scores -> which model is better, how sure that is, and a page that shows it."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from gliomap.errors import InputError, UsageError
from gliomap.files import json_bytes, read_json, sha256, write_files
from gliomap.manifest import RunRecord, plain
from gliomap.report.answers import Answer, Pair, answers_to, outcome, sentence, side_name
from gliomap.report.comparison import ComparisonReport, comparison_page
from gliomap.report.extremes import extremes
from gliomap.report.score_table import latex_tables, markdown_tables
from gliomap.report.scores import rows_by_key, scores_of
from gliomap.rows import metric, table_csv
from gliomap.statistics import TESTS, PairedComparison

OUTPUTS = ("compare.csv", "table.md", "table.tex", "compare.html", "run.json")


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
    """What came of it: the sentences of the page, those that say better or worse, and a line per answer as in compare.csv."""

    answers: list[Answer]
    sentences: list[str]
    decided: list[str]
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
    scores, warnings = scores_of(rows_by_key(options.scores), options.metrics, options.regions, common=options.common)
    pairs = asked_pairs(scores.models, options.baseline, options.pairs)
    answers = answers_to(pairs, scores, options.test, options.seed)
    hashes = {str(path): sha256(path) for path in options.scores}
    shown, not_shown = extremes(scores, options.scores)
    report = ComparisonReport(
        scores, tuple(answers), options.test, options.seed, tuple(warnings), hashes, tuple(shown), tuple(not_shown)
    )
    table = [_line(answer, scores.protocol) for answer in answers]
    told = {
        "models": scores.models,
        "studies": scores.studies,
        "protocol": scores.protocol,
        "warnings": warnings,
        "inputs_sha256": hashes,
        "pictures_of": [one.study for one in shown],
        "not_shown": not_shown,
    }
    contents = (
        table_csv([_csv_line(line) for line in table], list(table[0])),
        markdown_tables(scores, answers).encode(),
        latex_tables(scores, answers).encode(),
        comparison_page(report).encode(),
        json_bytes(record.content(**told)),
    )
    paths = [options.output / name for name in OUTPUTS]
    write_files(dict(zip(paths, contents, strict=True)))
    sentences = [str(sentence(answer)) for answer in answers]
    decided = [text for text, answer in zip(sentences, answers, strict=True) if outcome(answer) in ("better", "worse")]
    return CompareResult(answers, sentences, decided, plain(table), warnings, options.output / "compare.html")


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
