"""Reconstruction of the units of a network: which ones, with which steps, on which draws."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from isvit_lightning.callbacks import UnitProgress
from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import SINGLE, quantizers
from isvit_lightning.recipe import Bits
from isvit_lightning.stages import (
    Inputs,
    NoWeights,
    Schedule,
    SquaredError,
    StraightThrough,
    Tune,
    TuningStage,
    UnitStage,
)
from isvit_lightning.stages.passes import Held, Rows
from isvit_lightning.stages.trainables import trainable_parameters
from tests.helpers import image_batch, relative_change, tiny_swin, tiny_vit
from tests.stages.fitting import NUMBERS, STAGE1, STAGE3, EachStep, changed, make_stage, run, snapshot, work_on

NETWORK = pytest.mark.parametrize(("build", "size"), [(tiny_vit, 16), (tiny_swin, 32)], ids=["vit", "swin"])
FLOAT = Inputs("float")
STEPS = [replace(STAGE1, inputs=FLOAT), replace(STAGE3, inputs=FLOAT)]
CHOICE = pytest.mark.parametrize("choice", STEPS, ids=["stage1", "stage3"])
READ = pytest.mark.parametrize("read", ["float", "mixed"])
FIXED: dict[str, Any] = {"loss": SquaredError(), "range_learning_rate": 0.0}
Build = Callable[[], nn.Module]


def names_of(module: nn.Module, tensors: list[torch.Tensor]) -> list[str]:
    wanted = {id(tensor) for tensor in tensors}
    return [name for name, parameter in module.named_parameters() if id(parameter) in wanted]


def all_of(rows: Rows) -> torch.Tensor:
    return rows[:][SINGLE]


@NETWORK
def test_the_patch_projection_is_not_visited_with_float_weights(build: Build, size: int) -> None:
    stage = make_stage(STAGE1, build(), image_batch(size, 4), Schedule(1, 4))
    assert stage.quantized.units[0].name == "patch_embed.proj"
    assert stage.plan == list(range(1, len(stage.quantized.units)))
    before = snapshot(stage.network)
    run(stage)
    names = {name.split(".")[0] for name in changed(before, snapshot(stage.network))}
    assert "patch_embed" not in names
    assert "head" in names


@NETWORK
@pytest.mark.parametrize(
    ("weights", "activations", "ranges"), [(False, True, False), (True, True, True), (True, False, True)]
)
def test_what_is_quantized_is_on_and_nothing_else(
    build: Build, size: int, weights: bool, activations: bool, ranges: bool
) -> None:
    choice = replace(STAGE3, weights=weights, activations=activations)
    stage = make_stage(choice, build(), image_batch(size, 4), Schedule(1, 4), ranges)
    run(stage)
    assert len(stage.plan) == len(stage.quantized.units) - (not weights)
    for quantizer in quantizers(stage.network).values():
        assert quantizer.enabled is (weights if quantizer.role.weight else activations)
        assert quantizer.calibrated is (quantizer.enabled or (ranges and not quantizer.role.weight))


@NETWORK
@pytest.mark.parametrize(
    ("choice", "iterations", "units"), [(STAGE1, 30, ""), (STAGE3, 20, "blocks")], ids=["stage1", "stage3"]
)
def test_the_loss_falls(build: Build, size: int, choice: Tune, iterations: int, units: str) -> None:
    read = FLOAT if choice is STAGE1 else Inputs("quantized")
    rate = 0.0 if choice is STAGE1 else 1e-2
    choice = replace(choice, inputs=read, trainables=StraightThrough(2e-3, relative=False), range_learning_rate=rate)
    progress = UnitProgress(live=False)
    run(make_stage(choice, build(), image_batch(size, 8), Schedule(iterations, 8), bits=Bits(4, 4)), progress)
    reports = [report for report in progress.reports if units in report.unit]
    assert len(reports) >= 2
    for report in reports:
        assert 0 < report.last < report.first, report


def test_targets_are_those_of_the_float_network() -> None:
    model, images = tiny_vit(), image_batch(16, 4)
    targets: list[torch.Tensor] = []
    run(
        make_stage(STEPS[0], model, images, Schedule(1, 4)),
        EachStep(lambda stage, step: targets.append(all_of(stage.targets))),
    )
    with torch.no_grad():
        assert torch.equal(targets[-1], model(images))


def test_grids_of_weights_are_chosen_once() -> None:
    stage = make_stage(STEPS[1], tiny_vit(), image_batch(16, 4), Schedule(2, 4))
    scales = []

    def look(stage: UnitStage, step: int) -> None:
        scales.append([q.scale.clone() for q in quantizers(stage.network).values() if q.role.weight])

    run(stage, EachStep(look))
    assert len(scales[0]) == 10
    for later in scales[1:]:
        assert all(torch.equal(a, b) for a, b in zip(scales[0], later, strict=True))


def test_a_weight_moves_although_it_is_rounded() -> None:
    stage = make_stage(STEPS[1], tiny_vit(), image_batch(16, 4), Schedule(2, 4))
    before = stage.network.patch_embed.proj.weight.detach().clone()
    run(stage)
    assert not torch.equal(stage.network.patch_embed.proj.weight, before)


def test_without_weights_only_scales_move() -> None:
    choice = replace(STEPS[1], trainables=NoWeights())
    stage = make_stage(choice, tiny_vit(), image_batch(16, 8), Schedule(3, 8))
    before = snapshot(stage.network)
    run(stage)
    # The patch projection has nothing but a weight.
    assert stage.plan == [1, 2, 3]
    moved = {name for name in changed(before, snapshot(stage.network)) if ".weight_quantizer." not in name}
    assert moved
    assert all(name.endswith("_quantizer.scale") for name in moved)


def test_a_step_that_tunes_nothing_is_refused() -> None:
    choice = replace(STEPS[1], trainables=NoWeights(), range_learning_rate=0.0)
    with pytest.raises(IsvitError, match="nothing to tune in a unit"):
        run(make_stage(choice, tiny_vit(), image_batch(16, 4), Schedule(1, 4)))


def test_a_step_may_have_iterations_of_its_own() -> None:
    steps: list[int] = []
    stage = make_stage(replace(STEPS[0], iterations=3), tiny_vit(), image_batch(16, 4), Schedule(5, 4))
    run(stage, EachStep(lambda stage, step: steps.append(step)))
    assert steps == [0, 1, 2] * 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"range_learning_rate": -0.1}, "range_learning_rate of -0.1, expected 0 or a positive one"),
        ({"range_learning_rate": float("nan")}, "range_learning_rate of nan"),
        ({"range_learning_rate": float("inf")}, "range_learning_rate of inf"),
        ({"iterations": 0}, "step mine has 0 iterations, expected 1 or more"),
        ({"weights": False, "activations": False}, "step mine quantizes nothing"),
    ],
)
def test_choices_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(IsvitError, match=message):
        Tune("mine", **values)


def test_tuning_a_network_of_scaled_weights_takes_scaled_steps() -> None:
    """What Adam changes in the first step is the rate, whatever the size of a weight."""
    for scale in (0.1, 1.0, 10.0):
        model = tiny_vit()
        with torch.no_grad():
            model.head.weight.mul_(scale)
        stage = make_stage(replace(STEPS[0], range_learning_rate=0.0), model, image_batch(16, 4), Schedule(1, 4))
        before = model.head.weight.detach().clone()
        run(stage)
        moved = float((stage.quantized.units[-1].module.weight - before).abs().max())
        size = float(before.square().mean().sqrt())
        assert moved == pytest.approx(StraightThrough().rate * size, rel=0.02)


@CHOICE
@pytest.mark.parametrize("build", [tiny_vit, tiny_swin], ids=["vit", "swin"])
def test_everything_trainable_changes_and_nothing_else(choice: Tune, build: Any) -> None:
    model = build()
    stage = make_stage(replace(choice, **FIXED), model, image_batch(16 if build is tiny_vit else 32, 4), Schedule(2, 4))
    before, target = snapshot(stage.network), snapshot(stage.target.model)
    run(stage)
    trained = {
        f"{stage.quantized.units[index].name}.{name}"
        for index in stage.plan
        for name in names_of(
            stage.quantized.units[index].module, trainable_parameters(stage.quantized.units[index].module)
        )
    }
    moved = changed(before, snapshot(stage.network))
    weight_grids = {name for name in moved if ".weight_quantizer." in name}
    assert moved - weight_grids == trained
    assert (not choice.weights) is (not weight_grids)
    assert not [name for name in moved if "norm" in name or "pos_embed" in name or "token" in name]
    assert not changed(target, snapshot(stage.target.model))
    assert not any(parameter.requires_grad for parameter in stage.network.parameters())
    assert all(parameter.grad is None for parameter in stage.network.parameters())


@CHOICE
def test_the_reported_loss_is_that_of_the_whole_batch(choice: Tune) -> None:
    stage = make_stage(replace(choice, **FIXED), tiny_vit(), image_batch(16, 21), Schedule(1, 21, micro_batch=4))
    expected: list[float] = []
    progress = UnitProgress(live=False)

    @torch.no_grad()
    def look(stage: UnitStage, step: int) -> None:
        error = stage.unit.module(all_of(stage.inputs)) - all_of(stage.targets)
        expected.append(float(error.square().sum(dim=1).mean()))

    run(stage, EachStep(look), progress)
    assert [report.first for report in progress.reports] == pytest.approx(expected, rel=1e-4)


@CHOICE
def test_rates_follow_a_cosine_from_the_start_in_every_unit(choice: Tune) -> None:
    steps = 5
    stage = make_stage(
        replace(choice, trainables=StraightThrough(3e-4, relative=False)),
        tiny_vit(),
        image_batch(16, 4),
        Schedule(steps, 4),
    )
    reference = torch.optim.Adam([torch.nn.Parameter(torch.zeros(()))], lr=3e-4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=steps, eta_min=0)
    expected = []
    for _ in range(steps):
        expected.append(reference.param_groups[0]["lr"])
        reference.step()
        cosine.step()
    rates: list[list[float]] = []

    def look(stage: UnitStage, step: int) -> None:
        (optimizer,) = stage.trainer.optimizers
        groups = optimizer.param_groups
        rates.append([group["lr"] for group in groups])
        state = next(iter(optimizer.state.values()))
        assert int(state["step"]) == step + 1
        assert all(group["weight_decay"] == 0 for group in groups)
        assert all(group["betas"] == (0.9, 0.999) and group["eps"] == 1e-8 for group in groups)

    run(stage, EachStep(look, after=True))
    for start in range(0, len(rates), steps):
        assert [rate[0] for rate in rates[start : start + steps]] == pytest.approx(expected, rel=1e-6)
        # Rates of scales keep their proportion to the rate of the weights.
        for step, rate in enumerate(rates[start : start + steps]):
            share = expected[step] / expected[0]
            assert rate[1:] == pytest.approx([share * first for first in rates[start][1:]], rel=1e-6)


def tuned(choice: Tune, seed: int = 0, torch_seed: int = 0, build: Any = tiny_vit) -> dict[str, torch.Tensor]:
    """State after a stage; ``torch_seed`` seeds what must not matter."""
    torch.manual_seed(7)
    model, images = build(), image_batch(16 if build is tiny_vit else 32, 40)
    work = work_on(model, images, Schedule(3, 16), number=NUMBERS[choice.name])
    stage = TuningStage(choice, replace(work, seed=seed))
    torch.manual_seed(torch_seed)
    return snapshot(run(stage).network)


@CHOICE
@READ
def test_a_seed_fixes_every_bit(choice: Tune, read: Literal["float", "mixed"]) -> None:
    choice = replace(choice, inputs=Inputs(read))
    first = tuned(choice, 3)
    assert not changed(first, tuned(choice, 3, torch_seed=99))
    other = changed(first, tuned(choice, 4))
    assert {name for name in first if name.endswith(("qkv.weight", "fc2.weight"))} <= other


@CHOICE
def test_stochastic_depth_is_off(choice: Tune) -> None:
    def build() -> torch.nn.Module:
        return tiny_swin(drop_path_rate=0.5)

    first = tuned(choice, build=build)
    assert not changed(first, tuned(choice, torch_seed=99, build=build))


def first_gradients(choice: Tune, micro_batch: int) -> dict[str, torch.Tensor]:
    """Gradient of all tuned tensors of each unit at its first step; the weights stay as they are."""
    torch.manual_seed(7)
    model, images, seen = tiny_vit(), image_batch(16, 40), {}
    choice = replace(choice, trainables=StraightThrough(1e-12, relative=False), range_learning_rate=0.0)
    stage = make_stage(choice, model, images, Schedule(1, 40, micro_batch=micro_batch))

    def look(stage: Any, step: int) -> None:
        gradients = [parameter.grad for parameter in trainable_parameters(stage.unit.module)]
        seen[stage.unit.name] = torch.cat([gradient.flatten() for gradient in gradients])

    run(stage, EachStep(look, after=True))
    return seen


@CHOICE
@READ
def test_micro_batches_change_the_order_of_summation_alone(choice: Tune, read: Literal["float", "mixed"]) -> None:
    # Of one step: over several, a value that crosses to the next code because of the last bit changes all that follows.
    choice = replace(choice, inputs=Inputs(read))
    parts, whole = first_gradients(choice, 16), first_gradients(choice, 40)
    assert len(whole) == (4 if choice.weights else 3)
    for name, gradient in whole.items():
        assert float(gradient.norm()) > 0
        assert relative_change(parts[name], gradient) < 1e-4, name


@CHOICE
@pytest.mark.parametrize("rate", [0.0, 1e-2, 5.0])
def test_scales_learn_only_if_asked_and_stay_positive(choice: Tune, rate: float) -> None:
    stage = make_stage(replace(choice, range_learning_rate=rate), tiny_vit(), image_batch(16, 8), Schedule(4, 8))
    activations = {
        name: quantizer for name, quantizer in quantizers(stage.network).items() if not quantizer.role.weight
    }
    before = {name: {k: v.clone() for k, v in quantizer.named_buffers()} for name, quantizer in activations.items()}
    run(stage)
    moved = {
        name
        for name, quantizer in activations.items()
        if "scale" in before[name] and not torch.equal(quantizer.scale, before[name]["scale"])
    }
    uniform = {name for name in activations if "scale" in before[name]}
    per_tensor = {name for name in uniform if before[name]["scale"].dim() == 0}
    assert moved == (per_tensor if rate else set())
    for name in uniform:
        old, new = before[name]["scale"], activations[name].scale
        assert torch.all(new >= old / 10 * 0.999)
        assert not new.requires_grad
        assert torch.equal(activations[name].zero_point, before[name]["zero_point"])
    for name in activations.keys() - uniform:
        assert all(torch.equal(value, before[name][key]) for key, value in activations[name].named_buffers())


class ZerosAndOnes(Callback):
    """Marks float inputs by 1 and quantized ones by 0, and keeps what the unit reads."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []
        self._handle: Any = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.inputs = Held({SINGLE: torch.zeros_like(all_of(pl_module.inputs))})
        pl_module.float_inputs = Held({SINGLE: torch.ones_like(all_of(pl_module.float_inputs))})
        self._handle = pl_module.unit.module.register_forward_pre_hook(
            lambda module, args: self.seen.append(args[0].clone())
        )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._handle.remove()


@pytest.mark.parametrize(
    ("inputs", "share"),
    [(FLOAT, 0.0), (Inputs("quantized"), 0.0), (Inputs("mixed"), 0.5), (Inputs("mixed", probability=0.2), 0.2)],
    ids=["float", "quantized", "mixed", "a_fifth"],
)
def test_mixed_inputs_take_a_share_of_both(inputs: Inputs, share: float) -> None:
    marks = ZerosAndOnes()
    stage = make_stage(replace(STAGE3, inputs=inputs), tiny_vit(), image_batch(16, 20), Schedule(2, 20))
    run(stage, marks)
    assert len(marks.seen) == 4 * 2 * 2
    for seen in marks.seen:
        assert set(seen.unique().tolist()) == ({0.0, 1.0} if share else {0.0})
    elements = torch.cat([seen.flatten() for seen in marks.seen])
    assert float(elements.mean()) == pytest.approx(share, abs=0.02)
    # Element by element, not image by image or token by token.
    blocks = [seen for seen in marks.seen if seen.dim() == 3]
    assert blocks
    for seen in blocks:
        assert bool((seen.std(dim=-1) > 0).float().mean() > 0.9) is bool(share)


def test_a_batch_draws_each_image_once() -> None:
    images = image_batch(16, 6)
    stage = make_stage(replace(STEPS[0], **FIXED), tiny_vit(), images, Schedule(3, 4))
    batches: list[list[int]] = []

    def read(module: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
        if torch.is_grad_enabled():
            batches.append(
                [next(i for i, own in enumerate(all_of(stage.inputs)) if torch.equal(own, image)) for image in args[0]]
            )

    handle = stage.quantized.units[1].module.register_forward_pre_hook(read)
    run(stage)
    handle.remove()
    assert len(batches) == 3
    assert all(len(set(batch)) == 4 for batch in batches)
    assert len({tuple(batch) for batch in batches}) == 3
