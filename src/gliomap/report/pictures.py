"""Pictures of brain slices: numpy arrays in, uint8 RGB arrays and PNG bytes out.

Volumes are (D, H, W) in RAS+: D runs inferior to superior, H posterior to anterior, W left to right. Pictures follow
the radiological convention: anterior or superior is up, the patient's left is on the viewer's right; sagittal slices
face left.
"""

import base64
import io
import zlib
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from gliomap.classes import ED, ET, NCR, RC, region_mask

Colour: TypeAlias = tuple[int, int, int]
Plane: TypeAlias = Literal["axial", "coronal", "sagittal"]
Box: TypeAlias = tuple[slice, slice, slice]

AXES: dict[Plane, int] = {"axial": 0, "coronal": 1, "sagittal": 2}
SIDE_LETTERS: dict[Plane, tuple[str, str]] = {"axial": ("R", "L"), "coronal": ("R", "L"), "sagittal": ("A", "P")}

# Okabe and Ito's palette, which stays apart under the common colour vision deficiencies.
CLASS_COLOURS: dict[int, Colour] = {ET: (213, 94, 0), NCR: (240, 228, 66), ED: (86, 180, 233), RC: (204, 121, 167)}
REGION_COLOURS = {"ET": CLASS_COLOURS[ET], "TC": CLASS_COLOURS[NCR], "WT": CLASS_COLOURS[ED]}
"""A region's outline has the colour of the class that it adds to the region inside it."""
DIFFERENCE_COLOURS: dict[str, Colour] = {
    "agreement": (0, 158, 115),
    "false positive": (230, 159, 0),
    "false negative": (204, 121, 167),
}

MAP_STOPS = (
    "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26828e 21918c "
    "1fa088 28ae80 3fbc73 5ec962 84d44b addc30 d8e219 fde725"
)
"""Matplotlib's viridis at 17 even places: as far apart to the eye as in number, also without colour vision; never grey."""

WINDOW_PERCENTILES = (0.5, 99.7)
LARGEST_SAMPLE = 200_000
"""Of more voxels only every n-th is looked at for a window, since sorting them all would take longest of a page."""
MARGIN_MM = 4.0
SCALE_BAR_MM = 20.0
LETTER_MM = 8.0
STRIP_LENGTH = 9


class SliceChoice(NamedTuple):
    """Indices worth a picture: axial ones of the largest areas, a (z, y, x) centre, a strip of axial ones."""

    whole_tumour: int
    tumour_core: int
    centre: tuple[int, int, int]
    strip: tuple[int, ...]


def hexadecimal(colour: Colour) -> str:
    """Return a colour as CSS writes it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def map_colours() -> NDArray[np.uint8]:
    """Return the colours (255, 3) of a map's values, from the lower to the upper limit; see `quantised`."""
    stops = np.array([list(bytes.fromhex(stop)) for stop in MAP_STOPS.split()], float)
    places = np.linspace(0, len(stops) - 1, 255)
    channels = [np.interp(places, np.arange(len(stops)), stops[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8)


def quantised(values: np.ndarray, limits: tuple[float, float]) -> NDArray[np.uint8]:
    """Bring a map's values to 1..255, from the lower to the upper limit and no further; what is not finite is 0."""
    low, high = limits
    finite = np.isfinite(values)
    share = np.where(finite, values.astype(np.float32) - np.float32(low), 0) / np.float32((high - low) or 1)
    return np.where(finite, 1 + np.rint(254 * np.clip(share, 0, 1)), 0).astype(np.uint8)


def map_picture(grey: NDArray[np.uint8], levels: NDArray[np.uint8], opacity: float = 0.55) -> NDArray[np.uint8]:
    """Draw a map's `quantised` values in colours over the tissue of a grey slice of the same shape."""
    colours = np.concatenate([np.zeros((1, 3), np.uint8), map_colours()])[levels]
    picture = grey_picture(grey)
    mixed = np.rint((1 - opacity) * picture + opacity * colours).astype(np.uint8)
    return np.where(((levels > 0) & (grey > 0))[..., np.newaxis], mixed, picture)


def brain_box(volumes: Sequence[np.ndarray], spacing_mm: tuple[float, float, float]) -> Box:
    """Return the bounding box of all non-zero voxels of some volumes (D, H, W), with a margin.

    Empty volumes give the whole grid. Voxels that are not finite count as background.
    """
    occupied = np.zeros(volumes[0].shape, dtype=bool)
    for volume in volumes:
        occupied |= (volume != 0) & np.isfinite(volume)
    sides: list[slice] = []
    for axis, voxel_mm in enumerate(spacing_mm):
        size = occupied.shape[axis]
        indices = np.flatnonzero(occupied.any(axis=tuple({0, 1, 2} - {axis})))
        margin = int(np.ceil(MARGIN_MM / voxel_mm))
        first, last = (int(indices[0]), int(indices[-1])) if indices.size else (0, size - 1)
        sides.append(slice(max(0, first - margin), min(size, last + 1 + margin)))
    return sides[0], sides[1], sides[2]


def choose_slices(classes: NDArray[np.uint8], box: Box, spacing_mm: tuple[float, float, float]) -> SliceChoice:
    """Choose the slices that show a class map (D, H, W) best; without a tumour they show the middle of the box.

    The centre is the voxel of the largest lesion that is nearest to that lesion's centroid: several lesions, or specks all
    over, do not give slices between them. A map with only a resection cavity is shown through the cavity.
    """
    tumour = region_mask(classes, "WT")
    tumour = tumour if tumour.any() else classes > 0
    if not tumour.any():
        middle = (middle_index(box[0]), middle_index(box[1]), middle_index(box[2]))
        strip = np.linspace(box[0].start, box[0].stop - 1, STRIP_LENGTH + 2)[1:-1]
        return SliceChoice(middle[0], middle[0], middle, distinct_indices(strip))
    area = np.count_nonzero(tumour, axis=(1, 2))
    core_area = np.count_nonzero(region_mask(classes, "TC"), axis=(1, 2))
    largest = int(area.argmax())
    lesions, _ = ndimage.label(tumour, np.ones((3, 3, 3)))
    voxels = np.argwhere(lesions == 1 + np.bincount(lesions[tumour])[1:].argmax())
    distance_mm = np.linalg.norm((voxels - voxels.mean(axis=0)) * np.asarray(spacing_mm), axis=1)
    z, y, x = (int(index) for index in voxels[distance_mm.argmin()])
    first, last = (int(index) for index in np.flatnonzero(area)[[0, -1]])
    grow = max(0, STRIP_LENGTH - 1 - (last - first) + 1) // 2
    strip = np.linspace(max(box[0].start, first - grow), min(box[0].stop - 1, last + grow), STRIP_LENGTH)
    core = int(core_area.argmax()) if core_area.any() else largest
    return SliceChoice(largest, core, (z, y, x), distinct_indices(strip))


def middle_index(side: slice) -> int:
    """Return the index in the middle of one side of a box."""
    return (side.start + side.stop - 1) // 2


def distinct_indices(positions: np.ndarray) -> tuple[int, ...]:
    """Round positions (N,) to indices, each once, in rising order."""
    return tuple(int(index) for index in np.unique(np.rint(positions)))


def longest_side_mm(box: Box, spacing_mm: tuple[float, float, float]) -> float:
    """Return the length of a box's longest side."""
    return max((side.stop - side.start) * voxel_mm for side, voxel_mm in zip(box, spacing_mm, strict=True))


def slice_of(volume: np.ndarray, plane: Plane, index: int) -> np.ndarray:
    """Return one slice of a volume (D, H, W) as it is displayed: (rows, columns) in the radiological convention."""
    position: list[slice | int] = [slice(None)] * 3
    position[AXES[plane]] = index  # np.take would copy all of a cropped volume first
    return volume[tuple(position)][::-1, ::-1]


def intensity_window(image: np.ndarray) -> tuple[float, float]:
    """Return the intensities shown as black and as white: robust percentiles of the non-zero finite voxels."""
    values = image[(image != 0) & np.isfinite(image)]
    if not values.size:
        return 0.0, 0.0
    low, high = np.percentile(values[:: 1 + values.size // LARGEST_SAMPLE], WINDOW_PERCENTILES)
    return float(low), float(high)


def windowed(image: np.ndarray, window: tuple[float, float]) -> NDArray[np.uint8]:
    """Map tissue to 1..255 and background (0 or not finite) to 0; a window of no width is mid-grey."""
    low, high = window
    tissue = (image != 0) & np.isfinite(image)
    if high <= low:
        return np.where(tissue, np.uint8(128), np.uint8(0))
    values = np.subtract(image, low, dtype=np.float32, casting="unsafe")
    values *= np.float32(254 / (high - low))
    np.fmin(np.fmax(values, 0, out=values), 254, out=values)  # unlike clip, these give a number where there is none
    grey = np.rint(values, out=values).astype(np.uint8)
    grey += 1
    grey *= tissue
    return grey


def resized(
    picture: NDArray[np.uint8], pixel_size_mm: tuple[float, float], target_mm: float, *, labels: bool = False
) -> NDArray[np.uint8]:
    """Resample a slice (rows, columns) with pixels of (row, column) mm to square pixels; labels keep their values."""
    height = max(1, round(picture.shape[0] * pixel_size_mm[0] / target_mm))
    width = max(1, round(picture.shape[1] * pixel_size_mm[1] / target_mm))
    filter_kind = Image.Resampling.NEAREST if labels else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize((width, height), filter_kind))


def painted(
    picture: NDArray[np.uint8], mask: NDArray[np.bool_], colour: Colour, fill: float, contour: bool = True
) -> NDArray[np.uint8]:
    """Blend a colour into a picture (rows, columns, 3) where the mask is set; fill 0..1; the contour is opaque."""
    if not mask.any():
        return picture
    result = picture.copy()
    result[mask] = np.rint((1 - fill) * picture[mask] + fill * np.asarray(colour)).astype(np.uint8)
    if contour:
        result[mask & ~_inside(mask)] = colour
    return result


def _inside(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels (rows, columns) whose four neighbours are set, too: ndimage.binary_erosion, 25 times faster."""
    padded = np.pad(mask, 1)
    return mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def grey_picture(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a grey slice (rows, columns) as RGB (rows, columns, 3)."""
    return np.repeat(grey[:, :, np.newaxis], 3, axis=2)


def class_picture(grey: NDArray[np.uint8], classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Draw every class of a class map over a grey slice of the same shape: a thin contour and a light fill."""
    picture = grey_picture(grey)
    for number, colour in CLASS_COLOURS.items():
        picture = painted(picture, classes == number, colour, fill=0.18)
    return picture


def outline_picture(grey: NDArray[np.uint8], classes: NDArray[np.uint8], regions: Sequence[str]) -> NDArray[np.uint8]:
    """Draw the outlines of some regions of a class map over a grey slice of the same shape, inner regions over outer ones."""
    picture = grey_picture(grey)
    for region, colour in reversed(REGION_COLOURS.items()):
        if region in regions:
            picture = painted(picture, region_mask(classes, region), colour, fill=0)
    return picture


def difference_picture(
    grey: NDArray[np.uint8], truth: NDArray[np.bool_], predicted: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Draw where two masks agree (light) and where the prediction is false positive or false negative (strong)."""
    picture = painted(grey_picture(grey), truth & predicted, DIFFERENCE_COLOURS["agreement"], fill=0.25, contour=False)
    picture = painted(picture, predicted & ~truth, DIFFERENCE_COLOURS["false positive"], fill=0.75)
    return painted(picture, truth & ~predicted, DIFFERENCE_COLOURS["false negative"], fill=0.75)


def lettered(picture: NDArray[np.uint8], plane: Plane, pixel_mm: float) -> NDArray[np.uint8]:
    """Write the sides' letters (R and L, or A and P) and a 2 cm scale bar into a picture (rows, columns, 3)."""
    height, width = picture.shape[:2]
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    font_size = max(15, round(LETTER_MM / pixel_mm))
    font = ImageFont.load_default(font_size)
    inset = max(2, font_size // 3)
    left, right = SIDE_LETTERS[plane]
    draw.text((inset, inset), left, fill=(255, 255, 255), font=font, anchor="lt")
    draw.text((width - inset, inset), right, fill=(255, 255, 255), font=font, anchor="rt")
    bar_width = round(SCALE_BAR_MM / pixel_mm)
    if bar_width < width // 2:
        bottom = height - inset - 1
        draw.line([(width - inset - bar_width, bottom), (width - inset, bottom)], fill=(200, 200, 200), width=2)
    return np.asarray(canvas)


def png_bytes(picture: NDArray[np.uint8]) -> bytes:
    """Encode a picture (rows, columns, 3) as PNG, in grey or by a list of up to 256 colours where it has no more: smaller."""
    without_colour = bool((picture == picture[:, :, :1]).all())
    image = Image.fromarray(picture[:, :, 0]) if without_colour else _with_palette(picture)
    buffer = io.BytesIO()
    # Runs of one byte only: as small as the default for these pictures, and four times faster.
    image.save(buffer, format="PNG", compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def _with_palette(picture: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(picture)
    if image.getcolors(256) is None:
        return image
    red, green, blue = np.moveaxis(picture.astype(np.uint32), 2, 0)
    colours, places = np.unique(red << 16 | green << 8 | blue, return_inverse=True)
    image = Image.fromarray(places.reshape(picture.shape[:2]).astype(np.uint8))
    image.putpalette(np.stack([colours >> 16 & 255, colours >> 8 & 255, colours & 255], 1).astype(np.uint8).tobytes())
    return image


def data_uri(picture: NDArray[np.uint8]) -> str:
    """Encode a picture (rows, columns, 3) as a data: URI of a PNG."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(picture)).decode("ascii")
