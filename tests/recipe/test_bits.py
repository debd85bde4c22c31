"""Widths are whole numbers from 2 to 8."""

import re
from typing import Any

import pytest

from isvit_lightning.errors import IsvitError
from isvit_lightning.recipe import Bits
from isvit_lightning.recipe.bits import require_width


@pytest.mark.parametrize("width", range(2, 9))
def test_widths_from_2_to_8_are_kept(width: int) -> None:
    require_width("an option", width)
    assert (Bits(width).weight, Bits(width).activation) == (width, 4)
    assert (Bits(activation=width).weight, Bits(activation=width).activation) == (4, width)


@pytest.mark.parametrize("width", [1, 9, 0, -4, 4.0, "4", True, None, float("nan")])
@pytest.mark.parametrize("name", ["weight", "activation"])
def test_anything_else_names_its_option(name: str, width: Any) -> None:
    with pytest.raises(
        IsvitError, match=rf"^model\.bits\.{name} is {re.escape(repr(width))}, expected 2 to 8: change it there\.$"
    ):
        Bits(**{name: width})
