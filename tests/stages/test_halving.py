"""A step that does not fit into memory is done again in halves, with the same result."""

import logging
from typing import Any

import pytest
import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.recipe.method import Tuning
from isvit_lightning.stages import Schedule, UnitStage
from isvit_lightning.stages.halving import MicroBatch
from isvit_lightning.stages.passes import run_in_chunks
from tests.helpers import image_batch, relative_change, tiny_vit
from tests.stages.fitting import TUNED, changed, make_stage, run, snapshot

CPU = torch.device("cpu")
TITLE = pytest.mark.parametrize("title", TUNED)


def limited(module: nn.Module, images: int, only_tuning: bool = True) -> None:
    """Let ``module`` run out of memory above so many images."""

    def refuse(_: nn.Module, args: tuple[torch.Tensor]) -> None:
        if len(args[0]) > images and (torch.is_grad_enabled() or not only_tuning):
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(args[0])} GiB.")

    module.register_forward_pre_hook(refuse)


def tuned(title: str, micro_batch: int | None, limit: int | None = None) -> UnitStage:
    torch.manual_seed(0)
    # Small steps: the larger they are, the more values cross from one code to the next because of the last bit.
    tuning = Tuning(inputs="mixed", learning_rate=2e-4)
    stage = make_stage(title, tiny_vit(), image_batch(16, 20), Schedule(4, 12, micro_batch=micro_batch), tuning)
    if limit is not None:
        limited(stage.quantized.units[1].module, limit)
    return run(stage)


@TITLE
def test_the_result_is_that_of_the_smaller_micro_batch(title: str, caplog: pytest.LogCaptureFixture) -> None:
    expected = tuned(title, micro_batch=3)
    with caplog.at_level(logging.WARNING):
        found = tuned(title, micro_batch=12, limit=4)
    told = [message for message in caplog.messages if f"{title} blocks.0: out of memory with" in message]
    assert [message.split("going on with ")[1][0] for message in told] == ["6", "3"]
    name = "blocks.0.mlp.fc1.weight"
    states = [stage.network.state_dict()[name] for stage in (found, expected, tuned(title, micro_batch=12))]
    # The draws are the same; sums in another order leave the last bits open, and Adam amplifies them.
    assert relative_change(states[0], states[1]) < 1e-4
    assert relative_change(states[0], states[2]) < 1e-4
    assert float(found.first_loss) == pytest.approx(float(expected.first_loss), rel=1e-3)


@TITLE
def test_halving_in_the_first_unit_changes_no_bit_of_the_smaller_one(title: str) -> None:
    """From the first step on, a stage that had to halve is one with the smaller micro-batch."""
    torch.manual_seed(0)
    images, model = image_batch(16, 20), tiny_vit()
    ends = []
    for micro_batch, limit in ((3, None), (12, 3)):
        stage = make_stage(title, model, images, Schedule(3, 12, micro_batch=micro_batch))
        if limit is not None:
            for unit in stage.quantized.units:
                limited(unit.module, limit)
        ends.append(snapshot(run(stage).network))
    assert not changed(*ends)


def test_one_image_that_does_not_fit_is_a_sentence_with_the_numbers() -> None:
    with pytest.raises(IsvitError, match=r"^stage 3 blocks.0 does not fit .* with one image .*Tried to allocate 1 GiB"):
        tuned("stage 3", micro_batch=None, limit=0)


def test_other_errors_pass() -> None:
    def broken(size: int) -> None:
        raise RuntimeError(f"shapes differ at {size}")

    with pytest.raises(RuntimeError, match="shapes differ at 8"):
        MicroBatch(8).retry(broken, "unit", CPU)


@pytest.mark.parametrize("limit", [1, 3, 32])
def test_chunks_are_halved_too(limit: int) -> None:
    inputs, sizes = torch.randn(21, 3), []

    def square(part: torch.Tensor) -> torch.Tensor:
        if len(part) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        sizes.append(len(part))
        return part.square()

    assert torch.equal(run_in_chunks(square, inputs, CPU)[:], inputs.square())
    assert max(sizes) <= limit


def test_a_chunk_of_one_that_does_not_fit_raises() -> None:
    def never(part: torch.Tensor) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        run_in_chunks(never, torch.randn(4, 2), CPU)
