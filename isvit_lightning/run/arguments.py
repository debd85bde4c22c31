"""What the command line says before it is parsed: which run, which recipe, which program."""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from isvit_lightning.errors import IsvitError
from isvit_lightning.recipe import DEFAULT, names_recipe, recipe_file
from isvit_lightning.run.config import run_directory
from isvit_lightning.run.verbs import OF_A_RUN

_CHOSEN = ("data", "trainer.logger")
"""Sections whose options depend on the class that they name."""
_DASHED = re.compile(r"^--([a-z]+(?:-[a-z]+)+)(?=$|=)")
"""An option of the program itself whose name has dashes."""


def with_underscores(arguments: Sequence[str]) -> list[str]:
    """``--choose-on`` is ``--choose_on``; names with dots are those of a configuration, and stay as they are."""
    return [_DASHED.sub(lambda found: f"--{found[1].replace('-', '_')}", argument) for argument in arguments]


def with_run_config(arguments: list[str]) -> list[str]:
    """Put the configuration of the run that ``--ckpt_path``, or a path behind the verb, names before all others.

    Raises:
        IsvitError: there is no such run, or its configuration is damaged.
    """
    arguments = _with_named_run(arguments)
    expanded = [part for argument in arguments for part in _split(argument)]
    if "--ckpt_path" not in expanded[:-1]:
        return arguments
    position = expanded.index("--ckpt_path") + 1
    directory = run_directory(expanded[position])
    expanded[position] = str(directory)
    config = directory / "config.yaml"
    if config.exists() and not isinstance(content_of(config), dict):
        raise IsvitError(
            f"{config} is no configuration, expected the one that isvit fit wrote: put it back, or remove it and give "
            "all options anew."
        )
    inherited = ["--config", str(config)] if config.exists() else []
    return [*expanded[:1], *inherited, *expanded[1:]]


def _with_named_run(arguments: list[str]) -> list[str]:
    """``test runs/quickstart`` is ``test --ckpt_path runs/quickstart``."""
    if len(arguments) > 1 and arguments[0] in OF_A_RUN and not arguments[1].startswith("-"):
        return [arguments[0], "--ckpt_path", *arguments[1:]]
    return arguments


def with_recipe(arguments: list[str], verbs: Sequence[str]) -> list[str]:
    """Put the default recipe before all configuration files, unless one of them holds a whole recipe.

    Args:
        arguments: command line; with a verb in front, or without one.
        verbs: those that may stand in front.

    Raises:
        IsvitError: several files hold a whole recipe.
    """
    whole = [path for path in values_of("--config", arguments) if names_recipe(content_of(Path(path)))]
    if len(whole) > 1 and not values_of("--ckpt_path", arguments):
        raise IsvitError(
            f"Two configurations hold a whole recipe, {whole[0]} and {whole[1]}, expected one: leave out the other."
        )
    if whole:
        return arguments
    start = 1 if arguments and arguments[0] in verbs else 0
    return [*arguments[:start], "--config", str(recipe_file(DEFAULT)), *arguments[start:]]


def with_choices_first(arguments: list[str]) -> list[str]:
    """Put options of a class, such as ``--data.workers``, behind what chooses the class, ``--data`` or a configuration.

    Only options that stand before any choice move: the parser would not know them yet.
    """
    for key in _CHOSEN:
        arguments = _choice_first(arguments, key)
    return arguments


def _choice_first(arguments: list[str], key: str) -> list[str]:
    parts: list[list[str]] = []
    for argument in arguments:
        alone = argument.startswith("-") or not parts or len(parts[-1]) > 1 or not parts[-1][0].startswith("-")
        if alone or "=" in parts[-1][0]:
            parts.append([argument])
        else:
            parts[-1].append(argument)
    choices = [place for place, part in enumerate(parts) if _chooses(part, key)]
    early = [part for part in parts[: choices[0]] if part[0].startswith(f"--{key}.")] if choices else []
    kept = [part for part in parts if part not in early]
    after = next((place + 1 for place, part in enumerate(kept) if _chooses(part, key)), 0)
    return [argument for part in [*kept[:after], *early, *kept[after:]] for argument in part]


def _chooses(part: Sequence[str], key: str) -> bool:
    """Whether an option names the class of ``key``, itself or in a configuration file."""
    name, value = [*(piece for argument in part for piece in _split(argument)), ""][:2]
    if name != "--config":
        return name.partition("=")[0] == f"--{key}"
    content: Any = content_of(Path(value))
    for step in key.split("."):
        content = content.get(step) if isinstance(content, dict) else None
    return content is not None


def values_of(option: str, arguments: Sequence[str]) -> list[str]:
    """Every value that the command line gives ``option``, in order."""
    parts = [part for argument in arguments for part in _split(argument)]
    return [value for name, value in pairwise(parts) if name == option]


def content_of(path: Path) -> Any:
    """Content of a configuration file; None where it cannot be read: the parser tells what is wrong with it."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None


def default_directory(configs: Sequence[Any]) -> Path:
    """``runs/`` and the names of the configuration files."""
    names = [Path(str(config)).stem for config in configs if Path(str(config)) != recipe_file(DEFAULT)]
    return Path("runs") / ("-".join(names) or "default")


def _split(argument: str) -> list[str]:
    name, equals, value = argument.partition("=")
    name = "--config" if name == "-c" else name
    return [name, value] if equals and name in ("--ckpt_path", "--config", "--program") else [name + equals + value]
