"""Recipes of other methods: each runs with strict codes, static grids and nothing in float but the image."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import isvit_lightning
from isvit_lightning.embedded.digits import digit_images
from isvit_lightning.embedded.networks import embedded_network
from isvit_lightning.export.artifact import QuantizedNetwork
from isvit_lightning.networks import quantizers
from isvit_lightning.quantizers import (
    AdaLog,
    AnchoredUniform,
    Log,
    PowerOfTwoFactors,
    Tangent,
    TwinUniform,
    Uniform,
)
from isvit_lightning.recipe import Bits, Choice, Recipe, read_recipe
from isvit_lightning.run.audit import audit_codes
from isvit_lightning.search import Beam, OutputError
from isvit_lightning.stages import Fold
from tests.helpers import image_batch, tiny_swin

FORMATS: dict[str, dict[str, Any]] = {
    "adalog": {"attn_prob": AdaLog(), "gelu_out": AdaLog(0.16997124)},
    "apq": {"attn_prob": AnchoredUniform()},
    "dopq": {"attn_prob": Tangent()},
    "fqvit": {"attn_prob": Log(), "norm_in": PowerOfTwoFactors()},
    "ptq4vit": {"attn_prob": TwinUniform(), "gelu_out": TwinUniform(signed=True)},
    "repq": {"attn_prob": Log(2)},
}
"""What is not uniform, by recipe and role."""
RIVALS = pytest.mark.parametrize("name", FORMATS)


def quick(recipe: Recipe) -> Recipe:
    """The same with fewer candidates."""
    changed: dict[str, Choice] = {}
    for entry in fields(recipe.placement):
        choice = getattr(recipe.placement, entry.name)
        search = getattr(choice, "search", None)
        if isinstance(search, Beam):
            changed[entry.name] = replace(choice, search=replace(search, points=4, width=2, steps=1))
        elif isinstance(search, OutputError):
            changed[entry.name] = replace(choice, search=replace(search, candidates=min(search.candidates, 4)))
    return replace(recipe, placement=replace(recipe.placement, **changed))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return digit_images("train")[0][:64]


@pytest.fixture(scope="module", params=FORMATS)
def calibrated(request: pytest.FixtureRequest, images: torch.Tensor) -> tuple[str, QuantizedNetwork]:
    recipe = quick(read_recipe(request.param))
    network = isvit_lightning.calibrate(
        embedded_network("vit_digits"), images[:16], 4, recipe, iterations=2, batch_size=8, accelerator="cpu"
    )
    return request.param, network


@RIVALS
def test_each_role_has_its_format(name: str) -> None:
    placement = read_recipe(name).placement
    choices = {entry.name: getattr(placement, entry.name) for entry in fields(placement)}
    found = {role: choice.format for role, choice in choices.items() if isinstance(choice, Choice)}
    expected = {role: FORMATS[name].get(role, Uniform()) for role in found}
    expected["image"] = None
    expected["norm_in"] = FORMATS[name].get("norm_in")
    assert found == expected
    assert placement.weight.granularity == "channel"
    assert not any(choice.bits for choice in choices.values() if isinstance(choice, Choice))


def test_codes_are_strict_and_nothing_but_the_image_is_float(calibrated: tuple[str, QuantizedNetwork]) -> None:
    name, network = calibrated
    found = audit_codes(network.model, Bits(4, 4))
    assert set(found["n_codes"].values()) == {16}
    assert found["beyond"] == []
    assert found["ranges"] == "static"
    assert [path for path in found["float"] if "norm" not in path] == ["patch_embed.proj.input"]
    assert {one.format.at(4) for one in quantizers(network.model).values()} == {
        form.at(4) for form in (Uniform(), *FORMATS[name].values())
    }


def test_a_batch_of_64_gives_what_one_image_gives(
    calibrated: tuple[str, QuantizedNetwork], images: torch.Tensor
) -> None:
    _, network = calibrated
    with torch.no_grad():
        together, alone = network(images), torch.cat([network(image.unsqueeze(0)) for image in images])
    # Sums of another order may carry a value over the edge of a step.
    close = ((together - alone).abs() <= 1e-3 * together.abs().max()).all(dim=1)
    assert float(close.float().mean()) > 0.9


def test_the_network_still_knows_the_digits(calibrated: tuple[str, QuantizedNetwork], images: torch.Tensor) -> None:
    _, network = calibrated
    with torch.no_grad():
        wanted = embedded_network("vit_digits").eval()(images).argmax(dim=1)
        agreement = (network(images).argmax(dim=1) == wanted).float().mean()
    assert float(agreement) > 0.8


def test_the_packed_file_gives_the_same_network(
    calibrated: tuple[str, QuantizedNetwork], images: torch.Tensor, tmp_path: Path
) -> None:
    _, network = calibrated
    network.save(tmp_path / "packed.safetensors")
    with torch.no_grad():
        assert torch.equal(isvit_lightning.load(tmp_path / "packed.safetensors")(images), network(images))


@RIVALS
def test_a_swin_is_calibrated_too(name: str) -> None:
    network = isvit_lightning.calibrate(
        tiny_swin(), image_batch(32, 4), 3, quick(read_recipe(name)), iterations=1, batch_size=4, accelerator="cpu"
    )
    found = audit_codes(network.model, Bits(3, 3))
    assert (set(found["n_codes"].values()), found["beyond"], found["ranges"]) == ({8}, [], "static")
    with torch.no_grad():
        assert bool(network(image_batch(32, 2)).isfinite().all())


def test_what_is_compared_is_the_same_elsewhere() -> None:
    ours, theirs = read_recipe("isvit"), read_recipe("dopq")
    assert replace(ours.placement, attn_prob=theirs.placement.attn_prob) == theirs.placement
    steps = [replace(step, statistic="mad") if isinstance(step, Fold) else step for step in ours.steps]
    assert theirs.steps == steps


def test_those_without_tuning_have_rounds_where_they_are_published() -> None:
    rounds = {name: [getattr(step, "rounds", 0) for step in read_recipe(name).steps] for name in FORMATS}
    assert {name for name, count in rounds.items() if 3 in count} == {"adalog", "apq", "ptq4vit"}
    assert [name for name in FORMATS if any(step.tunes for step in read_recipe(name).steps)] == ["dopq"]
