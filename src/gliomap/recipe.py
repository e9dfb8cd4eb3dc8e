"""Everything that decides a result, as one frozen value that is written down and read back exactly."""

import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pydantic

from gliomap.classes import ALL_CLASSES, Target
from gliomap.errors import UsageError

_STRICT = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class NetworkSpec:
    """A name in ``NETWORKS`` and the constructor arguments that differ from its defaults."""

    __pydantic_config__ = _STRICT
    name: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Preprocessing:
    """What happens to a study before the network: crop to the brain, resample, normalise.

    ``spacing_mm`` isotropic voxel size the network works at; None keeps the study's own grid. ``normalisation`` of each
    modality over the brain: ``zscore``, or ``minmax`` to [0, 1]. Background stays 0.
    """

    __pydantic_config__ = _STRICT
    spacing_mm: pydantic.PositiveFloat | None = None
    normalisation: Literal["zscore", "minmax"] = "zscore"


@dataclass(frozen=True)
class Augmentation:
    """Ranges that training samples are drawn from; zero or False switches a part off.

    ``rotation_degrees`` about each axis, ``scale`` relative size change, ``elastic_voxels`` standard deviation of the
    displacement of control points ``elastic_spacing`` voxels apart, ``intensity_scale`` and ``intensity_shift`` per
    modality in standard deviations, ``gamma`` the range of exponents, ``noise`` standard deviation.
    """

    __pydantic_config__ = _STRICT
    flips: bool = False
    rotation_degrees: float = 0.0
    scale: float = 0.0
    elastic_voxels: float = 0.0
    elastic_spacing: int = 20
    intensity_scale: float = 0.0
    intensity_shift: float = 0.0
    gamma: tuple[float, float] = (1.0, 1.0)
    noise: float = 0.0


@dataclass(frozen=True)
class Training:
    """How weights are found. Budget and intervals are counted in training patches seen.

    ``patch_size`` is D, H, W. ``foreground_share`` of the patches are centred on a tumour voxel, the class chosen first.
    """

    __pydantic_config__ = _STRICT
    patches: pydantic.PositiveInt
    patch_size: tuple[pydantic.PositiveInt, pydantic.PositiveInt, pydantic.PositiveInt]
    batch_size: pydantic.PositiveInt
    learning_rate: pydantic.PositiveFloat
    weight_decay: pydantic.NonNegativeFloat = 0.0
    schedule: Literal["constant", "cosine", "plateau"] = "constant"
    plateau_factor: float = 0.5
    plateau_patience: int = 4
    validate_every: pydantic.PositiveInt = 1000
    foreground_share: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.5
    loss: str = "cross_entropy_dice"


@dataclass(frozen=True)
class Inference:
    """How a whole study goes through the network: in one pass (``window`` None) or in overlapping windows (D, H, W)."""

    __pydantic_config__ = _STRICT
    window: tuple[int, int, int] | None = None
    overlap: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.5


@dataclass(frozen=True)
class Postprocessing:
    """What happens to the class map. ``min_component_voxels``: smaller 26-connected components of a class are removed."""

    __pydantic_config__ = _STRICT
    min_component_voxels: int = 0


@dataclass(frozen=True)
class Recipe:
    """One row of a paper's table, or one of ours: data in, weights out, study in, class map out.

    ``modalities`` in the order of the network's input channels. ``source`` says where the recipe comes from.
    """

    __pydantic_config__ = _STRICT
    name: str
    source: str
    network: NetworkSpec
    training: Training
    modalities: tuple[str, ...] = ("t1", "t1c", "t2", "flair")
    target: Target = ALL_CLASSES
    preprocessing: Preprocessing = Preprocessing()
    augmentation: Augmentation = Augmentation()
    inference: Inference = Inference()
    postprocessing: Postprocessing = Postprocessing()


_ADAPTER = pydantic.TypeAdapter(Recipe)


def recipe_json(recipe: Recipe) -> str:
    """A recipe as JSON text, its record in model files and run folders."""
    return _ADAPTER.dump_json(recipe, indent=2).decode()


def recipe_from_json(text: str) -> Recipe:
    """The recipe in a JSON text.

    Raises:
        UsageError: a field is missing, unknown or of the wrong type; the message names it.
    """
    try:
        return _ADAPTER.validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        raise UsageError(f"not a recipe: {_problems(error)}") from error


def with_settings(recipe: Recipe, settings: list[str]) -> Recipe:
    """The recipe with values replaced by ``path.to.field=value`` texts, each value read as JSON where it is JSON.

    Raises:
        UsageError: a field does not exist or the value does not fit it.
    """
    content: Any = _ADAPTER.dump_python(recipe, mode="json")
    for setting in settings:
        path, equals, text = setting.partition("=")
        *parents, last = path.split(".")
        place = content
        for name in parents:
            place = place.get(name) if isinstance(place, dict) else None
        free = parents == ["network", "settings"]
        if not equals or not isinstance(place, dict) or (last not in place and not free):
            raise UsageError(
                f"cannot set {setting!r}; expected field=value with a field of the recipe, such as training.patches=2000"
            )
        place[last] = _value(text)
    try:
        return _ADAPTER.validate_json(json.dumps(content), strict=True)
    except pydantic.ValidationError as error:
        raise UsageError(f"cannot set {', '.join(settings)}: {_problems(error)}") from error


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _problems(error: pydantic.ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors())
