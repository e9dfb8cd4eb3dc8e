"""Numbers, p-values and names as a page prints them."""

import math
from collections.abc import Iterable

from gliomap.rows import METRICS, metric, nsd_tolerance_mm

TITLES = {
    "dice": "Dice",
    "iou": "IoU",
    "hd95": "HD95",
    "hd100": "HD100",
    "assd": "ASSD",
    "lesion_dice": "lesion-wise Dice",
    "lesion_hd95": "lesion-wise HD95",
    "lesion_nsd_1mm": "lesion-wise NSD at 1 mm",
    "ece": "ECE",
    "brier": "Brier score",
}


def metric_title(name: str) -> str:
    """A metric's name as the field writes it."""
    tolerance = nsd_tolerance_mm(name)
    if tolerance and name not in METRICS:
        return f"NSD at {tolerance:g} mm" + (", area-weighted" if name.endswith("weighted") else "")
    return TITLES.get(name, name.replace("_", " "))


def higher_is_better(name: str) -> bool:
    """Which way of a metric is better."""
    return metric(name).better == "higher"


def region_title(region: str) -> str:
    """A region's name; what has none is about all of the label map."""
    return region or "All classes"


def number(value: float, unit: str, least: int = 0) -> str:
    """A value with as many decimals as make sense in its unit and ``least`` or more, without the unit; a dash for none."""
    if not math.isfinite(value):
        return "-"
    digits = max(least, 3 if unit == "1" else 2 if abs(value) < 10 else 1)
    return f"{round(value, digits) + 0.0:.{digits}f}"  # never -0.000


def precise(value: float, unit: str) -> str:
    """`number` with 2 significant digits or more: what is small and not 0 does not look like 0."""
    if not math.isfinite(value) or is_zero(value):
        return number(value, unit)
    return number(value, unit, 1 - math.floor(math.log10(abs(value))))


def is_zero(value: float) -> bool:
    """Whether a difference is 0 but for rounding; scores have 6 digits."""
    return abs(value) < 1e-12


def decimals(values: Iterable[float], unit: str) -> int:
    """The decimals with which values that differ look different in `number`; at most the 6 that rows have."""
    known = [value for value in values if math.isfinite(value)]
    different = len({round(value, 6) for value in known})
    return next((n for n in range(6) if len({number(value, unit, n) for value in known}) >= different), 6)


def p_text(p: float) -> str:
    """A p-value after its letter: "p 0.21", "p < 0.001". Rounded, it stays on its side of 0.05 and 0.01."""
    if math.isnan(p):
        return "p not defined"
    if p < 0.001 or p >= 0.1:
        return "p < 0.001" if p < 0.001 else f"p {p:.2f}"
    texts = [f"{p:.{digits}g}" for digits in range(3, 18)]
    return "p " + next(text for text in texts if all((float(text) < edge) == (p < edge) for edge in (0.01, 0.05)))
