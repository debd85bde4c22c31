"""The dry run tells units, wires, quantizers and memory, and changes nothing."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from isvit_lightning.classifier import Classifier
from isvit_lightning.data import DigitsDataModule
from isvit_lightning.embedded.networks import embedded_network
from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import open_float
from isvit_lightning.quantizers import Log, Sulq
from isvit_lightning.recipe import Bits, Choice, Recipe, read_recipe
from isvit_lightning.run.inspection import cache_values, float_layers, inspect, needs, require_space
from isvit_lightning.sources.preprocessing import Preprocessing
from isvit_lightning.sources.source import NetworkSource
from isvit_lightning.storage.caches import Caches, peak_values
from tests.helpers import tiny_swin, tiny_vit


def column(table: Table, name: str) -> list[str]:
    return [str(cell) for cell in next(c for c in table.columns if c.header == name).cells]


ISVIT = read_recipe("isvit")


def placed(**choices: Choice) -> Recipe:
    """The default recipe with other choices for some roles."""
    return replace(ISVIT, placement=replace(ISVIT.placement, **choices))


def tables(name: str, recipe: Recipe = ISVIT, **options: Any) -> list[Table]:
    return list(
        inspect(Classifier(NetworkSource(name), recipe=recipe, **options), DigitsDataModule(calibration_images=100))
    )


def test_units_wires_and_quantizers_of_a_vit() -> None:
    units, wires, quantizers = tables("vit_digits", bits=Bits(3, 4))
    names = column(units, "unit")
    assert names == ["patch_embed.proj", *(f"blocks.{index}" for index in range(4)), "head"]
    assert str(units.title).startswith("6 units; ")
    assert str(wires.title) == "8 norms with a grid by channel"
    assert set(column(wires, "channels")) == {"96"}
    assert column(wires, "linear layer behind the norm")[:2] == ["blocks.0.attn.qkv", "blocks.0.mlp.fc1"]
    assert column(wires, "unit")[:3] == ["blocks.0", "blocks.0", "blocks.1"]
    assert quantizers.title == "33 activation and 18 weight quantizers"
    by_role = dict(zip(column(quantizers, "role"), column(quantizers, "codes"), strict=True))
    assert by_role["weight"] == "8"
    assert by_role["attn_prob"] == by_role["qkv_in"] == "16"
    bits = dict(zip(column(quantizers, "role"), column(quantizers, "bits"), strict=True))
    assert (bits["weight"], bits["attn_prob"]) == ("3", "4")


def test_the_choices_of_the_recipe_show() -> None:
    reductions = Choice(granularity="channel")
    _, wires, quantizers = tables("swin_digits", placed(reduction_in=reductions, attn_prob=Choice(Sulq(1))))
    assert str(wires.title) == "14 norms with a grid by channel"
    found = dict(zip(column(quantizers, "role"), column(quantizers, "codes"), strict=True))
    assert found["attn_prob"] == "17"
    _, wires, quantizers = tables("swin_digits", placed(attn_prob=Choice(Log()), head_in=Choice(bits=7)))
    assert str(wires.title) == "12 norms with a grid by channel"
    kinds = dict(zip(column(quantizers, "role"), column(quantizers, "format"), strict=True))
    assert (kinds["attn_prob"], kinds["weight"]) == ("Log", "Uniform")
    bits = dict(zip(column(quantizers, "role"), column(quantizers, "bits"), strict=True))
    assert (bits["head_in"], bits["qkv_in"]) == ("7", "4")
    _, wires, quantizers = tables("vit_digits", read_recipe("round_to_nearest"))
    assert str(wires.title) == "0 norms with a grid by channel"
    granularity = dict(zip(column(quantizers, "role"), column(quantizers, "granularity"), strict=True))
    assert granularity["qkv_in"] == "per tensor"
    assert "per channel" in granularity["weight"]


@pytest.mark.parametrize(("build", "size"), [(tiny_vit, 16), (tiny_swin, 32)], ids=["vit", "swin"])
def test_caches_are_as_large_as_what_passes_the_units(build: Callable[[], nn.Module], size: int) -> None:
    network = open_float(build())
    seen: dict[str, tuple[int, int]] = {}
    handles = [
        unit.module.register_forward_hook(
            lambda module, args, output, name=unit.name: seen.update({name: (args[0].numel(), output.numel())})
        )
        for unit in network.units
    ]
    with torch.no_grad():
        network.model(torch.zeros(1, 3, size, size))
    for handle in handles:
        handle.remove()
    assert cache_values(network, (3, size, size)) == seen


def test_memory_is_that_of_the_largest_unit() -> None:
    units, _, _ = tables("vit_digits")
    sizes = cache_values(open_float(embedded_network("vit_digits")), (3, 32, 32))
    need = 4 * peak_values(sizes) * 100 / 1e6
    title = f"6 units; 100 images take {4 * 3 * 32 * 32 / 1e4:.0f} MB, caches up to {need:.0f} MB in memory in float32"
    assert str(units.title) == title
    assert column(units, "input MB") == [f"{4 * inputs / 1e4:.1f}" for inputs, _ in sizes.values()]
    assert column(units, "output MB") == [f"{4 * output / 1e4:.1f}" for _, output in sizes.values()]


def test_a_disk_is_asked_for_images_and_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, data = embedded_network("vit_digits"), DigitsDataModule(calibration_images=100)
    data.attach(Preprocessing.of(network))
    caches = Caches(where="disk", precision="float16", directory=str(tmp_path))
    need = sum(needs(cache_values(open_float(network), (3, 32, 32)), data, caches))
    assert need == 100 * (4 * 3 * 32 * 32 + 2 * peak_values(cache_values(open_float(network), (3, 32, 32))))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=need - 1))
    with pytest.raises(IsvitError, match="expected room for them"):
        require_space(caches, open_float(network), data)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=need))
    require_space(caches, open_float(network), data)


def test_recomputed_caches_need_nothing() -> None:
    model = Classifier(NetworkSource("vit_digits"), recipe=ISVIT, caches=Caches(where="recompute"))
    units = next(inspect(model, DigitsDataModule(calibration_images=100)))
    assert str(units.title) == "6 units; 100 images take 1 MB, caches 0 MB, recomputed in each step"
    assert set(column(units, "input MB")) == {"0.0"}


def test_layers_that_stay_float_are_listed() -> None:
    assert len(tables("vit_digits")) == 3
    assert list(float_layers(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))) == ["1"]


def test_tables_print() -> None:
    out = Console(width=140, record=True)
    for table in tables("vit_digits"):
        out.print(table)
    assert "blocks.3.mlp.fc2.weight_quantizer" in out.export_text()
