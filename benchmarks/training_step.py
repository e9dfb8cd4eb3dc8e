"""What a step of training costs: of the papers' networks, of the loop around them, beside plain loops, and on a GPU.

Run: ``python benchmarks/training_step.py PART ... [--rounds 3] [--steps 4]``. The parts, each with its ratio in its last line:

- ``papers``: time and peak memory of each paper's recipe at its own patch, in as large a part of its batch as fits, and
  what ``gliomap train --dry-run`` expects of it. Each is a process of its own, so that its peak memory is its own.
- ``loop``: `gliomap.train` with its patches and augmentation against nothing but forward, backward and optimiser.
- ``naive``: patches per second against a loop of single patches in torch's default layout and heap, without any data.
- ``monai``: the same network, patch, batch and kinds of augmentation in MONAI's plain loop.
- ``half``: the bare step of each paper's network, two patches of 64^3 or a slice each, in bfloat16 against float32 on this CPU.
- ``gpu``: throughput of two networks on CUDA in bfloat16, as a share of what the card reaches in a matrix product.
"""

import argparse
import csv
import importlib.util
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gliomap.classes import ALL_CLASSES
from gliomap.losses import build_loss
from gliomap.machine import available_memory_bytes, cores, peak_memory_mb
from gliomap.networks import Network, as_slices, build_network, channels_last, fast_layout
from gliomap.networks.base import Outputs
from gliomap.networks.counting import count_step, mean_logit
from gliomap.networks.training_cost import patch_time_s, training_memory_bytes
from gliomap.recipe import LossSpec, NetworkSpec, Recipe, recipe_json, with_settings
from gliomap.recipes import RECIPES
from gliomap.train import TrainOptions, train

PAPERS = ("dual_fusion", "druwas", "cga_unet", "aspp_attention_unet_t1c", "attention_resunet")
SMALL = "attention_resunet_small"
STUDIES, STUDY_SIZE = 5, 96
"""Phantoms that the loops train on, one of which validates."""


def batch_of(recipe: Recipe, network: Network, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """A batch of noise as the network takes it: images, and classes of 0 to 3."""
    settings = recipe.training
    x = torch.randn(settings.batch_size, network.in_channels, *settings.patch_size, device=device)
    y = torch.randint(0, 4, (settings.batch_size, *settings.patch_size), device=device).to(torch.uint8)
    return (as_slices(x), as_slices(y)) if network.spatial_dims == 2 else (x, y)


def bare_step(
    recipe: Recipe,
    network: Network,
    batch: tuple[Tensor, Tensor],
    forward: Callable[[Tensor], Outputs] | None = None,
    *,
    half: bool = False,
) -> Callable[[], float]:
    """A function that makes one forward and backward pass and Adam step and returns its seconds; bfloat16 if ``half`` or CUDA."""
    optimizer = torch.optim.Adam(network.parameters(), recipe.training.learning_rate)
    loss, (x, y), supervised = build_loss(recipe.training.loss), batch, forward or network.supervised

    def step() -> float:
        begun = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half or x.is_cuda):
            terms = loss(supervised(x), y, recipe.target, 0)
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        if x.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    return step


def bare_times(recipe: Recipe, steps: int, *, fast: bool = True) -> list[float]:
    """Seconds of each of some steps after the first; ``fast`` in the layout that gliomap trains in."""
    step = cpu_step(recipe, fast=fast)
    return [step() for _ in range(steps + 1)][1:]


def cpu_step(recipe: Recipe, *, fast: bool = True, half: bool = False) -> Callable[[], float]:
    """The bare step of a recipe on a CPU; ``fast`` in the layout that gliomap trains in."""
    torch.manual_seed(0)
    network = build_network(recipe).train()
    network.freeze(recipe.frozen)
    x, y = batch_of(recipe, network)
    return bare_step(recipe, channels_last(network) if fast else network, (fast_layout(x) if fast else x, y), half=half)


def trained_times(recipe: Recipe, steps: int) -> list[float]:
    """Seconds of each of some steps after the first of `gliomap.train` on phantoms, all that a step takes included."""
    patches = (steps + 1) * recipe.training.batch_size
    recipe = with_settings(recipe, [f"training.patches={patches}", f"training.validate_every={patches}"])
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "recipe.json"
        written.write_text(recipe_json(recipe))
        train(
            TrainOptions(
                str(written), None, Path(folder) / "out", phantoms=STUDIES, phantom_size=STUDY_SIZE, quiet=True
            )
        )
        with (Path(folder) / "out" / "steps.csv").open() as lines:
            ends_s = [float(line["time_s"]) for line in csv.DictReader(lines)]
    return [after - before for before, after in itertools.pairwise(ends_s)]


def papers(asked: argparse.Namespace) -> None:
    """Print what a step of each paper takes and what was expected of it."""
    limit = min(asked.memory_gb * 1e9, 0.8 * available_memory_bytes())
    print(
        f"{'recipe':<26}{'patch':<15}{'part':>5}{'s/patch':>9}{'expected':>10}{'ratio':>7}{'GB':>7}{'expected':>10}{'ratio':>7}"
    )
    time_ratios, memory_ratios = [], []
    for name in asked.recipes:
        part = largest_part(RECIPES[name], limit)
        if not part:
            print(f"{name:<26}one patch needs over {limit / 1e9:.0f} GB")
            continue
        found = alone("papers", f"{name}:{part}", asked)
        size = " x ".join(map(str, RECIPES[name].training.patch_size))
        time_ratios.append(found["expected_s"] / found["time_s"])
        memory_ratios.append(found["expected_gb"] / found["memory_gb"])
        print(
            f"{name:<26}{size:<15}{part:>5}{found['time_s']:>9.2f}{found['expected_s']:>10.2f}{time_ratios[-1]:>7.2f}"
            f"{found['memory_gb']:>7.2f}{found['expected_gb']:>10.2f}{memory_ratios[-1]:>7.2f}",
            flush=True,
        )
    print(
        f"papers: expected over measured, time {min(time_ratios):.2f} to {max(time_ratios):.2f}, "
        f"memory {min(memory_ratios):.2f} to {max(memory_ratios):.2f}"
    )


def largest_part(recipe: Recipe, limit_bytes: float) -> int:
    """The largest of the equal parts of a recipe's batch of which a step fits; 0 if not even one patch does."""
    batch = recipe.training.batch_size
    parts = [part for part in range(batch, 0, -1) if batch % part == 0]
    return next((part for part in parts if training_memory_bytes(of_batch(recipe, part)) < limit_bytes), 0)


def of_batch(recipe: Recipe, patches: int) -> Recipe:
    return with_settings(recipe, [f"training.batch_size={patches}", "training.accumulation=1"])


def one_paper(what: str, asked: argparse.Namespace) -> dict[str, float]:
    """A recipe's step in this process, and then what it is expected to take, in seconds per patch and 10^9 bytes."""
    name, part = what.split(":")
    recipe = of_batch(RECIPES[name], int(part))
    before = peak_memory_mb()
    time_s = statistics.median(bare_times(recipe, asked.steps)) / int(part)
    memory_gb = (peak_memory_mb() - before) / 1e3
    expected = {"expected_s": patch_time_s(recipe), "expected_gb": training_memory_bytes(recipe) / 1e9}
    return {"time_s": time_s, "memory_gb": memory_gb, **expected}


def loop(asked: argparse.Namespace) -> None:
    """Print what our loop adds to a step."""
    recipe, ratios = RECIPES[SMALL], []
    for _ in range(asked.rounds):
        whole = statistics.median(trained_times(recipe, asked.steps))
        bare = statistics.median(bare_times(recipe, asked.steps))
        ratios.append(whole / bare)
        print(f"{SMALL}, batch {recipe.training.batch_size}: gliomap train {whole:.2f} s a step, bare {bare:.2f} s")
    print(f"loop: a step of gliomap train takes {statistics.median(ratios):.2f} times as long as the bare one")


def naive(asked: argparse.Namespace) -> None:
    """Print our patches per second and those of a loop as it is first written."""
    ratios = []
    for _ in range(asked.rounds):
        times = {who: alone("naive", who, asked)["time_s"] for who in ("naive", "gliomap")}
        ratios.append(times["naive"] / times["gliomap"])
        print(f"{SMALL}: naive {1 / times['naive']:.2f} patches/s, gliomap train {1 / times['gliomap']:.2f} patches/s")
    print(f"naive: gliomap train sees {statistics.median(ratios):.2f} times the patches of the naive loop")


def one_loop(who: str, asked: argparse.Namespace) -> dict[str, float]:
    """Seconds per patch of either loop in this process: the heap of the one would serve the other."""
    recipe = RECIPES[SMALL]
    if who == "naive":
        return {"time_s": statistics.median(bare_times(of_batch(recipe, 1), asked.steps, fast=False))}
    return {"time_s": statistics.median(trained_times(recipe, asked.steps)) / recipe.training.batch_size}


def monai(asked: argparse.Namespace) -> None:
    """Print samples per second of DynUNet in our loop and in MONAI's."""
    ratios = []
    for _ in range(asked.rounds):
        times = {who: alone("monai", who, asked)["time_s"] for who in ("MONAI", "gliomap")}
        ratios.append(times["MONAI"] / times["gliomap"])
        print(f"DynUNet: MONAI {1 / times['MONAI']:.3f} samples/s, gliomap train {1 / times['gliomap']:.3f} samples/s")
    print(f"monai: gliomap train sees {statistics.median(ratios):.2f} times the samples of MONAI's plain loop")


def dynunet(asked: argparse.Namespace) -> Recipe:
    """The recipe that both loops follow; its network is smaller than nnU-Net's, for a CPU's sake."""
    changes = ["training.batch_size=2", f"training.patch_size={[asked.edge] * 3}", "augmentation.elastic_voxels=0.0"]
    recipe = with_settings(RECIPES[SMALL], changes)
    training = replace(recipe.training, loss=LossSpec("cross_entropy_dice"))
    network = NetworkSpec("dynunet", {"filters": asked.filters})
    return replace(recipe, name="dynunet_step", network=network, target=ALL_CLASSES, training=training)


def one_monai(who: str, asked: argparse.Namespace) -> dict[str, float]:
    """Seconds per sample of either loop in this process."""
    recipe = dynunet(asked)
    times = (trained_times if who == "gliomap" else monai_times)(recipe, asked.steps)
    return {"time_s": statistics.median(times) / recipe.training.batch_size}


def monai_times(recipe: Recipe, steps: int) -> list[float]:
    """Seconds of each step after the first of a loop as MONAI's tutorials write it, on the studies that ours prepares."""
    from monai.data import CacheDataset, DataLoader  # noqa: PLC0415 - takes a second, and most parts do without
    from monai.losses import DiceCELoss  # noqa: PLC0415

    from gliomap.data.phantoms import phantom_studies  # noqa: PLC0415
    from gliomap.data.prepared import prepare_study  # noqa: PLC0415

    studies = [prepare_study(study, recipe) for study in phantom_studies(STUDIES - 1, 0, STUDY_SIZE)]
    data = [{"image": s.images.astype("float32"), "label": s.classes[None]} for s in studies] * (steps + 1)
    batch = recipe.training.batch_size
    loader = DataLoader(CacheDataset(data, monai_transforms(recipe), progress=False), batch_size=batch, shuffle=True)
    network: Any = build_network(recipe).train()
    optimizer = torch.optim.Adam(network.parameters(), recipe.training.learning_rate)
    loss = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)
    times, begun = [], time.perf_counter()
    for number, samples in enumerate(loader):
        optimizer.zero_grad()
        loss(network.network(samples["image"]), samples["label"]).backward()
        optimizer.step()
        times.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        if number == steps:
            break
    return times[1:]


def monai_transforms(recipe: Recipe) -> Any:
    """MONAI's dictionary transforms of the kinds that the recipe has."""
    from monai import transforms as t  # noqa: PLC0415

    a, size, both = recipe.augmentation, recipe.training.patch_size, ["image", "label"]
    share = recipe.training.foreground_share
    angle = a.rotation_degrees * torch.pi / 180
    return t.Compose(
        [
            t.EnsureTyped(both),
            t.SpatialPadd(both, size),
            t.RandCropByPosNegLabeld(both, "label", size, pos=share, neg=1 - share, num_samples=1),
            *(t.RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(3)),
            t.RandAffined(
                both, prob=1.0, rotate_range=[angle] * 3, scale_range=[a.scale] * 3, mode=["bilinear", "nearest"],
                padding_mode="zeros",
            ),
            t.RandAdjustContrastd("image", prob=1.0, gamma=a.gamma),
            t.RandScaleIntensityd("image", factors=a.intensity_scale, prob=1.0, channel_wise=True),
            t.RandShiftIntensityd("image", offsets=a.intensity_shift, prob=1.0, channel_wise=True),
            t.RandGaussianNoised("image", prob=1.0, std=a.noise),
        ]
    )  # fmt: skip


def half(asked: argparse.Namespace) -> None:
    """Print the step of each network in both precisions, which take turns."""
    ratios = []
    for name in asked.recipes:
        recipe = of_batch(RECIPES[name], 2)
        if recipe.training.patch_size[0] > 1:
            recipe = with_settings(recipe, ["training.patch_size=[64,64,64]"])
        times: dict[bool, list[float]] = {False: [], True: []}
        steps = {in_half: cpu_step(recipe, half=in_half) for in_half in times}
        for _ in range(asked.steps + 1):
            for in_half, step in steps.items():
                times[in_half].append(step())
        full, halved = (statistics.median(found[1:]) / 2 for found in times.values())
        ratios.append(halved / full)
        print(f"{name:<26}float32 {full:.3f} s/patch, bfloat16 {halved:.3f}, ratio {ratios[-1]:.2f}", flush=True)
    print(f"half: bfloat16 takes {min(ratios):.2f} to {max(ratios):.2f} of float32's time")


def gpu(asked: argparse.Namespace) -> None:
    """Print the throughput of two networks on CUDA and their share of the peak."""
    if not torch.cuda.is_available():
        print("gpu: this part needs a CUDA GPU, and torch finds none here")
        return
    peak = matrix_peak(torch.bfloat16)
    print(f"{torch.cuda.get_device_name()}: {peak / 1e12:.0f} TFLOP/s in a bfloat16 matrix product")
    best = {}
    for name in ("cga_unet", "dual_fusion"):
        recipe = RECIPES[name]
        with torch.device("meta"):
            counted = build_network(recipe)
        counted.freeze(recipe.frozen)
        gmac = count_step(counted, recipe.training.patch_size, 1, mean_logit).gmac
        for fast in (False, True):
            for compiled in (False, True):
                rate = cuda_rate(recipe, asked.steps, fast=fast, compiled=compiled)
                best[name] = max(best.get(name, 0.0), rate)
                layout, how = ("default", "channels last")[fast], ("eager", "compiled")[compiled]
                share = 2e9 * gmac * rate / peak
                print(f"{name}, {layout}, {how}: {rate:.2f} patches/s, {share:.1%} of the peak", flush=True)
        if importlib.util.find_spec("nnunetv2"):
            theirs = nnunet_rate(recipe, asked.steps)
            print(f"{name} in nnU-Net's trainer: {theirs:.2f} patches/s, ours {best[name] / theirs:.2f} times that")
    print("gpu: " + ", ".join(f"{name} {rate:.2f} patches/s" for name, rate in best.items()))


def matrix_peak(dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product, the best of ten."""
    a = torch.randn(8192, 8192, device="cuda", dtype=dtype)
    times = []
    for _ in range(11):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        torch.mm(a, a)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return 2 * 8192**3 / min(times[1:])


def on_cuda(recipe: Recipe) -> Network:
    network = build_network(recipe).cuda().train()
    network.freeze(recipe.frozen)
    return network


def cuda_rate(recipe: Recipe, steps: int, *, fast: bool, compiled: bool) -> float:
    """Patches per second, after three steps that choose and compile kernels."""
    torch.backends.cudnn.benchmark = True
    network = on_cuda(recipe)
    x, y = batch_of(recipe, network, "cuda")
    if fast:
        network, x = channels_last(network), fast_layout(x)
    forward = torch.compile(network.supervised) if compiled else network.supervised
    step = bare_step(recipe, network, (x, y), forward)
    return recipe.training.batch_size / statistics.median([step() for _ in range(steps + 3)][3:])


def nnunet_rate(recipe: Recipe, steps: int) -> float:
    """Patches per second of nnU-Net's own training step with our network and its loss, SGD and gradient scaling."""
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss  # noqa: PLC0415 - only where it is installed
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss  # noqa: PLC0415
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # noqa: PLC0415

    trainer: Any = object.__new__(nnUNetTrainer)  # its constructor asks for a data set's plans
    network = on_cuda(recipe)
    x, y = batch_of(recipe, network, "cuda")
    trainer.device, trainer.network = torch.device("cuda"), torch.compile(_Logits(network))
    trainer.optimizer = torch.optim.SGD(network.parameters(), 1e-2, weight_decay=3e-5, momentum=0.99, nesterov=True)
    trainer.grad_scaler = torch.amp.GradScaler("cuda")
    soft_dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    trainer.loss = DC_and_CE_loss(soft_dice, {}, dice_class=MemoryEfficientSoftDiceLoss)
    target = y[:, None].clamp(max=len(recipe.target.channels) - 1).float()
    times = []
    for _ in range(steps + 3):
        begun = time.perf_counter()
        trainer.train_step({"data": x, "target": target})
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return recipe.training.batch_size / statistics.median(times[3:])


class _Logits(nn.Module):
    """A network that gives nothing but its finest logits."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "papers": papers,
    "loop": loop,
    "naive": naive,
    "monai": monai,
    "half": half,
    "gpu": gpu,
}
ALONE: dict[str, Callable[[str, argparse.Namespace], dict[str, float]]] = {
    "papers": one_paper,
    "naive": one_loop,
    "monai": one_monai,
}


def alone(part: str, what: str, asked: argparse.Namespace) -> dict[str, float]:
    """One measurement in a process of its own."""
    options = ["--steps", str(asked.steps), "--edge", str(asked.edge), "--filters", *map(str, asked.filters)]
    command = [sys.executable, __file__, part, *options, "--alone", what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{part} {what} failed with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="timed steps of each measurement")
    parser.add_argument("--recipes", nargs="+", default=PAPERS, choices=list(RECIPES), help="of papers")
    parser.add_argument("--memory-gb", type=float, default=10.0, help="what a step of papers may take")
    parser.add_argument("--edge", type=int, default=64, help="of monai's patch, in voxels")
    parser.add_argument("--filters", type=int, nargs="+", default=[16, 32, 64, 128], help="of monai's DynUNet")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    if asked.alone:
        print(json.dumps(ALONE[asked.parts[0]](asked.alone, asked)))
        return
    print(f"{cores()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for part in asked.parts:
        PARTS[part](asked)


if __name__ == "__main__":
    main()
