"""Recipes from their files."""

from functools import cache
from typing import Any

import yaml

from isvit_lightning.errors import IsvitError, first_line
from isvit_lightning.recipe.files import recipe_file
from isvit_lightning.recipe.recipe import Recipe


@cache
def read_recipe(name: str) -> Recipe:
    """The recipe of a file.

    Args:
        name: of a file in ``configs/methods``, without its ending, or a path.

    Raises:
        IsvitError: there is no such file, or it holds no recipe.
    """
    path = recipe_file(name)
    try:
        recipe = recipe_of(yaml.safe_load(path.read_text(encoding="utf-8")))
    except IsvitError:
        raise
    except Exception as error:  # noqa: BLE001 - the parser raises almost anything for a wrong file
        raise IsvitError(
            f"{path} holds no recipe ({first_line(error)}), expected a section model.recipe: correct the file."
        ) from None
    return recipe


def recipe_of(content: Any) -> Recipe:
    """The recipe of a configuration; what its section ``model.recipe`` does not give has its default.

    Args:
        content: ``{model: {recipe: …}}``, plain values.
    """
    from jsonargparse import ArgumentParser  # noqa: PLC0415 - takes a while to import, and not every use needs it

    parser: Any = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model.recipe", type=Recipe)
    recipe: Recipe = parser.instantiate(
        parser.parse_object({"model": {"recipe": content["model"]["recipe"]}})
    ).model.recipe
    return recipe
