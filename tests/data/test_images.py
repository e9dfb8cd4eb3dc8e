import bz2
import errno
import gzip
import io
import os
import pickle
import struct
import sys
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from studies import save, small_affine

from gliomap.data import images
from gliomap.data.images import image_stem, map_bytes, read_grid, read_image, read_images, volume_bytes
from gliomap.errors import InputError, UsageError
from gliomap.volume import Volume

OBLIQUE = np.array([[2.0, -0.3, 0.1, -20.0], [0.28, 2.9, -0.2, 11.0], [-0.05, 0.2, 4.0, 7.0], [0, 0, 0, 1.0]])
ROTATION = np.linalg.qr(OBLIQUE[:3, :3])[0]
OBLIQUE[:3, :3] = ROTATION * [2.0, 3.0, 4.0]
"""Rotated against the patient's axes, without shear, as a quaternion can say it."""


def numbers(shape=(4, 5, 6), dtype=np.int16):
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def nifti_bytes(array=None, affine=None):
    array = numbers() if array is None else array
    return nib.Nifti1Image(array.T, small_affine() if affine is None else affine).to_bytes()


def patched(raw, offset, form, *values):
    raw = bytearray(raw)
    struct.pack_into(form, raw, offset, *values)
    return bytes(raw)


def packed_as(suffix, raw):
    return {".nii": bytes, ".nii.gz": gzip.compress, ".nii.bz2": bz2.compress}[suffix](raw)


def write(path, content):
    path.write_bytes(content)
    return path


def refusal(path, **options):
    with pytest.raises(InputError) as raised:
        read_image(path, **options)
    assert raised.value.exit_code == 3
    assert str(path) in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("name", "stem"),
    [("a.nii", "a"), ("a.b.nii.gz", "a.b"), ("A.NII.GZ", "A"), ("a.nii.bz2", "a"), ("a.mha", "a"), ("a.png", None)],
)
def test_stem_is_the_name_without_the_image_suffix(tmp_path, name, stem):
    assert image_stem(tmp_path / name) == stem


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nii.bz2", ".NII.GZ"])
def test_bright_voxel_is_found_at_its_place(tmp_path, suffix):
    array = np.zeros((4, 5, 6), np.int16)
    array[1, 2, 3] = 700
    path = write(tmp_path / f"image{suffix}", packed_as(suffix.lower(), nifti_bytes(array)))
    volume = read_image(path)
    assert volume.array.shape == (1, 4, 5, 6)
    assert volume.array.dtype == np.int16
    assert volume.array[0, 1, 2, 3] == 700
    np.testing.assert_array_equal(volume.affine @ [3, 2, 1, 1], [-96 + 18, -100 + 12, -70 + 6, 1])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_voxel_type_is_kept(tmp_path, dtype):
    volume = read_image(save(tmp_path / "a.nii.gz", numbers(dtype=dtype)))
    assert volume.array.dtype == dtype
    np.testing.assert_array_equal(volume.array[0], numbers(dtype=dtype))


def test_big_endian_file_is_read_in_the_machine_order(tmp_path):
    image = nib.Nifti1Image(numbers().T, small_affine(), nib.Nifti1Header(endianness=">"))
    image.to_filename(tmp_path / "a.nii")
    volume = read_image(tmp_path / "a.nii")
    assert volume.array.dtype.isnative
    np.testing.assert_array_equal(volume.array[0], numbers())


def test_nifti2_is_read(tmp_path):
    nib.Nifti2Image(numbers().T, OBLIQUE).to_filename(tmp_path / "a.nii.gz")
    volume = read_image(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.array[0], numbers())
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-9)


def test_scaling_of_the_header_is_applied_without_rounding(tmp_path):
    image = nib.Nifti1Image(numbers().T, small_affine())
    image.header.set_slope_inter(0.25, 1.5)
    image.to_filename(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii.gz").array[0], numbers() * np.float32(0.25) + 1.5)


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_scaling_that_is_not_set_changes_nothing(tmp_path, slope):
    path = write(tmp_path / "a.nii", patched(nifti_bytes(), 112, "<ff", slope, 9.0))
    volume = read_image(path)
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array[0], numbers())


def test_last_axis_of_one_is_dropped(tmp_path):
    assert read_image(save(tmp_path / "a.nii", numbers((1, 4, 5, 6)))).array.shape == (1, 4, 5, 6)


def test_channel_of_a_4d_image_is_read(tmp_path):
    array = numbers((3, 4, 5, 6))
    path = save(tmp_path / "a.nii.gz", array)
    np.testing.assert_array_equal(read_image(path, channel=2).array[0], array[2])


def test_4d_image_is_refused_where_3d_is_expected(tmp_path):
    message = refusal(save(tmp_path / "a.nii.gz", numbers((3, 4, 5, 6))))
    assert "4-D with shape (6, 5, 4, 3)" in message
    assert "Split it" in message


def test_channel_that_is_not_there_is_refused(tmp_path):
    assert "channel 3" in refusal(save(tmp_path / "a.nii", numbers((3, 4, 5, 6))), channel=3)
    assert "channel 0" in refusal(save(tmp_path / "b.nii", numbers()), channel=0)


def test_2d_image_is_refused(tmp_path):
    nib.Nifti1Image(np.ones((4, 5), np.int16), np.eye(4)).to_filename(tmp_path / "a.nii")
    assert "at least three dimensions" in refusal(tmp_path / "a.nii")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nii.bz2", ".mha"])
def test_missing_file_is_refused(tmp_path, suffix):
    refusal(tmp_path / f"absent{suffix}")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nii.bz2"])
def test_folder_named_like_an_image_is_refused(tmp_path, suffix):
    (tmp_path / f"a{suffix}").mkdir()
    assert "Is a directory" in refusal(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nii.bz2", ".mha"])
@pytest.mark.parametrize(
    "content", [b"", b"this is a text, not an image\n" * 50, pickle.dumps({"a": list(range(500))})]
)
def test_file_that_is_not_an_image_is_refused(tmp_path, suffix, content):
    message = refusal(write(tmp_path / f"a{suffix}", content))
    assert "not a NIfTI" in message or "damaged" in message or "cannot be read as an image" in message


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nii.bz2"])
def test_text_packed_like_an_image_is_refused(tmp_path, suffix):
    content = packed_as(suffix, b"this is a text, not an image\n" * 50)
    assert "is not a NIfTI image" in refusal(write(tmp_path / f"a{suffix}", content))


def test_unknown_suffix_is_refused(tmp_path):
    assert ".nii.gz" in refusal(write(tmp_path / "a.png", nifti_bytes()))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nii.bz2"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_file_is_refused(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 3000, (9, 10, 11)).astype(np.int16)
    content = packed_as(suffix, nifti_bytes(noise))
    message = refusal(write(tmp_path / f"a{suffix}", content[: int(len(content) * share)]))
    assert "truncated" in message or "not a NIfTI" in message


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii.bz2"])
def test_stream_that_lacks_only_its_end_is_refused(tmp_path, suffix):
    content = packed_as(suffix, nifti_bytes())
    assert "truncated or damaged" in refusal(write(tmp_path / f"a{suffix}", content[:-6]))


def test_wrong_gzip_checksum_is_refused(tmp_path):
    content = bytearray(gzip.compress(nifti_bytes()))
    content[-8] ^= 0xFF
    assert "CRC check failed" in refusal(write(tmp_path / "a.nii.gz", bytes(content)))


def test_wrong_bzip2_checksum_is_refused(tmp_path):
    content = bytearray(bz2.compress(nifti_bytes()))
    content[-4] ^= 0xFF
    assert "damaged" in refusal(write(tmp_path / "a.nii.bz2", bytes(content)))


def refusal_and_peak_bytes(path):
    tracemalloc.start()
    try:
        message = refusal(path)
        return message, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nii.bz2"])
def test_header_that_declares_a_gigantic_image_is_refused_at_once(tmp_path, suffix):
    raw = patched(nifti_bytes(), 40, "<4h", 3, 30_000, 30_000, 30_000)
    message, peak = refusal_and_peak_bytes(write(tmp_path / f"a{suffix}", packed_as(suffix, raw)))
    assert "at most 2 GiB" in message
    assert peak < 4e6


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_voxels_that_the_file_cannot_hold_are_refused_before_memory_is_taken(tmp_path, suffix):
    raw = patched(nifti_bytes(), 40, "<4h", 3, 1000, 1000, 1000)
    message, peak = refusal_and_peak_bytes(write(tmp_path / f"a{suffix}", packed_as(suffix, raw)))
    assert "on disk cannot hold them" in message
    assert peak < 4e6


def test_memory_grows_with_the_file_and_not_with_its_header(tmp_path):
    raw = patched(nifti_bytes(), 40, "<4h", 3, 1000, 500, 250)
    message, peak = refusal_and_peak_bytes(write(tmp_path / "a.nii.bz2", bz2.compress(raw)))
    assert "truncated: its header promises 250000352 bytes" in message
    assert peak < 60e6


def test_header_that_promises_a_little_more_than_the_file_has_is_refused(tmp_path):
    raw = patched(nifti_bytes(), 40, "<4h", 3, 6, 5, 5)
    for suffix in (".nii", ".nii.gz", ".nii.bz2"):
        assert "truncated: its header promises" in refusal(write(tmp_path / f"a{suffix}", packed_as(suffix, raw)))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii.bz2"])
def test_empty_label_map_is_read_however_well_it_packs(tmp_path, suffix):
    empty = np.zeros((155, 240, 240), np.uint8)
    content = packed_as(suffix, nifti_bytes(empty))
    assert not read_image(write(tmp_path / f"a{suffix}", content)).array.any()


@pytest.mark.parametrize(
    ("offset", "form", "value", "expected"),
    [
        (40, "<h", 2, "at least three dimensions"),
        (44, "<h", 0, "of one voxel or more"),
        (70, "<h", 9999, "damaged"),
        (70, "<h", 32, "voxels of type complex64"),
        (108, "<f", np.nan, "vox_offset"),
        (108, "<f", 7.0, "damaged"),
        (116, "<f", np.nan, "damaged"),
        (280, "<f", np.nan, "affine"),
        (280, "<f", 0.0, "affine"),
        (344, "<3s", b"xyz", "not a NIfTI"),
    ],
)
def test_damaged_header_is_refused(tmp_path, offset, form, value, expected):
    assert expected in refusal(write(tmp_path / "a.nii", patched(nifti_bytes(), offset, form, value)))


@pytest.mark.parametrize("count", [4, 348, 539])
def test_nifti2_header_that_ends_early_is_refused(tmp_path, count):
    content = nib.Nifti2Image(numbers().T, np.eye(4)).to_bytes()[:count]
    assert "damaged" in refusal(write(tmp_path / "a.nii", content))


def refuse_to_open(*_args, **_kwargs):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nii.bz2"])
def test_file_without_permission_is_refused(tmp_path, monkeypatch, suffix):
    path = write(tmp_path / f"a{suffix}", packed_as(suffix, nifti_bytes()))
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", refuse_to_open)
        patch.setattr(io, "open", refuse_to_open)
        patch.setattr(bz2, "_builtin_open", refuse_to_open)
        message = refusal(path)
    assert "Permission denied" in message


@pytest.mark.parametrize("good_reads", [0, 1])
def test_disk_that_fails_while_reading_is_refused(tmp_path, monkeypatch, good_reads):
    path = write(tmp_path / "a.nii", nifti_bytes())

    class Failing(io.FileIO):
        reads = 0

        def read(self, size=-1):
            self.reads += 1
            if self.reads > good_reads:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read(size)

    monkeypatch.setattr(images, "_opened", Failing)
    assert "Input/output error" in refusal(path)


def header_of(path):
    return nib.load(path).header


def geometry_of(header):
    fields = ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
              "srow_x", "srow_y", "srow_z", "xyzt_units")  # fmt: skip
    return {name: np.asarray(header[name], float) for name in fields} | {
        "pixdim": np.asarray(header["pixdim"][:4], float),
        "shape": np.array(header.get_data_shape()),
        "affine": header.get_best_affine(),
    }


def image_with_forms(forms, affine=OBLIQUE, kind=nib.Nifti1Image, endianness="<", slope=None):
    header = kind.header_class(endianness=endianness)
    image = kind(numbers().T, affine, header)
    image.set_qform(affine if "q" in forms else None, 1 if "q" in forms else 0)
    image.set_sform(affine if "s" in forms else None, 4 if "s" in forms else 0)
    image.header.set_xyzt_units("mm", "sec")
    if slope:
        image.header.set_slope_inter(slope, 0)
    return image


@pytest.mark.parametrize(
    "image",
    [
        image_with_forms("q"),
        image_with_forms("s"),
        image_with_forms("qs"),
        image_with_forms(""),
        image_with_forms("qs", np.diag([-1.0, -1.0, 1.0, 1.0])),
        image_with_forms("qs", kind=nib.Nifti2Image),
        image_with_forms("qs", endianness=">"),
        image_with_forms("qs", slope=0.5),
    ],
    ids=["qform only", "sform only", "both", "neither", "LPS", "NIfTI-2", "big-endian", "scaled"],
)
def test_label_map_has_the_geometry_of_its_image(tmp_path, image):
    image.to_filename(tmp_path / "image.nii.gz")
    volume = read_image(tmp_path / "image.nii.gz").to_ras()
    labels = (np.abs(volume.array) % 4).astype(np.uint8)
    (tmp_path / "seg.nii.gz").write_bytes(map_bytes(volume.with_array(labels), tmp_path / "image.nii.gz"))
    expected, written = (geometry_of(header_of(tmp_path / name)) for name in ("image.nii.gz", "seg.nii.gz"))
    for name, value in expected.items():
        np.testing.assert_allclose(written[name], value, rtol=2e-7, atol=2e-6, err_msg=name)
    header = header_of(tmp_path / "seg.nii.gz")
    assert header.get_data_dtype() == np.uint8
    assert header.get_slope_inter() in ((None, None), (1.0, 0.0))
    again = read_image(tmp_path / "seg.nii.gz").to_ras()
    np.testing.assert_array_equal(again.array, labels)
    np.testing.assert_array_equal(read_grid(tmp_path / "seg.nii.gz").shape, read_image(tmp_path / "image.nii.gz").shape)


def test_label_map_of_a_crop_is_zero_outside_it(tmp_path):
    path = save(tmp_path / "image.nii.gz", numbers(), OBLIQUE)
    part = Volume(np.ones((1, 2, 2, 2), np.uint8), OBLIQUE @ np.array(
        [[1, 0, 0, 3], [0, 1, 0, 1], [0, 0, 1, 2], [0, 0, 0, 1.0]]))  # fmt: skip
    (tmp_path / "seg.nii.gz").write_bytes(map_bytes(part, path))
    labels = read_image(tmp_path / "seg.nii.gz").array[0]
    assert labels[2:4, 1:3, 3:5].all()
    assert labels.sum() == 8


def test_label_map_of_another_grid_is_refused(tmp_path):
    path = save(tmp_path / "image.nii.gz", numbers(), np.eye(4))
    with pytest.raises(InputError, match="do not share their voxels"):
        map_bytes(Volume(np.ones((1, 4, 5, 6), np.uint8), np.diag([1.5, 1.5, 1.5, 1.0])), path)


def test_same_labels_give_the_same_bytes(tmp_path):
    path = save(tmp_path / "image.nii.gz", numbers())
    labels = read_image(path).with_array((numbers() % 4).astype(np.uint8))
    assert map_bytes(labels, path) == map_bytes(labels.to_ras(), path)


def test_unknown_units_are_copied_as_they_are(tmp_path):
    path = write(tmp_path / "a.nii", patched(nifti_bytes(), 123, "<B", 5))
    (tmp_path / "seg.nii.gz").write_bytes(map_bytes(read_image(path).with_array(np.zeros((4, 5, 6), np.uint8)), path))
    assert header_of(tmp_path / "seg.nii.gz")["xyzt_units"] == 5


def test_grid_is_read_without_its_voxels(tmp_path):
    raw = nifti_bytes()
    volume = read_grid(write(tmp_path / "a.nii", raw[:352]))
    assert volume.shape == (4, 5, 6)
    np.testing.assert_array_equal(volume.affine, small_affine())
    assert not volume.array.any()


@pytest.mark.parametrize("channels", [1, 3])
def test_volume_is_written_and_read_back(tmp_path, channels):
    volume = Volume(numbers((channels, 4, 5, 6)), OBLIQUE)
    path = write(tmp_path / "a.nii.gz", volume_bytes(volume, "a description"))
    image = nib.load(path)
    assert image.shape == ((6, 5, 4) if channels == 1 else (6, 5, 4, 3))
    np.testing.assert_array_equal(np.asarray(image.dataobj).T.reshape(volume.array.shape), volume.array)
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-6)
    assert image.header["descrip"].item() == b"a description"


def mha(path, array, affine):
    itk = pytest.importorskip("SimpleITK")
    image = itk.GetImageFromArray(array)
    to_lps = np.diag([-1.0, -1.0, 1.0])
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((to_lps @ affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin((to_lps @ affine[:3, 3]).tolist())
    itk.WriteImage(image, str(path))
    return path


def test_mha_is_where_the_same_nifti_is(tmp_path):
    volume = read_image(mha(tmp_path / "a.mha", numbers(), OBLIQUE))
    np.testing.assert_array_equal(volume.array[0], numbers())
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-9)
    grid = read_grid(tmp_path / "a.mha")
    assert grid.shape == volume.shape
    np.testing.assert_array_equal(grid.affine, volume.affine)


def test_label_map_of_an_mha_lies_on_its_grid(tmp_path):
    path = mha(tmp_path / "a.mha", numbers(), OBLIQUE)
    labels = (numbers() % 4).astype(np.uint8)
    (tmp_path / "seg.nii.gz").write_bytes(map_bytes(read_image(path).with_array(labels).to_ras(), path))
    written = read_image(tmp_path / "seg.nii.gz")
    np.testing.assert_array_equal(written.array[0], labels)
    np.testing.assert_allclose(written.affine, OBLIQUE, atol=1e-6)


def test_mha_without_simpleitk_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(UsageError, match=r"SimpleITK.*pip install 'gliomap\[itk\]'") as raised:
        read_image(write(tmp_path / "a.mha", b""))
    assert raised.value.exit_code == 2


def test_2d_mha_is_refused(tmp_path):
    itk = pytest.importorskip("SimpleITK")
    itk.WriteImage(itk.GetImageFromArray(np.ones((4, 5), np.int16)), str(tmp_path / "a.mha"))
    assert "at least three dimensions" in refusal(tmp_path / "a.mha")


def test_truncated_mha_is_refused(tmp_path):
    path = mha(tmp_path / "a.mha", numbers((9, 10, 11)), OBLIQUE)
    write(path, path.read_bytes()[:-200])
    refusal(path)


def test_mha_that_declares_a_gigantic_image_is_refused(tmp_path):
    path = mha(tmp_path / "a.mha", numbers(), OBLIQUE)
    write(path, path.read_bytes().replace(b"DimSize = 6 5 4", b"DimSize = 30000 30000 30000"))
    assert "(30000, 30000, 30000)" in refusal(path)


def test_a_file_that_holds_several_images_is_read_once(tmp_path, monkeypatch):
    array = numbers((4, 5, 6, 7))
    path = save(tmp_path / "a.nii.gz", array)
    opened = []
    original = gzip.GzipFile
    monkeypatch.setattr(gzip, "GzipFile", lambda *a, **k: opened.append(a) or original(*a, **k))
    volumes = read_images([(path, 2), (path, 0)])
    np.testing.assert_array_equal([v.array[0] for v in volumes], array[[2, 0]])
    assert len(opened) == 1


def test_a_check_sum_behind_more_than_the_image_is_looked_at(tmp_path):
    path = save(tmp_path / "a.nii", numbers())
    packed = bytearray(gzip.compress(path.read_bytes() + b"tail" * 100))
    (tmp_path / "good.nii.gz").write_bytes(packed)
    np.testing.assert_array_equal(read_image(tmp_path / "good.nii.gz").array[0], numbers())
    packed[-8] ^= 1
    (tmp_path / "bad.nii.gz").write_bytes(packed)
    with pytest.raises(InputError, match="truncated or damaged"):
        read_image(tmp_path / "bad.nii.gz")
