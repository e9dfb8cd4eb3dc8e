from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.transforms import Rotate90
from scipy import ndimage
from torch.nn import functional as F

from gliomap import augment
from gliomap.augment import Draw, Intensity, apply, draw, smoothing_matrix
from gliomap.recipe import Augmentation, Shares

SIZE = (10, 12, 8)
SPATIAL = Augmentation(flips=True, rotation_degrees=20.0, scale=0.2, elastic_voxels=1.5, elastic_spacing=4)
EVERYTHING = replace(
    SPATIAL,
    rotate_90=True,
    intensity_scale=0.2,
    intensity_shift=0.3,
    gamma=(0.7, 1.5),
    inverted_gamma=(0.7, 1.5),
    gamma_keeps_moments=True,
    contrast=(0.75, 1.25),
    blur_voxels=(0.5, 1.0),
    low_resolution=(0.5, 1.0),
    modality_dropout=0.3,
    noise=0.1,
)
NNUNET = Augmentation(
    flips=True,
    rotation_degrees=30.0,
    scale=0.3,
    noise=0.1,
    blur_voxels=(0.5, 1.0),
    intensity_scale=0.25,
    contrast=(0.75, 1.25),
    low_resolution=(0.5, 1.0),
    inverted_gamma=(0.7, 1.5),
    gamma=(0.7, 1.5),
    gamma_keeps_moments=True,
    shares=Shares(
        rotation=0.2, scale=0.2, noise=0.1, blur=0.2, intensity_scale=0.15, contrast=0.15, low_resolution=0.25,
        modality=0.5, inverted_gamma=0.1, gamma=0.3,
    ),
)  # fmt: skip


def batch(seed=0, samples=2, channels=2, size=SIZE):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(samples, channels, *size)).astype(np.float32)
    images[..., :2] = 0
    images[..., -1:, :] = 0
    classes = rng.integers(0, 4, (samples, *size)).astype(np.uint8)
    return torch.from_numpy(images), torch.from_numpy(classes)


def drawn(settings, seed, channels=2, size=SIZE):
    return draw(settings, channels, size, np.random.default_rng(seed))


def one(matrix=None, displacement=None, channels=2, **intensity):
    matrix = np.eye(3) if matrix is None else matrix
    return Draw(
        np.asarray(matrix, np.float32),
        displacement,
        (Intensity(**intensity),) * channels,
        keep_moments=False,
        noise_seed=7,
    )


def changed(image, keep_moments=False, **intensity):
    """One modality (D, H, W) after a change."""
    given = replace(one(channels=1, **intensity), keep_moments=keep_moments)
    classes = torch.zeros(1, *image.shape, dtype=torch.uint8)
    return apply(torch.as_tensor(image, dtype=torch.float32)[None, None], classes, [given])[0][0, 0]


def same(a: Draw, b: Draw):
    return all(np.array_equal(v, vars(b)[name]) for name, v in vars(a).items())


def read_positions(given: Draw, size=SIZE):
    """Where each output voxel is read, in input voxels (3, D, H, W) z y x, by the words of the docstrings."""
    centre = (np.array(size[::-1]) - 1) / 2
    x, y, z = (g.astype(float) for g in np.indices(size)[::-1])
    offsets = np.stack([x, y, z]) - centre[:, None, None, None]
    if given.displacement is not None:
        points = given.displacement.shape[1:]
        places = np.meshgrid(*[np.linspace(0, p - 1, n) for p, n in zip(points, size, strict=True)], indexing="ij")
        offsets = offsets + np.stack(
            [ndimage.map_coordinates(d.astype(float), places, order=1) for d in given.displacement]
        )
    read = np.einsum("ij,jdhw->idhw", given.matrix.astype(float), offsets) + centre[:, None, None, None]
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


def test_interpolation_does_not_depend_on_how_much_is_done_at_a_time(monkeypatch):
    images, classes = batch()
    draws = [drawn(SPATIAL, 1), drawn(SPATIAL, 2)]
    whole = apply(images, classes, draws)
    monkeypatch.setattr(augment, "SLAB_VOXELS", 3 * SIZE[1] * SIZE[2])  # which does not divide ten slices
    slabs = apply(images, classes, draws)
    assert torch.equal(whole[0], slabs[0])
    assert torch.equal(whole[1], slabs[1])


@pytest.mark.parametrize("settings", [EVERYTHING, Augmentation(flips=True, intensity_scale=0.3), Augmentation()])
def test_given_batch_is_left_as_it_is(settings):
    images, classes = batch()
    before = images.clone(), classes.clone()
    apply(images, classes, [drawn(settings, 1), drawn(settings, 2)])
    assert torch.equal(images, before[0])
    assert torch.equal(classes, before[1])


def test_identity_draw_leaves_everything_untouched_and_copies_nothing():
    images, classes = batch()
    same_images, same_classes = apply(images, classes, [drawn(Augmentation(), n) for n in range(2)])
    assert same_images is images
    assert same_classes is classes


def test_settings_bound_what_is_drawn():
    for seed in range(50):
        given = drawn(EVERYTHING, seed)
        for modality in given.intensities:
            assert abs(modality.scale - 1) <= 0.2
            assert abs(modality.shift) <= 0.3
            assert 0.7 <= modality.gamma <= 1.5
            assert 0.7 <= modality.inverted_gamma <= 1.5
            assert 0.75 <= modality.contrast <= 1.25
            assert 0.5 <= modality.blur_voxels <= 1
            assert 0.5 <= modality.resolution <= 1
            assert 0 <= modality.noise <= 0.1
        size = np.abs(np.linalg.det(given.matrix)) ** (1 / 3)
        assert 1 / 1.2 - 1e-6 <= size <= 1 / 0.8 + 1e-6
        directions = given.matrix / np.linalg.norm(given.matrix, axis=0)
        np.testing.assert_allclose(directions @ directions.T, np.eye(3), atol=1e-5)


def test_shares_say_how_many_samples_a_part_is_applied_to():
    settings = replace(NNUNET, intensity_shift=0.2, shares=replace(NNUNET.shares, intensity_shift=0.4))
    draws = [drawn(settings, seed, channels=4, size=(16, 16, 16)) for seed in range(1500)]
    of_samples = {
        "inverted_gamma": 0.1, "gamma": 0.3, "contrast": 0.15, "scale": 0.15, "noise": 0.1, "shift": 0.4,
        "blur_voxels": 0.2 * 0.5, "resolution": 0.25 * 0.5,
    }  # fmt: skip
    for name, share in of_samples.items():
        nothing = getattr(Intensity(), name)
        found = np.mean([[getattr(m, name) != nothing for m in given.intensities] for given in draws])
        assert found == pytest.approx(share, abs=0.035), name
    matrices = np.stack([given.matrix for given in draws])
    assert np.mean(np.abs(np.abs(np.linalg.det(matrices)) - 1) > 1e-4) == pytest.approx(0.2, abs=0.035)
    turned = np.abs(matrices[:, [0, 0, 1], [1, 2, 2]]).max(1) > 0
    assert turned.mean() == pytest.approx(0.2, abs=0.035)
    assert (matrices[:, 0, 0] < 0).mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("part", ["flips", "rotation", "rotate_90", "scale", "elastic"])
def test_share_of_zero_switches_a_spatial_part_off(part):
    shares = {"flips": 0.0, "rotation": 0.0, "rotate_90": 0.0, "scale": 0.0, "elastic": 0.0}
    settings = replace(EVERYTHING, shares=Shares(**shares))
    cube = (8, 8, 8)
    nothing = [drawn(settings, seed, size=cube) for seed in range(20)]
    assert all(np.array_equal(g.matrix, np.eye(3)) and g.displacement is None for g in nothing)
    only = replace(settings, shares=Shares(**shares | {part: 1.0}))
    something = [drawn(only, seed, size=cube) for seed in range(20)]
    assert any(not np.array_equal(g.matrix, np.eye(3)) or g.displacement is not None for g in something)


def test_flip_along_x_mirrors_the_last_axis():
    images, classes = batch()
    mirrored, labels = apply(images, classes, [one(np.diag([-1, 1, 1]))] * 2)
    assert torch.equal(mirrored, images.flip(-1))
    assert torch.equal(labels, classes.flip(-1))


def test_flips_and_quarter_turns_are_exact_and_what_interpolation_would_read():
    size = (9, 9, 9)
    images, classes = batch(size=size)
    orientations = set()
    for seed in range(60):
        given = drawn(Augmentation(flips=True, rotate_90=True), seed, size=size)
        orientations.add(given.matrix.tobytes())
        moved, labels = apply(images[:1], classes[:1], [given])
        places = np.rint(read_positions(given, size)).astype(int)
        np.testing.assert_array_equal(moved[0].numpy(), images[0].numpy()[:, *places])
        np.testing.assert_array_equal(labels[0].numpy(), classes[0].numpy()[*places])
    assert len(orientations) > 30  # of 48


def test_quarter_turns_swap_axes_of_equal_length_only():
    images, classes = batch(size=(6, 8, 8))
    found = set()
    for seed in range(40):
        given = drawn(Augmentation(rotate_90=True), seed, size=(6, 8, 8))
        moved, _ = apply(images[:1], classes[:1], [given])
        turns = [
            k for k in range(4) if np.array_equal(Rotate90(k, spatial_axes=(1, 2))(images[0]).numpy(), moved[0].numpy())
        ]
        assert len(turns) == 1
        found.add(turns[0])
    assert found == {0, 1, 2, 3}


def test_zoom_enlarges():
    images, classes = torch.zeros(1, 1, *SIZE), torch.zeros(1, *SIZE, dtype=torch.uint8)
    classes[:, 3:7, 4:8, 3:5] = 1
    assert apply(images, classes, [one(np.eye(3) / 1.5, channels=1)])[1].sum() > 2 * classes.sum()


@pytest.mark.parametrize("size", [SIZE, (1, 12, 9), (3, 16, 12), (1, 1, 7)])
def test_sampling_agrees_with_scipy(size):
    images, classes = batch(size=size)
    draws = [drawn(SPATIAL, 11, size=size), drawn(SPATIAL, 12, size=size)]
    moved, labels = apply(images, classes, draws)
    for sample, given in enumerate(draws):
        positions = read_positions(given, size)
        for channel in range(2):
            expected = ndimage.map_coordinates(
                images[sample, channel].numpy(), positions, order=1, mode="grid-constant", cval=0.0
            )
            np.testing.assert_allclose(moved[sample, channel].numpy(), expected, atol=1e-4)
        nearest = ndimage.map_coordinates(classes[sample].numpy(), positions, order=0, mode="grid-constant", cval=0)
        clear = (np.abs(positions % 1 - 0.5) > 1e-3).all(0)
        assert clear.mean() > 0.95
        np.testing.assert_array_equal(labels[sample].numpy()[clear], nearest[clear])


@pytest.mark.parametrize("size", [(1, 24, 24), (7, 24, 20)])
def test_slices_are_turned_and_moved_in_their_plane_only(size):
    for seed in range(20):
        given = drawn(replace(EVERYTHING, flips=False), seed, size=size)
        np.testing.assert_array_equal(given.matrix[2], [0, 0, 1])
        np.testing.assert_array_equal(given.matrix[:, 2], [0, 0, 1])
        assert (given.displacement[2] == 0).all()
        assert (given.displacement[:2] != 0).all()
        assert given.matrix[0, 1] != 0
    slices, classes = torch.ones(1, 1, *size), torch.ones(1, *size, dtype=torch.uint8)
    turned, _ = apply(slices, classes, [drawn(Augmentation(rotation_degrees=30.0), 0, channels=1, size=size)])
    assert (turned[0, 0, :, 8:16, 8:12] > 0.99).all()  # a turn out of the plane would read nothing here


def test_smoothing_leaves_slices_apart():
    image = torch.ones(2, 8, 8)
    image[1] = 5.0
    torch.testing.assert_close(changed(image, blur_voxels=2.0, resolution=0.5), image)


def test_background_stays_zero_and_labels_stay_whole_classes():
    images, classes = batch()
    for seed in range(4):
        draws = [drawn(EVERYTHING, seed), drawn(EVERYTHING, seed + 100)]
        out, labels = apply(images, classes, draws)
        background = apply(images, classes, [replace(d, intensities=(Intensity(),) * 2) for d in draws])[0] == 0
        assert background.any()
        assert (out[background] == 0).all()
        assert labels.dtype == torch.uint8
        assert set(labels.unique().tolist()) <= {0, 1, 2, 3}
        assert torch.isfinite(out).all()


def test_gamma_scale_and_shift_by_hand():
    out = changed(torch.tensor([[[-1.0, 0.0, 1.0, 3.0]]]), gamma=2.0, scale=1.5, shift=0.25)
    # range -1 to 3: (v + 1) / 4 is 0, -, 0.5, 1; squared 0, -, 0.25, 1; back -1, -, 0, 3; times 1.5 plus 0.25
    np.testing.assert_allclose(out.ravel().numpy(), [-1.25, 0.0, 0.25, 4.75], atol=1e-6)


def test_inverted_gamma_is_gamma_of_the_negated_image():
    image = batch()[0][0, 0]
    torch.testing.assert_close(changed(image, inverted_gamma=1.4), -changed(-image, gamma=1.4))


@pytest.mark.parametrize("kind", ["gamma", "inverted_gamma"])
def test_gamma_keeps_mean_and_standard_deviation_of_the_brain_where_asked(kind):
    image = batch()[0][0, 0]
    brain = image != 0
    for before in ({}, {"blur_voxels": 1.0}):  # a blurred brain reaches into the background, which does not count
        given = changed(image, **before)[brain]
        out = changed(image, keep_moments=True, **before, **{kind: 1.5})[brain]
        torch.testing.assert_close(out.mean(), given.mean(), atol=1e-5, rtol=0)
        torch.testing.assert_close(out.std(), given.std(), atol=1e-4, rtol=0)
    assert abs(float(changed(image, **{kind: 1.5})[brain].mean() - image[brain].mean())) > 0.01


def test_contrast_is_about_the_mean_of_the_brain_and_keeps_the_range():
    out = changed(torch.tensor([[[0.0, 1.0, 2.0, 3.0, 10.0, 0.0]]]), contrast=1.5)
    # the brain's mean is 4: 1.5 (v - 4) + 4 is -0.5, 1, 2.5, 13, and the range is 0 to 10
    np.testing.assert_allclose(out.ravel().numpy(), [0.0, 0.0, 1.0, 2.5, 10.0, 0.0], atol=1e-5)
    image = batch()[0][0, 0] + 3
    image[..., :2] = 0
    blurred = changed(image, blur_voxels=1.0)
    brain = image != 0
    mean = blurred[brain].mean()
    expected = ((blurred - mean) * 1.3 + mean).clamp(blurred.min(), blurred.max())[brain]
    torch.testing.assert_close(changed(image, blur_voxels=1.0, contrast=1.3)[brain], expected)


def test_blur_is_scipys_gaussian_away_from_the_border():
    image = np.zeros((31, 33, 35), np.float32)
    image[12:19, 12:19, 12:19] = np.random.default_rng(0).normal(size=(7, 7, 7))
    inside = np.ones_like(image) * 1e-7 + image  # all of it brain
    out = changed(torch.from_numpy(inside), blur_voxels=1.2).numpy()
    np.testing.assert_allclose(out, ndimage.gaussian_filter(image, 1.2, truncate=8.0), atol=1e-5)


def test_low_resolution_is_nearest_down_and_linear_up():
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(12, 15, 16)).astype(np.float32))
    for share in (0.5, 0.63, 0.9):
        small = F.interpolate(image[None, None], [round(n * share) for n in image.shape], mode="nearest-exact")
        expected = F.interpolate(small, image.shape, mode="trilinear")[0, 0]
        torch.testing.assert_close(changed(image, resolution=share), expected, atol=1e-5, rtol=0)


def test_smoothing_keeps_a_constant():
    for n in (1, 2, 7, 40):
        for blur, resolution in ((0.0, 1.0), (0.7, 1.0), (0.0, 0.3), (2.0, 0.5)):
            np.testing.assert_allclose(smoothing_matrix(n, blur, resolution).sum(1), 1)


def test_dropped_modalities_are_zero_and_one_is_always_left():
    kept = np.array([[m.kept for m in drawn(Augmentation(modality_dropout=0.4), s, 3).intensities] for s in range(400)])
    assert kept.any(1).all()
    assert 1 - kept.mean() == pytest.approx(0.4 - 0.4**3 / 3, abs=0.04)
    all_but_one = np.array(
        [[m.kept for m in drawn(Augmentation(modality_dropout=1.0), s, 3).intensities] for s in range(60)]
    )
    assert (all_but_one.sum(1) == 1).all()
    assert all_but_one.any(0).all()
    images, classes = batch(samples=1)
    given = replace(one(), intensities=(Intensity(kept=False, shift=1.0, noise=0.5), Intensity()))
    out, _ = apply(images, classes, [given])
    assert (out[0, 0] == 0).all()
    assert torch.equal(out[0, 1], images[0, 1])


def test_noise_is_normal_with_the_drawn_width_and_comes_from_its_seed():
    image = torch.ones(1, 2, 20, 20, 21)  # 8,400 voxels, which are no whole number of 64 bits
    classes = torch.zeros(1, 20, 20, 21, dtype=torch.uint8)
    loud = one(noise=0.5)
    out = apply(image, classes, [loud])[0]
    noise = (out - image)[0].flatten(1).numpy()
    assert np.abs(noise.mean(1)).max() < 0.02
    for level in (-1.5, -1, 0, 0.5, 2):
        expected = ndimage.gaussian_filter1d(np.repeat([0.0, 1.0], 4000), 1000)[4000 + round(1000 * level)]
        assert (noise < 0.5 * level).mean() == pytest.approx(expected, abs=0.015)
    assert abs(np.corrcoef(noise)[0, 1]) < 0.04
    assert abs(np.corrcoef(noise[0, 1:], noise[0, :-1])[0, 1]) < 0.04
    assert torch.equal(out, apply(image, classes, [loud])[0])
    assert not torch.equal(out, apply(image, classes, [replace(loud, noise_seed=8)])[0])


def test_control_points_of_the_elastic_field_are_as_far_apart_as_the_recipe_says():
    settings = Augmentation(elastic_voxels=1.0, elastic_spacing=20)
    assert drawn(settings, 0, 1, (61, 81, 41)).displacement.shape == (3, 4, 5, 3)


def test_everything_is_computed_where_the_images_are():
    images, classes = (tensor.to("meta") for tensor in batch())
    augmented, labels = apply(images, classes, [drawn(EVERYTHING, 1), drawn(EVERYTHING, 2)])
    assert augmented.device.type == labels.device.type == "meta"
    assert augmented.shape == images.shape
    assert labels.dtype == torch.uint8
