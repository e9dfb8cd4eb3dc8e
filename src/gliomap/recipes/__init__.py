"""RECIPES: every recipe by name. One file per paper."""

from pathlib import Path

from gliomap.errors import InputError, UsageError
from gliomap.recipe import Recipe, recipe_from_json
from gliomap.recipes import attention_resunet

RECIPES: dict[str, Recipe] = {r.name: r for r in (attention_resunet.PAPER, attention_resunet.SMALL)}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name, or the one in that JSON file (such as a run's ``recipe.json``).

    Raises:
        UsageError: there is none.
        InputError: the file cannot be read.
    """
    if name in RECIPES:
        return RECIPES[name]
    path = Path(name)
    if path.suffix != ".json":
        raise UsageError(f"no recipe is called {name!r}; expected one of {', '.join(RECIPES)}, or a recipe.json")
    try:
        return recipe_from_json(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read the recipe {path}: {error.strerror or error}") from error
