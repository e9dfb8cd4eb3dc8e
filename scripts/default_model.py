"""Makes the model that ships: python scripts/default_model.py REAL_STUDIES WORK_FOLDER [--patches N] [--phantoms N]

REAL_STUDIES is a folder of labelled studies; those of the 2013 set (not free for this use) are left out. Phantoms are added,
a tenth of all patients validates, and the best weights are packed in half precision into src/gliomap/weights.
"""

import argparse
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
ATTRIBUTION = (
    "Trained on studies of the BraTS 2018 to 2023 training data (CC BY 4.0; Baid et al. 2021, arXiv:2107.02314; Bakas et al. "
    "2017, doi:10.1038/sdata.2017.117; Menze et al. 2015, doi:10.1109/TMI.2014.2377694) and on gliomap phantoms"
)


def gather(real: Path, folder: Path, phantoms: int) -> None:
    """Links to the real studies and freshly grown phantoms in one folder."""
    for study in find_studies(real):
        if study.label is not None and "_2013_" not in study.id:
            source = study.label.path.parent.resolve()
            place = folder / source.parent.name / source.name
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                place.symlink_to(source)
    for name, count, randomise in (("realistic", phantoms - phantoms // 3, 0.0), ("varied", phantoms // 3, 0.3)):
        seed = 100 + int(10 * randomise)  # far from the seeds of the demo and of users
        phantom(PhantomOptions(folder / name, studies=count, seed=seed, randomise=randomise))


def pack(trained: Path) -> str:
    """The trained model in half precision, with its card, where the package ships it; returns the content hash."""
    model = load_model(trained)
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
    parser.add_argument("--patches", type=int, default=6000)
    parser.add_argument("--phantoms", type=int, default=15)
    asked = parser.parse_args()
    data, folds, run = asked.work / "data", asked.work / "folds.json", asked.work / "run"
    if not data.exists():
        gather(asked.real, data, asked.phantoms)
    split(SplitOptions(data, folds, folds=10, seed=SEED))
    settings = [f"training.patches={asked.patches}"]
    resume = (run / "checkpoint.pt").exists()
    train(TrainOptions("attention_resunet_small", data, run, settings, folds, seed=SEED, resume=resume))
    print(pack(run / "model.safetensors"))


if __name__ == "__main__":
    main()
