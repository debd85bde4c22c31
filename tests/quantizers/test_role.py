"""Roles are values: compared by name and kind, written by name."""

import dataclasses

import pytest

from isvit_lightning.quantizers import Role
from isvit_lightning.recipe import Placement

NAMED = {name: value for name, value in vars(Role).items() if isinstance(value, Role)}


def test_each_constant_has_its_own_name() -> None:
    assert {constant.lower(): role.name for constant, role in NAMED.items()} == {
        role.name: role.name for role in NAMED.values()
    }
    assert len(NAMED) == 14
    assert [role.name for role in NAMED.values() if role.weight] == ["weight"]


def test_equal_by_value() -> None:
    assert Role("qkv_in") == Role.QKV_IN
    assert len({Role("qkv_in"), Role.QKV_IN}) == 1
    assert Role("weight") != Role.WEIGHT
    assert Role(**dataclasses.asdict(Role.WEIGHT)) == Role.WEIGHT
    assert str(Role("box_head_in")) == f"{Role('box_head_in')}" == "box_head_in"


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Role.VALUE.name = "other"  # type: ignore[misc]


def test_a_placement_has_a_field_for_each_of_them() -> None:
    fields = {entry.name for entry in dataclasses.fields(Placement)}
    assert {role.name for role in NAMED.values()} - {"other"} == fields - {"others", "linear_in", "map_in"}
