"""What an earlier run of a stage finished is loaded; what other processes finished is fetched."""

import torch
from torch import nn

from isvit_lightning.networks import refresh
from isvit_lightning.stages.walk import UnitStage
from isvit_lightning.storage.parts import Parts
from isvit_lightning.system.processes import broadcast_tensors, rank, world_size


def restore(stage: UnitStage, parts: Parts) -> None:
    """Load the finished units of ``stage`` and take them off its plan. All processes must call it.

    Units of a stage on float inputs do not depend on each other; otherwise the first one that is missing ends what can
    be used, because all later ones were tuned on its outputs.

    Args:
        stage: a stage that tunes, before its fit.
        parts: the finished parts of the run.
    """
    start = parts.read(f"{stage.name}-start")
    if start is None:
        return
    _load_grids(stage.quantized.model, start.tensors)
    stage.ranges_chosen = True
    finished = set()
    for index in stage.plan:
        part = parts.read(f"{stage.name}-{index:03d}")
        if part is not None:
            stage.quantized.units[index].module.load_state_dict(part.tensors)
            finished.add(index)
        elif stage.reads_quantized:
            break
    stage.plan = [index for index in stage.plan if index not in finished]


def share_units(stage: UnitStage) -> None:
    """Leave in the plan of ``stage`` what this process is to do, if its units do not depend on each other."""
    if not (stage.shards_images or stage.replicated):
        stage.plan = stage.plan[rank() :: world_size()]


def collect(stage: UnitStage, planned: list[int]) -> None:
    """Bring what the processes did to every process. All processes must call it.

    Args:
        stage: the stage, after its fit.
        planned: its plan before it was shared.
    """
    if world_size() == 1 or stage.shards_images:
        return
    if stage.replicated:
        synchronize(stage.quantized.model)
        return
    for position, index in enumerate(planned):
        synchronize(stage.quantized.units[index].module, position % world_size())


def synchronize(module: nn.Module, source: int = 0) -> None:
    """Give every process the state of ``module`` in the process ``source``."""
    broadcast_tensors(module.state_dict().values(), source)
    refresh(module)


def _load_grids(model: nn.Module, grids: dict[str, torch.Tensor]) -> None:
    model.load_state_dict(grids, strict=False)
    refresh(model)
