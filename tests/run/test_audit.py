"""Audits of small networks with known placements."""

import dataclasses
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
from torch import nn

from isvit_lightning.quantizers import Sulq, Uniform
from isvit_lightning.recipe import Bits, Choice, Recipe, read_recipe
from isvit_lightning.run.audit import audit, count_codes
from tests.helpers import tiny_vit


def opened(placement: dict[str, Choice], recipe: Recipe | None = None) -> nn.Module:
    recipe = recipe or read_recipe("isvit")
    changed = dataclasses.replace(recipe, placement=dataclasses.replace(recipe.placement, **placement))
    return changed.open(tiny_vit(), Bits(3, 4)).model


@dataclass(frozen=True)
class Dynamic(Uniform):
    """Stands for a format whose grid is chosen at run time."""

    dynamic: ClassVar[bool] = True


def test_the_audit_of_a_strict_recipe() -> None:
    found = audit(opened({}), Bits(3, 4))
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
    assert audit(opened(placement), Bits(3, 4))["beyond"] == beyond


def test_the_audit_tells_what_stays_float() -> None:
    found = audit(opened({"query": Choice(None), "fc1_in": Choice(None)}), Bits(3, 4))["float"]
    places = [f"blocks.{block}.{path}" for block in range(2) for path in ("attn.scores.left", "mlp.fc1.input")]
    assert found == sorted(["patch_embed.proj.input", *places])


def test_the_audit_tells_layers_that_nobody_quantized() -> None:
    model = opened({})
    model.extra = nn.Linear(2, 2)
    assert audit(model, Bits(3, 4))["float"] == ["extra", "patch_embed.proj.input"]


def test_the_audit_tells_ranges_that_are_chosen_at_run_time() -> None:
    assert audit(opened({"query": Choice(Dynamic())}), Bits(3, 4))["ranges"] == "dynamic"


@pytest.mark.parametrize("extra", [0, 1])
def test_codes_are_counted_by_role(extra: int) -> None:
    recipe = read_recipe("isvit")
    choices = {"attn_prob": Choice(Sulq(extra)), "head_in": Choice(bits=6)}
    model = replace(recipe, placement=replace(recipe.placement, **choices)).open(tiny_vit(), Bits(3, 4)).model
    plain = ("qkv_in", "query", "key", "value", "proj_in", "fc1_in", "gelu_out")
    expected = {"weight": 8, **dict.fromkeys(plain, 16), "attn_prob": 16 + extra, "head_in": 64}
    assert count_codes(model) == expected


def test_the_most_codes_of_a_role_count() -> None:
    model = read_recipe("isvit").open(tiny_vit(), Bits(3, 4)).model
    model.blocks[0].attn.context.left_quantizer.n_codes = 9
    model.blocks[1].attn.context.left_quantizer.n_codes = 11
    assert count_codes(model)["attn_prob"] == 11
