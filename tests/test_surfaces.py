import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from surface_distance.lookup_tables import (
    ENCODE_NEIGHBOURHOOD_3D_KERNEL,
    create_table_neighbour_code_to_surface_area,
)

from gliomap import surfaces
from gliomap.surfaces import (
    element_areas_mm2,
    element_distances,
    neighbour_codes,
    surface_distances,
    surface_voxels,
    voxel_distances,
)

SPACING = (3.0, 0.8, 1.25)
masks = hnp.arrays(bool, (4, 5, 4))
STEPS = [step for step in itertools.product((-1, 0, 1), repeat=3) if sum(map(abs, step)) == 1]


def brute_surface(mask):
    """A voxel of the mask with one of its six neighbours outside the mask or outside the grid."""
    out = np.zeros(mask.shape, bool)
    for place in np.argwhere(mask):
        besides = [place + step for step in STEPS]
        out[tuple(place)] = any((b < 0).any() or (b >= mask.shape).any() or not mask[tuple(b)] for b in besides)
    return out


def brute_elements(mask):
    """Corners with some, but not all, of their eight voxels inside."""
    wide = np.pad(mask, 1)
    corners = np.ndindex(*(n + 1 for n in mask.shape))
    counts = {c: int(wide[tuple(slice(i, i + 2) for i in c)].sum()) for c in corners}
    return np.array([c for c, count in counts.items() if 0 < count < 8]).reshape(-1, 3)


def brute_nearest(points, targets, spacing):
    points, targets = (np.asarray(p) * np.array(spacing) for p in (points, targets))
    return np.linalg.norm(points[:, None] - targets[None], axis=2).min(1)


@settings(max_examples=60, deadline=None)
@given(masks)
def test_surface_voxels_are_those_of_brute_force(mask):
    np.testing.assert_array_equal(surface_voxels(mask), brute_surface(mask))


def test_surface_of_a_solid_box_is_its_shell():
    mask = np.zeros((7, 7, 7), bool)
    mask[1:6, 1:6, 1:6] = True
    assert surface_voxels(mask).sum() == 5**3 - 3**3
    assert surface_voxels(np.ones((5, 5, 5), bool)).sum() == 5**3 - 3**3


@settings(max_examples=30, deadline=None)
@given(masks)
def test_neighbour_codes_have_a_bit_for_each_voxel_around_a_corner(mask):
    codes, wide = neighbour_codes(mask), np.pad(mask, 1)
    assert codes.shape == (5, 6, 5)
    for corner in np.ndindex(codes.shape):
        around = wide[tuple(slice(i, i + 2) for i in corner)]
        assert codes[corner] == sum(2 ** (4 * d + 2 * h + w) for d, h, w in np.argwhere(around))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING, (0.5, 4.0, 1.0)])
def test_element_areas_are_deepminds(spacing):
    theirs = create_table_neighbour_code_to_surface_area(spacing)
    ours = element_areas_mm2(spacing)
    corners = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").reshape(256, 2, 2, 2)
    codes = (corners * ENCODE_NEIGHBOURHOOD_3D_KERNEL).sum((1, 2, 3))
    np.testing.assert_allclose(ours, theirs[codes], rtol=1e-12)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING])
def test_element_areas_add_up_to_those_of_simple_bodies(spacing):
    d, h, w = spacing
    voxel = np.ones((1, 1, 1), bool)
    octahedron = math.hypot(d * h, d * w, h * w)  # eight triangles between the middles of the faces
    assert element_areas_mm2(spacing)[neighbour_codes(voxel)].sum() == pytest.approx(octahedron)
    slab = np.ones((2, 60, 60), bool)
    flat = element_areas_mm2(spacing)[neighbour_codes(slab)][:, 1:-1, 1:-1].sum()
    assert flat == pytest.approx(2 * 59 * 59 * h * w)


def use_strategy(monkeypatch, strategy):
    """Make one strategy seem the fastest for every pair; return what the transform is called with."""
    calls = []
    real = surfaces._nearest_by_transform
    monkeypatch.setattr(surfaces, "_POINTS_WORTH_A_LOOK_AROUND", 0 if strategy == "look around" else 1e12)
    monkeypatch.setattr(surfaces, "_LOOKS_PER_VOXEL", 0 if strategy == "transform" else 1e12)
    monkeypatch.setattr(surfaces, "_LOOKS_NOT_WORTH_AN_ESTIMATE", 0)
    monkeypatch.setattr(surfaces, "_nearest_by_transform", lambda *args: calls.append(args) or real(*args))
    return calls


@pytest.mark.parametrize("strategy", ["look around", "tree", "transform"])
@pytest.mark.parametrize("spacing", [SPACING, (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("share", [0.01, 0.05, 0.3, 0.9])
@pytest.mark.parametrize("seed", range(4))
def test_distances_are_those_of_brute_force(monkeypatch, strategy, spacing, share, seed):
    calls = use_strategy(monkeypatch, strategy)
    a, b = np.random.default_rng(seed).random((2, 6, 7, 5)) < share
    a[0, 0, 0] = b[5, 3, 4] = True
    points = {
        surface_distances: [np.argwhere(brute_surface(m)) for m in (a, b)],
        voxel_distances: [np.argwhere(m) for m in (a, b)],
        element_distances: [brute_elements(m) for m in (a, b)],
    }
    for function, (of_a, of_b) in points.items():
        found = function(a, b, spacing)
        np.testing.assert_allclose(found.there, brute_nearest(of_a, of_b, spacing), rtol=1e-12)
        np.testing.assert_allclose(found.back, brute_nearest(of_b, of_a, spacing), rtol=1e-12)
        assert (found.weight_there.shape, found.weight_back.shape) == (found.there.shape, found.back.shape)
        if function is not element_distances:
            assert (found.weight_there == 1).all()
            assert (found.weight_back == 1).all()
    assert bool(calls) == (strategy == "transform")


@pytest.mark.parametrize("spacing", [SPACING, (1.0, 1.0, 1.0), (0.5, 0.5, 5.0)])
def test_rings_are_all_voxels_within_three_of_the_smallest_steps(spacing):
    reach, rings = 3 * min(spacing), surfaces._rings(spacing)
    distances = [distance for distance, _ in rings]
    assert distances == sorted(set(distances))
    assert 0 < distances[0] == min(spacing)
    found = {tuple(step): distance for distance, steps in rings for step in steps.tolist()}
    for step in itertools.product(range(-5, 6), repeat=3):
        distance = math.hypot(*(n * s for n, s in zip(step, spacing, strict=True)))
        if 0 < distance < reach - 1e-9:
            assert found.pop(step) == pytest.approx(distance)
    assert all(distance == pytest.approx(reach) for distance in found.values())


@pytest.mark.parametrize("away", [2, 8])
def test_a_tree_is_built_only_for_what_is_not_near(monkeypatch, away):
    a = np.zeros((50, 40, 40), bool)
    a[2:32, 5:35, 5:35] = True
    b = np.roll(a, away, 0)
    expected = surface_distances(a, b, (1.0, 1.0, 1.0))
    assert expected.there.max() == expected.back.max() == away
    monkeypatch.setattr(surfaces, "KDTree", None)
    if away == 2:
        np.testing.assert_array_equal(surface_distances(a, b, (1.0, 1.0, 1.0)).there, expected.there)
    else:
        with pytest.raises(TypeError):
            surface_distances(a, b, (1.0, 1.0, 1.0))


def test_weights_are_the_areas_in_the_order_of_the_distances():
    rng = np.random.default_rng(4)
    a, b = rng.random((2, 5, 6, 7)) < 0.3
    found, areas = element_distances(a, b, SPACING), element_areas_mm2(SPACING)
    for mask, weights in ((a, found.weight_there), (b, found.weight_back)):
        codes = neighbour_codes(mask).ravel()
        np.testing.assert_array_equal(weights, areas[codes[(codes != 0) & (codes != 255)]])


@settings(max_examples=30, deadline=None)
@given(masks, masks, st.sampled_from([surface_distances, voxel_distances, element_distances]))
def test_an_empty_mask_has_no_distances_and_the_others_are_symmetric(a, b, function):
    there = function(a, b, SPACING)
    if not a.any() or not b.any():
        assert there is None
        return
    back = function(b, a, SPACING)
    for one, other in zip(there, (back.back, back.there, back.weight_back, back.weight_there), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_distances_along_an_axis_are_exact_multiples_of_the_spacing(steps):
    """A distance of one voxel of 0.7 mm is within 0.7 mm wherever it is measured."""
    for start in range(12):
        a, b = np.zeros((1, 1, 20), bool), np.zeros((1, 1, 20), bool)
        a[0, 0, start] = b[0, 0, start + steps] = True
        for function in (surface_distances, voxel_distances, element_distances):
            assert set(function(a, b, (1.0, 1.0, 0.7)).there) <= {math.sqrt((k * 0.7) ** 2) for k in range(4)}


def sphere(inner, outer, shape=(60, 60, 60)):
    radius = np.linalg.norm(np.stack(np.indices(shape), -1) - 29.5, axis=-1)
    return (radius >= inner) & (radius < outer)


@pytest.mark.parametrize(
    ("a", "b", "transforms"),
    [
        (sphere(0, 12), sphere(0, 13), 0),  # near each other: trees
        (sphere(0, 1), sphere(26, 29), 0),  # few points: a tree, however many are as near as the nearest
        (sphere(0, 15), sphere(27, 29), 2),  # each inner voxel has thousands nearly as near: a transform of the grid
    ],
    ids=["near", "point in a hollow sphere", "ball in a hollow sphere"],
)
def test_the_faster_strategy_is_taken(monkeypatch, a, b, transforms):
    calls = []
    real = surfaces._nearest_by_transform
    monkeypatch.setattr(surfaces, "_nearest_by_transform", lambda *args: calls.append(args) or real(*args))
    found = voxel_distances(a, b, (1.0, 1.0, 1.0))
    assert len(calls) == transforms
    monkeypatch.setattr(surfaces, "_LOOKS_PER_VOXEL", 1e12)
    tree = voxel_distances(a, b, (1.0, 1.0, 1.0), threads=1)
    np.testing.assert_array_equal(found.there, tree.there)
    np.testing.assert_array_equal(found.back, tree.back)


@pytest.mark.parametrize(("size", "workers"), [(8, 1), (30, 3)])
def test_threads_search_where_there_are_many_points(monkeypatch, size, workers):
    asked = []

    class Tree(surfaces.KDTree):
        def query(self, *args, workers=None, **options):
            asked.append(workers)
            return super().query(*args, **options)

    monkeypatch.setattr(surfaces, "KDTree", Tree)
    a = np.zeros((44, 34, 34), bool)
    a[2 : 2 + size, 2 : 2 + size, 2 : 2 + size] = True
    surface_distances(a, np.roll(a, 8, 0), (1.0, 1.0, 1.0), threads=3)
    assert set(asked) - {None} == {workers}
