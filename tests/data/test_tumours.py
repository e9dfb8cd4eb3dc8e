from functools import lru_cache

import numpy as np
import pytest
from scipy import ndimage

from gliomap.data.brains import BRAIN_CONTRAST, Brain, build_brain, control_fractions, deform, grid_of_size
from gliomap.data.tumours import KINDS, TUMOUR_CONTRAST, Plan, Tumour, draw_kind, grow, plan_tumour, push_aside
from gliomap.errors import UsageError

SIZE = 64
VOXEL_ML = grid_of_size(SIZE).spacing_mm ** 3 / 1000
SEEDS = range(5)


@lru_cache
def case(kind: str, seed: int) -> tuple[Plan, Brain, Tumour]:
    coordinates, linear = deform(np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    plan = plan_tumour(kind, coordinates, rng)
    displaced = push_aside(coordinates, linear, plan, rng)
    brain = build_brain(grid_of_size(SIZE), displaced, np.random.default_rng(seed))
    return plan, brain, grow(plan, brain, displaced, rng)


def volume_of(brain: Brain, values: np.ndarray) -> np.ndarray:
    volume = np.zeros(brain.inside.shape, values.dtype)
    volume[brain.inside] = values
    return volume


@pytest.mark.parametrize("kind", KINDS)
def test_volumes_are_the_planned_ones(kind: str):
    for seed in SEEDS:
        plan, _, tumour = case(kind, seed)
        core, oedema = np.isin(tumour.classes, (1, 3)).sum() * VOXEL_ML, (tumour.classes == 2).sum() * VOXEL_ML
        assert core == pytest.approx(plan.core_ml, rel=0.15)
        assert oedema == pytest.approx(plan.oedema_ml, rel=0.25)


def test_only_no_enhancement_lacks_enhancing_tumour():
    for kind in KINDS:
        for seed in SEEDS:
            present = set(np.unique(case(kind, seed)[2].classes).tolist())
            assert (3 in present) == (kind != "no_enhancement"), kind
            assert present >= {0, 2}


def test_tiny_tumours_are_below_5_ml_and_typical_ones_are_not():
    for seed in SEEDS:
        assert 0.5 < (case("tiny", seed)[2].classes > 0).sum() * VOXEL_ML < 5
        assert (case("typical", seed)[2].classes > 0).sum() * VOXEL_ML > 8


def test_multifocal_tumours_have_several_cores_and_others_one():
    for seed in SEEDS:
        for kind, expected in (("multifocal", (2, 3)), ("typical", (1,))):
            _, brain, tumour = case(kind, seed)
            core = volume_of(brain, np.isin(tumour.classes, (1, 3)))
            sizes = np.bincount(ndimage.label(core, np.ones((3, 3, 3)))[0].ravel())[1:]
            assert (sizes > 0.08 * core.sum()).sum() in expected


def test_edge_tumours_touch_the_surface_of_the_brain():
    for seed in SEEDS:
        _, brain, tumour = case("edge", seed)
        surface = brain.inside & ~ndimage.binary_erosion(brain.inside)
        assert (volume_of(brain, np.isin(tumour.classes, (1, 3))) & surface).sum() > 3


def test_enhancement_lies_in_the_outer_part_of_the_core_and_oedema_around_it():
    nearer, covered = 0, []
    for seed in SEEDS:
        _, brain, tumour = case("typical", seed)
        classes = volume_of(brain, tumour.classes)
        core = np.isin(classes, (1, 3))
        depth = ndimage.distance_transform_edt(core)
        nearer += depth[classes == 3].mean() < depth[classes == 1].mean() + 1e-9
        next_to = ndimage.binary_dilation(core) & ~core
        around = classes == 2
        covered.append((around & next_to).sum() / next_to.sum())
        assert ndimage.label(classes > 0, np.ones((3, 3, 3)))[1] == 1
    assert nearer >= len(SEEDS) - 1
    assert np.mean(covered) > 0.4


def test_oedema_prefers_white_matter_and_spares_fluid():
    names = list(BRAIN_CONTRAST)
    for seed in SEEDS:
        _, brain, tumour = case("typical", seed)
        oedema = tumour.classes == 2
        near = ndimage.binary_dilation(volume_of(brain, tumour.classes > 0), iterations=4)[brain.inside]
        grey, white, sulci, ventricle = (
            brain.maps[names.index(name)] for name in ("grey", "white", "sulcal CSF", "ventricle")
        )
        assert white[oedema].mean() / white[near].mean() > 1.15 * grey[oedema].mean() / grey[near].mean()
        assert (sulci + ventricle)[oedema].mean() < 0.7 * (sulci + ventricle)[near].mean()


def test_mass_effect_pushes_the_ventricle_away_and_leaves_the_skull():
    coordinates, linear = deform(np.random.default_rng(4))
    ventricle = control_fractions(coordinates)[..., 3] > 0.5
    middle = np.argwhere(ventricle).mean(axis=0)
    beside = (middle + np.array([3, 0, 9])) * 3 - 3
    plan = Plan("typical", beside[None], np.array([20.0]), 33.0, 60.0, 0.5)
    displaced = push_aside(coordinates, linear, plan, np.random.default_rng(0))
    moved = control_fractions(displaced)[..., 3] > 0.5
    side = np.arange(ventricle.shape[2]) > middle[2]
    assert moved[..., side].sum() < 0.97 * ventricle[..., side].sum(), "the ventricle beside the tumour is compressed"
    assert np.argwhere(moved)[:, 2].mean() < middle[2] - 0.3, "it is pushed to the other side"
    shape, pushed = (control_fractions(grid).sum(axis=-1) > 0.5 for grid in (coordinates, displaced))
    assert (shape ^ pushed).sum() < 0.005 * shape.sum()


def test_soft_maps_are_shares_that_follow_the_classes():
    names = list(TUMOUR_CONTRAST)
    for kind in KINDS:
        _, _, tumour = case(kind, 1)
        assert tumour.maps.min() >= 0
        assert tumour.maps.sum(axis=0).max() <= 1 + 1e-5
        share = tumour.maps[: names.index("solid core")].sum(axis=0)
        assert share[tumour.classes == 2].mean() > 4 * share[tumour.classes == 0].mean()
    enhancing = case("typical", 1)[2]
    uptake = enhancing.maps[names.index("enhancing")]
    assert uptake[enhancing.classes == 3].mean() > 2 * uptake[enhancing.classes != 3].mean()
    assert uptake[enhancing.classes == 3].std() > 0.05, "enhancement is uneven"


def test_kinds_are_drawn_as_often_as_they_are_seen():
    rng = np.random.default_rng(0)
    drawn = [draw_kind(rng) for _ in range(400)]
    assert set(drawn) == set(KINDS)
    assert drawn.count("typical") > 200
    assert sum(kind.frequency for kind in KINDS.values()) == pytest.approx(1)


def test_unknown_kind_is_refused_with_the_names_of_the_known_ones():
    coordinates, _ = deform(np.random.default_rng(0))
    with pytest.raises(UsageError, match="choose one of typical"):
        plan_tumour("meningioma", coordinates, np.random.default_rng(0))
