"""A step that does not fit into memory is done again in halves, with the same result."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import SINGLE, Data
from isvit_lightning.stages import Inputs, Schedule, StraightThrough, Tune, UnitStage
from isvit_lightning.stages.halving import MicroBatch
from isvit_lightning.stages.passes import Held, run_in_chunks
from tests.helpers import image_batch, relative_change, tiny_vit
from tests.stages.fitting import STAGE1, STAGE3, changed, make_stage, run, snapshot

CPU = torch.device("cpu")
CHOICE = pytest.mark.parametrize("choice", [STAGE1, STAGE3], ids=["stage1", "stage3"])


def limited(module: nn.Module, images: int, only_tuning: bool = True) -> None:
    """Let ``module`` run out of memory above so many images."""

    def refuse(_: nn.Module, args: tuple[torch.Tensor]) -> None:
        if len(args[0]) > images and (torch.is_grad_enabled() or not only_tuning):
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(args[0])} GiB.")

    module.register_forward_pre_hook(refuse)


def tuned(choice: Tune, micro_batch: int | None, limit: int | None = None) -> UnitStage:
    torch.manual_seed(0)
    # Small steps: the larger they are, the more values cross from one code to the next because of the last bit.
    choice = replace(choice, inputs=Inputs("mixed"), trainables=StraightThrough(2e-4, relative=False))
    stage = make_stage(choice, tiny_vit(), image_batch(16, 20), Schedule(4, 12, micro_batch=micro_batch))
    if limit is not None:
        limited(stage.quantized.units[1].module, limit)
    return run(stage)


@CHOICE
def test_the_result_is_that_of_the_smaller_micro_batch(choice: Tune, caplog: pytest.LogCaptureFixture) -> None:
    expected = tuned(choice, micro_batch=3)
    with caplog.at_level(logging.WARNING):
        found = tuned(choice, micro_batch=12, limit=4)
    told = [message for message in caplog.messages if f"{choice.name} blocks.0: out of memory with" in message]
    assert [message.split("going on with ")[1][0] for message in told] == ["6", "3"]
    name = "blocks.0.mlp.fc1.weight"
    states = [stage.network.state_dict()[name] for stage in (found, expected, tuned(choice, micro_batch=12))]
    # The draws are the same; sums in another order leave the last bits open, and Adam amplifies them.
    assert relative_change(states[0], states[1]) < 1e-4
    assert relative_change(states[0], states[2]) < 1e-4
    assert float(found.first_loss) == pytest.approx(float(expected.first_loss), rel=1e-3)


@CHOICE
def test_halving_in_the_first_unit_changes_no_bit_of_the_smaller_one(choice: Tune) -> None:
    """From the first step on, a stage that had to halve is one with the smaller micro-batch."""
    torch.manual_seed(0)
    images, model = image_batch(16, 20), tiny_vit()
    ends = []
    for micro_batch, limit in ((3, None), (12, 3)):
        stage = make_stage(choice, model, images, Schedule(3, 12, micro_batch=micro_batch))
        if limit is not None:
            for unit in stage.quantized.units:
                limited(unit.module, limit)
        ends.append(snapshot(run(stage).network))
    assert not changed(*ends)


def test_one_image_that_does_not_fit_is_a_sentence_with_the_numbers() -> None:
    with pytest.raises(IsvitError, match=r"^stage3 blocks.0 does not fit .* with one image .*Tried to allocate 1 GiB"):
        tuned(STAGE3, micro_batch=None, limit=0)


@pytest.mark.parametrize(("device", "advised"), [("cpu", False), ("meta", True)])
def test_the_cpu_is_advised_only_where_it_is_not_used_yet(device: str, advised: bool) -> None:
    def never(size: int) -> None:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(IsvitError) as caught:
        MicroBatch(1).retry(never, "unit", torch.device(device))
    assert ("set trainer.accelerator to cpu" in str(caught.value)) is advised


def test_other_errors_pass() -> None:
    def broken(size: int) -> None:
        raise RuntimeError(f"shapes differ at {size}")

    with pytest.raises(RuntimeError, match="shapes differ at 8"):
        MicroBatch(8).retry(broken, "unit", CPU)


@pytest.mark.parametrize("limit", [1, 3, 32])
def test_chunks_are_halved_too(limit: int) -> None:
    inputs, sizes = torch.randn(21, 3), []

    def square(part: Data) -> Data:
        if len(part[SINGLE]) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        sizes.append(len(part[SINGLE]))
        return {SINGLE: part[SINGLE].square()}

    assert torch.equal(run_in_chunks(square, Held({SINGLE: inputs}), CPU)[:][SINGLE], inputs.square())
    assert max(sizes) <= limit


def test_a_chunk_of_one_that_does_not_fit_raises() -> None:
    def never(part: Data) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        run_in_chunks(never, Held({SINGLE: torch.randn(4, 2)}), CPU)
