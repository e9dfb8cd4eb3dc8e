import numpy as np

from gliomap.postprocess import postprocess, remove_small_components
from gliomap.recipe import Postprocessing


def class_map():
    classes = np.zeros((8, 9, 10), np.uint8)
    classes[1:4, 1:4, 1:4] = 2  # 27 voxels
    classes[2, 2, 2] = 3  # one inside them, which leaves 26
    classes[6, 6, 6] = 3
    classes[7, 7, 7] = 3  # touches only by a corner
    classes[0, 8, 9] = 1
    return classes


def test_smaller_components_of_a_class_are_removed():
    out = remove_small_components(class_map(), 2)
    expected = class_map()
    expected[2, 2, 2] = expected[0, 8, 9] = 0
    np.testing.assert_array_equal(out, expected)


def test_a_component_of_exactly_the_limit_stays():
    assert (remove_small_components(class_map(), 26) == 2).sum() == 26
    assert not remove_small_components(class_map(), 27).any()


def test_components_are_counted_for_each_class_on_its_own():
    out = remove_small_components(class_map(), 3)
    assert set(np.unique(out)) == {0, 2}


def test_input_is_left_alone_and_empty_maps_stay_empty():
    classes = class_map()
    remove_small_components(classes, 100)
    np.testing.assert_array_equal(classes, class_map())
    empty = np.zeros((3, 4, 5), np.uint8)
    np.testing.assert_array_equal(remove_small_components(empty, 5), empty)


def test_recipe_settings_switch_it_on():
    np.testing.assert_array_equal(postprocess(class_map(), Postprocessing()), class_map())
    np.testing.assert_array_equal(postprocess(class_map(), Postprocessing(1)), class_map())
    np.testing.assert_array_equal(postprocess(class_map(), Postprocessing(2)), remove_small_components(class_map(), 2))


def test_little_enhancing_tumour_becomes_necrosis():
    classes = class_map()
    assert (classes == 3).sum() == 3
    out = postprocess(classes, Postprocessing(min_et_voxels=4))
    np.testing.assert_array_equal(out, np.where(classes == 3, 1, classes))
    np.testing.assert_array_equal(postprocess(classes, Postprocessing(min_et_voxels=3)), classes)
    assert (classes == 3).sum() == 3
    both = postprocess(classes, Postprocessing(min_component_voxels=2, min_et_voxels=3))
    assert (both == 1).sum() == 2  # small components go first: one of ET and the one of NCR, and two of ET are left
