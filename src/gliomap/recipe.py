"""Everything that decides a result, as one frozen value that is written down and read back exactly."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

import pydantic

from gliomap.classes import ALL_CLASSES, Target
from gliomap.errors import UsageError

_STRICT = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)
_Share = Annotated[float, pydantic.Field(ge=0, le=1)]
_Part = Annotated[float, pydantic.Field(gt=0, le=1)]


Size = tuple[pydantic.PositiveInt, pydantic.PositiveInt, pydantic.PositiveInt]
"""D, H, W."""
Flip = Literal[
    "identity",
    "flip_left_right",
    "flip_front_back",
    "flip_top_bottom",
    "flip_left_right_front_back",
    "flip_left_right_top_bottom",
    "flip_front_back_top_bottom",
    "flip_all",
]
View = Literal[Flip, "rotate_90", "rotate_180", "rotate_270"]
"""How a study is turned before the network sees it; rotations are in the axial plane."""
ALL_FLIPS: tuple[Flip, ...] = get_args(Flip)


@dataclass(frozen=True)
class _Spec:
    __pydantic_config__ = _STRICT
    name: str
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", json.loads(json.dumps(self.settings)))  # a tuple is read back as a list


@dataclass(frozen=True)
class NetworkSpec(_Spec):
    """A name in ``NETWORKS`` and the constructor arguments that differ from its defaults, as JSON has them."""


@dataclass(frozen=True)
class LossSpec(_Spec):
    """A name in ``LOSSES`` and the arguments that differ from its defaults, as JSON has them."""


@dataclass(frozen=True)
class StepSpec(_Spec):
    """A name in ``STEPS``, what is done to the class map, and its settings, as JSON has them."""


@dataclass(frozen=True)
class Preprocessing:
    """What happens to a study before the network: crop, resample, match histograms, normalise.

    ``crop``: to the ``brain``, or to ``crop_size`` voxels about the centre of the true tumour (``truth_centre``), which no
    real study knows and only the reproduction of a paper asks for. ``spacing_mm`` isotropic voxel size the network works
    at, or ``grid`` the voxels (D, H, W) that the study's whole grid is brought to; None of both keeps the study's own
    grid. ``histogram_matching`` brings each modality's brain to gliomap's reference percentiles. ``normalisation`` of each
    modality over the brain: ``zscore``, ``slice_zscore`` for each axial slice by itself, or ``minmax`` to [0, 1].
    Background stays 0.
    """

    __pydantic_config__ = _STRICT
    crop: Literal["brain", "truth_centre"] = "brain"
    crop_size: Size = (128, 128, 128)
    spacing_mm: pydantic.PositiveFloat | None = None
    grid: Size | None = None
    histogram_matching: bool = False
    normalisation: Literal["zscore", "slice_zscore", "minmax"] = "zscore"


@dataclass(frozen=True)
class Shares:
    """The share of samples that each part of an `Augmentation` is applied to.

    ``modality``: of the modalities of a sample that is blurred or of low resolution, the share that is.
    """

    __pydantic_config__ = _STRICT
    flips: _Share = 1.0
    rotation: _Share = 1.0
    rotate_90: _Share = 1.0
    scale: _Share = 1.0
    elastic: _Share = 1.0
    blur: _Share = 1.0
    low_resolution: _Share = 1.0
    modality: _Share = 1.0
    inverted_gamma: _Share = 1.0
    gamma: _Share = 1.0
    contrast: _Share = 1.0
    intensity_scale: _Share = 1.0
    intensity_shift: _Share = 1.0
    noise: _Share = 1.0


@dataclass(frozen=True)
class Augmentation:
    """Ranges that training samples are drawn from; zero, False or a range of one value that changes nothing switches a part off.

    ``flips`` of each axis for half of the samples, ``rotation_degrees`` about each axis, ``rotate_90`` quarter turns in each
    plane of two equally long axes, ``scale`` relative size change, ``elastic_voxels`` standard deviation of the displacement
    of control points ``elastic_spacing`` voxels apart. Along an axis shorter than a third of the longest nothing but flips
    moves: these are slices, and a turn would read outside them.

    Per modality: ``intensity_scale`` (brightness) and ``intensity_shift`` in standard deviations, ``gamma`` the range of
    exponents, ``inverted_gamma`` the same on the negated image, both with the brain's mean and standard deviation restored
    if ``gamma_keeps_moments``, ``contrast`` the range of factors about the brain's mean, ``blur_voxels`` the range of
    standard deviations, ``low_resolution`` the range of the share of voxels left along each axis, ``modality_dropout`` the
    share of modalities that are zeroed, never all of a sample. ``noise`` is the largest standard deviation.
    """

    __pydantic_config__ = _STRICT
    flips: bool = False
    rotation_degrees: float = 0.0
    rotate_90: bool = False
    scale: _Share = 0.0
    elastic_voxels: pydantic.NonNegativeFloat = 0.0
    elastic_spacing: pydantic.PositiveInt = 20
    intensity_scale: float = 0.0
    intensity_shift: float = 0.0
    gamma: tuple[pydantic.PositiveFloat, pydantic.PositiveFloat] = (1.0, 1.0)
    inverted_gamma: tuple[pydantic.PositiveFloat, pydantic.PositiveFloat] = (1.0, 1.0)
    gamma_keeps_moments: bool = False
    contrast: tuple[pydantic.NonNegativeFloat, pydantic.NonNegativeFloat] = (1.0, 1.0)
    blur_voxels: tuple[pydantic.NonNegativeFloat, pydantic.NonNegativeFloat] = (0.0, 0.0)
    low_resolution: tuple[_Part, _Part] = (1.0, 1.0)
    modality_dropout: _Share = 0.0
    noise: pydantic.NonNegativeFloat = 0.0
    shares: Shares = Shares()


@dataclass(frozen=True)
class Training:
    """How weights are found, with Adam. Budget and intervals are counted in training patches seen.

    ``batch_size`` patches make one step of the optimiser, over all processes; they go through the network in
    ``accumulation`` equal parts, which needs less memory. Gradients are scaled down to a norm of ``clip_norm``. With
    ``ema_decay`` the weights that are validated and kept are a running mean: so much of the old at every step.

    ``patch_size`` is D, H, W. ``foreground_share`` of the patches are centred on a tumour voxel, the class chosen first.
    ``patch_place`` of the others along D: ``anywhere``, the ``middle`` of the study's grid, or where an axial slice shows
    the ``largest_tumour``. Every ``validate_every`` patches are an epoch: the validation studies are segmented, and losses,
    plateaus and ``early_stopping`` (epochs without a better validation Dice; None never) count in them.

    Without a file of folds, ``validation_share`` of the patients validates and ``test_share`` is kept out of everything.

    Schedules: ``cosine`` falls ``cosine_cycles`` times from the full rate, ``polynomial`` is (1 - progress) to
    ``polynomial_power``; neither falls below ``rate_floor`` times ``learning_rate``.
    """

    __pydantic_config__ = _STRICT
    patches: pydantic.PositiveInt
    patch_size: Size
    batch_size: pydantic.PositiveInt
    learning_rate: pydantic.PositiveFloat
    weight_decay: pydantic.NonNegativeFloat = 0.0
    amsgrad: bool = False
    accumulation: pydantic.PositiveInt = 1
    clip_norm: pydantic.PositiveFloat | None = None
    ema_decay: Annotated[float, pydantic.Field(gt=0, lt=1)] | None = None
    schedule: Literal["constant", "cosine", "polynomial", "plateau"] = "constant"
    cosine_cycles: pydantic.PositiveInt = 1
    polynomial_power: pydantic.PositiveFloat = 0.9
    plateau_factor: float = 0.5
    plateau_patience: int = 4
    rate_floor: _Share = 0.0
    validate_every: pydantic.PositiveInt = 1000
    early_stopping: pydantic.PositiveInt | None = None
    validation_share: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.2
    test_share: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    patch_place: Literal["anywhere", "middle", "largest_tumour"] = "anywhere"
    foreground_share: _Share = 0.5
    loss: LossSpec = LossSpec("cross_entropy_dice")


@dataclass(frozen=True)
class Inference:
    """How a whole study goes through the network: in one pass (``window`` None) or in overlapping windows (D, H, W).

    Every one of ``views`` is segmented; ``combine`` takes the mean of their probabilities, lets their class maps ``vote``,
    ties going to the first view, or weighs them by how often each seems to err (``staple``).
    """

    __pydantic_config__ = _STRICT
    window: Size | None = None
    overlap: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.5
    views: Annotated[tuple[View, ...], pydantic.Field(min_length=1)] = ("identity",)
    combine: Literal["mean", "vote", "staple"] = "mean"


@dataclass(frozen=True)
class Recipe:
    """One row of a paper's table, or one of ours: data in, weights out, study in, class map out.

    ``modalities`` in the order of the network's input channels. ``source`` says where the recipe comes from.
    ``starts_from``: trainings whose weights this one begins with, run or reused before it. ``frozen``: parts of the network
    that are not trained. ``coarse``: what finds the tumour first, so that this network looks only at the box about it.
    ``needs_one_of``: a study with one of these modalities is segmented, and those that it lacks are zero, as
    `Augmentation.modality_dropout` shows them; empty if a study must have all.

    Raises:
        UsageError: ``needs_one_of`` has what is no modality of the recipe.
    """

    __pydantic_config__ = _STRICT
    name: Annotated[str, pydantic.Field(pattern=r"^[\w-]+$")]
    source: str
    network: NetworkSpec
    training: Training
    modalities: Annotated[tuple[str, ...], pydantic.Field(min_length=1)] = ("t1", "t1c", "t2", "flair")
    needs_one_of: tuple[str, ...] = ()
    target: Target = ALL_CLASSES
    preprocessing: Preprocessing = Preprocessing()
    augmentation: Augmentation = Augmentation()
    inference: Inference = Inference()
    postprocessing: tuple[StepSpec, ...] = ()
    starts_from: "tuple[Start, ...]" = ()
    frozen: tuple[str, ...] = ()
    coarse: "Coarse | None" = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.needs_one_of if name not in self.modalities]
        if unknown:
            raise UsageError(
                f"needs_one_of of the recipe {self.name} has {', '.join(unknown)}, which the network does not see; expected some "
                f"of its modalities, {', '.join(self.modalities)}, or none"
            )


@dataclass(frozen=True)
class Start:
    """A recipe whose trained weights begin the part ``into`` of the network, or the whole of it."""

    __pydantic_config__ = _STRICT
    recipe: Recipe
    into: str = ""


@dataclass(frozen=True)
class Coarse:
    """A recipe that is trained before another and goes into its model file, to say where that one's network looks.

    That is the box of all tumour that it finds, widened by ``margin_mm`` on each side; the whole study where it finds none.
    """

    __pydantic_config__ = _STRICT
    recipe: Recipe
    margin_mm: pydantic.NonNegativeFloat = 10.0


_ADAPTER = pydantic.TypeAdapter(Recipe)


def trained_before(recipe: Recipe) -> list[Recipe]:
    """The recipes that are trained, or found trained, before this one."""
    return [start.recipe for start in recipe.starts_from] + ([recipe.coarse.recipe] if recipe.coarse else [])


def recipe_json(recipe: Recipe) -> str:
    """A recipe as JSON text, its record in model files and run folders."""
    return _ADAPTER.dump_json(recipe, indent=2).decode()


def recipe_from_json(text: str) -> Recipe:
    """The recipe in a JSON text.

    Raises:
        UsageError: a field is missing, unknown, of the wrong type or contradicts another; the message names it.
    """
    try:
        return _ADAPTER.validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        raise UsageError(f"not a recipe: {_problems(error)}") from error


def with_settings(recipe: Recipe, settings: list[str]) -> Recipe:
    """The recipe with values replaced by ``path.to.field=value`` texts, each value read as JSON where it is JSON.

    A path that begins with ``*.`` is set in the recipes that are trained before this one too.

    Raises:
        UsageError: a field does not exist, or the value does not fit it or another field.
    """
    content: Any = _ADAPTER.dump_python(recipe, mode="json")
    for setting in settings:
        path, equals, text = setting.partition("=")
        everywhere = path.startswith("*.")
        for one in _with_those_before(content) if everywhere else [content]:
            if not equals or not _replaced(one, path.removeprefix("*.").split("."), _value(text)):
                raise UsageError(
                    f"cannot set {setting!r}; expected field=value with a field of the recipe, such as training.patches=2000"
                )
    try:
        return _ADAPTER.validate_json(json.dumps(content), strict=True)
    except pydantic.ValidationError as error:
        raise UsageError(f"cannot set {', '.join(settings)}: {_problems(error)}") from error


def _with_those_before(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield content
    for before in (*content["starts_from"], *filter(None, [content["coarse"]])):
        yield from _with_those_before(before["recipe"])


def _replaced(content: dict[str, Any], path: list[str], value: Any) -> bool:
    """Put a value at a path that is there already, or below settings, which are free; False if there is no such path."""
    place: Any = content
    for name in path[:-1]:
        place = place.get(name) if isinstance(place, dict) else None
    if not isinstance(place, dict) or (path[-1] not in place and path[-2:-1] != ["settings"]):
        return False
    place[path[-1]] = value
    return True


def setting_problems(settings: dict[str, Any], known: dict[str, Any]) -> list[str]:
    """What is wrong with settings by name, given the type of each that is known."""
    unknown = [name for name in settings if name not in known]
    if unknown:
        return [f"there is no setting {', '.join(unknown)}; expected {', '.join(known) or 'none at all'}"]
    found = []
    for name, value in settings.items():
        try:
            pydantic.TypeAdapter(known[name]).validate_json(json.dumps(value), strict=True)
        except pydantic.ValidationError as error:
            found.append(f"{name} is {value!r}: {error.errors()[0]['msg']}")
    return found


def cautions(recipe: Recipe) -> list[str]:
    """What of a recipe a careful person would not do: switches that are there to reproduce a paper. Empty for most."""
    found = []
    if recipe.preprocessing.crop == "truth_centre":
        found.append("crops are centred on the true tumour, in evaluation too: the network is told where the tumour is")
    if recipe.training.patch_place == "largest_tumour":
        found.append("training slices were chosen by the true tumour")
    if recipe.training.learning_rate > 0.1:
        found.append(f"learning rate {recipe.training.learning_rate:g}, as printed in the paper and most likely a typo")
    if recipe.network.settings.get("always_dropout"):
        found.append("dropout stays active when segmenting: results are random")
    return found + [f"{before.name}: {text}" for before in trained_before(recipe) for text in cautions(before)]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _problems(error: pydantic.ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors())
