"""Used codes, clipped share and SNR against tensors whose figures are known by hand."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from isvit_lightning.callbacks import CalibrateQuantizers, WatchQuantizers
from isvit_lightning.callbacks.watch import GRID_COLUMNS, measure, measure_unit
from isvit_lightning.networks import SINGLE, Data, OpenedNetwork, quantizers, switch
from isvit_lightning.quantizers import PerChannel, Quantizer
from isvit_lightning.recipe import Bits, Choice
from isvit_lightning.stages import Schedule
from isvit_lightning.storage.tables import Table
from tests.helpers import DEFAULT_RECIPE, image_batch, quantized_network, quantizer_of, tiny_vit
from tests.stages.fitting import STAGE3, make_stage, trainer_of


def uniform(scale: float = 1.0, zero_point: float = 1.0, bits: int = 2) -> Quantizer:
    """Grid ``scale · (-zero_point … 2**bits - 1 - zero_point)``."""
    quantizer = quantizer_of(bits=bits)
    quantizer.scale.fill_(scale)
    quantizer.zero_point.fill_(zero_point)
    quantizer.refresh()
    return quantizer


def test_figures_by_hand() -> None:
    # Grid -1, 0, 1, 2; -3 and 5 lie more than half a step beyond it, 2.25 does not.
    tensor = torch.tensor([-3.0, -1.0, 0.0, 0.4, 1.0, 2.0, 2.25, 5.0])
    use = measure(uniform(), tensor)
    noise = (4 + 0.16 + 0.0625 + 9) / 8
    power = (9 + 1 + 0.16 + 1 + 4 + 5.0625 + 25) / 8
    assert (use.low, use.high) == (-3, 5)
    assert (use.used_codes, use.n_codes) == (4, 4)
    assert use.clipped == 2 / 8
    assert use.snr_db == pytest.approx(10 * math.log10(power / noise), abs=1e-4)


@pytest.mark.parametrize("tensor", [[0.0, 1.0, 2.25], [0.0, 1.0, -1.4], [2.0, 2.3], [0.1, 2.25, 2.25, 2.25]])
def test_up_to_half_a_step_beyond_the_grid_is_not_clipped(tensor: list[float]) -> None:
    assert measure(uniform(), torch.tensor(tensor)).clipped == 0


@pytest.mark.parametrize(("tensor", "share"), [([0.0, 1.0, 9.0], 1 / 3), ([9.0, 9.0], 1.0), ([2.0, -9.0], 0.5)])
def test_more_than_half_a_step_beyond_the_grid_is_clipped(tensor: list[float], share: float) -> None:
    assert measure(uniform(), torch.tensor(tensor)).clipped == pytest.approx(share)


def test_codes_that_do_not_occur_are_not_used() -> None:
    use = measure(uniform(scale=0.5, zero_point=0, bits=3), torch.tensor([0.0, 0.1, 1.0, 3.5]))
    assert (use.used_codes, use.n_codes) == (3, 8)


def test_a_tensor_on_the_grid_has_a_finite_and_huge_snr() -> None:
    use = measure(uniform(), torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    assert 100 < use.snr_db < math.inf
    assert use.clipped == 0


def test_each_channel_is_measured_on_its_own_grid() -> None:
    quantizer = quantizer_of(bits=2, granularity=PerChannel(2))
    quantizer.scale.copy_(torch.tensor([1.0, 10.0]).view_as(quantizer.scale))
    quantizer.zero_point.zero_()
    quantizer.refresh()
    use = measure(quantizer, torch.tensor([[0.0, 30.0], [1.4, 14.0], [3.0, 0.0]]))
    assert use.clipped == 0
    assert use.used_codes == 3


@torch.no_grad()
def read_by_second(network: OpenedNetwork, images: torch.Tensor) -> Data:
    """What the second unit reads."""
    first, second = network.units[:2]
    return second.entered(first(first.entered({SINGLE: images})))


def test_every_quantizer_that_is_on_is_measured() -> None:
    images = image_batch(16, 4)
    network = quantized_network(tiny_vit(), images)
    unit, inputs = network.units[1], read_by_second(network, images)
    assert measure_unit(unit, inputs).keys() == quantizers(unit.module).keys()
    switch(network.model, weights=False, activations=True)
    uses = measure_unit(unit, inputs)
    assert uses.keys() == {name for name in quantizers(unit.module) if "weight" not in name}
    assert all(1 < use.used_codes <= use.n_codes == 16 for use in uses.values())
    assert not any(quantizer._forward_pre_hooks for quantizer in quantizers(unit.module).values())


def test_fractional_zero_points_are_left_out() -> None:
    images = image_batch(16, 4)
    network = quantized_network(
        tiny_vit(), images, Bits(3, 3), replace(DEFAULT_RECIPE, changes={"stage2": {"round_zero_point": False}})
    )
    unit, inputs = network.units[1], read_by_second(network, images)
    left_out = quantizers(unit.module).keys() - measure_unit(unit, inputs).keys()
    assert left_out == {"attn.qkv.input_quantizer", "mlp.fc1.input_quantizer"}


def test_figures_of_each_unit_are_logged(tmp_path: Path) -> None:
    stage = make_stage(STAGE3, tiny_vit(), image_batch(16, 6), Schedule(1, 4))
    table = Table(tmp_path / "quantizers.csv", GRID_COLUMNS)
    trainer_of(stage, CalibrateQuantizers(), WatchQuantizers(table, images=3)).fit(stage)
    with table.path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["step"] for row in rows} == {"stage3"}
    names = [f"{row['unit']}.{row['quantizer']}" for row in rows]
    assert sorted(names) == sorted(quantizers(DEFAULT_RECIPE.open(tiny_vit(), Bits()).model))
    assert all(float(row["low"]) < float(row["high"]) for row in rows)
    assert all(1 < int(row["used_codes"]) <= int(row["n_codes"]) for row in rows)
    assert all(0 <= float(row["clipped"]) < 1 and float(row["snr_db"]) > 0 for row in rows)


def test_quantized_norms_are_measured_too() -> None:
    images = image_batch(16, 4)
    placement = replace(DEFAULT_RECIPE.placement, norm_in=Choice(bits=8))
    network = quantized_network(tiny_vit(), images, recipe=replace(DEFAULT_RECIPE, placement=placement))
    uses = measure_unit(network.units[1], read_by_second(network, images))
    assert uses["norm1.input_quantizer"].n_codes == 256
    assert uses["norm1.input_quantizer"].snr_db > 20


def test_nothing_is_measured_without_a_table() -> None:
    stage = make_stage(STAGE3, tiny_vit(), image_batch(16, 4), Schedule(1, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isvit_lightning.callbacks.watch.measure", lambda *_: pytest.fail("measured"))
        trainer_of(stage, CalibrateQuantizers(), WatchQuantizers()).fit(stage)
