"""Audits of small networks with known placements."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
from torch import nn

from isvit_lightning.quantizers import Sulq, Uniform
from isvit_lightning.recipe import Bits, Choice, read_recipe
from isvit_lightning.run.audit import audit, count_codes, count_values
from tests.helpers import tiny_vit

BITS = Bits(3, 4)


def opened(placement: dict[str, Choice], bits: Bits = BITS) -> nn.Module:
    recipe = read_recipe("isvit")
    return replace(recipe, placement=replace(recipe.placement, **placement)).open(tiny_vit(), bits).model


@dataclass(frozen=True)
class Dynamic(Uniform):
    """Stands for a format whose grid is chosen at run time."""

    dynamic: ClassVar[bool] = True


def test_the_audit_of_a_strict_recipe() -> None:
    found = audit(opened({}), BITS)
    assert (found["beyond"], found["float"], found["ranges"]) == ([], ["patch_embed.proj.input"], "static")
    assert found["n_codes"]["weight"] == 8
    assert found["n_codes"]["query"] == 16


@pytest.mark.parametrize(
    ("placement", "beyond"),
    [
        ({"attn_prob": Choice(Sulq(1))}, ["attn_prob"]),
        ({"head_in": Choice(bits=5), "query": Choice(bits=8)}, ["head_in", "query"]),
        ({"weight": Choice(granularity="channel", bits=4)}, ["weight"]),
        ({"head_in": Choice(bits=2)}, []),
        ({"image": Choice(bits=8)}, ["image"]),
    ],
)
def test_the_audit_tells_codes_beyond_the_bits(placement: dict[str, Choice], beyond: list[str]) -> None:
    assert audit(opened(placement), BITS)["beyond"] == beyond


def test_the_audit_tells_what_stays_float() -> None:
    found = audit(opened({"query": Choice(None), "fc1_in": Choice(None)}), BITS)["float"]
    places = [f"blocks.{block}.{path}" for block in range(2) for path in ("attn.scores.left", "mlp.fc1.input")]
    assert found == sorted(["patch_embed.proj.input", *places])


def test_the_audit_tells_layers_that_nobody_quantized() -> None:
    model = opened({})
    model.extra = nn.Linear(2, 2)
    assert audit(model, BITS)["float"] == ["extra", "patch_embed.proj.input"]


def test_the_audit_tells_ranges_that_are_chosen_at_run_time() -> None:
    assert audit(opened({"query": Choice(Dynamic())}), BITS)["ranges"] == "dynamic"


@pytest.mark.parametrize("extra", [0, 1])
def test_codes_are_counted_by_role(extra: int) -> None:
    recipe = read_recipe("isvit")
    choices = {"attn_prob": Choice(Sulq(extra)), "head_in": Choice(bits=6)}
    model = replace(recipe, placement=replace(recipe.placement, **choices)).open(tiny_vit(), BITS).model
    plain = ("qkv_in", "query", "key", "value", "proj_in", "fc1_in", "gelu_out")
    expected = {"weight": 8, **dict.fromkeys(plain, 16), "attn_prob": 16 + extra, "head_in": 64}
    assert count_codes(model) == expected


@pytest.mark.parametrize(("bits", "whole"), [(4, 16), (6, 17), (8, 17)])
def test_distinct_values_are_counted_of_grids_that_are_chosen(bits: int, whole: int) -> None:
    """Whole exponents of a softmax whose smallest values lie near zero; with finer ones every code has a value."""
    choices = {"attn_prob": Choice(Sulq(steps_per_octave=1)), "query": Choice(Sulq(steps_per_octave=256))}
    model = opened(choices, Bits(3, bits))
    assert count_values(model) == {}
    quantizer = model.blocks[0].attn.context.left_quantizer
    for name, number in {"eta": 2.0**-16, "offset": -16.0, "step": 16 / (2**bits - 1)}.items():
        quantizer.get_buffer(name).fill_(number)
    quantizer.refresh()
    fine = model.blocks[0].attn.scores.left_quantizer
    for name in ("eta", "offset", "step"):
        fine.get_buffer(name).copy_(quantizer.get_buffer(name))
    fine.refresh()
    assert count_values(model) == {"attn_prob": whole, "query": 2**bits}
    quantizer.enabled = False
    assert count_values(model) == {"query": 2**bits}


def test_the_most_codes_of_a_role_count() -> None:
    model = read_recipe("isvit").open(tiny_vit(), BITS).model
    model.blocks[0].attn.context.left_quantizer.n_codes = 9
    model.blocks[1].attn.context.left_quantizer.n_codes = 11
    assert count_codes(model)["attn_prob"] == 11
