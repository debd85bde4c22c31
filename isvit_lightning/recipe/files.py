"""Where recipes lie: ``configs/methods`` is their only home."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from isvit_lightning.errors import IsvitError

DEFAULT = "isvit"
"""Recipe of a run that names none."""


def recipe_file(name: str) -> Path:
    """The file of a recipe.

    Args:
        name: of a file in ``configs/methods``, without its ending, or a path.

    Raises:
        IsvitError: there is no such file.
    """
    path = Path(name).expanduser()
    is_path = path.suffix in (".yaml", ".yml")
    for candidate in [path] if is_path else [folder / f"{name}.yaml" for folder in _folders()]:
        if candidate.is_file():
            return candidate
    raise IsvitError(
        f"There is no recipe {name}, expected one of {', '.join(recipe_names())}, or the path of such a file: change "
        "the name."
    )


def recipe_names() -> list[str]:
    """Names of all recipes that come with the program."""
    return sorted({path.stem for folder in _folders() for path in folder.glob("*.yaml")})


def step_names() -> set[str]:
    """Names of the steps of all recipes that come with the program."""
    contents = [yaml.safe_load(recipe_file(name).read_text(encoding="utf-8")) for name in recipe_names()]
    steps = [step for content in contents for step in content["model"]["recipe"].get("steps", [])]
    return {step["init_args"]["name"] for step in steps}


def names_recipe(content: Any) -> bool:
    """Whether the content of a configuration file is that of a whole recipe: it has a name and steps."""
    section = content.get("model") if isinstance(content, dict) else None
    recipe = section.get("recipe") if isinstance(section, dict) else None
    return isinstance(recipe, dict) and "name" in recipe and "steps" in recipe


def _folders() -> list[Path]:
    """Where recipes lie: in the installed package, or beside it in a checkout."""
    package = Path(str(files("isvit_lightning")))
    return [folder for folder in (package / "methods", package.parent / "configs" / "methods") if folder.is_dir()]
