"""RECIPES: every recipe by name. One file per paper, and one for the protocol that compares their networks."""

import difflib
import json
from pathlib import Path

from gliomap.errors import UsageError
from gliomap.files import read_json
from gliomap.recipe import Recipe, recipe_from_json
from gliomap.recipes import aspp_attention_unet, attention_resunet, cga_unet, druwas, dual_fusion
from gliomap.recipes.fair import fair_recipes

_PAPERS = (*dual_fusion.ROWS, *druwas.ROWS, *cga_unet.ROWS, *aspp_attention_unet.ROWS, *attention_resunet.ROWS)

RECIPES: dict[str, Recipe] = {
    r.name: r
    for r in (
        *_PAPERS,
        *fair_recipes(_PAPERS),
        attention_resunet.SMALL,
        attention_resunet.DEFAULT,
        attention_resunet.CASCADE,
    )
}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name, or the one in that JSON file: a run's ``recipe.json`` or ``run.json``.

    Raises:
        UsageError: there is none.
        InputError: the file cannot be read or is not JSON.
    """
    if name in RECIPES:
        return RECIPES[name]
    path = Path(name)
    if path.suffix != ".json":
        near = difflib.get_close_matches(name, RECIPES, 5, 0.5)
        hint = (
            f"near it are {', '.join(near)}"
            if near
            else "gliomap models lists the networks, docs/recipes.md all recipes"
        )
        raise UsageError(f"no recipe is called {name!r}; expected one of {len(RECIPES)} names or a recipe.json: {hint}")
    content = read_json(path)
    record = isinstance(content, dict) and content.get("verb") == "train"
    return recipe_from_json(json.dumps(content.get("recipe") if record else content))
