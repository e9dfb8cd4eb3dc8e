"""Studies that a JSON file beside them describes: dataset.json of nnU-Net and the Decathlon, run.json of gliomap itself."""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gliomap.classes import CLASS_NAMES, ED, ET, NCR, RC, Convention, name_of, parse_convention
from gliomap.data.images import image_stem
from gliomap.data.names import loose_name
from gliomap.data.study import MODALITIES, ImageFile, Study
from gliomap.errors import InputError
from gliomap.files import read_json

_TISSUE_WORDS: tuple[tuple[str, int], ...] = (
    (r"resection|cavity|\brc\b", RC),
    (r"oedema|edema|\bed\b|snfh|flair|peritumou?ral|invaded", ED),
    (r"necro|non.*enhanc|unenhanc|\bncr\b|\bnet\b|\bnetc\b", NCR),
    (r"enhanc|\bet\b|active", ET),
)


def json_studies(record: Path, folder: Path, files: list[Path]) -> list[Study]:
    """The studies among the files of a folder that a dataset.json describes, or the label maps if it is a folder of those.

    Raises:
        InputError: the dataset.json does not say what the channels or labels are.
    """
    content = read_json(record)
    channels = (content.get("channel_names") or content.get("modality")) if isinstance(content, dict) else None
    if not isinstance(channels, dict) or not all(str(number).isdigit() for number in channels):
        raise InputError(
            f'{record} does not say what its channels are; expected "channel_names" (nnU-Net) or "modality" (Decathlon), '
            'such as {"0": "T1", "1": "T1c", "2": "T2", "3": "FLAIR"}'
        )
    order = {int(number): _channel_modality(str(name), record) for number, name in channels.items()}
    convention = convention_from_json(content.get("labels") or {}, record)
    nnunet = "channel_names" in content
    groups: dict[str, dict[str, ImageFile]] = defaultdict(dict)
    labels: list[Study] = []
    layout = "msd"
    for file in files:
        stem = image_stem(file) or ""
        numbered = re.fullmatch(r"(.+)_(\d{4})", stem)
        if folder.name.startswith("labels") or (nnunet and not numbered and folder == record.parent):
            # nnU-Net copies the dataset.json to its predictions
            labels.append(Study(stem, {}, ImageFile(file), convention, "nnunet" if nnunet else "msd", folder.name))
        elif numbered and (nnunet or int(numbered[2]) in order):
            layout = "nnunet"
            groups[numbered[1]][order.get(int(numbered[2]), "")] = ImageFile(file)
        else:
            groups[stem] = {modality: ImageFile(file, channel) for channel, modality in order.items()}
    return labels + [
        Study(study, {m: images[m] for m in MODALITIES if m in images}, None, convention, layout)
        for study, images in groups.items()
    ]


def _channel_modality(name: str, record: Path) -> str:
    found = loose_name(name)
    if found is None or found[0] == "seg":
        raise InputError(f"{record} calls a channel {name!r}; expected T1, T1c (T1Gd, T1CE), T2 or FLAIR")
    return found[0]


def convention_from_json(labels: Mapping[str, Any], record: Path) -> Convention | None:
    """The label convention that a dataset.json spells out: value to name, name to value, or nnU-Net's nested regions.

    Raises:
        InputError: a label's name says nothing about which tissue it is.
    """
    if not labels:
        return None
    try:
        if any(isinstance(v, list) for v in labels.values()):
            pairs = _region_values(labels, record)
        else:
            flipped = {str(k): int(v) if isinstance(v, int) or str(v).isdigit() else v for k, v in labels.items()}
            named = {int(k): str(v) for k, v in flipped.items() if k.isdigit()} or {
                int(v): k for k, v in flipped.items()
            }
            pairs = {value: _tissue(name, record) for value, name in named.items() if value}
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f'{record} has labels that cannot be read: {labels}; expected whole numbers and names, such as {{"edema": 1}}'
        ) from error
    if len(set(pairs.values())) != len(pairs):
        raise InputError(
            f"{record} gives one tissue two label values: {dict(labels)}; say what they mean with --labels 1=ET,..."
        )
    return Convention(name_of(pairs) or "custom", tuple(sorted(pairs.items())), f"{record.name}")


def _region_values(labels: Mapping[str, Any], record: Path) -> dict[int, int]:
    """nnU-Net's region labels (whole tumour, tumour core, enhancing tumour as lists of values) as value -> class."""
    sets = sorted((set(v if isinstance(v, list) else [v]) for n, v in labels.items() if n != "background"), key=len)
    if len(sets) != 3 or not (sets[0] < sets[1] < sets[2] and [len(s) for s in sets] == [1, 2, 3]):
        raise InputError(
            f"{record} has regions {dict(labels)}; expected whole tumour, tumour core and enhancing tumour, nested"
        )
    (et,), (ncr,), (ed,) = sets[0], sets[1] - sets[0], sets[2] - sets[1]
    return {int(ncr): NCR, int(ed): ED, int(et): ET}


def _tissue(name: str, record: Path) -> int:
    for pattern, tissue in _TISSUE_WORDS:
        if re.search(pattern, name.lower().replace("_", " ")):
            return tissue
    raise InputError(
        f"{record} calls a label {name!r}; expected a name of {', '.join(CLASS_NAMES.values())}, or say it with --labels"
    )


def gliomap_outputs(record: Path) -> tuple[list[Study], set[Path]]:
    """The label maps that a run of `gliomap segment` left, with the convention it recorded, and the files of all its maps.

    The record is that of a run (run.json), or of one study of a folder (record.json), which is all that a killed run leaves.
    """
    try:
        content = read_json(record)
    except InputError:
        return [], set()  # somebody else's
    if not isinstance(content, dict) or content.get("verb") not in ("segment", "explain"):
        return [], set()
    studies, taken = [], set()
    for row in content.get("studies", []):
        if row.get("status") != "done":
            continue
        written = [row["segmentation"], *row.get("outputs", ())]
        label, *others = (record.parent / (n if record.name == "run.json" else Path(n).name) for n in written)
        taken |= {label, *others}
        if label.is_file():
            convention = parse_convention(",".join(f"{v}={n}" for v, n in row["labels"].items()), record.name)
            studies.append(Study(row["study"], {}, ImageFile(label), convention, "gliomap"))
    return studies, taken
