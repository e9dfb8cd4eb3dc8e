from functools import lru_cache

import numpy as np
import pytest
from scipy import ndimage

from gliomap.data import brains
from gliomap.data.brains import (
    BRAIN_CONTRAST,
    CONTROL_SHAPE,
    Brain,
    Template,
    build_brain,
    control_fractions,
    deform,
    draw_contrast,
    grid_of_size,
    load_template,
    smooth_noise,
    upsample,
)

MAPS = list(BRAIN_CONTRAST)


@lru_cache
def brain_of(seed: int, size: int = 64) -> Brain:
    coordinates, _ = deform(np.random.default_rng(seed))
    return build_brain(grid_of_size(size), coordinates, np.random.default_rng(seed))


def volume_of(brain: Brain, values: np.ndarray) -> np.ndarray:
    volume = np.zeros(brain.inside.shape, values.dtype)
    volume[brain.inside] = values
    return volume


def test_template_has_ventricles_in_its_middle_and_closed_cortex():
    template = load_template()
    fractions = template.packed[..., None].view(np.uint8)
    ventricle = np.argwhere(fractions[..., 3] > 128)
    assert 15 < (fractions[..., 3] / 255).sum() / 1000 < 40
    assert abs(ventricle[:, 2].mean() - template.midline) < 1
    assert (template.depth_mm[tuple(ventricle.T)] > 20).all()
    sulci = (fractions[..., 2] > 128) & (template.depth_mm > 4)
    assert sulci.sum() / 1000 > 30, "averaging closed the sulci and nothing opened them"


def test_the_template_is_prepared_once_and_made_again_for_another_program(tmp_path, monkeypatch):
    rng, prepared = np.random.default_rng(0), []
    packed, depth_mm, distance_mm = (rng.integers(0, 256, (3, 4, 5), kind) for kind in (np.uint32, np.uint8, np.uint8))

    def prepare(paths):
        prepared.append([path.name.split("_")[2] for path in paths])
        return Template(packed, depth_mm, distance_mm, 1 / 3)

    monkeypatch.setenv("GLIOMAP_CACHE", str(tmp_path))
    monkeypatch.setattr(brains, "_prepare_template", prepare)
    for _ in range(2):
        found = load_template.__wrapped__()
        for name, expected in (("packed", packed), ("depth_mm", depth_mm), ("ventricle_distance_mm", distance_mm)):
            np.testing.assert_array_equal(getattr(found, name), expected, strict=True)
        assert found.midline == 1 / 3
    assert prepared == [["gm", "wm", "t1"]]
    monkeypatch.setattr(brains, "sources_sha256", lambda _: "another program")
    load_template.__wrapped__()
    monkeypatch.setattr(brains.scipy, "__version__", "0.0")
    load_template.__wrapped__()
    assert len(prepared) == 3
    monkeypatch.setenv("GLIOMAP_CACHE", "off")
    load_template.__wrapped__()
    assert len(prepared) == 4


def test_brain_is_of_human_size_with_air_around_it_and_soft_maps():
    for seed in range(6):
        brain = brain_of(seed)
        assert 1100 < brain.inside.sum() * brain.grid.spacing_mm**3 / 1000 < 1700
        for part, count in zip(brain.box, brain.grid.shape, strict=True):
            assert part.start >= 1
            assert part.stop <= count - 1
        np.testing.assert_allclose(brain.maps.sum(axis=0), 1, atol=1e-4)
        assert brain.maps.min() >= 0
        soft = (brain.maps[MAPS.index("grey")] > 0.1) & (brain.maps[MAPS.index("grey")] < 0.9)
        assert soft.mean() > 0.2
        assert np.array_equal(ndimage.binary_fill_holes(brain.inside), brain.inside)


def test_anatomy_differs_between_seeds_and_hardly_between_sizes():
    first, second = (control_fractions(deform(np.random.default_rng(seed))[0])[..., 1] > 0.5 for seed in (1, 2))
    assert 2 * (first & second).sum() / (first.sum() + second.sum()) < 0.9
    shares = [brain_of(3, size).maps.mean(axis=1) for size in (64, 96)]
    np.testing.assert_allclose(*shares, atol=0.02)
    middles_mm = []
    for size in (64, 96):
        brain = brain_of(3, size)
        ventricle = volume_of(brain, brain.maps[MAPS.index("ventricle")])
        corner = [part.start + 0.5 for part in brain.box]
        middles_mm.append((np.array(ndimage.center_of_mass(ventricle)) + corner) * brain.grid.spacing_mm)
    np.testing.assert_allclose(*middles_mm, atol=1.0)


def test_left_and_right_are_flipped_in_about_half_of_the_brains():
    signs = [np.sign(np.linalg.det(deform(np.random.default_rng(seed))[1])) for seed in range(24)]
    assert 4 < signs.count(1.0) < 20


def test_ventricles_vary_in_size():
    shares = [brain_of(seed).maps[MAPS.index("ventricle")].mean() for seed in range(8)]
    assert max(shares) > 1.5 * min(shares)


def test_superior_is_the_last_index_and_posterior_the_first():
    for seed in range(4):
        coordinates, _ = deform(np.random.default_rng(seed))
        assert coordinates[0, -8, 40, 40] > coordinates[0, 8, 40, 40] + 80
        assert coordinates[1, 28, -20, 40] > coordinates[1, 28, 20, 40] + 80


def test_contrast_order_of_tissues():
    table = np.array(list(BRAIN_CONTRAST.values()))
    spread = np.full((len(table), 1), 0.05)
    rng = np.random.default_rng(0)
    drawn = [draw_contrast(table, spread, 0.0, rng) for _ in range(30)]
    t1, t1c, t2, flair = np.median(drawn, axis=0).T
    grey, white, ventricle, vessel, spot = (
        MAPS.index(name) for name in ("grey", "white", "ventricle", "vessel", "hyperintensity")
    )
    assert t1[white] > t1[grey] > t1[ventricle]
    assert t2[ventricle] > t2[grey] > t2[white]
    assert flair[spot] > flair[grey] > flair[white] > flair[ventricle]
    assert t1c[vessel] > 1.5 * t1c[white]
    assert np.std(drawn, axis=0).min() > 0.005, "every study has a contrast of its own"


def test_randomised_contrast_forgets_the_order_of_tissues():
    table = np.array(list(BRAIN_CONTRAST.values()))
    rng = np.random.default_rng(0)
    drawn = [draw_contrast(table, np.full((len(table), 1), 0.05), 1.0, rng) for _ in range(40)]
    assert 8 < sum(study[0, 0] > study[1, 0] for study in drawn) < 32


def test_spline_fields_are_flat_for_flat_nodes_and_of_unit_variance_for_noise():
    positions_mm = [np.linspace(10, 80, 8)] * 3
    np.testing.assert_allclose(upsample(np.full((12, 12, 12), 3.0), positions_mm, 12.0), 3, rtol=1e-5)
    noise = smooth_noise(np.random.default_rng(0), 9.0)
    assert noise.shape == CONTROL_SHAPE
    assert noise.std() == pytest.approx(1, abs=0.1)
    assert np.abs(np.diff(noise, axis=0)).mean() < 0.5
