"""Options of a benchmark as a command line gives them."""

import pytest

from isvit_lightning.errors import IsvitError
from isvit_lightning.run.benchmark.options import ENGINES, Options, options_of


def given(**changes: object) -> Options:
    usual = {"threads": "1", "batches": "1,8", "repeats": 20, "engines": ",".join(ENGINES)}
    return options_of(**{**usual, "accuracy": True, "profile": False, **changes})  # type: ignore[arg-type]


def test_the_usual_ones() -> None:
    assert given() == Options()


def test_numbers_and_names_with_commas() -> None:
    assert given(threads="2, 1,2").threads == (2, 1)
    assert given(engines="openvino").engines == ("openvino",)


@pytest.mark.parametrize("text", ["", "0", "1,0", "two", "1.5", "-1", "1,,2", "²"])
@pytest.mark.parametrize("option", ["threads", "batches"])
def test_other_numbers_are_refused(option: str, text: str) -> None:
    with pytest.raises(IsvitError, match=rf'^--{option} is "{text}", expected whole numbers .*: change --{option}\.$'):
        given(**{option: text})


def test_unknown_engines_are_refused() -> None:
    with pytest.raises(IsvitError, match=r'^There is no engine "tensorrt", expected some of pytorch, onnxruntime,'):
        given(engines="pytorch,tensorrt")


def test_no_repeats_are_refused() -> None:
    with pytest.raises(IsvitError, match=r"^There are 0 repeats, expected at least one: change --repeats\.$"):
        given(repeats=0)
