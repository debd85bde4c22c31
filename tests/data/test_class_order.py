"""Two ways to sort the names of classes."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from timm.utils.misc import natural_key as natural_key_of_timm

from isvit_lightning.data.class_order import in_class_order, natural_key
from isvit_lightning.errors import IsvitError

ROOT = Path("/images")


@given(st.lists(st.text("aBß_-. 0129", max_size=8), unique_by=lambda name: str(natural_key_of_timm(name))))
def test_natural_order_is_that_of_timm(names: list[str]) -> None:
    assert in_class_order(names, "natural", ROOT) == sorted(names, key=natural_key_of_timm)


def test_natural_order_leaves_nothing_to_chance() -> None:
    names = ["b1", "B01", "b01", "a", "B1"]
    for some in (names, names[::-1]):
        assert in_class_order(some, "natural", ROOT) == ["a", "B01", "B1", "b01", "b1"]


@pytest.mark.parametrize("name", ["²", "1²3", "٣", "9" * 5000])
def test_numbers_that_python_does_not_read(name: str) -> None:
    assert natural_key(name) < natural_key(f"{name}a")


def test_where_two_orders_differ_is_shown() -> None:
    names = [*(f"{number:03d}" for number in range(500)), *(f"x{number}" for number in range(8, 12)), "y"]
    with pytest.raises(IsvitError, match=r"sort as …, 499, x10, x11, … by .* but as …, 499, x8, x9, … by numbers"):
        in_class_order(names, None, ROOT)


def test_the_end_of_a_list_is_no_abbreviation() -> None:
    with pytest.raises(IsvitError, match=r"sort as 1, 10, 9 by .* but as 1, 9, 10 by"):
        in_class_order(["1", "9", "10"], None, ROOT)
