"""make default-model: trains, cross-validates and packs the model that ships.

    python scripts/default_model.py WORK REAL_STUDIES...

REAL_STUDIES are folders of labelled studies; those of the 2013 set (not free for this use) are left out. The recipe `default` is
trained on phantoms only; from there it goes on, on the real studies and some more phantoms: once for each fold of the patients,
whose other folds score it, and once on all of them, which makes the model. Each training is validated once, at its end, so that
no score has chosen any weights. The scores (also without each modality, and of the phantoms' training alone) are printed as the
tables of docs/default_model.md and go into the card of src/gliomap/weights. What is interrupted continues.
"""

import argparse
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gliomap.classes import REGIONS
from gliomap.data.datasets import labelled_studies
from gliomap.data.study import MODALITIES
from gliomap.data.synthetic import GENERATOR_VERSION
from gliomap.evaluate import EvaluateOptions, evaluate
from gliomap.files import read_json, sha256, write_file
from gliomap.model_file import DEFAULT_MODEL, load_model, save_model
from gliomap.phantom import PhantomOptions, phantom
from gliomap.repeat import RepeatOptions, repeat
from gliomap.rows import Row
from gliomap.split import SplitOptions, split
from gliomap.statistics import bca_interval
from gliomap.train import TrainOptions, train

WEIGHTS = Path(__file__).parents[1] / "src" / "gliomap" / "weights"
SEED, FOLDS = 0, 3
PHANTOMS = {"realistic": (160, 1000, 0.0), "varied": (100, 2000, 0.3), "very_varied": (60, 3000, 0.6)}
"""How many start the training, the first seed, and how much their contrasts vary; far from the seeds of the demo and of users."""
PHANTOM_SIZE = 120
"""Voxels from left to right: they are grown at the 2 mm that the network works at."""
START = ("training.patches=3000", "training.validate_every=1500", "training.patch_size=[48,64,48]")
FINAL = ("training.validation_share=0.01",)
"""All patients but one train, who is only looked at."""
PHANTOMS_BESIDE = 12
Scores = dict[str, dict[str, Any]]
"""By region: means, medians and the interval of Dice."""
METRICS = ("dice", "hd95", "volume_error_relative", "ece")
ATTRIBUTION = (
    "Trained on gliomap phantoms, then on studies of the BraTS 2018 to 2023 training data and of BraTS-Africa (CC BY 4.0; Baid et "
    "al. 2021, arXiv:2107.02314; Bakas et al. 2017, doi:10.1038/sdata.2017.117; Menze et al. 2015, doi:10.1109/TMI.2014.2377694; "
    "Adewole et al. 2023, arXiv:2305.19369)"
)


def grow(folder: Path) -> Path:
    """A folder of phantoms, grown where they are not there."""
    for name, (count, seed, randomise) in PHANTOMS.items():
        if not (folder / name).exists():
            phantom(PhantomOptions(folder / name, count, seed=seed, size=PHANTOM_SIZE, randomise=randomise))
    return folder


def gather(places: Iterable[Path], folder: Path, without: str | None = None) -> None:
    """Links to the files of the real studies, but for the modality ``without``, in one folder."""
    for place in places:
        for study in labelled_studies(place, None):
            if study.label is None or "2013" in study.id:
                continue
            home = folder / study.label.path.parent.parent.name / study.id
            home.mkdir(parents=True, exist_ok=True)
            kept = [image.path for modality, image in study.images.items() if modality != without]
            for path in (*kept, study.label.path):
                if not (home / path.name).exists():
                    (home / path.name).symlink_to(path.resolve())


def trained(options: TrainOptions) -> Path:
    """The model file of a training, which is begun, continued or done already."""
    return train(replace(options, resume=(options.output / "checkpoint.pt").exists())).model


def cross_validated(work: Path, real: Sequence[Path], start: Path) -> dict[str, Scores]:
    """The scores of the studies by the models that did not see them, with all modalities and without each, and by ``start``."""
    folds: list[list[str]] = read_json(work / "folds.json")["folds"]
    models = [work / "cross" / f"fold_{n}" / "model.safetensors" for n in range(len(folds))]
    found: dict[str, Scores] = {}
    for without in (None, *MODALITIES):
        name = f"without_{without}" if without else "all"
        gather(real, place := work / "incomplete" / name, without)
        scored = zip(models, folds, range(len(folds)), strict=True)
        found[name] = summary([row for m, ids, n in scored for row in score(m, place, ids, work / f"{name}_{n}.csv")])
    found["phantoms_only"] = summary(score(start, work / "data", itertools.chain(*folds), work / "phantoms_only.csv"))
    return found


def score(model: Path, studies: Path, ids: Iterable[str], output: Path) -> list[Row]:
    """What a model makes of these studies of a folder."""
    return list(evaluate(EvaluateOptions(model, studies, output, metrics=METRICS, studies=tuple(ids))).rows)


def summary(rows: Sequence[Row]) -> Scores:
    """For each region the mean of each metric, its median, and the 95 % interval of the mean of Dice; over how many studies."""
    found: Scores = {}
    for region in REGIONS:
        told: dict[str, Any] = {}
        for metric in METRICS:
            values = [r.value for r in rows if r.region == region and r.metric == metric and r.value is not None]
            told |= {metric: round(float(np.mean(values)), 4), f"{metric}_median": round(float(np.median(values)), 4)}
            if metric == "dice":
                told |= {"dice_95": [round(end, 4) for end in bca_interval(values)], "studies": len(values)}
        found[region] = told
    return found


def pack(model_file: Path, scores: Mapping[str, Scores]) -> str:
    """The trained model in half precision, with its card, where the package ships it; returns the content hash."""
    model = load_model(model_file)
    weights = {n: w.astype(np.float16) if w.dtype == np.float32 else w for n, w in model.weights.items()}
    card = model.card | {
        "data": ATTRIBUTION,
        "phantom_generator": GENERATOR_VERSION,
        "intended_use": "research; not a medical device",
        "made_by": "make default-model",
        "scores": scores,
    }
    digest = save_model(path := WEIGHTS / DEFAULT_MODEL, model.recipe, weights, card)
    write_file(WEIGHTS / f"{DEFAULT_MODEL}.sha256", f"{sha256(path)}  {DEFAULT_MODEL}\n".encode())
    return digest


def table(scores: Mapping[str, Scores]) -> str:
    """The scores as the table of docs/default_model.md."""
    lines = [
        "| | " + " | ".join(f"{region} Dice" for region in REGIONS) + " | WT HD95 |",
        "|---|" + "---|" * (len(REGIONS) + 1),
    ]
    for name, regions in scores.items():
        cells = ["{dice:.3f} [{dice_95[0]:.3f}, {dice_95[1]:.3f}]".format(**regions[region]) for region in REGIONS]
        lines.append(f"| {name} | {' | '.join(cells)} | {regions['WT']['hd95']:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("real", type=Path, nargs="+")
    parser.add_argument(
        "--precision", default="auto", help="as of gliomap train; bf16-mixed where the processor has it"
    )
    asked = parser.parse_args()
    work: Path = asked.work
    data, folds = work / "data", work / "folds.json"
    gather(asked.real, data)
    split(SplitOptions(data, folds, FOLDS, SEED))
    options = TrainOptions("default", data, work, seed=SEED, precision=asked.precision)
    start = trained(replace(options, data=grow(work / "phantoms"), output=work / "start", settings=list(START)))
    options = replace(options, begin_with=start, phantoms=PHANTOMS_BESIDE, phantom_size=PHANTOM_SIZE)
    repeat(RepeatOptions(replace(options, output=work / "cross", folds=folds), all_folds=True))
    model = trained(replace(options, output=work / "final", settings=list(FINAL)))
    scores = cross_validated(work, asked.real, start)
    print(table(scores))
    print(pack(model, scores))


if __name__ == "__main__":
    main()
