"""Label maps to score, of any tool: found by the study's name, or by a pattern that says where they lie."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from gliomap.classes import Convention
from gliomap.data.datasets import find_studies
from gliomap.data.images import image_stem
from gliomap.data.study import ImageFile, Study
from gliomap.errors import InputError, UsageError

_PLACEHOLDER = re.compile(r"(\{\w*\}|\*)")


def predictions_by_name(path: Path, studies: Sequence[Study], labels: Convention | None) -> dict[str, Study]:
    """The label map of each study, by its id, in a folder as people have them; one file serves a single study.

    What `gliomap segment` wrote, a dataset's or nnU-Net's layout, or files named by the study's id.

    Raises:
        InputError: the folder cannot be read, or has nothing for any of the studies.
    """
    if path.is_file() and len(studies) == 1:
        return {studies[0].id: Study(studies[0].id, {}, ImageFile(path), labels)}
    try:
        found = {s.id: s for s in find_studies(path, labels, outputs=True) if s.label is not None}
    except InputError:
        if not path.is_dir():
            raise
        found = {}  # no name says what it is; perhaps they are the ids
    named: dict[str, list[Path]] = defaultdict(list)
    for file in sorted(path.rglob("*")):
        named[image_stem(file) or ""].append(file)
    for study in studies:
        files = [file for end in ("", "_seg", "-seg") for file in named[f"{study.id}{end}"]]
        if study.id not in found and files:
            found[study.id] = _label_map(study.id, files, labels)
    if not any(s.id in found for s in studies):
        raise InputError(
            f"{path} has no label map for any of the {len(studies)} studies, such as {studies[0].id}; expected ID.nii.gz, "
            "ID_seg.nii.gz, ID-seg.nii.gz or ID/segmentation.nii.gz, or say where they lie: --match '{study}/pred_{model}.nii.gz'"
        )
    return {s.id: found[s.id] for s in studies if s.id in found}


def predictions_by_pattern(
    path: Path, pattern: str, studies: Iterable[str], labels: Convention | None
) -> dict[str, dict[str, Study]]:
    """For each model the label map of each study, as a pattern such as ``{study}/pred_{model}.nii.gz`` says.

    The pattern is relative to the folder; ``*`` is any text without a slash. Without ``{model}`` the model's name is empty.

    Raises:
        UsageError: the pattern has no ``{study}``, or another placeholder.
        InputError: no file fits.
    """
    ids = "|".join(map(re.escape, sorted(studies, key=len, reverse=True)))
    files: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for file, words in _matching(path, pattern, {"study": ids, "model": r"[^/]+?"}, "--match"):
        files[words.get("model", ""), words["study"]].append(file)
    found: dict[str, dict[str, Study]] = defaultdict(dict)
    for (model, study), several in sorted(files.items()):
        found[model][study] = _label_map(study, several, labels)
    return dict(found)


def truths_by_pattern(path: Path, pattern: str, labels: Convention | None) -> list[Study]:
    """Studies with a label map only, as a pattern such as ``{study}/truth.nii.gz`` says, in the order of their ids.

    Raises:
        UsageError: the pattern has no ``{study}``, or another placeholder.
        InputError: no file fits.
    """
    files: dict[str, list[Path]] = defaultdict(list)
    for file, words in _matching(path, pattern, {"study": r"[^/]+?"}, "--match-truth"):
        files[words["study"]].append(file)
    return [_label_map(study, several, labels) for study, several in sorted(files.items())]


def _matching(path: Path, pattern: str, words: dict[str, str], option: str) -> list[tuple[Path, dict[str, str]]]:
    """The image files below a folder that fit a pattern, and what its placeholders stand for; ``words`` are regular expressions."""
    expression, seen = "", set()
    for part in _PLACEHOLDER.split(pattern):
        name = part.strip("{}")
        if part == "*":
            expression += "[^/]*"
        elif not part.startswith("{"):
            expression += re.escape(part)
        elif name not in words:
            raise UsageError(
                f"{option} {pattern!r} has {part}; expected {' and '.join(f'{{{w}}}' for w in words)} only"
            )
        else:
            expression += f"(?P={name})" if name in seen else f"(?P<{name}>{words[name]})"
            seen.add(name)
    if "study" not in seen:
        raise UsageError(f"{option} {pattern!r} does not say where the study's name stands; expected {{study}} in it")
    if not path.is_dir():
        raise InputError(f"{path} is no folder; {option} needs a folder")
    files = [file for file in sorted(path.rglob("*")) if image_stem(file) is not None]
    found = [
        (file, m.groupdict()) for file in files if (m := re.fullmatch(expression, file.relative_to(path).as_posix()))
    ]
    if not found:
        example = f", such as {files[0].relative_to(path).as_posix()}" if files else ""
        raise InputError(f"none of the {len(files)} image files in {path}{example}, fits {option} {pattern!r}")
    return found


def _label_map(study: str, files: Sequence[Path], labels: Convention | None) -> Study:
    several = f"{len(files)} files could be its label map: {', '.join(map(str, files))}; give the folder of one of them"
    return Study(study, {}, ImageFile(files[0]), labels, problem=several if len(files) > 1 else "")
