"""RECIPES: every recipe by name. One file per paper."""

import json
from pathlib import Path

from gliomap.errors import UsageError
from gliomap.files import read_json
from gliomap.recipe import Recipe, recipe_from_json
from gliomap.recipes import attention_resunet, druwas

RECIPES: dict[str, Recipe] = {
    r.name: r for r in (attention_resunet.PAPER, attention_resunet.SMALL, druwas.PAPER, *druwas.ABLATION)
}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name, or the one in that JSON file (such as a run's ``recipe.json``).

    Raises:
        UsageError: there is none.
        InputError: the file cannot be read or is not JSON.
    """
    if name in RECIPES:
        return RECIPES[name]
    path = Path(name)
    if path.suffix != ".json":
        raise UsageError(f"no recipe is called {name!r}; expected one of {', '.join(RECIPES)}, or a recipe.json")
    return recipe_from_json(json.dumps(read_json(path)))
