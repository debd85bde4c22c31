"""Specs as plain values: what a file holds of a quantizer, and what a damaged file is told."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isvit_lightning.errors import IsvitError
from isvit_lightning.quantizers import Log, PerChannel, PerTensor, Role, Spec, Sulq, Uniform, per_head
from isvit_lightning.quantizers.formats import AdaLog
from isvit_lightning.quantizers.spec import VERSION

SPEC = Spec(Sulq(extra_codes=1), 3, PerChannel(6, axis=-2), Role("box_head_weight", weight=True))
SPECS = st.builds(
    Spec,
    st.one_of(
        st.builds(Uniform),
        st.builds(Log, st.integers(1, 9)),
        st.builds(Sulq, st.integers(0, 1), st.none() | st.integers(1, 256)),
        st.builds(AdaLog, st.floats(0, 9)),
    ),
    st.integers(2, 8),
    st.one_of(st.builds(PerTensor), st.builds(PerChannel, st.integers(1, 999), st.integers(-4, -1))),
    st.builds(Role, st.text(min_size=1), st.booleans()),
)


def test_defaults() -> None:
    spec = Spec(Uniform(), 4)
    assert (spec.granularity, spec.role, spec.n_codes) == (PerTensor(), Role.OTHER, 16)


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 32])
def test_bits_out_of_range_are_refused(bits: int) -> None:
    with pytest.raises(IsvitError, match=f"between 2 and 8, got {bits}.*model.bits"):
        Spec(Uniform(), bits)


@pytest.mark.parametrize("bits", range(2, 9))
def test_number_of_codes_is_the_formats(bits: int) -> None:
    assert Spec(Uniform(), bits).n_codes == Spec(Log(2), bits).n_codes == Spec(Sulq(), bits).n_codes == 2**bits
    assert Spec(Sulq(extra_codes=1), bits).n_codes == 2**bits + 1


def test_the_plain_values_are_these() -> None:
    """What files hold: it may only change together with ``VERSION``."""
    assert VERSION == 1
    assert SPEC.as_dict() == {
        "version": 1,
        "format": {"type": "Sulq", "extra_codes": 1, "steps_per_octave": 1},
        "bits": 3,
        "granularity": {"type": "PerChannel", "size": 6, "axis": -2},
        "role": {"name": "box_head_weight", "weight": True},
    }
    assert Spec(Log(2), 8).as_dict() == {
        "version": 1,
        "format": {"type": "Log", "steps_per_octave": 2},
        "bits": 8,
        "granularity": {"type": "PerTensor"},
        "role": {"name": "other", "weight": False},
    }


@given(SPECS)
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_round_trip_through_json(spec: Spec) -> None:
    read = Spec.of(json.loads(json.dumps(spec.as_dict())))
    assert read == spec
    assert read.as_dict() == spec.as_dict()
    assert hash(read) == hash(spec)


def test_a_granularity_by_head_is_one_by_channel() -> None:
    assert Spec.of(Spec(Uniform(), 4, per_head(3)).as_dict()).granularity == PerChannel(3, axis=-3)


def test_a_later_version_is_named() -> None:
    with pytest.raises(IsvitError, match="in version 2, expected 1: install the version"):
        Spec.of({**SPEC.as_dict(), "version": 2})


def changed(path: str, value: Any) -> dict[str, Any]:
    """The description of ``SPEC`` with one value replaced, or taken out where it is None."""
    described = copy.deepcopy(SPEC.as_dict())
    *sections, name = path.split(".")
    inner = described
    for section in sections:
        inner = inner[section]
    if value is None:
        del inner[name]
    else:
        inner[name] = value
    return described


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("version", None),
        ("format", None),
        ("format", "Sulq"),
        ("format", {}),
        ("format.type", None),
        ("format.type", "Format"),
        ("format.type", "Quantizer"),
        ("format.type", ["Sulq"]),
        ("format.extra_codes", "1"),
        ("format.extra_codes", 1.5),
        ("format.extra_codes", True),
        ("format.stranger", 1),
        ("bits", None),
        ("bits", "many"),
        ("bits", [3]),
        ("granularity", None),
        ("granularity.type", "PerToken"),
        ("granularity.size", None),
        ("granularity.size", "6"),
        ("granularity.size", 6.0),
        ("granularity.axis", 1.5),
        ("granularity.stranger", 1),
        ("role", None),
        ("role", "weight"),
        ("role.name", None),
        ("role.stranger", 1),
    ],
)
def test_garbled_values_are_told_in_a_sentence(path: str, value: Any) -> None:
    with pytest.raises(IsvitError, match=r"garbles the description of a quantizer \(.*\), expected format, bits, "):
        Spec.of(changed(path, value))


@pytest.mark.parametrize("values", [None, 3, "text", [], {}])
def test_what_is_no_description_is_told_in_a_sentence(values: Any) -> None:
    with pytest.raises(IsvitError, match="garbles the description"):
        Spec.of(values)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("bits", 9, "between 2 and 8, got 9"),
        ("format.extra_codes", -1, "extra_codes -1, expected 0 or 1"),
        ("granularity.axis", 0, "counted from the end; got 0"),
    ],
)
def test_values_out_of_range_are_told_in_their_own_sentence(path: str, value: Any, sentence: str) -> None:
    with pytest.raises(IsvitError, match=sentence):
        Spec.of(changed(path, value))
