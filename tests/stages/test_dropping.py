"""Elements that stay unquantized: as many as asked for, the same whatever passes at once, and none behind a step."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from isvit_lightning.layers import QuantConv2d
from isvit_lightning.networks import SINGLE, Data, Unit, calibrate_activations, quantizers, switch
from isvit_lightning.stages import Inputs, Schedule, StraightThrough
from isvit_lightning.stages.dropping import Dropper
from isvit_lightning.stages.passes import Held
from tests.helpers import image_batch, quantized_network, quantizer_of, tiny_swin, tiny_vit
from tests.stages.fitting import STAGE3, EachStep, changed, make_stage, run, snapshot

CPU = torch.device("cpu")
BUILD = {"vit": (tiny_vit, 16, "blocks.1"), "swin": (tiny_swin, 32, "layers.0.blocks.1")}
KIND = pytest.mark.parametrize("kind", BUILD)


def unit_of(kind: str, images: int = 12) -> tuple[Unit, torch.Tensor]:
    """A calibrated block whose activations alone are quantized, and what it reads."""
    build, size, name = BUILD[kind]
    network = quantized_network(build(), batch := image_batch(size, images))
    data = {SINGLE: batch}
    for unit in network.units:
        with torch.no_grad():
            data = unit.entered(data)
            if unit.name == name:
                break
            data = unit(data)
    switch(unit.module, weights=False, activations=True)
    return unit, data[SINGLE]


def quantized_shares(unit: Unit, inputs: torch.Tensor) -> dict[str, float]:
    """Share of the elements that each quantizer let through as they are, of those that it would change."""
    shares: dict[str, float] = {}

    def look(name: str, quantizer: Any, args: Any, output: torch.Tensor) -> None:
        kept, quantizer.kept = quantizer.kept, None
        moved = quantizer.decode(quantizer.encode(args[0])) != args[0]
        quantizer.kept = kept
        same = output == args[0]
        shares[name] = float((same & moved).sum() / moved.sum())
        expected = quantizer.decode(quantizer.encode(args[0]))
        assert bool(((output == args[0]) | (output == expected)).all()), "one or the other, nothing between"

    handles = [
        quantizer.register_forward_hook(lambda module, args, output, name=name: look(name, module, args, output))
        for name, quantizer in quantizers(unit.module).items()
        if quantizer.enabled
    ]
    with torch.no_grad():
        unit({SINGLE: inputs})
    for handle in handles:
        handle.remove()
    return shares


@KIND
@pytest.mark.parametrize("probability", [0.25, 0.5])
def test_the_share_is_met_in_front_of_every_product(kind: str, probability: float) -> None:
    unit, inputs = unit_of(kind, 48)
    dropper = Dropper(unit, Held({SINGLE: inputs}), probability, CPU)
    dropper.draw(48, torch.Generator().manual_seed(0))
    with dropper.kept(torch.arange(48)):
        shares = quantized_shares(unit, inputs)
    assert shares.keys() == {name for name, quantizer in quantizers(unit.module).items() if not quantizer.role.weight}
    assert shares == pytest.approx(dict.fromkeys(shares, probability), abs=0.06)
    assert set(quantized_shares(unit, inputs).values()) == {0.0}


@KIND
def test_parts_of_a_batch_keep_what_the_whole_keeps(kind: str) -> None:
    """Masks lie by image, also where a quantizer sees several windows of each."""
    unit, inputs = unit_of(kind)
    dropper = Dropper(unit, Held({SINGLE: inputs}), 0.4, CPU)
    dropper.draw(12, torch.Generator().manual_seed(1))

    def masks(part: torch.Tensor) -> dict[str, torch.Tensor]:
        seen: dict[str, torch.Tensor] = {}
        handles = [
            quantizer.register_forward_hook(
                lambda module, args, output, name=name: seen.update(
                    {name: (output == args[0]).unflatten(0, (len(part), -1))}
                )
            )
            for name, quantizer in quantizers(unit.module).items()
            if not quantizer.role.weight and "qkv" in name
        ]
        with torch.no_grad(), dropper.kept(part):
            unit({SINGLE: inputs[part]})
        for handle in handles:
            handle.remove()
        return seen

    whole = masks(torch.arange(12))
    assert whole
    for part in (torch.tensor([5]), torch.tensor([11, 0, 7]), torch.arange(4, 9)):
        for name, mask in masks(part).items():
            assert torch.equal(mask, whole[name][part]), name


@KIND
def test_masks_are_taken_away_again_also_behind_an_error(kind: str) -> None:
    unit, inputs = unit_of(kind)
    dropper = Dropper(unit, Held({SINGLE: inputs}), 0.3, CPU)
    dropper.draw(12, torch.Generator())
    activations = [quantizer for quantizer in quantizers(unit.module).values() if not quantizer.role.weight]

    def fail() -> None:
        with torch.no_grad(), dropper.kept(torch.arange(3)):
            unit({SINGLE: inputs[:3]})
            assert all(quantizer.kept is not None for quantizer in activations)
            raise MemoryError

    with pytest.raises(MemoryError):
        fail()
    assert all(quantizer.kept is None for quantizer in quantizers(unit.module).values())
    # Nor does another pass bring them back.
    with torch.no_grad():
        unit({SINGLE: inputs[:3]})
    assert all(quantizer.kept is None for quantizer in quantizers(unit.module).values())


def test_each_draw_is_another_and_the_generator_decides() -> None:
    unit, inputs = unit_of("vit")
    dropper = Dropper(unit, Held({SINGLE: inputs}), 0.5, CPU)
    (quantizer, *_) = [q for q in quantizers(unit.module).values() if not q.role.weight]

    def drawn(generator: torch.Generator) -> torch.Tensor:
        dropper.draw(12, generator)
        with torch.no_grad(), dropper.kept(torch.arange(12)):
            unit({SINGLE: inputs})
            assert quantizer.kept is not None
            return quantizer.kept.clone()

    generator = torch.Generator().manual_seed(3)
    first, second = drawn(generator), drawn(generator)
    assert not torch.equal(first, second)
    assert torch.equal(drawn(torch.Generator().manual_seed(3)), first)


def test_without_a_probability_nothing_is_drawn_and_nothing_passes_the_unit() -> None:
    unit, inputs = unit_of("vit")
    passes: list[int] = []
    unit.module.register_forward_hook(lambda *_: passes.append(1))
    dropper, generator = Dropper(unit, Held({SINGLE: inputs}), 0.0, CPU), torch.Generator().manual_seed(0)
    before = generator.get_state()
    dropper.draw(12, generator)
    assert torch.equal(generator.get_state(), before)
    assert not passes
    with torch.no_grad(), dropper.kept(torch.arange(12)):
        unit({SINGLE: inputs})
        assert all(quantizer.kept is None for quantizer in quantizers(unit.module).values())


def test_quantizers_that_are_off_get_no_mask() -> None:
    unit, inputs = unit_of("vit")
    off = unit.module.attn.qkv.input_quantizer
    off.enabled = False
    dropper = Dropper(unit, Held({SINGLE: inputs}), 0.5, CPU)
    dropper.draw(12, torch.Generator())
    with torch.no_grad(), dropper.kept(torch.arange(12)):
        unit({SINGLE: inputs})
        assert off.kept is None
        assert unit.module.attn.proj.input_quantizer.kept is not None


class Levels(nn.Module):
    """One layer for maps of several sizes, as the region proposals of a detector."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = QuantConv2d(nn.Conv2d(4, 2, 1), quantizer_of(bits=3), None)

    def forward(self, maps: Data) -> Data:
        return {name: self.shared(level) for name, level in maps.items()}


def test_a_layer_that_is_met_several_times_drops_in_all_it_meets() -> None:
    unit = Unit("levels", Levels(), lambda value: value, named=True)
    maps = {"level0": torch.randn(6, 4, 16, 16), "level1": torch.randn(6, 4, 8, 8)}
    calibrate_activations(unit.module, lambda: unit(maps))
    dropper = Dropper(unit, Held(maps), 0.5, CPU)
    dropper.draw(6, torch.Generator().manual_seed(0))
    shares: list[float] = []
    quantizer = unit.module.shared.input_quantizer
    quantizer.register_forward_hook(
        lambda module, args, output: shares.append(float((output == args[0]).float().mean()))
    )
    with torch.no_grad(), dropper.kept(torch.arange(6)):
        unit(maps)
    assert shares == pytest.approx([0.5, 0.5], abs=0.06)


def first_losses(drop: float, micro_batch: int) -> dict[str, float]:
    """Loss of the first step of each unit; the weights stay as they are."""
    torch.manual_seed(7)
    choice = replace(STAGE3, inputs=Inputs("quantized", drop=drop), range_learning_rate=0.0)
    choice = replace(choice, trainables=StraightThrough(1e-12))
    stage = make_stage(choice, tiny_vit(), image_batch(16, 20), Schedule(1, 20, micro_batch=micro_batch))
    found: dict[str, float] = {}
    run(stage, EachStep(lambda stage, _: found.update({stage.unit.name: float(stage.first_loss)}), after=True))
    assert all(quantizer.kept is None for quantizer in quantizers(stage.network).values())
    return found


def test_micro_batches_change_no_draw_of_a_step() -> None:
    whole, parts, without = first_losses(0.5, 20), first_losses(0.5, 3), first_losses(0.0, 20)
    assert parts == pytest.approx(whole, rel=1e-4)
    # The patch projection reads no quantized activation.
    assert without.pop("patch_embed.proj") == whole.pop("patch_embed.proj")
    assert all(abs(without[name] - whole[name]) > 1e-2 * without[name] for name in whole)


def test_a_seed_fixes_every_bit_of_a_step_that_drops() -> None:
    model, images = tiny_vit(), image_batch(16, 8)
    ends = []
    for torch_seed, drop in ((0, 0.3), (99, 0.3), (0, 0.0)):
        stage = make_stage(replace(STAGE3, inputs=Inputs("mixed", drop=drop)), model, images, Schedule(2, 6))
        torch.manual_seed(torch_seed)
        ends.append(snapshot(run(stage).network))
    assert not changed(ends[0], ends[1])
    assert "blocks.0.mlp.fc1.weight" in changed(ends[0], ends[2])
