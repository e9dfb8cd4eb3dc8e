"""The label maps that tables of scores are of: found again by the record beside each table, and taken only where unchanged."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from gliomap.data.datasets import find_studies, parse_labels
from gliomap.data.predictions import predictions_by_name, predictions_by_pattern, truths_by_pattern
from gliomap.data.study import Study
from gliomap.errors import InputError, UsageError
from gliomap.files import read_json
from gliomap.scoring import Task


def scored_files(tables: Sequence[Path], studies: Collection[str]) -> tuple[dict[str, Task], list[str]]:
    """The truth and each model's label map of some studies, as far as they are still there, and why others are not shown.

    Only files whose SHA-256 is that of what was scored are returned, so that a picture is of what its scores are of.
    """
    found: dict[str, Task] = {}
    reasons: list[str] = []
    for table in tables:
        try:
            tasks, changed = _unchanged(table, studies)
        except (InputError, UsageError) as error:
            reasons.append(f"{table.name}: {error}")
            continue
        reasons += changed
        for task in tasks:
            earlier = found.get(task.truth.id, task).label_maps or {}
            found[task.truth.id] = Task(task.truth, earlier | (task.label_maps or {}))
    return found, list(dict.fromkeys(reasons))


def _unchanged(table: Path, studies: Collection[str]) -> tuple[list[Task], list[str]]:
    """The studies of one table whose truth is as it was, with the label maps that are."""
    path = table.with_name(f"{table.name.removesuffix('.csv')}.run.json")
    if not path.is_file():
        raise InputError(f"there is no {path.name} beside it, which says where its label maps are")
    try:
        record = read_json(path)
        then = {study: dict[str, str](record["inputs"][study]) for study in studies if study in record["inputs"]}
        tasks = {task.truth.id: task for task in _tasks(record)}
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path.name} is not what gliomap evaluate writes ({error!r})") from error
    found, reasons = [], []
    for study, scored in then.items():
        now = tasks[study].inputs() if study in tasks else {}
        files = [name for name in scored if name == "truth" or name.startswith("prediction of ")]
        changed = [name for name in files if now.get(name) != scored[name]]
        if "truth" in changed:
            changed = ["truth"]
        else:
            maps = tasks[study].label_maps or {}
            kept = {model: label_map for model, label_map in maps.items() if f"prediction of {model}" not in changed}
            found.append(Task(tasks[study].truth, kept))
        reasons += [f"the {name} of {study} is no longer the file that was scored" for name in changed]
    return found, reasons


def _tasks(record: dict[str, Any]) -> list[Task]:
    """All that a run of `gliomap evaluate` scored, looked for as it did."""
    options, own_name = record["options"], record["models"][0]
    predictions, truth = Path(options["predictions"]), Path(options["truth"])
    if predictions.suffix == ".safetensors":
        raise InputError(
            f"its scores are of the model {predictions.name}, and no label maps were kept; to see them, segment with it and "
            "evaluate the folder"
        )
    convention, labels = parse_labels(options["truth_labels"]), parse_labels(options["labels"])
    truths = (
        truths_by_pattern(truth, options["match_truth"], convention)
        if options["match_truth"]
        else find_studies(truth, convention)
    )
    if options["match"]:
        by_model = predictions_by_pattern(predictions, options["match"], [study.id for study in truths], labels)
    else:
        by_model = {"": predictions_by_name(predictions, truths, labels)}
    named: dict[str, dict[str, Study]] = {model or own_name: maps for model, maps in by_model.items()}
    return [Task(s, {model: maps[s.id] for model, maps in named.items() if s.id in maps}) for s in truths]
