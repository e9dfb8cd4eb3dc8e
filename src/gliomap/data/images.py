"""Image files: read without trusting what they claim, written on exactly the grid they came from."""

import bz2
import gzip
import io
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from gliomap.errors import InputError, import_extra
from gliomap.volume import Volume

MAX_IMAGE_BYTES = 2**31
"""Largest declared size of one uncompressed image that is read (2 GiB: 512 x 512 x 512 voxels of 16 bytes)."""

_DATA_OFFSET = 352
_STEP_BYTES = 2**20
_MAX_TAIL_STEPS = 256  # of what follows the image and is not looked at
_BEST_RATIO = {".gz": 1032, ".bz2": 1_500_000}  # gzip's own limit; an empty label map reaches 1.3 million with bzip2
SUFFIXES = (".nii.gz", ".nii.bz2", ".nii", ".mha")


def image_stem(path: Path) -> str | None:
    """The file's name without its image suffix; None if it has none of ``SUFFIXES``."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return None


def read_image(path: Path, channel: int | None = None) -> Volume:
    """Read one 3-D image, or one channel of a 4-D one, as a Volume (1, D, H, W) in the file's own orientation and type.

    Raises:
        InputError: the file is missing, not an image, truncated, larger than it may be, or not 3-D.
    """
    return _one_image(path, *_read(path), channel)


def read_images(files: Sequence[tuple[Path, int | None]]) -> list[Volume]:
    """Read several images, (path, channel or None) each, as `read_image` does; a file that holds several is read once.

    Files are read in parallel: decompression releases the interpreter.
    """
    paths = list(dict.fromkeys(path for path, _ in files))
    with ThreadPoolExecutor(len(paths)) as pool:
        content = dict(zip(paths, pool.map(_read, paths), strict=True))
    return [_one_image(path, *content[path], channel) for path, channel in files]


def _read(path: Path) -> tuple[Any, Any]:
    return _read_mha(path) if path.name.lower().endswith(".mha") else _read_nifti(path)


def _one_image(path: Path, array: Any, affine: Any, channel: int | None) -> Volume:
    while array.ndim > 3 and array.shape[0] == 1:
        array = array[0]
    if channel is not None:
        if array.ndim != 4 or channel >= len(array):
            raise InputError(f"{path} has shape {array.shape[::-1]}; expected a 4-D image with a channel {channel}")
        array = array[channel]
    if array.ndim != 3:
        raise InputError(
            f"{path} is {array.ndim}-D with shape {array.shape[::-1]} (x, y, z, ...); expected one 3-D image per modality. "
            "Split it into one file per modality, or add the dataset.json that says what its channels are"
        )
    return Volume(array[None], affine)


def read_grid(path: Path) -> Volume:
    """The grid of an image file, without its voxels: a Volume (1, D, H, W) of zeros that takes no memory."""
    if path.name.lower().endswith(".mha"):
        array, affine = _read_mha(path)
        shape = array.shape[-3:]
    else:
        with _opened(path) as stream:
            header = _read_header(path, stream)
        shape, affine = header.get_data_shape()[2::-1], header.get_best_affine()
    return Volume(np.broadcast_to(np.uint8(0), (1, *shape)), affine)


def map_bytes(values: Volume, like: Path) -> bytes:
    """A map (1, D, H, W) of labels or numbers as the bytes of a ``.nii.gz`` on the grid of the file ``like``; 0 beyond it.

    ``values`` may be any crop, flip or axis order of that grid. Shape, affine, form codes, zooms and units are the
    input's. The same map gives the same bytes.
    """
    placed = values.placed_on(read_grid(like))
    header = nib.Nifti1Header()
    if like.name.lower().endswith(".mha"):
        _set_geometry(header, placed.affine)
    else:
        with _opened(like) as stream:
            _copy_geometry(_read_header(like, stream), header)
    return _compressed(header, placed.array)


def volume_bytes(volume: Volume, description: str = "") -> bytes:
    """A one-channel Volume, or a 4-D image of all its channels, as the bytes of a ``.nii.gz``."""
    header = nib.Nifti1Header()
    header["descrip"] = description.encode()[:79]
    _set_geometry(header, volume.affine)
    return _compressed(header, volume.array)


def _compressed(header: Any, array: Any) -> bytes:
    """A gzipped single-file NIfTI of a (C, D, H, W) array; written from C order, since copying to F order costs most."""
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape[:0:-1] + ((len(array),) if len(array) > 1 else ()))
    header["vox_offset"] = _DATA_OFFSET
    header["magic"] = b"n+1"
    raw = io.BytesIO()
    header.write_to(raw)
    packed = zlib.compressobj(6, zlib.DEFLATED, 31)
    start = packed.compress(raw.getvalue().ljust(_DATA_OFFSET, b"\0"))
    return start + packed.compress(np.ascontiguousarray(array).data) + packed.flush()


def _set_geometry(header: Any, affine: Any) -> None:
    header.set_xyzt_units("mm")
    header.set_data_shape((1, 1, 1))
    header.set_qform(affine, 1)
    header.set_sform(affine, 1)


def _copy_geometry(source: Any, header: Any) -> None:
    for field in ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
                  "srow_x", "srow_y", "srow_z"):  # fmt: skip
        header[field] = source[field]
    header["pixdim"][:4] = source["pixdim"][:4]
    header["xyzt_units"] = int(source["xyzt_units"]) & 0x3F  # six bits are defined


def _opened(path: Path) -> BinaryIO:
    if image_stem(path) is None:
        raise InputError(f"{path} is not an image gliomap reads; expected {', '.join(SUFFIXES)}")
    packed = {".gz": gzip.GzipFile, ".bz2": bz2.BZ2File}.get(path.suffix.lower())
    try:
        return cast(BinaryIO, packed(path)) if packed else path.open("rb")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _read_nifti(path: Path) -> tuple[Any, Any]:
    with _opened(path) as stream:
        header = _read_header(path, stream)
        offset = int(header["vox_offset"]) or header.single_vox_offset
        dtype, shape = header.get_data_dtype(), header.get_data_shape()
        if dtype.kind not in "iuf":
            raise InputError(f"{path} holds voxels of type {dtype}; expected whole or real numbers")
        count = int(np.prod([int(n) for n in shape], dtype=object))
        needed = offset + count * dtype.itemsize
        _check_declared_size(path, needed, shape)
        raw = _read_exactly(path, stream, needed)
    array = np.frombuffer(raw, dtype, count, offset).reshape(shape[::-1])
    slope, inter = header.get_slope_inter()
    if slope is not None and (slope, inter) != (1.0, 0.0):
        with np.errstate(over="ignore", invalid="ignore"):  # infinite intensities are refused where images are checked
            array = array.astype(np.float32) * np.float32(slope) + np.float32(inter)
        return array, header.get_best_affine()
    return array.astype(dtype.newbyteorder("="), copy=False), header.get_best_affine()


def _read_header(path: Path, stream: BinaryIO) -> Any:
    try:
        start = stream.read(348)
        size = int.from_bytes(start[:4], "little")
        swapped = int.from_bytes(start[:4], "big")
        if 540 in (size, swapped):
            header = nib.Nifti2Header.from_fileobj(io.BytesIO(start + stream.read(192)))
        elif 348 in (size, swapped) and start[344:347] in (b"n+1", b"ni1"):
            header = nib.Nifti1Header.from_fileobj(io.BytesIO(start))
        else:
            raise InputError(f"{path} is not a NIfTI image (its first bytes are not a NIfTI header)")
        header.get_slope_inter()
        affine = np.asarray(header.get_best_affine())
    except (EOFError, zlib.error, OSError, HeaderDataError, WrapStructError, ValueError) as error:
        raise _unreadable(path, error) from error
    shape = header.get_data_shape()
    if len(shape) < 3 or min(shape) < 1:
        raise InputError(f"{path} declares the shape {shape}; expected at least three dimensions of one voxel or more")
    if not np.isfinite(header["vox_offset"]):
        raise InputError(f"{path} says its voxels start nowhere (vox_offset is not finite); repair its header")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-9:
        raise InputError(
            f"{path} has an affine that maps its voxels nowhere (not finite or singular); repair its header"
        )
    return header


def _check_declared_size(path: Path, needed: int, shape: tuple[int, ...]) -> None:
    if needed > MAX_IMAGE_BYTES:
        raise InputError(
            f"{path} declares {shape} voxels, {needed / 2**30:.1f} GiB; gliomap reads at most {MAX_IMAGE_BYTES / 2**30:.0f} GiB "
            "per image. The header is probably damaged"
        )
    on_disk = path.stat().st_size
    if needed > on_disk * _BEST_RATIO.get(path.suffix.lower(), 1):
        raise _too_short(path, needed, f"its {on_disk} bytes on disk cannot hold them")


def _read_exactly(path: Path, stream: BinaryIO, needed: int) -> bytearray:
    raw = bytearray()  # grows with what is really there, whatever the header promises
    try:
        stream.seek(0)
        while len(raw) < needed and (part := stream.read(min(needed - len(raw), _STEP_BYTES))):
            raw += part
        for _ in range(_MAX_TAIL_STEPS):  # gzip and bzip2 keep their check sums behind whatever follows the image
            if not stream.read(_STEP_BYTES):
                break
    except (EOFError, zlib.error, OSError) as error:
        raise _unreadable(path, error) from error
    if len(raw) < needed:
        raise _too_short(path, needed, f"it ends after {len(raw)}")
    return raw


def _too_short(path: Path, needed: int, found: str) -> InputError:
    return InputError(f"{path} is truncated: its header promises {needed} bytes and {found}. Copy or download it again")


def _unreadable(path: Path, error: Exception) -> InputError:
    if isinstance(error, OSError) and error.errno is not None:
        return InputError(f"cannot read {path}: {error.strerror}")
    return InputError(f"{path} is truncated or damaged ({error}). Copy or download it again")


def _read_mha(path: Path) -> tuple[Any, Any]:
    itk = import_extra("SimpleITK", "itk")
    try:
        reader = itk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        size = reader.GetSize()
        _check_declared_size_mha(path, size)
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(f"{path} cannot be read as an image: {str(error).strip().splitlines()[-1]}") from error
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(len(size), len(size))[:3, :3]
    to_ras = np.diag([-1.0, -1.0, 1.0])  # ITK's patient space is LPS
    affine[:3, :3] = to_ras @ direction * np.array(image.GetSpacing()[:3])
    affine[:3, 3] = to_ras @ np.array(image.GetOrigin()[:3])
    return itk.GetArrayFromImage(image), affine


def _check_declared_size_mha(path: Path, size: tuple[int, ...]) -> None:
    if len(size) < 3:
        raise InputError(f"{path} has the shape {tuple(size)}; expected at least three dimensions")
    if int(np.prod(size, dtype=object)) * 8 > MAX_IMAGE_BYTES:
        raise InputError(
            f"{path} declares {tuple(size)} voxels, more than gliomap reads; its header is probably damaged"
        )
