"""The page that shows a training while it runs and afterwards: one HTML file that opens offline, written anew as it goes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from gliomap.classes import region_mask
from gliomap.recipe import Recipe
from gliomap.report import pictures
from gliomap.report.charts import Curve, curve_chart
from gliomap.report.overlays import Picture, overlays
from gliomap.report.study import ENHANCED_NAMES, FLAIR_NAMES
from gliomap.report.templating import pages
from gliomap.report.wording import number
from gliomap.volume import Volume

Array = np.ndarray[Any, np.dtype[Any]]
Line = Mapping[str, float]

RELOAD_S = 30
MOST_ROWS = 20
LONGEST_EDGE_PX = 176
RECENT_LINES = 50
SMOOTHED_SHARE = 20
WIDE_RANGE = 20.0
"""Values above 0 are drawn on a logarithmic scale where, smoothed, the largest is so many times the smallest."""


@dataclass(frozen=True)
class Example:
    """One axial slice (H, W) of a validation study: modalities by name, class maps, and the Dice of the whole study by region.

    ``pixel_mm`` is the size of a pixel along H, W; ``why`` says what the study is among all, such as the worst.
    """

    study: str
    images: dict[str, Array]
    truth: Array
    predicted: Array
    dice: dict[str, float]
    pixel_mm: tuple[float, float] = (1.0, 1.0)
    why: str = ""


@dataclass(frozen=True)
class TrainingProgress:
    """All that is shown of a training; ``budget`` in patches, ``ended`` how it came to its end, empty while it runs.

    ``steps`` and ``log`` are the lines of steps.csv and log.csv. ``written`` says when, in words.
    """

    recipe: Recipe
    budget: int
    ended: str
    steps: Sequence[Line]
    log: Sequence[Line]
    examples: Sequence[Example]
    facts: dict[str, str]
    warnings: Sequence[str]
    written: str = ""


class Plot(NamedTuple):
    """A chart with its title and what there is to say of it."""

    title: str
    chart: Markup
    caption: str


def page(progress: TrainingProgress) -> str:
    """The page as HTML text; every value in it is escaped."""
    environment = pages()
    environment.filters |= {"hexadecimal": pictures.hexadecimal, "dice": lambda value: number(value, "1")}
    regions = progress.recipe.target.regions
    best = _best(progress)
    return environment.get_template("training.html.j2").render(
        progress=progress,
        regions=regions,
        colours=pictures.REGION_COLOURS,
        reload_s=RELOAD_S,
        patches=_patches(progress),
        state=_state(progress, best),
        dice=_dice_plot(progress, best),
        losses=_loss_plots(progress),
        others=_other_plots(progress),
        examples=[(one, _rows(one, regions)) for one in progress.examples],
        table=_table(progress, best),
        settings=_settings(progress.recipe),
    )


def example(
    study: str, volume: Volume, truth: Volume, classes: Volume, recipe: Recipe, dice: dict[str, float]
) -> Example:
    """The axial slice with most true tumour, or through the middle of the brain where there is none, of FLAIR and T1c.

    Volumes are on one grid, RAS+, ``volume`` with a channel for each of the recipe's modalities. Nothing of them is kept.
    """
    area = np.count_nonzero(region_mask(truth.array[0], "WT"), axis=(1, 2))
    index = int(area.argmax())
    if not area.any():
        index = pictures.middle_index(pictures.brain_box(list(volume.array), volume.spacing_mm)[0])
    names = recipe.modalities
    wanted = [i for known in (FLAIR_NAMES, ENHANCED_NAMES) for i, name in enumerate(names) if name.lower() in known]
    images = {names[i]: volume.array[i, index].copy() for i in (wanted or range(len(names)))[:2]}
    maps = (one.array[0, index].copy() for one in (truth, classes))
    return Example(study, images, *maps, dice=dice, pixel_mm=volume.spacing_mm[1:])


def telling(examples: Mapping[int, Example]) -> dict[int, Example]:
    """Of examples by their place among the validation studies the worst, the best and the first, marked as such.

    By the mean Dice of the regions. The first is the same study at every validation, so that it shows how the training goes.
    """
    if len(examples) < 2:
        return dict(examples)
    means = {place: sum(one.dice.values()) / max(len(one.dice), 1) for place, one in sorted(examples.items())}
    worst = min(means, key=lambda place: means[place])
    best = max(means.keys() - {worst}, key=lambda place: (means[place], -place))
    kinds = {
        worst: "the lowest mean Dice of all validation studies",
        best: "the highest mean Dice of all validation studies",
    }
    kinds.setdefault(min(means), "the first validation study")
    return {place: replace(examples[place], why=why) for place, why in kinds.items()}


def duration_text(time_s: float) -> str:
    """A duration in its two largest units."""
    minutes, seconds = divmod(round(time_s), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    first = next((i for i, (count, _) in enumerate(parts) if count), 3)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count) or "0 s"


def time_left_s(progress: TrainingProgress) -> float:
    """Seconds to the whole budget at the pace of the last lines, pauses for validation included; NaN where no line tells."""
    known = {(_value(line, "patches"), _value(line, "time_s")) for line in (*progress.steps, *progress.log)}
    last = [(0.0, 0.0), *sorted(pair for pair in known if all(math.isfinite(v) for v in pair))][-RECENT_LINES:]
    patches, time_s = (b - a for a, b in zip(last[0], last[-1], strict=True))
    return max(progress.budget - last[-1][0], 0) * time_s / patches if patches > 0 else math.nan


def smoothed(values: Array, width: int) -> Array:
    """The mean of the finite values within ``width`` (odd) places of each, fewer at the ends; NaN stays where it is."""
    finite = np.isfinite(values)
    window = np.ones(min(width, 2 * values.size - 1))
    half = window.size // 2
    sums, counts = (
        np.convolve(part, window)[half : half + values.size] for part in (np.where(finite, values, 0), finite)
    )
    return np.where(finite, sums / np.maximum(counts, 1), np.nan)


def _value(line: Line, name: str) -> float:
    value = line.get(name)
    return math.nan if value is None else float(value)


def _column(lines: Sequence[Line], name: str) -> Array:
    return np.array([_value(line, name) for line in lines], np.float64)


def _patches(progress: TrainingProgress) -> int:
    """Patches seen, as far as a line was written."""
    last = [_value(lines[-1], "patches") for lines in (progress.steps, progress.log) if lines]
    return int(max(last, default=0))


def _has_dice(progress: TrainingProgress) -> bool:
    names = [f"dice_{region}" for region in progress.recipe.target.regions]
    return any(math.isfinite(_value(line, name)) for line in progress.log for name in names)


def _best(progress: TrainingProgress) -> Line | None:
    """The first line of the best mean, which without validation studies is that of the training loss, negated."""
    known = [line for line in progress.log if math.isfinite(_value(line, "dice_mean"))]
    return max(known, key=lambda line: line["dice_mean"], default=None)


def _state(progress: TrainingProgress, best: Line | None) -> dict[str, str]:
    """What to know first, by its name."""
    patches, budget = _patches(progress), progress.budget
    lines = [*progress.steps[-1:], *progress.log[-1:]]
    time_s = max((_value(line, "time_s") for line in lines), default=0.0)
    found = {
        "Patches": f"{patches:,} of {budget:,} ({100 * patches / budget:.3g} %)",
        "Time so far": duration_text(time_s) if math.isfinite(time_s) else "not known",
    }
    if not progress.ended:
        left = time_left_s(progress)
        found["Time left"] = (
            f"about {duration_text(left)} to the whole budget" if math.isfinite(left) else "not known yet"
        )
    if best is None:
        found["Best validation Dice"] = "no validation yet"
    elif not _has_dice(progress):
        found["Best validation Dice"] = "no validation studies: the weights of the lowest training loss are kept"
    else:
        regions = progress.recipe.target.regions
        each = ", ".join(f"{region} {number(_value(best, f'dice_{region}'), '1')}" for region in regions)
        mean = f"{number(best['dice_mean'], '1')} (mean of {each})" if len(regions) > 1 else each
        found["Best validation Dice"] = f"{mean} after {int(best['patches']):,} patches"
    return found


def _dice_plot(progress: TrainingProgress, best: Line | None) -> Plot | None:
    """A curve for each region and their mean over the validations; None where nothing was ever validated."""
    if not _has_dice(progress):
        return None
    places, regions = _column(progress.log, "patches"), progress.recipe.target.regions
    names = {f"dice_{region}": (region, region.lower()) for region in regions}
    if len(regions) > 1:
        names["dice_mean"] = ("mean", "mean")
    curves = [Curve(name, places, _column(progress.log, key), style) for key, (name, style) in names.items()]
    at = None if best is None else float(best["patches"])
    marked = "" if best is None else f"The upright line marks the best mean, after {int(best['patches']):,} patches."
    return Plot("Validation Dice by region", curve_chart("Validation Dice by region", curves, best=at), marked)


def _loss_plots(progress: TrainingProgress) -> list[Plot]:
    """A plot of each term of the training loss, after one of their sum where there are several."""
    lines = progress.steps or progress.log
    names = list(dict.fromkeys(name for line in lines for name in line if name.startswith("loss_")))
    terms = {name.removeprefix("loss_").replace("_", " "): _column(lines, name) for name in names}
    if len(terms) > 1:
        table = np.stack(list(terms.values()))
        total = np.where(np.isfinite(table).any(0), np.nansum(table, 0), np.nan)
        terms = {"sum of all terms": total} | terms
    places = _column(lines, "patches")
    return [_noisy_plot(f"Training loss: {name}", places, values) for name, values in terms.items()]


def _other_plots(progress: TrainingProgress) -> list[Plot]:
    lines = progress.steps or progress.log
    if not lines:
        return []
    places = _column(lines, "patches")
    rate = [Curve("learning rate", places, _column(lines, "learning_rate"), "plain")]
    plots = [Plot("Learning rate", curve_chart("Learning rate", rate), "")]
    if any("gradient_norm" in line for line in lines):
        clip = progress.recipe.training.clip_norm
        told = f"Before it is scaled down to a norm of {clip:g}." if clip else ""
        plots.append(_noisy_plot("Gradient norm", places, _column(lines, "gradient_norm"), told))
    if any("memory_mb" in line for line in lines):
        memory = [Curve("memory", places, _column(lines, "memory_mb") / 1e3, "plain")]
        plots.append(Plot("Peak memory", curve_chart("Peak memory", memory, "GB"), "The most so far, in GB."))
    return plots


def _noisy_plot(title: str, places: Array, values: Array, told: str = "") -> Plot:
    """Every value thin, and a mean of neighbours thick where there are enough of them."""
    finite = values[np.isfinite(values)]
    width = finite.size // SMOOTHED_SHARE | 1
    smooth = smoothed(values, width)
    wide = bool(finite.size and finite.min() > 0 and np.nanmax(smooth) >= WIDE_RANGE * np.nanmin(smooth))
    raw = Curve(title if width == 1 else "", places, values, "plain" if width == 1 else "raw")
    curves = [raw] if width == 1 else [raw, Curve(title, places, smooth, "plain")]
    said = [told, "Logarithmic scale." if wide else "", f"Thick: mean of {width} lines." if width > 1 else ""]
    return Plot(title, curve_chart(title, curves, logarithmic=wide), " ".join(filter(None, said)))


def _rows(one: Example, regions: Sequence[str]) -> list[list[Picture]]:
    """For each modality its slice as it is, with the reference, and with the prediction."""
    maps = {"reference": one.truth, "prediction": one.predicted}
    return overlays(one.study, one.images, maps, regions, one.pixel_mm, LONGEST_EDGE_PX)


def _table(progress: TrainingProgress, best: Line | None) -> list[tuple[list[str], bool]]:
    """The last validations, and the best, in words; whether each is the best."""
    if not _has_dice(progress):
        return []
    names = [*(f"dice_{region}" for region in progress.recipe.target.regions), "dice_mean"]
    last = list(progress.log[-MOST_ROWS:])
    shown = last if best is None or any(line is best for line in last) else [best, *last]
    return [
        (
            [f"{int(line['patches']):,}", duration_text(line["time_s"]), f"{_value(line, 'learning_rate'):.3g}"]
            + [number(_value(line, name), "1") for name in names],
            line is best,
        )
        for line in shown
    ]


def _settings(recipe: Recipe) -> dict[str, str]:
    """What decides most of the result, in words; recipe.json has everything."""
    training, parts = recipe.training, recipe.training.accumulation
    found = {
        "Recipe": recipe.name,
        "Source": recipe.source,
        "Network": _spec(recipe.network.name, recipe.network.settings),
        "Modalities": ", ".join(recipe.modalities),
        "Regions": ", ".join(recipe.target.regions),
        "Loss": _spec(training.loss.name, training.loss.settings),
        "Patch": " x ".join(map(str, training.patch_size)) + " voxels (D, H, W)",
        "Patches in a step": f"{training.batch_size}" + (f", in {parts} parts" if parts > 1 else ""),
        "Learning rate": f"{training.learning_rate:g}, {training.schedule}",
        "Epoch": f"{training.validate_every:,} patches",
    }
    optional = {
        "Gradient norm at most": training.clip_norm,
        "Running mean of the weights": training.ema_decay,
        "Stops early after": training.early_stopping and f"{training.early_stopping} epochs without a better mean",
        "Starts from": ", ".join(start.recipe.name for start in recipe.starts_from),
        "Looks only about the tumour that is found by": recipe.coarse and recipe.coarse.recipe.name,
        "Frozen": ", ".join(recipe.frozen),
    }
    return found | {name: str(value) for name, value in optional.items() if value}


def _spec(name: str, settings: Mapping[str, Any]) -> str:
    return name + (f" ({', '.join(f'{key} {value}' for key, value in settings.items())})" if settings else "")
