"""What a method can choose: recipes, placement and widths."""

from isvit_lightning.recipe.bits import Bits
from isvit_lightning.recipe.placement import Choice, Placement
from isvit_lightning.recipe.reading import DEFAULT, names_recipe, read_recipe, recipe_file, recipe_names
from isvit_lightning.recipe.recipe import Recipe
from isvit_lightning.recipe.record import record_of

__all__ = [
    "DEFAULT",
    "Bits",
    "Choice",
    "Placement",
    "Recipe",
    "names_recipe",
    "read_recipe",
    "recipe_file",
    "recipe_names",
    "record_of",
]
