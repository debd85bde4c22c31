"""Numbers of a schedule are refused where they can be none."""

import pytest

from isvit_lightning.errors import IsvitError
from isvit_lightning.stages import Schedule


@pytest.mark.parametrize("name", ["iterations", "batch_size", "micro_batch"])
def test_numbers_below_one_are_refused_by_their_option(name: str) -> None:
    assert getattr(Schedule(**{name: 1}), name) == 1
    for value in (0, -3):
        with pytest.raises(IsvitError, match=rf"^model\.{name} is {value}, expected at least 1"):
            Schedule(**{name: value})


def test_the_micro_batch_is_left_open_by_default() -> None:
    assert Schedule().micro_batch is None
