"""Forms that can be made, and those that cannot."""

import pytest
import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.run.benchmark.forms import Absent, Form, made, profiles_of


def test_a_form_that_can_be_made() -> None:
    form = Form("A", "a", lambda _: nn.Identity())
    assert made("A", "a", lambda: form) is form


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (IsvitError("It is away, expected it here: look."), "It is away, expected it here: look."),
        (RuntimeError("no kernel.\nstack"), "RuntimeError: no kernel."),
        (KeyError(), "KeyError: KeyError."),
    ],
)
def test_a_form_that_cannot_says_why(error: Exception, reason: str) -> None:
    def fail() -> Form:
        raise error

    assert made("A", "a", fail) == Absent("A", "a", reason)


def test_profiles_of_those_that_have_one() -> None:
    plain = Form("A", "float", lambda _: nn.Identity())
    profiled = Form("A", "integer", lambda _: nn.Identity(), profile=lambda: {"head": "its input is float"})
    assert profiles_of([plain, profiled]) == {"A, integer": {"head": "its input is float"}}


def test_images_as_a_form_reads_them() -> None:
    form = Form("A", "a", lambda _: nn.Identity(), dtype=torch.float64)
    assert form.placed(torch.zeros(1, 3, 2, 2)).dtype == torch.float64
