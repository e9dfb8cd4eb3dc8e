from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage

from gliomap.augment import Draw, apply, draw, sampling_grid
from gliomap.recipe import Augmentation

SIZE = (10, 12, 8)
EVERYTHING = Augmentation(
    flips=True,
    rotation_degrees=20.0,
    scale=0.2,
    elastic_voxels=1.5,
    elastic_spacing=4,
    intensity_scale=0.2,
    intensity_shift=0.3,
    gamma=(0.7, 1.5),
    noise=0.1,
)
SPATIAL = replace(EVERYTHING, intensity_scale=0.0, intensity_shift=0.0, gamma=(1.0, 1.0), noise=0.0)


def batch(seed=0, samples=2, channels=2):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(samples, channels, *SIZE)).astype(np.float32)
    images[..., :2] = 0
    images[:, :, 7:] = 0
    classes = rng.integers(0, 4, (samples, *SIZE)).astype(np.uint8)
    return torch.from_numpy(images), torch.from_numpy(classes)


def drawn(settings, seed, channels=2):
    return draw(settings, channels, SIZE, np.random.default_rng(seed))


def same(a: Draw, b: Draw):
    return all(np.array_equal(v, vars(b)[name]) for name, v in vars(a).items())


def read_positions(one: Draw):
    """Where each output voxel is read, in input voxels (3, D, H, W) z y x, by the words of the docstrings."""
    centre = (np.array(SIZE[::-1]) - 1) / 2
    x, y, z = (g.astype(float) for g in np.indices(SIZE)[::-1])
    offsets = np.stack([x, y, z]) - centre[:, None, None, None]
    if one.displacement is not None:
        points = one.displacement.shape[1:]
        places = np.meshgrid(*[np.linspace(0, p - 1, n) for p, n in zip(points, SIZE, strict=True)], indexing="ij")
        offsets = offsets + np.stack(
            [ndimage.map_coordinates(d.astype(float), places, order=1) for d in one.displacement]
        )
    read = np.einsum("ij,jdhw->idhw", one.matrix.astype(float), offsets) + centre[:, None, None, None]
    return read[::-1]


def test_draw_is_a_pure_function_of_the_generators_seed():
    assert same(drawn(EVERYTHING, [3, 5]), drawn(EVERYTHING, [3, 5]))
    assert not same(drawn(EVERYTHING, [3, 5]), drawn(EVERYTHING, [3, 6]))


def test_same_draws_give_the_same_batch():
    images, classes = batch()
    draws = [drawn(EVERYTHING, 1), drawn(EVERYTHING, 2)]
    first, second = apply(images, classes, draws), apply(images, classes, draws)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_sample_does_not_depend_on_its_neighbours_in_the_batch():
    images, classes = batch()
    draws = [drawn(EVERYTHING, 1), drawn(EVERYTHING, 2)]
    together = apply(images, classes, draws)
    alone = apply(images[1:], classes[1:], draws[1:])
    assert torch.equal(together[0][1:], alone[0])
    assert torch.equal(together[1][1:], alone[1])


def test_identity_draw_leaves_everything_untouched():
    images, classes = batch()
    same_images, same_classes = apply(images, classes, [drawn(Augmentation(), n) for n in range(2)])
    assert torch.equal(same_images, images)
    assert torch.equal(same_classes, classes)


def test_settings_bound_what_is_drawn():
    for seed in range(50):
        one = drawn(EVERYTHING, seed)
        assert (np.abs(one.scale - 1) <= 0.2).all()
        assert (np.abs(one.shift) <= 0.3).all()
        assert ((one.gamma >= 0.7) & (one.gamma <= 1.5)).all()
        assert 0 <= one.noise <= 0.1
        size = np.abs(np.linalg.det(one.matrix)) ** (1 / 3)
        assert 1 / 1.2 - 1e-6 <= size <= 1 / 0.8 + 1e-6
        directions = one.matrix / np.linalg.norm(one.matrix, axis=0)
        np.testing.assert_allclose(directions @ directions.T, np.eye(3), atol=1e-5)


def test_flip_along_x_mirrors_the_last_axis():
    images, classes = batch()
    flip = replace(drawn(Augmentation(), 0), matrix=np.diag([-1, 1, 1]).astype(np.float32))
    mirrored, labels = apply(images, classes, [flip, flip])
    torch.testing.assert_close(mirrored, images.flip(-1), atol=1e-5, rtol=0)
    assert torch.equal(labels, classes.flip(-1))


def test_zoom_enlarges():
    images, classes = torch.zeros(1, 1, *SIZE), torch.zeros(1, *SIZE, dtype=torch.uint8)
    classes[:, 3:7, 4:8, 3:5] = 1
    larger = replace(drawn(Augmentation(), 0), matrix=np.eye(3, dtype=np.float32) / 1.5)
    assert apply(images, classes, [larger])[1].sum() > 2 * classes.sum()


def test_sampling_agrees_with_scipy():
    images, classes = batch()
    draws = [drawn(SPATIAL, 11), drawn(SPATIAL, 12)]
    moved, labels = apply(images, classes, draws)
    for sample, one in enumerate(draws):
        positions = read_positions(one)
        for channel in range(2):
            expected = ndimage.map_coordinates(
                images[sample, channel].numpy(), positions, order=1, mode="grid-constant", cval=0.0
            )
            np.testing.assert_allclose(moved[sample, channel].numpy(), expected, atol=1e-4)
        nearest = ndimage.map_coordinates(classes[sample].numpy(), positions, order=0, mode="grid-constant", cval=0)
        clear = (np.abs(positions % 1 - 0.5) > 1e-3).all(0)
        assert clear.mean() > 0.95
        np.testing.assert_array_equal(labels[sample].numpy()[clear], nearest[clear])


def test_grid_of_an_identity_draw_reads_every_voxel_at_its_place():
    grid = sampling_grid(drawn(Augmentation(), 0), SIZE)
    assert grid.shape == (*SIZE, 3)
    np.testing.assert_allclose(grid[0, 0, 0].numpy(), [-1, -1, -1])
    np.testing.assert_allclose(grid[9, 0, 0].numpy(), [-1, -1, 1])
    np.testing.assert_allclose(grid[0, 0, 7].numpy(), [1, -1, -1])


def test_background_stays_zero_and_labels_stay_whole_classes():
    images, classes = batch()
    for seed in range(4):
        draws = [drawn(EVERYTHING, seed), drawn(EVERYTHING, seed + 100)]
        out, labels = apply(images, classes, draws)
        spatial = [replace(d, scale=np.ones(2), shift=np.zeros(2), gamma=np.ones(2), noise=0.0) for d in draws]
        background = apply(images, classes, spatial)[0] == 0
        assert background.any()
        assert (out[background] == 0).all()
        assert labels.dtype == torch.uint8
        assert set(labels.unique().tolist()) <= {0, 1, 2, 3}
        assert torch.isfinite(out).all()


def test_gamma_scale_and_shift_by_hand():
    image = torch.tensor([-1.0, 0.0, 1.0, 3.0]).reshape(1, 1, 1, 1, 4)
    classes = torch.zeros(1, 1, 1, 4, dtype=torch.uint8)
    one = replace(
        draw(Augmentation(), 1, (1, 1, 4), np.random.default_rng(0)),
        gamma=np.array([2.0]),
        scale=np.array([1.5]),
        shift=np.array([0.25]),
    )
    out, _ = apply(image, classes, [one])
    # range -1 to 3: (v + 1) / 4 is 0, -, 0.5, 1; squared 0, -, 0.25, 1; back -1, -, 0, 3; times 1.5 plus 0.25
    np.testing.assert_allclose(out.ravel().numpy(), [-1.25, 0.0, 0.25, 4.75], atol=1e-6)


def test_noise_has_the_drawn_width_and_comes_from_its_seed():
    image = torch.ones(1, 1, 20, 20, 20)
    classes = torch.zeros(1, 20, 20, 20, dtype=torch.uint8)
    quiet = draw(Augmentation(), 1, (20, 20, 20), np.random.default_rng(0))
    loud = replace(quiet, noise=0.5, noise_seed=7)
    out = apply(image, classes, [loud])[0]
    assert abs(float(out.std()) - 0.5) < 0.02
    assert torch.equal(out, apply(image, classes, [loud])[0])
    assert not torch.equal(out, apply(image, classes, [replace(loud, noise_seed=8)])[0])


def test_control_points_of_the_elastic_field_are_as_far_apart_as_the_recipe_says():
    settings = Augmentation(elastic_voxels=1.0, elastic_spacing=20)
    drawn = draw(settings, 1, (61, 81, 41), np.random.default_rng(0))
    assert drawn.displacement.shape == (3, 4, 5, 3)


def test_intensities_are_computed_where_the_images_are():
    drawn = draw(Augmentation(intensity_scale=0.1, gamma=(0.8, 1.2)), 2, (4, 4, 4), np.random.default_rng(0))
    images = torch.zeros(1, 2, 4, 4, 4, device="meta")
    augmented, _ = apply(images, torch.zeros(1, 4, 4, 4, dtype=torch.uint8, device="meta"), [drawn])
    assert augmented.device.type == "meta"
