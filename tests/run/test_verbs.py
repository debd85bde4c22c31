"""The verbs have help for each of their options, and the program takes the same options."""

import inspect
import re

import pytest

from isvit_lightning.cli import IsvitCLI
from isvit_lightning.recipe import read_recipe
from isvit_lightning.run.verbs import VERBS, Verbs


def options_of(verb: str) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(getattr(Verbs, verb)).parameters
    return {name: each for name, each in parameters.items() if name != "self" and each.kind is not each.VAR_KEYWORD}


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_explained(verb: str) -> None:
    text = inspect.getdoc(getattr(Verbs, verb)) or ""
    explained = re.findall(r"^    (\w+): ", text, re.MULTILINE)
    assert text
    assert explained == list(options_of(verb))


@pytest.mark.parametrize("verb", VERBS)
def test_the_program_takes_the_same_options(verb: str) -> None:
    taken = inspect.signature(getattr(IsvitCLI, verb)).parameters
    for name, option in options_of(verb).items():
        assert name in taken
        assert taken[name].default in (option.default, inspect.Parameter.empty)


def test_the_usual_baselines_are_recipes() -> None:
    baselines = options_of("fit")["baselines"].default
    assert [read_recipe(name).name for name in baselines] == baselines
