"""Choices from anywhere are either built or refused in a sentence."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isvit_lightning.errors import IsvitError
from isvit_lightning.export.artifact import _choices
from isvit_lightning.networks import open_quantized
from isvit_lightning.recipe.method import Bits, Method, Tuning, repq, round_to_nearest
from tests.helpers import image_batch, quantized_network, tiny_vit

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
LIKELY = {
    "weight": st.integers(2, 8) | st.integers(),
    "activation": st.integers(2, 8) | st.integers(),
    "enabled": st.booleans(),
    "relative_learning_rate": st.floats(),
    "learning_rate": st.floats() | st.none(),
    "inputs": st.sampled_from(["float", "quantized", "mixed", "neither"]),
    "recalibrate": st.sampled_from(["never", "stage", "unit", "always"]),
    "loss": st.sampled_from(["squared", "normalized", "absolute"]),
    "range_learning_rate": st.floats(-1, 1),
    "name": st.text(max_size=5),
    "softmax": st.sampled_from(["sulq", "uniform", "log2", "log_sqrt2", "log3"]),
    "eta_candidates": st.sampled_from(["powers_of_two", "published", "none"]),
    "extra_softmax_codes": st.integers(-1, 2),
    "clamp_zero_points": st.booleans(),
    "round_zero_point": st.booleans(),
    "reparameterize": st.booleans(),
    "statistic": st.sampled_from(["mean", "median", "mode"]),
    "reparameterize_reductions": st.booleans(),
    "range_images": st.integers(-1, 70),
}


def some_of(kind: type) -> st.SearchStrategy[dict[str, Any]]:
    """Arguments of a dataclass: likely values and arbitrary ones, and now and then a key that does not exist."""
    names = [field.name for field in dataclasses.fields(kind) if field.name in LIKELY]
    known = {name: LIKELY[name] for name in names}
    if kind is Method:
        known |= {stage: some_of(Tuning) for stage in ("stage1", "stage3")}
    dictionaries = st.fixed_dictionaries({}, optional=known)
    odd = st.tuples(dictionaries, st.sampled_from([*known, "stranger"]), JSON)
    return dictionaries | odd.map(lambda drawn: {**drawn[0], drawn[1]: drawn[2]})


@pytest.mark.parametrize("kind", [Bits, Tuning, Method])
def test_choices_are_built_or_refused_in_a_sentence(kind: type) -> None:
    built = 0

    @given(some_of(kind))
    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    def check(values: dict[str, Any]) -> None:
        nonlocal built
        try:
            choices = _choices(kind, values)  # type: ignore[type-var]
        except IsvitError as error:
            assert ", expected " in str(error)
            assert str(error).endswith(".")
            assert "\n" not in str(error)
        else:
            built += 1
            assert _choices(kind, dataclasses.asdict(choices)) == choices  # type: ignore[type-var]
            if isinstance(choices, Method):
                open_quantized(NETWORK, Bits(), choices)

    check()
    assert built > 5


NETWORK = tiny_vit(depth=1)


@pytest.mark.parametrize(
    ("kind", "values", "option"),
    [
        (Bits, {"weight": 4.0}, "model.bits.weight"),
        (Bits, {"weight": True}, "model.bits.weight"),
        (Bits, {"activation": 9}, "model.bits.activation"),
        (Tuning, {"learning_rate": float("nan")}, "learning_rate"),
        (Tuning, {"learning_rate": 0.0}, "learning_rate"),
        (Tuning, {"learning_rate": "slow"}, "expected a finite number or null"),
        (Tuning, {"relative_learning_rate": -0.01}, "relative_learning_rate"),
        (Tuning, {"relative_learning_rate": None}, "relative_learning_rate"),
        (Tuning, {"range_learning_rate": float("inf")}, "range_learning_rate"),
        (Tuning, {"enabled": "yes"}, "enabled"),
        (Tuning, {"inputs": "both"}, "inputs is 'both', expected one of float, quantized, mixed"),
        (Method, {"softmax": "log3"}, "model.method.softmax"),
        (Method, {"range_images": 0}, "model.method.range_images"),
        (Method, {"extra_softmax_codes": -1}, "model.method.extra_softmax_codes"),
        (Method, {"stage1": None}, "model.method.stage1"),
        (Method, {"name": 3}, "model.method.name"),
    ],
)
def test_a_value_out_of_range_names_its_option(kind: type, values: dict[str, Any], option: str) -> None:
    with pytest.raises(IsvitError, match=option):
        kind(**values)


@pytest.mark.parametrize("method", [Method(), repq(), round_to_nearest()])
def test_the_named_methods_quantize(method: Method) -> None:
    images = image_batch(16, 2)
    assert quantized_network(tiny_vit(depth=1), images, Bits(2, 8), method).model(images).isfinite().all()
