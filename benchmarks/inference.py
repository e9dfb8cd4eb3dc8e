"""How long a study takes from four .nii.gz files to its written label map: gliomap, MONAI and nnU-Net on the same weights.

Run: ``python benchmarks/inference.py STUDIES --models FOLDER [--train DATA --max-time 10m] [--rounds 3]``, in an environment
with ``benchmarks/requirements.txt`` and, if it is to take part, nnunetv2. STUDIES is a folder of labelled studies of a usual
size, none of which trained a model. ``--train`` first trains the two models of the benchmark on DATA, so long each, where
FOLDER does not have them.

Each contestant is a process of its own, in turns; its time is that of the whole process, and its memory what that grows by
from where everything is imported and the model is loaded. The contestants:

- ``monai``: `sliding_window_inference` of the whole image, windows of 128^3, overlap 0.5, gaussian weights, as its BraTS
  examples have it; ``monai_cropped`` of the brain's box.
- ``nnunet``: nnU-Net's predictor, same windows, no mirroring.
- ``fast``, ``balanced``, ``accurate``: `gliomap segment --no-report` with these presets, warm: its engine is in the cache.
  ``report`` is ``fast`` with the page, which no peer makes; ``windows`` is ``fast`` within 1 GB, ``torch`` is ``fast`` by torch.

The last line is the ratio of ``monai`` to ``fast``.

``python benchmarks/inference.py --gpu`` needs a CUDA GPU: paper 004's network on noise of its grid, 128 x 192 x 192, against
the paper's claim of 0.9 s and under 10 GB for a volume.
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
from gliomap.files import write_file
from gliomap.machine import cores, peak_memory_mb
from gliomap.metrics import dice
from gliomap.model_file import load_model
from gliomap.recipe import Inference, NetworkSpec, recipe_json, with_settings
from gliomap.recipes import RECIPES

WINDOW, OVERLAP = (128, 128, 128), 0.5
NETWORKS = {
    "segresnet": NetworkSpec("segresnet", {"init_filters": 8, "dropout": 0.0}),
    "attention_resunet": NetworkSpec("attention_resunet", {"base": 8}),
}
PRESETS = ("fast", "balanced", "accurate")
GLIOMAP = (*PRESETS, "report", "windows", "torch")
PEERS = ("monai", "monai_cropped", "nnunet")


def trained(name: str, asked: argparse.Namespace) -> Path:
    """The model of a network, trained now if it is not there yet."""
    folder = asked.models / name
    if not (folder / "model.safetensors").exists():
        if not asked.train:
            raise SystemExit(f"{folder} has no model.safetensors; train it with --train DATA")
        recipe = with_settings(
            RECIPES["segresnet_fair"],
            ["training.patch_size=[64,80,64]", "training.patches=600", "training.validate_every=600"],
        )
        recipe = replace(recipe, name=name, network=NETWORKS[name], inference=Inference())
        write_file(asked.models / f"{name}.json", recipe_json(recipe).encode())
        command = [sys.executable, "-m", "gliomap", "train", asked.models / f"{name}.json", asked.train, "-o", folder]
        subprocess.run([*map(str, command), "--max-time", asked.max_time], check=True)
    return folder / "model.safetensors"


def unseen(model: Path, asked: argparse.Namespace) -> list[Study]:
    """The studies, none of which may have trained the model or chosen its weights."""
    studies, card = labelled_studies(asked.folder, None), load_model(model).card
    seen = {*card["training_studies"], *card["validation_studies"]} & {study.id for study in studies}
    if seen:
        raise SystemExit(f"{model} has seen {', '.join(sorted(seen))}")
    return studies


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
    if who in GLIOMAP:
        _gliomap(who, model, place, files, idle=idle)
    else:
        segments = _peer(who, model)
        if not idle:
            segments(files, place)
    print(peak_memory_mb())


def _gliomap(who: str, model: Path, place: Path, files: list[Path], *, idle: bool) -> None:
    from gliomap.segment import SegmentOptions, load_segmenter, segment  # noqa: PLC0415

    engine = "torch" if who == "torch" else "auto"
    if idle:
        load_segmenter(model, engine=engine)
        return
    images = dict(zip(("t1", "t1c", "t2", "flair"), files, strict=True))
    preset = who if who in PRESETS else "fast"
    options = SegmentOptions(None, place, files=images, model=model, preset=preset, engine=engine, quiet=True)
    segment(replace(options, max_memory_gb=1.0 if who == "windows" else None, report=who == "report"))


def _peer(who: str, model: Path) -> Callable[[list[Path], Path], None]:
    """What MONAI's and nnU-Net's users write, around the network of a gliomap model."""
    import torch  # noqa: PLC0415
    from monai import transforms as t  # noqa: PLC0415
    from monai.data import MetaTensor  # noqa: PLC0415
    from monai.inferers import SlidingWindowInferer  # noqa: PLC0415

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
        pred = MetaTensor(data["pred"], meta=data["image"].meta, applied_operations=data["image"].applied_operations)
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
    model = trained(name, asked)
    studies = unseen(model, asked)
    who = [
        one
        for one in dict.fromkeys(("monai", *asked.who, "fast"))
        if one != "nnunet" or importlib.util.find_spec("nnunetv2")
    ]
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


def gpu(rounds: int) -> None:
    """Print seconds and memory of a pass of paper 004's network on a GPU, as it is and compiled, in float32 and bfloat16.

    Compiled with CUDA graphs, as torch does it to reduce overhead.
    """
    import torch  # noqa: PLC0415

    if not torch.cuda.is_available():
        raise SystemExit("this part needs a CUDA GPU, and torch finds none")
    from gliomap.networks import build_network  # noqa: PLC0415

    recipe = RECIPES["attention_resunet"]
    network = build_network(recipe).cuda().eval().to(memory_format=torch.channels_last_3d)
    images = torch.randn(1, 4, *(recipe.preprocessing.grid or ()), device="cuda")
    images = images.to(memory_format=torch.channels_last_3d)
    print(torch.cuda.get_device_name())
    compiled = torch.compile(network, mode="reduce-overhead")
    for (how, run), kind in product({"eager": network, "compiled": compiled}.items(), (torch.float32, torch.bfloat16)):
        torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(rounds + 3):  # the first ones compile and record
            begun = time.perf_counter()
            with torch.inference_mode(), torch.autocast("cuda", kind, enabled=kind != torch.float32):
                run(images)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - begun)
        memory_gb = torch.cuda.max_memory_allocated() / 1e9
        print(
            f"{how:<10}{kind!s:<16}{statistics.median(times[3:]):.3f} s  {memory_gb:.1f} GB  (paper 004: 0.9 s, under 10 GB)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", metavar="STUDIES")
    parser.add_argument("--models", type=Path, default=Path("inference"), help="where the two models are or go")
    parser.add_argument("--train", type=Path, metavar="DATA", help="what the models are trained on")
    parser.add_argument("--max-time", default="10m", help="how long each is trained")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument(
        "--who", nargs="+", default=[*PEERS, *GLIOMAP], choices=[*PEERS, *GLIOMAP], help="besides monai, fast"
    )
    parser.add_argument("--gpu", action="store_true", help="time paper 004's network on a GPU, and nothing else")
    parser.add_argument("--alone", nargs=7, help=argparse.SUPPRESS)
    parser.add_argument("--idle", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    if asked.alone:
        who, model, place, *files = asked.alone
        alone(who, Path(model), Path(place), [Path(file) for file in files], idle=asked.idle)
        return
    if asked.gpu:
        gpu(asked.rounds)
        return
    if asked.folder is None:
        parser.error("the folder of STUDIES is missing")
    asked.models.mkdir(parents=True, exist_ok=True)
    print(f"{cores()} cores")
    ratios = {name: compare(name, asked) for name in asked.networks}
    print(
        "inference: gliomap fast is " + ", ".join(f"{r:.1f} times as fast as MONAI with {n}" for n, r in ratios.items())
    )


if __name__ == "__main__":
    main()
