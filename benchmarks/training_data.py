"""How long gliomap, MONAI, batchgeneratorsv2 and torchio take to augment one training sample of four modalities, on one thread.

Run: ``python benchmarks/training_data.py [--rounds 7]``, in an environment with ``benchmarks/requirements.txt``; what is not
installed is left out. Everybody does the same to the same sample: one rotation about all axes with one zoom, linear for
images and nearest for labels, flips of all axes, gamma, brightness and noise. What comes out is compared first, without the
noise, which is random. In every round each takes its turn. The last line is the ratio to the fastest peer.
"""

import argparse
import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage

from gliomap import augment
from gliomap.machine import cores
from gliomap.networks.training_cost import patch_time_s
from gliomap.recipe import Augmentation
from gliomap.recipes import RECIPES

SIZE = (128, 128, 128)
CHANNELS = 4
ANGLE_DEGREES, ZOOM, GAMMA, BRIGHTNESS, NOISE = 12.0, 1.1, 1.3, 1.2, 0.1
ELASTIC_VOXELS, CONTROL_POINTS = 3.0, 7
STEPS = ("attention_resunet_small", "cga_unet", "cga_unet_fair")
Sample = tuple[torch.Tensor, torch.Tensor]
"""Images (C, D, H, W) and classes (D, H, W)."""
Stages = tuple[str, ...]
"""What comes beside rotation, zoom and flips: elastic, intensity, noise."""
Chain = Callable[[Sample], Sample]


def sample() -> Sample:
    """Four smooth noisy modalities of a brain that fills two thirds of the patch, with a tumour of three classes."""
    rng = np.random.default_rng(0)
    z, y, x = (grid - 63.5 for grid in np.ogrid[:128, :128, :128])
    brain = z**2 + y**2 + x**2 < 71**2
    smooth = ndimage.gaussian_filter(rng.normal(size=(CHANNELS, *SIZE)), (0, 3, 3, 3))
    images = np.where(brain, smooth / smooth.std() + 0.3 * rng.normal(size=smooth.shape), 0).astype(np.float32)
    distance = np.sqrt((z - 10) ** 2 + (y + 12) ** 2 + (x - 8) ** 2)
    classes = np.select([distance < 8, distance < 15, distance < 24], [1, 3, 2], 0).astype(np.uint8)
    return torch.from_numpy(images), torch.from_numpy(classes)


def gliomap(stages: Stages, matrix: np.ndarray) -> Chain:
    """With a peer's own matrix, so that both read the same positions."""
    settings = Augmentation(elastic_voxels=ELASTIC_VOXELS, elastic_spacing=SIZE[0] // (CONTROL_POINTS - 1))
    moved = augment.draw(settings, CHANNELS, SIZE, np.random.default_rng(0)).displacement
    intensity = augment.Intensity(gamma=GAMMA, scale=BRIGHTNESS, noise=NOISE if "noise" in stages else 0.0)
    draw = augment.Draw(
        matrix.astype(np.float32),
        moved if "elastic" in stages else None,
        (intensity if "intensity" in stages else augment.Intensity(),) * CHANNELS,
        keep_moments=False,
        noise_seed=1,
    )

    def run(given: Sample) -> Sample:
        images, classes = augment.apply(given[0][None], given[1][None], [draw])
        return images[0], classes[0]

    return run


def monai(stages: Stages) -> Chain:
    from monai import transforms  # noqa: PLC0415 - only where it is installed

    keys, angle = ("image", "label"), np.deg2rad(ANGLE_DEGREES)
    affine = {
        "keys": keys, "prob": 1.0, "mode": ("bilinear", "nearest"), "padding_mode": "zeros",
        "rotate_range": [(angle, angle)] * 3, "scale_range": [(1 / ZOOM - 1, 1 / ZOOM - 1)] * 3,
    }  # fmt: skip
    steps: list[Callable] = []
    if "elastic" in stages:
        steps.append(transforms.Rand3DElasticd(sigma_range=(5, 5), magnitude_range=(100, 100), **affine))
    else:
        steps.append(transforms.RandAffined(**affine))
    steps.extend(transforms.RandFlipd(keys, prob=1.0, spatial_axis=axis) for axis in range(3))
    if "intensity" in stages:
        steps.append(transforms.RandAdjustContrastd("image", prob=1.0, gamma=(GAMMA, GAMMA)))
        steps.append(transforms.RandScaleIntensityd("image", prob=1.0, factors=(BRIGHTNESS - 1, BRIGHTNESS - 1)))
    if "noise" in stages:
        steps.append(transforms.RandGaussianNoised("image", prob=1.0, std=NOISE, sample_std=False))
    chain = transforms.Compose(steps)

    def run(given: Sample) -> Sample:
        out = chain({"image": given[0], "label": given[1][None]})
        return out["image"].as_tensor(), out["label"].as_tensor()[0]

    return run


def batchgenerators(stages: Stages, mode_seg: str = "nearest") -> Chain:
    from batchgeneratorsv2.transforms.intensity import brightness, gamma, gaussian_noise  # noqa: PLC0415
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform  # noqa: PLC0415
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform  # noqa: PLC0415

    angle = float(np.deg2rad(ANGLE_DEGREES))
    deformed = {"p_elastic_deform": 1.0, "elastic_deform_scale": 0.1, "elastic_deform_magnitude": ELASTIC_VOXELS}
    steps: list[Callable] = [
        SpatialTransform(
            SIZE, 0, random_crop=False, p_rotation=1.0, rotation=angle, p_scaling=1.0, scaling=1 / ZOOM,
            p_synchronize_scaling_across_axes=1.0, mode_seg=mode_seg, **(deformed if "elastic" in stages else {}),
        )
    ]  # fmt: skip
    if "intensity" in stages:
        steps.append(
            gamma.GammaTransform((GAMMA, GAMMA), 0, synchronize_channels=False, p_per_channel=1, p_retain_stats=0)
        )
        steps.append(brightness.MultiplicativeBrightnessTransform((BRIGHTNESS, BRIGHTNESS), synchronize_channels=False))
    if "noise" in stages:
        steps.append(gaussian_noise.GaussianNoiseTransform((NOISE, NOISE), synchronize_channels=True))
    mirror = MirrorTransform((0, 1, 2))
    mirror.get_parameters = lambda **_: {"axes": [0, 1, 2]}  # which it would draw

    def run(given: Sample) -> Sample:
        out = {"image": given[0], "segmentation": given[1][None]}
        for step in (*steps, mirror):
            out = step(**out)
        return out["image"], out["segmentation"][0]

    return run


def torchio(stages: Stages) -> Chain:
    import torchio as tio  # noqa: PLC0415

    steps = [tio.RandomElasticDeformation(CONTROL_POINTS, 2 * ELASTIC_VOXELS)] if "elastic" in stages else []
    angles = (ANGLE_DEGREES,) * 6
    steps.append(tio.RandomAffine((ZOOM, ZOOM), angles, isotropic=True, default_pad_value=0))
    steps.append(tio.RandomFlip(axes=(0, 1, 2), flip_probability=1.0))
    if "intensity" in stages:
        steps.append(tio.Lambda(powered, types_to_apply=[tio.INTENSITY]))
    if "noise" in stages:
        steps.append(tio.RandomNoise(std=(NOISE, NOISE)))
    chain = tio.Compose(steps)

    def run(given: Sample) -> Sample:
        images, classes = given
        out = chain(tio.Subject(image=tio.ScalarImage(tensor=images), label=tio.LabelMap(tensor=classes[None])))
        return out["image"].data, out["label"].data[0]

    return run


def powered(images: torch.Tensor) -> torch.Tensor:
    """Gamma on the range of each modality, and brightness: torchio's own gamma has no range."""
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (((images - low) / (high - low)) ** GAMMA * (high - low) + low) * BRIGHTNESS


PEERS: dict[str, tuple[str, Callable[[Stages], Chain]]] = {
    "MONAI": ("monai", monai),
    "batchgeneratorsv2": ("batchgeneratorsv2", batchgenerators),
    "torchio": ("torchio", torchio),
}


def matrix_of(peer: Callable[[Stages], Chain]) -> np.ndarray:
    """What a peer does to positions (x, y, z) about the centre: coordinates as images show it in the middle of the patch."""
    z, y, x = np.meshgrid(*[np.arange(n, dtype=np.float32) - (n - 1) / 2 for n in SIZE], indexing="ij")
    here = np.stack([x, y, z, np.ones_like(x)])
    moved, _ = peer(())((torch.from_numpy(here), torch.zeros(SIZE, dtype=torch.uint8)))
    middle = (slice(None), *(slice(n // 3, 2 * n // 3) for n in SIZE))
    found = [np.asarray(images)[middle].reshape(CHANNELS, -1).astype(float) for images in (here, moved)]
    solution = np.linalg.lstsq(found[0].T, found[1].T, rcond=None)[0].T
    if np.abs(solution[:3, 3]).max() > 1e-3:
        raise SystemExit(f"the centre moves: {solution}")
    return solution[:3, :3]


def agreement(peer: Callable[[Stages], Chain], matrix: np.ndarray, given: Sample) -> str:
    """How far a peer's images in the brain and its classes are from gliomap's, noise aside.

    Raises:
        SystemExit: over 1 % of the voxels differ by over 0.001 (ITK's border does not fade), or over 0.1 % of the classes.
    """
    given = (
        given[0][:1].expand(CHANNELS, *SIZE).contiguous(),
        given[1],
    )  # MONAI's gamma is on the range of all modalities
    ours, labels = gliomap(("intensity",), matrix)(given)
    theirs, their_labels = peer(("intensity",))(given)
    brain = ours != 0
    wrong = float(((ours - theirs)[brain].abs() > 1e-3).double().mean())
    changed = float((labels != their_labels).double().mean())
    if wrong > 1e-2 or changed > 1e-3:
        raise SystemExit(f"{100 * wrong:.2f} % of the voxels and {100 * changed:.2f} % of the classes differ")
    return f"{100 * wrong:.2f} % of the voxels differ by over 0.001, {100 * changed:.2f} % of the classes differ"


def compare(stages: Stages, rounds: int) -> dict[str, float]:
    """Print the medians of gliomap and of every peer, and return the peers' over gliomap's."""
    given = sample()
    peers = {name: make for name, (module, make) in PEERS.items() if importlib.util.find_spec(module)}
    matrices = {name: matrix_of(make) for name, make in peers.items()}
    if "elastic" not in stages:
        for name, make in peers.items():
            print(f"  {name:<18}{agreement(make, matrices[name], given)}")
    todo = {"gliomap": gliomap(stages, next(iter(matrices.values())))} | {n: make(stages) for n, make in peers.items()}
    seconds: dict[str, list[float]] = {who: [] for who in todo}
    for _ in range(rounds):
        for who, run in todo.items():
            start = time.process_time()
            run((given[0].clone(), given[1]))  # batchgeneratorsv2 may write into what it is given
            seconds[who].append(time.process_time() - start)
    median = {who: statistics.median(times) for who, times in seconds.items()}
    for who, time_s in median.items():
        print(f"  {who:<18}{time_s:>8.3f} s of one core{time_s / median['gliomap']:>8.1f}")
    return {who: time_s / median["gliomap"] for who, time_s in median.items() if who != "gliomap"}


def share_of_a_step(name: str) -> str:
    """What the augmentation of a recipe's own patches adds to its training steps, on all cores."""
    recipe = RECIPES[name]
    size, batch = recipe.training.patch_size, recipe.training.batch_size
    images = torch.randn(batch, len(recipe.modalities), *size)
    classes, times = torch.zeros(batch, *size, dtype=torch.uint8), []
    for number in range(5):
        start = time.perf_counter()
        drawn = [
            augment.draw(recipe.augmentation, images.shape[1], size, np.random.default_rng(number + i))
            for i in range(batch)
        ]
        augment.apply(images, classes, drawn)
        times.append((time.perf_counter() - start) / batch)
    augmenting_s, training_s = statistics.median(times), patch_time_s(recipe)
    share = augmenting_s / training_s
    return f"{name:<26}{augmenting_s:>8.3f} s beside {training_s:>7.2f} s of training per patch: {100 * share:.1f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--elastic-rounds", type=int, default=2)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, {cores()} cores; 4 x 128^3")
    for name in STEPS:
        print(share_of_a_step(name))
    torch.set_num_threads(1)
    print(f"\nrotation, zoom, flips, gamma, brightness, noise; medians of {options.rounds} rounds")
    ratios = compare(("intensity", "noise"), options.rounds)
    print(f"\nthe same and an elastic deformation, each its own; medians of {options.elastic_rounds} rounds")
    compare(("intensity", "noise", "elastic"), options.elastic_rounds)
    fastest = min(ratios, key=ratios.__getitem__)
    print(f"\ngliomap augments {ratios[fastest]:.1f} times as many samples per second and core as {fastest}")


if __name__ == "__main__":
    main()
