"""How long a study takes from four .nii.gz files to its written label map: gliomap, MONAI and nnU-Net on the same weights.

Run: ``python benchmarks/inference.py STUDIES --models FOLDER [--train 10m] [--rounds 3] [--studies 3]``, in an environment
with ``benchmarks/requirements.txt``; without nnU-Net it is left out. STUDIES is a folder of labelled studies, one fold of
which no model is trained on. ``--train`` first trains the two models of the benchmark, so long each, where FOLDER does not
have them.

Each contestant is a process of its own, in turns; its time is that of the whole process, and its memory what that grows by
from where everything is imported and the model is loaded. The contestants:

- ``monai``: `sliding_window_inference` of the whole image, windows of 128^3, overlap 0.5, gaussian weights, as its BraTS
  examples have it; ``monai_cropped`` of the brain's box.
- ``nnunet``: nnU-Net's predictor, same windows, no mirroring.
- ``fast``, ``balanced``, ``accurate``: `gliomap segment` with these presets, warm: its engine is in the cache. ``windows``
  is ``fast`` with as little memory as it takes.

The last line is the ratio of ``monai`` to ``fast``.
"""

import argparse
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np

from gliomap.classes import REGIONS, parse_convention, region_mask
from gliomap.data.datasets import labelled_studies
from gliomap.data.study import ImageFile, Study
from gliomap.files import read_json, write_file
from gliomap.machine import cores, peak_memory_mb
from gliomap.metrics import dice
from gliomap.recipe import Inference, NetworkSpec, recipe_json, with_settings
from gliomap.recipes import RECIPES
from gliomap.split import SplitOptions, split

WINDOW, OVERLAP = (128, 128, 128), 0.5
NETWORKS = {
    "segresnet": NetworkSpec("segresnet", {"init_filters": 8, "dropout": 0.0}),
    "attention_resunet": NetworkSpec("attention_resunet", {"base": 8}),
}
GLIOMAP = ("fast", "balanced", "accurate", "windows")
PEERS = ("monai", "monai_cropped", "nnunet")


def trained(name: str, asked: argparse.Namespace) -> Path:
    """The model of a network, trained now if it is not there yet, and the fold that it has not seen."""
    folder = asked.models / name
    if not (folder / "model.safetensors").exists():
        if not asked.train:
            raise SystemExit(f"{folder} has no model.safetensors; train it with --train 10m")
        recipe = with_settings(
            RECIPES["segresnet_fair"],
            ["training.patch_size=[64,80,64]", "training.patches=600", "training.validate_every=600"],
        )
        recipe = replace(recipe, name=name, network=NETWORKS[name], inference=Inference())
        write_file(asked.models / f"{name}.json", recipe_json(recipe).encode())
        command = [sys.executable, "-m", "gliomap", "train", asked.models / f"{name}.json", asked.folder, "-o", folder]
        subprocess.run([*map(str, command), "--folds", str(asked.folds), "--max-time", asked.train], check=True)
    return folder / "model.safetensors"


def held_out(asked: argparse.Namespace) -> list[Study]:
    """The studies of the fold that is not trained on."""
    if not asked.folds.exists():
        split(SplitOptions(asked.folder, asked.folds, folds=5))
    names = read_json(asked.folds)["folds"][0]
    return [study for study in labelled_studies(asked.folder, None) if study.id in names][: asked.studies]


def run(who: str, model: Path, study: Study, place: Path, *, idle: bool = False) -> tuple[float, float]:
    """Seconds of a whole process that segments a study into ``place``, and its largest memory in MB.

    ``idle``: it stops when it has imported what it needs and has loaded the model.
    """
    files = [str(study.images[m].path) for m in ("t1", "t1c", "t2", "flair")]
    command = [sys.executable, __file__, "--alone", who, str(model), str(place), *files]
    begun = time.perf_counter()
    done = subprocess.run([*command, "--idle"] if idle else command, capture_output=True, text=True, check=False)
    time_s = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"{who} failed with {done.returncode}: {done.stderr[-2000:]}")
    return time_s, float(done.stdout.splitlines()[-1])


def alone(who: str, model: Path, place: Path, files: list[Path], *, idle: bool) -> None:
    """One contestant in this process; prints its largest memory in MB."""
    segments = _gliomap(who, model) if who in GLIOMAP else _peer(who, model)
    if not idle:
        segments(files, place)
    print(peak_memory_mb())


def _gliomap(who: str, model: Path) -> Callable[[list[Path], Path], None]:
    from gliomap.segment import SegmentOptions, load_segmenter, segment  # noqa: PLC0415

    load_segmenter(model)
    least = 1.0 if who == "windows" else None

    def run_all(files: list[Path], place: Path) -> None:
        images = dict(zip(("t1", "t1c", "t2", "flair"), files, strict=True))
        preset = "fast" if who == "windows" else who
        segment(SegmentOptions(None, place, files=images, model=model, preset=preset, max_memory_gb=least, quiet=True))

    return run_all


def _peer(who: str, model: Path) -> Callable[[list[Path], Path], None]:
    """What MONAI's and nnU-Net's users write, around the network of a gliomap model."""
    import torch  # noqa: PLC0415
    from monai import transforms as t  # noqa: PLC0415
    from monai.inferers import SlidingWindowInferer  # noqa: PLC0415

    from gliomap.model_file import load_model  # noqa: PLC0415
    from gliomap.torch_engine import load_networks  # noqa: PLC0415

    (network,) = load_networks(load_model(model))
    network = network.to(memory_format=torch.contiguous_format).eval()
    keys = ["image"]
    crop = [t.CropForegroundd(keys, "image", allow_smaller=True)] if who == "monai_cropped" else []
    prepare = t.Compose(
        [
            t.LoadImaged(keys),
            t.EnsureChannelFirstd(keys),
            t.Orientationd(keys, axcodes="SAR", labels=None),
            *crop,
            t.NormalizeIntensityd(keys, nonzero=True, channel_wise=True),
        ]
    )
    infer: Callable[[Any], Any]
    if who == "nnunet":
        infer = _nnunet(network)
    else:
        inferer = SlidingWindowInferer(WINDOW, 1, OVERLAP, mode="gaussian")
        infer = lambda image: inferer(image[None], network)[0]  # noqa: E731

    def run_all(files: list[Path], place: Path) -> None:
        data = prepare({"image": files})
        with torch.inference_mode():
            data["pred"] = infer(data["image"]).argmax(0, keepdim=True).to(torch.uint8)
        pred = t.MetaTensor(data["pred"], meta=data["image"].meta, applied_operations=data["image"].applied_operations)
        back = t.Invertd("pred", prepare, "image", nearest_interp=True, to_tensor=True)
        array = back({"image": data["image"], "pred": pred})["pred"][0].numpy().astype(np.uint8)
        place.mkdir(parents=True, exist_ok=True)
        like = nibabel.load(files[0])
        nibabel.save(nibabel.Nifti1Image(array, like.affine), place / "segmentation.nii.gz")

    return run_all


def _nnunet(network: Any) -> Callable[[Any], Any]:
    """nnU-Net's windows around a network; its constructor would ask for the plans of a training of its own."""
    import torch  # noqa: PLC0415
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: PLC0415 - only where it is installed

    predictor: Any = nnUNetPredictor(
        tile_step_size=OVERLAP,
        use_gaussian=True,
        use_mirroring=False,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    predictor.network = network
    predictor.configuration_manager = SimpleNamespace(patch_size=WINDOW)
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=4)
    predictor.allowed_mirroring_axes = None
    return lambda image: predictor.predict_sliding_window_return_logits(image.as_tensor()).float()


def scores(study: Study, place: Path) -> list[float]:
    """Dice of ET, TC and WT of a written label map, read as what its writer means: gliomap the study's values, others classes."""
    truth = study.read_classes()[0].array[0]
    written = nibabel.load(place / "segmentation.nii.gz")
    label = replace(study, label=ImageFile(place / "segmentation.nii.gz"))
    if not (place / "run.json").exists():
        label = replace(label, convention=parse_convention("1=NCR,2=ED,3=ET", "the channels"))
    assert written.shape == nibabel.load(study.images["t1"].path).shape
    found = label.read_classes()[0].array[0]
    pairs = [(region_mask(found, region), region_mask(truth, region)) for region in REGIONS]
    return [1.0 if not a.any() and not b.any() else dice(a, b) for a, b in pairs]


def compare(name: str, asked: argparse.Namespace) -> float:
    """Print a table of the contestants with one model; returns the ratio of MONAI's time to that of ``fast``."""
    model, studies = trained(name, asked), held_out(asked)
    who = [*(p for p in PEERS if p != "nnunet" or importlib.util.find_spec("nnunetv2")), *GLIOMAP]
    times: dict[str, list[float]] = {one: [] for one in who}
    peaks: dict[str, list[float]] = {one: [] for one in who}
    dices: dict[str, list[list[float]]] = {one: [] for one in who}
    with tempfile.TemporaryDirectory() as folder:
        cold_s, _ = run("fast", model, studies[0], Path(folder) / "cold")
        idle = {one: run(one, model, studies[0], Path(folder), idle=True) for one in who}
        for number, one in product(range(asked.rounds * len(studies)), who):
            study, place = studies[number % len(studies)], Path(folder) / one / str(number)
            time_s, peak_mb = run(one, model, study, place)
            times[one].append(time_s)
            peaks[one].append(peak_mb - idle[one][1])
            if number < len(studies):
                dices[one].append(scores(study, place))
    print(
        f"\n{name}: {len(studies)} studies that it was not trained on, {asked.rounds} rounds; the first run took {cold_s:.1f} s"
    )
    print(f"{'':<15}{'s':>8}{'of it idle':>12}{'MB':>8}{'MONAI/it':>10}{'MB/MONAI':>10}   ET     TC     WT")
    for one in who:
        time_s, memory_mb = statistics.median(times[one]), statistics.median(peaks[one])
        ratio, share = statistics.median(times["monai"]) / time_s, memory_mb / statistics.median(peaks["monai"])
        means = "  ".join(f"{mean:.3f}" for mean in np.mean(dices[one], 0))
        print(
            f"{one:<15}{time_s:>8.2f}{idle[one][0]:>12.2f}{memory_mb:>8.0f}{ratio:>10.1f}{share:>10.2f}   {means}",
            flush=True,
        )
    return statistics.median(times["monai"]) / statistics.median(times["fast"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", metavar="STUDIES")
    parser.add_argument("--models", type=Path, default=Path("inference"), help="where the two models are or go")
    parser.add_argument("--train", help="how long each may be trained, such as 10m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--studies", type=int, default=3)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--alone", nargs=7, help=argparse.SUPPRESS)
    parser.add_argument("--idle", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    if asked.alone:
        who, model, place, *files = asked.alone
        alone(who, Path(model), Path(place), [Path(file) for file in files], idle=asked.idle)
        return
    if asked.folder is None:
        parser.error("the folder of STUDIES is missing")
    asked.models.mkdir(parents=True, exist_ok=True)
    asked.folds = asked.models / "folds.json"
    print(f"{cores()} cores")
    ratios = {name: compare(name, asked) for name in asked.networks}
    print(
        "inference: gliomap fast is " + ", ".join(f"{r:.1f} times as fast as MONAI with {n}" for n, r in ratios.items())
    )


if __name__ == "__main__":
    main()
