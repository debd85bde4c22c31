"""Walking the units: one pass over the images for each network, and the inputs that a walk from the image gives."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn

from isvit_lightning.networks import SINGLE, OpenedNetwork, open_float
from isvit_lightning.stages import Fold, FoldStage, Inputs, Schedule, Tune, TuningStage, UnitStage, Work
from isvit_lightning.stages.passes import Held, Recomputed, Rows
from isvit_lightning.storage.caches import Caches
from isvit_lightning.transforms import is_foldable
from tests.helpers import image_batch, quantized_network, tiny_swin, tiny_vit
from tests.stages.fitting import STAGE1, STAGE3, EachStep, changed, counted, make_stage, run, snapshot, work_on

Build = Callable[[], nn.Module]
NETWORK = pytest.mark.parametrize(("build", "size"), [(tiny_vit, 16), (tiny_swin, 32)], ids=["vit", "swin"])
READ = pytest.mark.parametrize("read", ["float", "quantized", "mixed"])
CHOICE = pytest.mark.parametrize("choice", [STAGE1, STAGE3], ids=["stage1", "stage3"])
Read = Literal["float", "quantized", "mixed"]
MIXED = replace(STAGE3, inputs=Inputs("mixed"))
SCHEDULE = Schedule(iterations=2, batch_size=8)


def all_of(rows: Rows) -> torch.Tensor:
    return rows[:][SINGLE]


@torch.no_grad()
def by_brute_force(network: OpenedNetwork, images: torch.Tensor, index: int) -> torch.Tensor:
    """Inputs of unit ``index``, walked from the image."""
    value = images
    for unit in network.units[:index]:
        value = unit.module(unit.enter(value))
    return network.units[index].enter(value)


@NETWORK
@CHOICE
@READ
def test_each_image_passes_each_network_once(build: Build, size: int, choice: Tune, read: Read) -> None:
    images = image_batch(size, 40)
    stage = make_stage(replace(choice, inputs=Inputs(read)), build(), images, SCHEDULE)
    with counted(stage.target) as floats, counted(stage.quantized) as quantized:
        run(stage)
    names = [unit.name for unit in stage.target.units]
    assert floats == dict.fromkeys(names, 40)
    # The last unit's output is nobody's input.
    expected = 0 if read == "float" else 40
    assert quantized == {name: 0 if name == names[-1] else expected for name in names}


@NETWORK
def test_choosing_ranges_costs_one_pass_over_their_images(build: Build, size: int) -> None:
    images = image_batch(size, 12)
    choice = replace(STAGE1, inputs=Inputs("float"))
    stage = TuningStage(choice, work_on(build(), images, SCHEDULE, ranges=False, range_images=5))
    with counted(stage.target) as floats, counted(stage.quantized) as quantized:
        run(stage)
    assert set(floats.values()) == {12}
    assert set(quantized.values()) == {5}


@NETWORK
def test_the_fold_measures_on_the_range_images_alone(build: Build, size: int) -> None:
    model, images = build(), image_batch(size, 12)
    quantized = quantized_network(model, images, folded=False)
    units = {wire.unit for wire in quantized.wires if is_foldable(wire)}
    stage = FoldStage(Fold(), Work(quantized, open_float(model), images, SCHEDULE, range_images=5))
    with counted(stage.target) as floats, counted(stage.quantized) as changed_units:
        run(stage)
    last = max(index for index, unit in enumerate(quantized.units) if unit.name in units)
    assert floats == {unit.name: 5 if index <= last else 0 for index, unit in enumerate(quantized.units)}
    assert changed_units == {unit.name: 10 if unit.name in units else 0 for unit in quantized.units}


@NETWORK
@CHOICE
@READ
@pytest.mark.parametrize("recalibrate", ["never", "unit"])
def test_inputs_and_targets_are_those_of_a_walk_from_the_image(
    build: Build, size: int, choice: Tune, read: Read, recalibrate: Literal["never", "unit"]
) -> None:
    images = image_batch(size, 12)
    choice = replace(choice, inputs=Inputs(read), recalibrate=recalibrate)
    stage = make_stage(choice, build(), images, SCHEDULE)
    visited = []

    def compare(stage: UnitStage, step: int) -> None:
        index = stage.plan[stage.current_epoch]
        visited.append((index, step))
        with torch.no_grad():
            float_inputs = by_brute_force(stage.target, images, index)
            targets = stage.target.units[index].module(float_inputs)
            inputs = by_brute_force(stage.quantized, images, index) if read != "float" else float_inputs
        assert torch.equal(all_of(stage.float_inputs), float_inputs)
        assert torch.equal(all_of(stage.targets), targets)
        assert torch.equal(all_of(stage.inputs), inputs)

    run(stage, EachStep(compare))
    assert visited == [(index, step) for index in stage.plan for step in range(2)]


@READ
def test_entering_a_unit_again_does_nothing(read: Read) -> None:
    stage = make_stage(replace(STAGE3, inputs=Inputs(read)), tiny_vit(), image_batch(16, 12), SCHEDULE)

    def enter_again(stage: UnitStage, step: int) -> None:
        before = stage.inputs, stage.float_inputs, stage.targets
        with counted(stage.target) as floats, counted(stage.quantized) as quantized:
            stage.enter_unit()
        assert not sum(floats.values()) + sum(quantized.values())
        assert all(a is b for a, b in zip(before, (stage.inputs, stage.float_inputs, stage.targets), strict=True))

    run(stage, EachStep(enter_again), EachStep(enter_again, after=True))


@CHOICE
def test_networks_are_in_evaluation_mode_in_every_step(choice: Tune) -> None:
    stage = make_stage(choice, tiny_swin(drop_path_rate=0.5), image_batch(32, 6), SCHEDULE)
    modes = []

    def look(stage: UnitStage, step: int) -> None:
        networks = (stage.quantized.model, stage.target.model)
        modes.append(any(module.training for network in networks for module in network.modules()))

    handles = [unit.module.register_forward_hook(lambda *_: look(stage, 0)) for unit in stage.quantized.units]
    run(stage, EachStep(look))
    for handle in handles:
        handle.remove()
    assert len(modes) >= len(stage.plan) * 4
    assert not any(modes)


def test_caches_on_disk_change_no_bit_and_half_of_them_little(tmp_path: Path) -> None:
    weights = {}
    for name, caches in {
        "memory": Caches(),
        "disk": Caches(where="disk", directory=str(tmp_path), chunk=3),
        "half": Caches(precision="float16"),
    }.items():
        torch.manual_seed(0)
        stage = make_stage(STAGE3, tiny_swin(), image_batch(32, 4), Schedule(3, 2, caches=caches))
        run(stage)
        weights[name] = torch.cat([value.flatten() for value in stage.network.state_dict().values()])
    assert torch.equal(weights["disk"], weights["memory"])
    assert not torch.equal(weights["half"], weights["memory"])
    assert float((weights["half"] - weights["memory"]).norm() / weights["memory"].norm()) < 1e-2


@NETWORK
@CHOICE
def test_what_is_recomputed_is_what_would_be_held(build: Build, size: int, choice: Tune) -> None:
    """To the last bit where images pass one by one in either way; nothing but the images is held."""
    weights, losses = {}, {}
    for where in ("memory", "recompute"):
        torch.manual_seed(0)
        schedule = Schedule(3, 2, micro_batch=1, caches=Caches(where=where, chunk=1))  # type: ignore[arg-type]
        stage = make_stage(replace(choice, inputs=Inputs("mixed")), build(), image_batch(size, 4), schedule)
        kinds: list[type] = []
        run(stage, EachStep(lambda stage, _, kinds=kinds: kinds.append(type(stage.targets))))
        assert set(kinds) == {Recomputed if where == "recompute" else Held}
        weights[where], losses[where] = snapshot(stage.network), stage.last_loss
    assert changed(weights["memory"], weights["recompute"]) == set()
    assert torch.equal(losses["memory"], losses["recompute"])


def test_whole_batches_are_recomputed_up_to_rounding() -> None:
    weights = {}
    for where in ("memory", "recompute"):
        torch.manual_seed(0)
        schedule = Schedule(3, 4, caches=Caches(where=where))  # type: ignore[arg-type]
        stage = make_stage(MIXED, tiny_vit(), image_batch(16, 8), schedule)
        run(stage)
        weights[where] = torch.cat([value.flatten() for value in stage.network.state_dict().values()])
    change = (weights["recompute"] - weights["memory"]).norm() / weights["memory"].norm()
    assert float(change) < 1e-3


def test_epochs_are_units_and_steps_are_iterations() -> None:
    stage = make_stage(STAGE3, tiny_vit(), image_batch(16, 4), Schedule(iterations=3, batch_size=2))
    steps: list[tuple[int, int]] = []
    run(stage, EachStep(lambda stage, step: steps.append((stage.current_epoch, step))))
    assert stage.epochs == len(stage.quantized.units) == 4
    assert steps == [(epoch, step) for epoch in range(4) for step in range(3)]
