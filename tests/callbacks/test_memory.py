"""Memory that is free goes back to the system."""

import gc
import sys
import weakref
from pathlib import Path

import pytest
import torch

from isvit_lightning.callbacks import ReturnMemory, let_go
from isvit_lightning.stages import Schedule
from tests.helpers import image_batch, tiny_vit
from tests.stages.fitting import STAGE3, changed, make_stage, run, snapshot


class Node:
    other: object = None


def resident() -> int:
    """Resident size of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_cycles_are_collected() -> None:
    first, second = Node(), Node()
    first.other, second.other = second, first
    alive = weakref.ref(first)
    gc.disable()
    del first, second
    assert alive() is not None
    let_go()
    gc.enable()
    assert alive() is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_holes_in_the_heap_go_back() -> None:
    blocks = [torch.ones(16_000) for _ in range(1000)]  # 64 KB each: small enough to lie in the heap
    kept = blocks[::50]
    before = resident()
    del blocks
    let_go()
    assert before - resident() > 30e6
    assert len(kept) == 20


def test_the_result_is_the_same_and_finished_stages_hold_no_cache() -> None:
    model, images = tiny_vit(), image_batch(16, 8)
    ends = []
    for callbacks in ((), (ReturnMemory(),)):
        torch.manual_seed(0)
        stage = run(make_stage(STAGE3, model, images, Schedule(2, 4)), *callbacks)
        ends.append(snapshot(stage.network))
        assert len(stage.inputs) == len(stage.targets) == len(stage.float_inputs) == 0
    assert not changed(*ends)
