"""Makes the model that ships: python scripts/default_model.py REAL_STUDIES WORK_FOLDER

REAL_STUDIES is a folder of labelled studies; those of the 2013 set (not free for this use) are left out. A first training sees
phantoms only; the recipe `default` goes on from there with the real studies and some phantoms, of which a tenth of all patients
validates. The best weights are packed in half precision into src/gliomap/weights. What is interrupted continues.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from gliomap.data.datasets import find_studies
from gliomap.data.synthetic import GENERATOR_VERSION
from gliomap.model_file import DEFAULT_MODEL, load_model, save_model
from gliomap.phantom import PhantomOptions, phantom
from gliomap.split import SplitOptions, split
from gliomap.train import TrainOptions, train

WEIGHTS = Path(__file__).parents[1] / "src" / "gliomap" / "weights"
SEED = 0
PHANTOMS = {"start": (60, 1, 0.0), "realistic": (10, 100, 0.0), "varied": (5, 103, 0.3)}
"""Of each folder how many, the first seed, and how much their contrasts vary; far from the seeds of the demo and of users."""
PHANTOM_PATCHES = 2400
ATTRIBUTION = (
    "Trained on gliomap phantoms, then on studies of the BraTS 2018 to 2023 training data (CC BY 4.0; Baid et al. 2021, "
    "arXiv:2107.02314; Bakas et al. 2017, doi:10.1038/sdata.2017.117; Menze et al. 2015, doi:10.1109/TMI.2014.2377694)"
)


def grow(folder: Path, name: str) -> Path:
    """A folder of phantoms, grown if it is not there."""
    count, seed, randomise = PHANTOMS[name]
    if not (folder / name).exists():
        phantom(PhantomOptions(folder / name, studies=count, seed=seed, randomise=randomise))
    return folder / name


def gather(real: Path, folder: Path) -> Path:
    """Links to the real studies and freshly grown phantoms in one folder."""
    for study in find_studies(real):
        if study.label is not None and "_2013_" not in study.id:
            source = study.label.path.parent.resolve()
            place = folder / source.parent.name / source.name
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                place.symlink_to(source)
    for name in ("realistic", "varied"):
        grow(folder, name)
    return folder


def trained(options: TrainOptions) -> Path:
    """The model file of a training, which is begun, continued or done already."""
    return train(replace(options, resume=(options.output / "checkpoint.pt").exists())).model


def pack(model_file: Path) -> str:
    """The trained model in half precision, with its card, where the package ships it; returns the content hash."""
    model = load_model(model_file)
    weights = {n: w.astype(np.float16) if w.dtype == np.float32 else w for n, w in model.weights.items()}
    card = model.card | {
        "data": ATTRIBUTION,
        "phantom_generator": GENERATOR_VERSION,
        "intended_use": "research; not a medical device",
        "made_by": "scripts/default_model.py",
    }
    return save_model(WEIGHTS / DEFAULT_MODEL, model.recipe, weights, card)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path)
    parser.add_argument("work", type=Path)
    asked = parser.parse_args()
    work: Path = asked.work
    settings = [f"training.patches={PHANTOM_PATCHES}", "training.validate_every=800"]
    start = TrainOptions("attention_resunet_small", grow(work, "start"), work / "started", settings, seed=SEED)
    data, folds = gather(asked.real, work / "data"), work / "folds.json"
    split(SplitOptions(data, folds, folds=10, seed=SEED))
    print(pack(trained(TrainOptions("default", data, work / "run", [], folds, seed=SEED, begin_with=trained(start)))))


if __name__ == "__main__":
    main()
