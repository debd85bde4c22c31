"""What a method can choose: recipes, placement and widths."""

from isvit_lightning.recipe.bits import Bits
from isvit_lightning.recipe.files import DEFAULT, names_recipe, recipe_file, recipe_names
from isvit_lightning.recipe.placement import Choice, Placement, Variant
from isvit_lightning.recipe.reading import read_recipe
from isvit_lightning.recipe.recipe import Recipe
from isvit_lightning.recipe.record import record_of

__all__ = [
    "DEFAULT",
    "Bits",
    "Choice",
    "Placement",
    "Recipe",
    "Variant",
    "names_recipe",
    "read_recipe",
    "recipe_file",
    "recipe_names",
    "record_of",
]
