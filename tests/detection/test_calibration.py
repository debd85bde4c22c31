"""A detector ends with the same bits if it is interrupted, in two processes, and with caches that are recomputed."""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from detection.runtime import import_mmdet
from isvit_lightning.callbacks import CalibrateQuantizers, SaveUnits
from isvit_lightning.networks import Reconstructed
from isvit_lightning.recipe import Bits, read_recipe
from isvit_lightning.run.pipeline import Calibration, calibrate_network
from isvit_lightning.stages import Schedule, UnitStage
from isvit_lightning.storage.caches import Caches
from isvit_lightning.storage.parts import Parts
from isvit_lightning.system.hashing import hash_of
from isvit_lightning.system.processes import world_size
from tests.detection.detectors import build, mask_rcnn_config
from tests.several import in_processes
from tests.stages.fitting import StopAt, StopError, trainer_of

pytest.importorskip("mmdet")

SCHEDULE = Schedule(iterations=2, batch_size=4, micro_batch=2)
BACKBONE = ["patch_embed.projection", "stages.0.blocks.0", "stages.0.blocks.1", "stages.0.downsample.reduction",
            "stages.1.blocks.0", "stages.1.blocks.1"]  # fmt: skip
HEADS = ["neck", "rpn_head", "roi_head.bbox_head", "roi_head.mask_head"]
UNITS = {"backbone": [f"backbone.{name}" for name in BACKBONE]}
UNITS["all"] = UNITS["backbone"] + HEADS
TUNED = pytest.mark.parametrize("reconstruct", ["backbone", "all"])


class Begun(Callback):
    """Notes the units that are begun."""

    def __init__(self) -> None:
        self.units: list[tuple[str, str]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.units.append((pl_module.name, pl_module.unit.name))


def calibrated(
    reconstruct: Reconstructed,
    parts: Parts | None = None,
    *callbacks: Callback,
    schedule: Schedule = SCHEDULE,
) -> str:
    """Hash of a tiny detector after all stages, in this process alone or with others."""
    import_mmdet()
    import_module("detection.network")  # knows how detectors are opened
    torch.manual_seed(0)
    model, images = build(mask_rcnn_config()), torch.randn(6, 3, 64, 96)
    recipe = replace(read_recipe("isvit"), range_images=3, reconstruct=reconstruct)
    ranges = CalibrateQuantizers()

    def fit(stage: UnitStage) -> None:
        saving = [] if parts is None or world_size() > 1 else [SaveUnits(parts)]
        trainer = trainer_of(stage, ranges, *callbacks, *saving, enable_checkpointing=bool(saving))
        trainer.fit(stage)

    calibration = Calibration(model, images, Bits(3, 4), recipe, schedule)
    return hash_of(calibrate_network(calibration, fit, None, parts).model.state_dict())


def in_this_group(reconstruct: Reconstructed, folder: Path) -> str:
    return calibrated(reconstruct, Parts(folder, "run"))


@TUNED
def test_stopped_in_any_stage_it_ends_with_the_same_bits(reconstruct: Reconstructed, tmp_path: Path) -> None:
    late = UNITS[reconstruct][-1]
    expected, parts = calibrated(reconstruct), Parts(tmp_path, "run")
    for step, unit in (("stage1", late), ("stage2", "backbone.stages.1.blocks.0"), ("stage3", late)):
        with pytest.raises(StopError):
            calibrated(reconstruct, parts, StopAt(step, unit))
    begun = Begun()
    assert calibrated(reconstruct, parts, begun) == expected
    assert begun.units == [("stage3", late)]


@TUNED
def test_two_processes_end_with_the_bits_of_one(reconstruct: Reconstructed, tmp_path: Path) -> None:
    alone = calibrated(reconstruct)
    assert in_processes(in_this_group, 2, reconstruct, tmp_path) == [alone, alone]


@TUNED
def test_recomputed_caches_change_no_bit_where_images_pass_one_by_one(reconstruct: Reconstructed) -> None:
    one_by_one: Callable[[Caches], Schedule] = lambda caches: replace(SCHEDULE, micro_batch=1, caches=caches)  # noqa: E731
    held = calibrated(reconstruct, schedule=one_by_one(Caches(chunk=1)))
    recomputed = calibrated(reconstruct, schedule=one_by_one(Caches(where="recompute", chunk=1)))
    assert recomputed == held
