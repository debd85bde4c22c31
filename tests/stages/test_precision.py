"""Under autocast to bfloat16: codes, weights, optimizer and loss stay in float32, and so do the ranges."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from isvit_lightning.embedded.digits import digit_images
from isvit_lightning.embedded.networks import embedded_network
from isvit_lightning.networks import SINGLE, OpenedNetwork, open_float, quantizers
from isvit_lightning.quantizers import Quantizer
from isvit_lightning.recipe import Bits
from isvit_lightning.run.pipeline import Calibration, calibrate_network
from isvit_lightning.stages import Fold, FoldStage, Schedule, Tune, UnitStage, Work
from tests.helpers import DEFAULT_RECIPE, image_batch, quantized_network, tiny_swin, tiny_vit
from tests.stages.fitting import STAGE1, STAGE3, EachStep, changed, make_stage, run, snapshot

BUILD = {"vit": (tiny_vit, 16), "swin": (tiny_swin, 32)}


@pytest.mark.parametrize("choice", [STAGE1, STAGE3], ids=["stage1", "stage3"])
@pytest.mark.parametrize("kind", BUILD)
def test_every_value_lies_exactly_on_the_grid(kind: str, choice: Tune) -> None:
    build, size = BUILD[kind]
    stage = make_stage(choice, build(), image_batch(size, 8), Schedule(2, 4))
    read, seen = set[torch.dtype](), set[str]()

    def check(module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor, name: str) -> None:
        quantizer = module
        assert isinstance(quantizer, Quantizer)
        if quantizer.enabled and torch.is_autocast_enabled("cpu"):
            read.add(args[0].dtype)
            seen.add(name)
            assert output.dtype is torch.float32
            assert torch.equal(output, quantizer.decode(quantizer.encode(args[0].float())))

    for name, quantizer in quantizers(stage.network).items():
        quantizer.register_forward_hook(partial(check, name=name))
    types: set[torch.dtype] = set()

    def look(stage: Any, step: int) -> None:
        types.add(stage.last_loss.dtype)
        types.update(parameter.dtype for parameter in stage.network.parameters())
        types.update(value.dtype for state in stage.trainer.optimizers[0].state.values() for value in state.values())
        types.update(each.tensors[SINGLE].dtype for each in (stage.inputs, stage.targets))

    run(stage, EachStep(look, after=True), precision="bf16-mixed")
    assert read == {torch.bfloat16, torch.float32}
    switched_on = {name for name, quantizer in quantizers(stage.network).items() if quantizer.enabled}
    assert seen == switched_on
    assert types == {torch.float32}


def test_the_fold_is_that_of_float32() -> None:
    model, images = tiny_vit(), image_batch(16, 6)

    def folded(precision: Any) -> tuple[dict[str, torch.Tensor], float]:
        opened = quantized_network(model, images, folded=False)
        stage = FoldStage(Fold(), Work(opened, open_float(model), images, Schedule()))
        run(stage, precision=precision)
        return snapshot(opened.model), float(stage.last_loss)

    (expected, change), (got, change_in_half) = folded("32-true"), folded("bf16-mixed")
    assert changed(expected, got) == set()
    assert change == change_in_half


def test_the_digits_end_near_float32() -> None:
    images, labels = digit_images("held_out")
    calibration = Calibration(
        embedded_network("vit_digits"), digit_images("train")[0][:64], Bits(4, 4), DEFAULT_RECIPE, Schedule(10, 32)
    )

    def accuracy(precision: Any) -> float:
        def fit(stage: UnitStage) -> None:
            run(stage, precision=precision)

        network: OpenedNetwork = calibrate_network(calibration, fit)
        with torch.no_grad():
            return 100 * float((network.model(images[:200]).argmax(dim=1) == labels[:200]).float().mean())

    expected, got = accuracy("32-true"), accuracy("bf16-mixed")
    assert expected > 90
    assert got == pytest.approx(expected, abs=2)
