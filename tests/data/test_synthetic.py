import hashlib
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pytest
from scipy import ndimage

from gliomap.data.brains import Brain, build_brain, deform, grid_of_size
from gliomap.data.synthetic import Acquisition, Phantom, acquire, make_phantom
from gliomap.data.tumours import KINDS
from gliomap.errors import UsageError

HARD_SIZE = 64
STEADY = Acquisition(0.0, (3.0, 3.0), (0.0, 0.0), (0.0, 0.0), 0.0, bias=(0.0, 0.0))
THRESHOLDS = np.arange(0.0, 5.0, 0.1)


@lru_cache
def phantom(seed: int, size: int = 64, randomise: float = 0.0, kind: str | None = None) -> Phantom:
    return make_phantom(seed, size=size, randomise=randomise, kind=kind)


def placed(brain: Brain, values: np.ndarray) -> np.ndarray:
    volume = np.zeros(brain.inside.shape, values.dtype)
    volume[brain.inside] = values
    return volume


def digest(made: Phantom) -> str:
    return hashlib.sha256(made.images.tobytes() + made.classes.tobytes() + made.kind.encode()).hexdigest()


def standardised(image: np.ndarray) -> np.ndarray:
    inside = image[image > 0].astype(np.float64)
    return np.where(image > 0, (image - inside.mean()) / inside.std(), -np.inf)


def dice_at_thresholds(image: np.ndarray, truth: np.ndarray) -> np.ndarray:
    scores = standardised(image)
    return np.array(
        [2 * (truth & (scores > level)).sum() / ((scores > level).sum() + truth.sum()) for level in THRESHOLDS]
    )


def best_median(dice: Sequence[np.ndarray]) -> float:
    return float(np.median(dice, axis=0).max())


@pytest.mark.parametrize("size", [48, 64, 96])
def test_shapes_types_and_background(size: int):
    made = phantom(1, size)
    shape = (round(155 / 240 * size), size, size)
    assert made.images.shape == (4, *shape)
    assert made.images.dtype == np.int16
    assert made.classes.shape == shape
    assert made.classes.dtype == np.uint8
    brain = made.images[0] > 0
    assert all(np.array_equal(image > 0, brain) for image in made.images)
    assert made.images.min() == 0
    assert not brain[[0, -1]].any()
    assert not brain[:, [0, -1]].any()
    assert not brain[:, :, [0, -1]].any()
    assert brain[made.classes > 0].all(), "the tumour is in the brain"
    assert set(np.unique(made.classes)) <= {0, 1, 2, 3}
    assert 1100 < brain.sum() * (240 / size) ** 3 / 1000 < 1700


def test_affine_is_ras_isotropic_and_centred():
    made = phantom(1)
    np.testing.assert_allclose(np.diag(made.affine), [3.75, 3.75, 3.75, 1])
    middle = (np.array(made.classes.shape[::-1]) - 1) / 2
    np.testing.assert_allclose(made.affine @ [*middle, 1], [0, 0, 0, 1], atol=1e-9)


def test_same_seed_gives_the_same_bytes_here_and_in_another_process():
    code = (
        "import sys, hashlib; from gliomap.data.synthetic import make_phantom; p = make_phantom(3, size=64);"
        "print(hashlib.sha256(p.images.tobytes() + p.classes.tobytes() + p.kind.encode()).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == digest(make_phantom(3, size=64)) == digest(make_phantom(3, size=64))


def test_seeds_differ_in_anatomy_tumour_and_contrast():
    first, second = phantom(1), phantom(2)
    assert (np.not_equal(first.images[0] > 0, second.images[0] > 0)).mean() > 0.01
    assert not np.array_equal(first.classes, second.classes)
    assert (
        len({round(float(np.median(phantom(seed).images[2][phantom(seed).images[2] > 0]))) for seed in range(5)}) == 5
    )


def test_the_same_seed_looks_the_same_at_any_size():
    coarse, fine = phantom(5, 48), phantom(5, 96)
    reduced = fine.classes[: 2 * coarse.classes.shape[0]].reshape(31, 2, 48, 2, 48, 2).max(axis=(1, 3, 5)) > 0
    overlap = 2 * (reduced & (coarse.classes > 0)).sum() / (reduced.sum() + (coarse.classes > 0).sum())
    assert overlap > 0.7


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_can_be_asked_for(kind: str):
    made = phantom(1, kind=kind)
    assert made.kind == kind
    assert (3 in made.classes) == (kind != "no_enhancement")


def test_randomise_changes_the_contrast_and_nothing_else():
    realistic, random = phantom(4), phantom(4, randomise=1.0)
    assert np.array_equal(realistic.classes, random.classes)
    assert np.array_equal(realistic.images > 0, random.images > 0)
    brain = realistic.images[0] > 0
    likeness = [np.corrcoef(realistic.images[m][brain], random.images[m][brain])[0, 1] for m in range(4)]
    assert min(likeness) < 0.6


def test_acquisition_blurs_slices_shades_and_makes_noise():
    coordinates, _ = deform(np.random.default_rng(0))
    brain = build_brain(grid_of_size(64), coordinates, np.random.default_rng(0))
    signal = brain.maps[1] + 1
    plain = acquire(signal, brain, 1.0, STEADY, np.random.default_rng(1))
    shaded, noisy, thick = (
        acquire(signal, brain, 1.0, how, np.random.default_rng(1))
        for how in (
            Acquisition(0.0, (3, 3), (0, 0), (0, 0), 0.0, bias=(0.3, 0.3)),
            Acquisition(0.0, (3, 3), (0, 0), (0.05, 0.05), 0.0, bias=(0, 0)),
            Acquisition(1.0, (9, 9), (0, 0), (0, 0), 0.0, bias=(0, 0), slice_gain=0.0),
        )
    )
    roughness = [
        np.abs(ndimage.laplace(placed(brain, image))[ndimage.binary_erosion(brain.inside)]).mean()
        for image in (plain, noisy, thick)
    ]
    assert roughness[1] > roughness[0] > roughness[2]
    assert np.corrcoef(plain, thick)[0, 1] > 0.7
    ratio = shaded / plain
    assert ratio.std() > 0.08
    assert (
        np.abs(np.diff(placed(brain, ratio), axis=2))[:, :, 1:][
            brain.inside[:, :, 2:] & brain.inside[:, :, 1:-1]
        ].mean()
        < 0.05
    )


def test_tumour_shows_as_it_does_in_mr():
    excess = []
    for seed in range(12):
        made = phantom(seed)
        normal = (made.images[0] > 0) & (made.classes == 0)
        level = [np.median(image[normal]) for image in made.images]
        excess.append(
            [np.median(image[made.classes == 2]) / base for image, base in zip(made.images, level, strict=True)]
            + ([np.median(made.images[1][made.classes == 3]) / level[1]] if 3 in made.classes else [np.nan])
        )
    t1, _, t2, flair, enhancing = np.nanmedian(excess, axis=0)
    assert t1 < 1.15
    assert t2 > 1.1
    assert flair > 1.1
    assert enhancing > 1.2


def test_no_single_threshold_finds_the_tumour():
    phantoms = [phantom(seed, HARD_SIZE) for seed in range(20)]
    whole = [dice_at_thresholds(made.images[3], made.classes > 0) for made in phantoms]
    enhancing = [dice_at_thresholds(made.images[1], made.classes == 3) for made in phantoms if 3 in made.classes]
    assert 0.3 < best_median(whole) <= 0.6, "hard, and not hidden"
    assert 0.1 < best_median(enhancing) <= 0.5


def test_nonsense_is_refused():
    with pytest.raises(UsageError, match="at least 24"):
        make_phantom(0, size=8)
    with pytest.raises(UsageError, match="randomise"):
        make_phantom(0, size=32, randomise=2.0)
    with pytest.raises(UsageError, match="meningioma"):
        make_phantom(0, size=32, kind="meningioma")
