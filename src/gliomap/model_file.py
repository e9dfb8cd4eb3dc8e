"""Model files: one safetensors file with the weights, the recipe and the card, refused when its content is not what it says.

A file holds a single network, or an ensemble: several trainings of one recipe.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from gliomap.errors import InputError, IntegrityError, UsageError
from gliomap.files import write_file
from gliomap.recipe import Recipe, recipe_from_json, recipe_json

FORMAT_VERSION = "3"
KINDS = ("single", "ensemble", "cascade")
MAX_HEADER_BYTES = 1_000_000
DEFAULT_MODEL = "default.safetensors"

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Model:
    """A trained network or an ensemble: its recipe, its weights by name, and what is known about it (``card``).

    ``name`` is the recipe and the start of the content hash, so that rows of scores tell two trainings apart. Each member of
    an ensemble has its weights under its prefix; a network alone in its file has the empty one. ``coarse`` is the model that
    finds the tumour first, where the recipe says so.
    """

    name: str
    recipe: Recipe
    weights: dict[str, Array]
    card: dict[str, Any]
    content_sha256: str
    prefixes: tuple[str, ...] = ("",)
    coarse: "Model | None" = None

    @property
    def members(self) -> list[dict[str, Array]]:
        """The weights of each network, by their names in it."""
        return [_under(prefix, self.weights) for prefix in self.prefixes]


def content_hash(weights: dict[str, Array]) -> str:
    """SHA-256 over the sorted names, types, shapes and bytes of the weights."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name])
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def save_model(
    path: Path, recipe: Recipe, weights: dict[str, Array], card: dict[str, Any], coarse: Model | None = None
) -> str:
    """Write a model file whole or not at all; returns its content hash.

    Raises:
        InputError: it cannot be written, or its header would be larger than `load_model` reads.
    """
    return _save(path, recipe, [weights], card, coarse)


def save_changed(path: Path, model: Model, recipe: Recipe, card: dict[str, Any]) -> str:
    """Write a model with another recipe and card; as `save_model`."""
    return _save(path, recipe, model.members, card, model.coarse)


def save_ensemble(path: Path, models: Sequence[Model]) -> str:
    """Write several trainings of one recipe as a model file whose probabilities are their mean; returns its content hash.

    So it is with the models that find the tumour for them, if the recipe has such. The recipes may differ in name and source
    only, so that a study is prepared once. Of the card's studies, those that any member trained on train the ensemble, of
    the others those that chose the weights of any validate it, and those that neither did for any are its test.

    Raises:
        UsageError: there are fewer than 2, one is an ensemble itself, or the recipes differ.
        InputError: as `save_model`.
    """
    if len(models) < 2 or any(len(model.prefixes) > 1 for model in models):
        raise UsageError("an ensemble is made of single networks, at least 2 of them")
    if not _alike([model.recipe for model in models]):
        raise UsageError(
            f"{', '.join(dict.fromkeys(m.recipe.name for m in models))} differ in more than their names; an ensemble is of "
            "trainings of one recipe, with the same settings"
        )
    coarse = [part for model in models if model.coarse is not None for part in model.coarse.members]
    recipe, networks = models[0].recipe, [model.members[0] for model in models]
    together = _joined(recipe.coarse.recipe, coarse) if recipe.coarse is not None else None
    return _save(path, recipe, networks, _merged_card(models), together)


def _joined(recipe: Recipe, networks: Sequence[dict[str, Array]]) -> Model:
    """Networks of one recipe as the model that a file of theirs alone would hold, but for its card."""
    prefixes = ("",) if len(networks) == 1 else tuple(f"{n}." for n in range(len(networks)))
    each = zip(prefixes, networks, strict=True)
    weights = {f"{prefix}{name}": array for prefix, network in each for name, array in network.items()}
    digest = content_hash(weights)
    return Model(_name(recipe, len(networks), digest), recipe, weights, {}, digest, prefixes)


def _name(recipe: Recipe, networks: int, digest: str) -> str:
    return f"{recipe.name}{'_ensemble' if networks > 1 else ''}-{digest[:8]}"


def _save(
    path: Path, recipe: Recipe, networks: Sequence[dict[str, Array]], card: dict[str, Any], coarse: Model | None
) -> str:
    if (coarse and coarse.recipe) != (recipe.coarse and recipe.coarse.recipe):
        raise ValueError(f"the recipe {recipe.name} does not say that {coarse and coarse.recipe.name} finds the tumour")
    if coarse is not None and coarse.recipe.coarse is not None:
        raise ValueError(f"{coarse.recipe.name} needs another before it; a file has one that finds the tumour")
    alone = len(networks) == 1 and coarse is None
    parts = [("" if alone else f"{n}.", "network", recipe, part) for n, part in enumerate(networks)]
    if coarse is not None:
        parts += [(f"coarse.{n}.", "coarse", coarse.recipe, part) for n, part in enumerate(coarse.members)]
    weights = {  # safetensors ignores strides
        f"{prefix}{name}": np.asarray(array, order="C") for prefix, _, _, part in parts for name, array in part.items()
    }
    digest = content_hash(weights)
    header = {
        "format_version": FORMAT_VERSION,
        "kind": _kind(len(networks), has_coarse=coarse is not None),
        "members": json.dumps(
            [{"prefix": prefix, "role": role, "recipe": json.loads(recipe_json(own))} for prefix, role, own, _ in parts]
        ),
        "card": json.dumps(card),
        "content_sha256": digest,
    }
    content = safetensors.numpy.save(weights, header)
    header_bytes = int.from_bytes(content[:8], "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise InputError(
            f"cannot write {path}: its header would have {header_bytes} bytes, and no model file has more than "
            f"{MAX_HEADER_BYTES}. Use fewer members"
        )
    write_file(path, content)
    return digest


def _kind(networks: int, *, has_coarse: bool) -> str:
    return "cascade" if has_coarse else "single" if networks == 1 else "ensemble"


def _alike(recipes: Sequence[Recipe]) -> bool:
    """Whether recipes differ in nothing but what they are called and where they come from."""
    return len({recipe_json(replace(recipe, name="any", source="")) for recipe in recipes}) == 1


def _merged_card(models: Sequence[Model]) -> dict[str, Any]:
    """What is known of an ensemble: its studies, cautions, and of each member all but its studies."""
    trained, validated, tested = (
        {study for model in models for study in model.card.get(f"{part}_studies", ())}
        for part in ("training", "validation", "test")
    )
    studies = {
        "training_studies": sorted(trained),
        "validation_studies": sorted(validated - trained),
        "test_studies": sorted(tested - trained - validated),
    }
    cautions = dict.fromkeys(text for model in models for text in model.card.get("cautions", ()))
    members = [
        {"name": model.name, "content_sha256": model.content_sha256}
        | {name: value for name, value in model.card.items() if name not in (*studies, "cautions")}
        for model in models
    ]
    return {**studies, "cautions": list(cautions), "members": members}


def load_model(path: Path) -> Model:
    """Read a model file. Nothing is unpickled, and a file that is not what it says is refused.

    Raises:
        InputError: the file cannot be read.
        IntegrityError: it is no model file, of an unknown version, or its weights differ from their hash.
    """
    try:
        with path.open("rb") as stream:
            header_bytes = int.from_bytes(stream.read(8), "little")
    except OSError as error:
        raise InputError(f"cannot read the model {path}: {error.strerror or error}") from error
    if not 2 <= header_bytes <= MAX_HEADER_BYTES:
        raise IntegrityError(f"{path} is not a gliomap model file (its header would have {header_bytes} bytes)")
    try:
        with safetensors.safe_open(path, framework="numpy") as stored:
            header = stored.metadata() or {}
            weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a dict
    except (safetensors.SafetensorError, TypeError, AttributeError) as error:  # the last two: types that numpy lacks
        raise IntegrityError(f"{path} is not a safetensors file: {error}") from error
    return _checked(path, header, weights)


def _checked(path: Path, header: dict[str, str], weights: dict[str, Array]) -> Model:
    version, kind = header.get("format_version"), header.get("kind")
    if version != FORMAT_VERSION or kind not in KINDS:
        raise IntegrityError(
            f"{path} has format version {version!r} and kind {kind!r}; this gliomap reads version {FORMAT_VERSION!r}, "
            f"kinds {', '.join(KINDS)}. Use the gliomap that wrote it, or a newer one"
        )
    digest = content_hash(weights)
    if digest != header.get("content_sha256"):
        raise IntegrityError(
            f"the weights in {path} are not the ones it was saved with (content hash {digest[:12]}...). Copy it again"
        )
    try:
        card, members = json.loads(header["card"]), json.loads(header["members"])
        told = [(str(m["prefix"]), m["role"], recipe_from_json(json.dumps(m["recipe"]))) for m in members]
    except (LookupError, TypeError, ValueError, RecursionError, UsageError) as error:
        raise IntegrityError(f"the header of {path} cannot be read: {error}") from error
    owned = all(sum(name.startswith(prefix) for prefix, _, _ in told) == 1 for name in weights)
    networks, finders = ([(prefix, own) for prefix, r, own in told if r == role] for role in ("network", "coarse"))
    before = networks[0][1].coarse if networks else None
    expected = [before.recipe] if before else []  # of which there may be several
    if (
        not (owned and networks and _alike([own for _, own in networks]))
        or [own for _, own in finders[:1]] != expected
        or len({recipe_json(own) for _, own in finders}) > 1
    ):
        raise IntegrityError(
            f"the header of {path} cannot be read: its members are too few, of different recipes, or share weights"
        )
    if kind != _kind(len(networks), has_coarse=before is not None):
        raise IntegrityError(f"the header of {path} cannot be read: its members make no {kind}")
    recipe, prefixes = networks[0][1], tuple(prefix for prefix, _ in networks)
    coarse = before and _joined(before.recipe, [_under(prefix, weights) for prefix, _ in finders])
    own = {name: array for name, array in weights.items() if name.startswith(prefixes)}
    return Model(_name(recipe, len(networks), digest), recipe, own, card, digest, prefixes, coarse)


def _under(prefix: str, weights: dict[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in weights.items() if name.startswith(prefix)}


def default_model() -> Path:
    """The model that ships in the package."""
    return Path(str(resources.files("gliomap") / "weights" / DEFAULT_MODEL))
