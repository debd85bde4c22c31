"""Reconstruction of one unit: what is trained, with which loss, at which rate, on which draws."""

import math
from typing import Any, Literal

import pytest
import torch
from lightning.pytorch import Callback

from isvit_lightning.callbacks import UnitProgress
from isvit_lightning.networks import open_quantized, quantizers, switch
from isvit_lightning.quantizers import Role
from isvit_lightning.recipe.method import Tuning
from isvit_lightning.stages import Schedule, UnitStage
from isvit_lightning.stages.tuning import (
    rated_parameters,
    reconstruction_loss,
    token_variance,
    trainable_parameters,
    trainable_scales,
)
from tests.helpers import DEFAULT_BITS, DEFAULT_METHOD, image_batch, relative_change, tiny_swin, tiny_vit
from tests.stages.fitting import EachStep, changed, make_stage, run, snapshot

TITLE = pytest.mark.parametrize("title", ["stage 1", "stage 3"])
FIXED = Tuning(loss="squared", range_learning_rate=0)


def names_of(module: torch.nn.Module, tensors: list[torch.nn.Parameter]) -> list[str]:
    wanted = {id(tensor) for tensor in tensors}
    return [name for name, parameter in module.named_parameters() if id(parameter) in wanted]


def test_a_vit_block_trains_eight_tensors() -> None:
    block = open_quantized(tiny_vit(), DEFAULT_BITS, DEFAULT_METHOD).units[1].module
    trained = trainable_parameters(block)
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert len(trained) == 8
    assert set(names_of(block, trained)) == {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}


def test_a_swin_block_trains_the_position_bias_table_too() -> None:
    units = open_quantized(tiny_swin(), DEFAULT_BITS, DEFAULT_METHOD).units
    for unit in units:
        trained = names_of(unit.module, trainable_parameters(unit.module))
        if "blocks" in unit.name:
            assert len(trained) == 9
            assert "attn.relative_position_bias_table" in trained
        else:
            assert trained == (["weight"] if "reduction" in unit.name else ["weight", "bias"])


@pytest.mark.parametrize("build", [tiny_vit, tiny_swin], ids=["vit", "swin"])
def test_rates_are_relative_to_the_size_of_each_weight_and_shared_by_its_bias(build: Any) -> None:
    for unit in open_quantized(build(), DEFAULT_BITS, DEFAULT_METHOD).units:
        groups = rated_parameters(unit.module, Tuning(relative_learning_rate=0.25))
        for tensors, rate in groups:
            size = math.sqrt(sum(value**2 for value in tensors[0].flatten().tolist()) / tensors[0].numel())
            assert rate == pytest.approx(0.25 * size, rel=1e-5)
            assert len({tensor.shape[0] for tensor in tensors}) == 1
        found = [tensor for tensors, _ in groups for tensor in tensors]
        assert [id(tensor) for tensor in found] == [id(tensor) for tensor in trainable_parameters(unit.module)]


def test_a_learning_rate_of_its_own_holds_for_all_weights() -> None:
    block = open_quantized(tiny_vit(), DEFAULT_BITS, DEFAULT_METHOD).units[1].module
    ((tensors, rate),) = rated_parameters(block, Tuning(learning_rate=4e-5))
    assert (len(tensors), rate) == (8, 4e-5)


def test_tuning_a_network_of_scaled_weights_takes_scaled_steps() -> None:
    """What Adam changes in the first step is the rate, whatever the size of a weight."""
    for scale in (0.1, 1.0, 10.0):
        model = tiny_vit()
        with torch.no_grad():
            model.head.weight.mul_(scale)
        stage = make_stage("stage 1", model, image_batch(16, 4), Schedule(1, 4), Tuning(range_learning_rate=0))
        before = model.head.weight.detach().clone()
        run(stage)
        moved = float((stage.quantized.units[-1].module.weight - before).abs().max())
        size = float(before.square().mean().sqrt())
        assert moved == pytest.approx(stage.tuning.relative_learning_rate * size, rel=0.02)


@TITLE
@pytest.mark.parametrize("build", [tiny_vit, tiny_swin], ids=["vit", "swin"])
def test_everything_trainable_changes_and_nothing_else(title: str, build: Any) -> None:
    model = build()
    stage = make_stage(title, model, image_batch(16 if build is tiny_vit else 32, 4), Schedule(2, 4), FIXED)
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
    assert (title == "stage 1") is (not weight_grids)
    assert not [name for name in moved if "norm" in name or "pos_embed" in name or "token" in name]
    assert not changed(target, snapshot(stage.target.model))
    assert not any(parameter.requires_grad for parameter in stage.network.parameters())
    assert all(parameter.grad is None for parameter in stage.network.parameters())


@pytest.mark.parametrize("shape", [(3, 7, 5), (2, 4, 3, 6), (4, 9)], ids=["tokens", "map", "head"])
def test_loss_is_summed_over_axis_1_and_averaged_over_the_rest(shape: tuple[int, ...]) -> None:
    output, target = torch.randn(shape), torch.randn(shape)
    kept = output.clone()
    rest = [size for axis, size in enumerate(shape) if axis != 1]
    total = sum(
        (float(a) - float(b)) ** 2 for a, b in zip(output.flatten().tolist(), target.flatten().tolist(), strict=True)
    )
    assert float(reconstruction_loss(output, target)) == pytest.approx(total / math.prod(rest), rel=1e-5)
    assert float(reconstruction_loss(output, target)) == pytest.approx(
        float((output - target).pow(2).sum(1).mean()), rel=1e-5
    )
    assert torch.equal(output, kept)


def test_normalized_loss_is_the_error_in_units_of_each_tokens_variance() -> None:
    output, target = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    target[0, 0] *= 100
    variance = token_variance(target, torch.nn.Identity())
    assert variance is not None
    slow = [
        float((output[i, j] - target[i, j]).square().mean() / target[i, j].var()) for i in range(2) for j in range(5)
    ]
    assert float(reconstruction_loss(output, target, variance)) == pytest.approx(sum(slow) / 2, rel=1e-4)


def test_logits_and_the_patch_projection_have_no_tokens() -> None:
    network = open_quantized(tiny_vit(), DEFAULT_BITS, DEFAULT_METHOD)
    assert token_variance(torch.randn(4, 10), torch.nn.Identity()) is None
    assert token_variance(torch.randn(4, 8, 2, 2), network.units[0].module) is None


@TITLE
def test_the_reported_loss_is_that_of_the_whole_batch(title: str) -> None:
    stage = make_stage(title, tiny_vit(), image_batch(16, 21), Schedule(1, 21, micro_batch=4), FIXED)
    expected: list[float] = []
    progress = UnitProgress(live=False)

    @torch.no_grad()
    def look(stage: UnitStage, step: int) -> None:
        inputs = stage.inputs if title == "stage 1" else stage.float_inputs
        error = stage.unit.module(inputs) - stage.targets
        expected.append(float(error.square().sum(dim=1).mean()))

    run(stage, EachStep(look), progress)
    assert [report.first for report in progress.reports] == pytest.approx(expected, rel=1e-4)


@TITLE
def test_rates_follow_a_cosine_from_the_start_in_every_unit(title: str) -> None:
    steps = 5
    stage = make_stage(title, tiny_vit(), image_batch(16, 4), Schedule(steps, 4), Tuning(learning_rate=3e-4))
    reference = torch.optim.Adam([torch.nn.Parameter(torch.zeros(()))], lr=3e-4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=steps, eta_min=0)
    expected = []
    for _ in range(steps):
        expected.append(reference.param_groups[0]["lr"])
        reference.step()
        cosine.step()
    rates: list[list[float]] = []

    def look(stage: UnitStage, step: int) -> None:
        groups = stage._optimizer().param_groups
        rates.append([group["lr"] for group in groups])
        state = next(iter(stage._optimizer().state.values()))
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


def tuned(title: str, seed: int = 0, torch_seed: int = 0, build: Any = tiny_vit, **choices: Any) -> dict[str, Any]:
    """State after a stage; ``torch_seed`` seeds what must not matter."""
    torch.manual_seed(7)
    model, images = build(), image_batch(16 if build is tiny_vit else 32, 40)
    schedule = Schedule(3, choices.pop("batch_size", 16), seed, choices.pop("micro_batch", None))
    stage = make_stage(title, model, images, schedule, Tuning(**choices))
    torch.manual_seed(torch_seed)
    return snapshot(run(stage).network)


@TITLE
@pytest.mark.parametrize("inputs", ["float", "mixed"])
def test_a_seed_fixes_every_bit(title: str, inputs: Literal["float", "mixed"]) -> None:
    first = tuned(title, 3, inputs=inputs)
    assert not changed(first, tuned(title, 3, torch_seed=99, inputs=inputs))
    other = changed(first, tuned(title, 4, inputs=inputs))
    assert {name for name in first if name.endswith(("qkv.weight", "fc2.weight"))} <= other


@TITLE
def test_stochastic_depth_is_off(title: str) -> None:
    def build() -> torch.nn.Module:
        return tiny_swin(drop_path_rate=0.5)

    first = tuned(title, build=build)
    assert not changed(first, tuned(title, torch_seed=99, build=build))


def first_gradients(title: str, micro_batch: int, inputs: Literal["float", "mixed"]) -> dict[str, torch.Tensor]:
    """Gradient of all tuned tensors of each unit at its first step; the weights stay as they are."""
    torch.manual_seed(7)
    model, images, seen = tiny_vit(), image_batch(16, 40), {}
    tuning = Tuning(inputs=inputs, learning_rate=1e-12, range_learning_rate=0.0)
    stage = make_stage(title, model, images, Schedule(1, 40, micro_batch=micro_batch), tuning)

    def look(stage: Any, step: int) -> None:
        gradients = [parameter.grad for parameter in trainable_parameters(stage.unit.module)]
        seen[stage.unit.name] = torch.cat([gradient.flatten() for gradient in gradients])

    run(stage, EachStep(look, after=True))
    return seen


@TITLE
@pytest.mark.parametrize("inputs", ["float", "mixed"])
def test_micro_batches_change_the_order_of_summation_alone(title: str, inputs: Literal["float", "mixed"]) -> None:
    # Of one step: over several, a value that crosses to the next code because of the last bit changes all that follows.
    parts, whole = first_gradients(title, 16, inputs), first_gradients(title, 40, inputs)
    assert len(whole) == (4 if title == "stage 3" else 3)
    for name, gradient in whole.items():
        assert float(gradient.norm()) > 0
        assert relative_change(parts[name], gradient) < 1e-4, name


@TITLE
@pytest.mark.parametrize("rate", [0.0, 1e-2, 5.0])
def test_scales_learn_only_if_asked_and_stay_positive(title: str, rate: float) -> None:
    stage = make_stage(title, tiny_vit(), image_batch(16, 8), Schedule(4, 8), Tuning(range_learning_rate=rate))
    activations = {
        name: quantizer for name, quantizer in quantizers(stage.network).items() if quantizer.role is not Role.WEIGHT
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


def test_scales_of_weights_and_of_channels_are_no_trainable_scales() -> None:
    network = open_quantized(tiny_vit(), DEFAULT_BITS, DEFAULT_METHOD)
    block = network.units[1].module
    switch(network.model, weights=True, activations=True)
    found = {id(scale) for scale in trainable_scales(block)}
    names = {name for name, quantizer in quantizers(block).items() if id(getattr(quantizer, "scale", None)) in found}
    roles = {quantizers(block)[name].role.value for name in names}
    assert roles == {"query", "key", "value", "proj_in", "gelu_out"}
    switch(network.model, weights=True, activations=False)
    assert trainable_scales(block) == []


class ZerosAndOnes(Callback):
    """Marks float inputs by 1 and quantized ones by 0, and keeps what the unit reads."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []
        self._handle: Any = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.inputs = torch.zeros_like(pl_module.inputs)
        pl_module.float_inputs = torch.ones_like(pl_module.float_inputs)
        self._handle = pl_module.unit.module.register_forward_pre_hook(
            lambda module, args: self.seen.append(args[0].clone())
        )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._handle.remove()


@pytest.mark.parametrize(("inputs", "share"), [("float", 0.0), ("quantized", 0.0), ("mixed", 0.5)])
def test_mixed_inputs_take_half_of_both(inputs: Literal["float", "quantized", "mixed"], share: float) -> None:
    marks = ZerosAndOnes()
    stage = make_stage("stage 3", tiny_vit(), image_batch(16, 20), Schedule(2, 20), Tuning(inputs=inputs))
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
    stage = make_stage("stage 1", tiny_vit(), images, Schedule(3, 4), FIXED)
    batches: list[list[int]] = []

    def read(module: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
        if torch.is_grad_enabled():
            batches.append(
                [next(i for i, own in enumerate(stage.inputs) if torch.equal(own, image)) for image in args[0]]
            )

    handle = stage.quantized.units[1].module.register_forward_pre_hook(read)
    run(stage)
    handle.remove()
    assert len(batches) == 3
    assert all(len(set(batch)) == 4 for batch in batches)
    assert len({tuple(batch) for batch in batches}) == 3
