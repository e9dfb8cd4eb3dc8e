import io

import numpy as np
import pytest
from PIL import Image

from gliomap.classes import ED, ET, NCR
from gliomap.report import pictures

SPACING_MM = (1.0, 1.0, 1.0)
WHOLE_BOX = (slice(0, 20), slice(0, 24), slice(0, 28))


def test_patients_right_anterior_and_superior_are_left_up_and_up():
    volume = np.zeros((20, 24, 28))
    volume[18, 22, 26] = 1  # superior, anterior, right
    seen = {
        plane: np.argwhere(pictures.slice_of(volume, plane, index))
        for plane, index in (("axial", 18), ("coronal", 22), ("sagittal", 26))
    }
    assert seen["axial"].tolist() == [[1, 1]]
    assert seen["coronal"].tolist() == [[1, 1]]
    assert seen["sagittal"].tolist() == [[1, 1]]  # sagittal pictures face left


def test_window_spreads_tissue_and_keeps_background_black():
    rng = np.random.default_rng(0)
    image = np.zeros((10, 20, 20))
    image[2:8, 5:15, 5:15] = rng.normal(-1, 2, (6, 10, 10))  # z-scored: tissue below 0 is no background
    image[3, 6, 6] = 1e6
    window = pictures.intensity_window(image)
    grey = pictures.windowed(image, window)
    assert grey.dtype == np.uint8
    assert (grey[image == 0] == 0).all()
    assert grey[3, 6, 6] == 255
    assert 100 < np.median(grey[image != 0]) < 155


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan])
def test_window_of_a_constant_image(value):
    image = np.full((4, 5, 6), value)
    grey = pictures.windowed(image, pictures.intensity_window(image))
    assert (grey == (128 if value == 7 else 0)).all()


def test_resizing_gives_square_millimetres_and_keeps_labels():
    labels = np.zeros((10, 30), np.uint8)
    labels[:, 10:20] = 3
    large = pictures.resized(labels, (5.0, 1.0), 0.5, labels=True)
    assert large.shape == (100, 60)
    assert set(np.unique(large)) == {0, 3}
    assert (large == 3).mean() == pytest.approx(1 / 3)


def test_class_picture_has_an_opaque_contour_and_a_light_fill():
    grey = np.full((20, 20), 100, np.uint8)
    classes = np.zeros((20, 20), np.uint8)
    classes[4:12, 4:12] = ET
    picture = pictures.class_picture(grey, classes)
    colour = np.asarray(pictures.CLASS_COLOURS[ET])
    assert (picture[4, 4:12] == colour).all()
    assert (picture[4:12, 11] == colour).all()
    inside = picture[8, 8].astype(float)
    assert (np.abs(inside - 100) < np.abs(inside - colour)).all()
    assert (inside != 100).all()
    assert (picture[classes == 0] == 100).all()


def test_difference_picture_colours_each_kind_of_voxel():
    truth, predicted = np.zeros((2, 12, 30), bool)
    truth[2:10, 2:20] = True
    predicted[2:10, 10:28] = True
    picture = pictures.difference_picture(np.full((12, 30), 50, np.uint8), truth, predicted)
    colours = pictures.DIFFERENCE_COLOURS
    assert tuple(picture[2, 2]) == colours["false negative"]
    assert tuple(picture[2, 27]) == colours["false positive"]
    assert picture[5, 15].argmax() == np.argmax(colours["agreement"])
    assert tuple(picture[0, 0]) == (50, 50, 50)


def test_all_colours_of_one_legend_differ_strongly():
    for palette in (pictures.CLASS_COLOURS, pictures.DIFFERENCE_COLOURS):
        colours = np.asarray(list(palette.values()), float)
        distance = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(len(colours))
        assert distance.min() > 100


def test_letters_and_scale_bar_are_drawn_in_the_corners():
    black = np.zeros((200, 160, 3), np.uint8)
    picture = pictures.lettered(black, "axial", 0.5)
    assert picture[:30, :30].any()
    assert picture[:30, -30:].any()
    assert not np.array_equal(picture[:30, :30], picture[:30, -30:])
    bar = picture[-10:].any(axis=(0, 2))
    assert bar.sum() == pytest.approx(40, abs=2)
    assert not picture[30:-10].any()
    assert not np.array_equal(picture, pictures.lettered(black, "sagittal", 0.5))


def test_brain_box_is_the_brain_with_a_margin_in_millimetres():
    image = np.zeros((40, 40, 40))
    image[20:30, 1:30, 20:25] = 5
    image[0, 39, 39] = np.nan
    box = pictures.brain_box([image], (2.0, 1.0, 1.0))
    assert box == (slice(18, 32), slice(0, 34), slice(16, 29))
    assert pictures.brain_box([np.zeros((3, 4, 5))], SPACING_MM) == (slice(0, 3), slice(0, 4), slice(0, 5))


def test_slices_show_the_largest_areas_and_the_centre():
    classes = np.zeros((20, 24, 28), np.uint8)
    classes[4:15, 8:13, 8:13] = ED
    classes[6, 4:16, 4:16] = ED
    classes[12, 9:12, 9:12] = NCR
    choice = pictures.choose_slices(classes, WHOLE_BOX, SPACING_MM)
    assert (choice.whole_tumour, choice.tumour_core) == (6, 12)
    assert classes[choice.centre]
    assert (choice.strip[0], choice.strip[-1], len(choice.strip)) == (4, 14, 9)


def test_centre_of_two_lesions_lies_in_one_of_them():
    classes = np.zeros((20, 24, 28), np.uint8)
    classes[10, 3:6, 3:6] = ET
    classes[10, 18:21, 20:24] = ET
    assert classes[pictures.choose_slices(classes, WHOLE_BOX, SPACING_MM).centre] == ET


def test_specks_all_over_do_not_draw_the_centre_away_from_the_largest_lesion():
    classes = np.zeros((20, 24, 28), np.uint8)
    classes[2:6, 2:6, 2:6] = ED
    classes[::4, 8::3, 8::3] = ED  # more voxels than the lesion has, and every one alone
    assert np.count_nonzero(classes[:, 8:]) > 64
    z, y, x = pictures.choose_slices(classes, WHOLE_BOX, SPACING_MM).centre
    assert (2 <= z < 6, 2 <= y < 6, 2 <= x < 6) == (True, True, True)


def test_slices_without_a_tumour_are_the_middle_of_the_box():
    box = (slice(4, 15), slice(10, 21), slice(0, 9))
    choice = pictures.choose_slices(np.zeros((20, 24, 28), np.uint8), box, SPACING_MM)
    assert choice.centre == (9, 15, 4)
    assert choice.whole_tumour == choice.tumour_core == 9
    assert all(4 <= index < 15 for index in choice.strip)


def test_strip_of_a_tumour_in_one_slice_shows_its_neighbours():
    classes = np.zeros((20, 24, 28), np.uint8)
    classes[0, 5:8, 5:8] = ET
    strip = pictures.choose_slices(classes, WHOLE_BOX, SPACING_MM).strip
    assert strip[0] == 0
    assert len(strip) > 1


@pytest.mark.parametrize("colour", [(90, 90, 90), (213, 94, 0)])
def test_png_gives_the_picture_back(colour):
    picture = np.zeros((8, 9, 3), np.uint8)
    picture[2:4, 3:6] = colour
    decoded = Image.open(io.BytesIO(pictures.png_bytes(picture)))
    assert np.array_equal(np.asarray(decoded.convert("RGB")), picture)
    assert decoded.mode == ("L" if colour == (90, 90, 90) else "P")
    assert pictures.data_uri(picture).startswith("data:image/png;base64,iVBOR")


@pytest.mark.parametrize(("colours", "mode"), [(256, "P"), (257, "RGB")])
def test_png_of_many_colours_gives_every_one_back(colours, mode):
    numbers = np.arange(400).reshape(20, 20) % colours
    picture = np.stack([numbers // 3, 255 - numbers // 2, numbers % 7], 2).astype(np.uint8)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == colours
    decoded = Image.open(io.BytesIO(pictures.png_bytes(picture)))
    assert decoded.mode == mode
    assert np.array_equal(np.asarray(decoded.convert("RGB")), picture)


def test_outlines_are_of_the_regions_asked_for_with_inner_ones_on_top():
    classes = np.zeros((16, 16), np.uint8)
    classes[1:15, 1:15], classes[4:12, 4:12], classes[4:9, 4:9] = ED, NCR, ET
    grey = np.full((16, 16), 50, np.uint8)
    drawn = pictures.outline_picture(grey, classes, ("ET", "TC", "WT"))
    colours = pictures.REGION_COLOURS
    assert tuple(drawn[1, 7]) == colours["WT"]
    assert tuple(drawn[11, 11]) == colours["TC"]
    assert tuple(drawn[4, 4]) == tuple(drawn[8, 8]) == colours["ET"]
    assert tuple(drawn[2, 2]) == tuple(drawn[6, 6]) == (50, 50, 50)
    whole = pictures.outline_picture(grey, classes, ("WT",)).reshape(-1, 3)
    assert {tuple(colour) for colour in whole.tolist()} == {(50, 50, 50), colours["WT"]}
