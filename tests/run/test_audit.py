"""Audits of small networks with known placements."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from isvit_lightning.data.selection import CalibrationList
from isvit_lightning.networks import OpenedNetwork, open_float
from isvit_lightning.quantizers import Sulq, Uniform
from isvit_lightning.recipe import Bits, Choice, Recipe, read_recipe
from isvit_lightning.run.audit import audit, calibrated_on, count_codes, count_values
from isvit_lightning.run.pipeline import Calibration
from isvit_lightning.sources.preprocessing import Preprocessing
from isvit_lightning.stages import Finetune, Fold, Ranges, Schedule, Tune
from tests.helpers import tiny_vit

BITS = Bits(3, 4)


IMAGES = {"images": 3, "sha256": "0", "transform": "none"}


def network(placement: dict[str, Choice], bits: Bits = BITS) -> OpenedNetwork:
    recipe = read_recipe("isvit")
    return replace(recipe, placement=replace(recipe.placement, **placement)).open(tiny_vit(), bits)


def opened(placement: dict[str, Choice], bits: Bits = BITS) -> nn.Module:
    return network(placement, bits).model


def audited(placement: dict[str, Choice] | OpenedNetwork, recipe: Recipe | None = None) -> dict[str, Any]:
    """The audit of a network with a placement, which is said to have been made by a recipe."""
    found = network(placement) if isinstance(placement, dict) else placement
    schedule = Schedule(iterations=7, batch_size=5)
    calibration = Calibration(found.model, torch.zeros(3, 3, 16, 16), BITS, recipe or read_recipe("isvit"), schedule)
    return audit(found, calibration, IMAGES)


@dataclass(frozen=True)
class Dynamic(Uniform):
    """Stands for a format whose grid is chosen at run time."""

    dynamic: ClassVar[bool] = True


def test_the_audit_of_a_strict_recipe() -> None:
    found = audited({})
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
    assert audited(placement)["beyond"] == beyond


def test_the_audit_tells_what_stays_float() -> None:
    found = audited({"query": Choice(None), "fc1_in": Choice(None)})["float"]
    places = [f"blocks.{block}.{path}" for block in range(2) for path in ("attn.scores.left", "mlp.fc1.input")]
    assert found == sorted(["patch_embed.proj.input", *places])


def test_the_audit_tells_layers_that_nobody_quantized() -> None:
    found = network({})
    found.model.extra = nn.Linear(2, 2)
    assert audited(found)["float"] == ["extra", "patch_embed.proj.input"]


def test_the_audit_tells_ranges_that_are_chosen_at_run_time() -> None:
    assert audited({"query": Choice(Dynamic())})["ranges"] == "dynamic"


@pytest.mark.parametrize(
    ("placement", "stem", "head"),
    [
        ({}, (32, 3), (4, 3)),
        ({"image": Choice(bits=8), "head_in": Choice(bits=6)}, (8, 3), (6, 3)),
        ({"head_in": Choice(None), "weight": Choice(None)}, (32, 32), (32, 32)),
        ({"weight": Choice(granularity="channel", bits=8)}, (32, 8), (4, 8)),
    ],
)
def test_the_audit_tells_the_bits_of_the_first_and_of_the_last_layer(
    placement: dict[str, Choice], stem: tuple[int, int], head: tuple[int, int]
) -> None:
    found = audited(placement)
    assert found["stem"] == {"input": stem[0], "weight": stem[1]}
    assert found["head"] == {"input": head[0], "weight": head[1]}


def test_units_that_are_more_than_a_layer_are_neither_stem_nor_head() -> None:
    found = network({})
    found = replace(found, units=found.units[1:-1])
    assert (audited(found)["stem"], audited(found)["head"]) == (None, None)
    as_float = open_float(tiny_vit())
    assert audited(as_float)["head"] == {"input": 32, "weight": 32}


def test_the_audit_tells_what_each_step_takes() -> None:
    steps = [Ranges("ranges"), Fold("fold"), Tune("short", iterations=2), Tune("usual"), Tune("twice", rounds=2)]
    assert audited({}, Recipe("own", steps=[*steps, Finetune("all", 9, 4), Finetune("more")]))["steps"] == {
        "ranges": {},
        "fold": {},
        "short": {"iterations_per_unit": 2, "batch_size": 5},
        "usual": {"iterations_per_unit": 7, "batch_size": 5},
        "twice": {"iterations_per_unit": 14, "batch_size": 5},
        "all": {"iterations": 9, "batch_size": 4},
        "more": {"iterations": 7, "batch_size": 5},
    }


def test_the_audit_tells_the_images() -> None:
    assert audited({})["calibration"] == IMAGES
    preprocessing = Preprocessing((3, 32, 24), (0.5, 0.25, 0.5), (0.5,) * 3, crop_pct=0.9)
    listing = CalibrationList(("a", "b", "c"), "ab12")
    words = (
        "input size 3 × 32 × 24, mean 0.5 0.25 0.5, std 0.5 0.5 0.5, interpolation bicubic, crop pct 0.9, "
        "crop mode center"
    )
    assert calibrated_on(listing, preprocessing) == {"images": 3, "sha256": "ab12", "transform": words}
    assert calibrated_on(listing, preprocessing, 1) == {
        "images": 2,
        "held_out": 1,
        "sha256": "ab12",
        "transform": words,
    }


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
