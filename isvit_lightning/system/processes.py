"""What the processes of one run tell each other. A run of one process gets the trivial answers."""

import os
from collections.abc import Iterable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.system.hashing import hash_of

Value = TypeVar("Value")


def world_size() -> int:
    """Number of processes of the run."""
    return dist.get_world_size() if _started() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if _started() else 0


def is_first_process() -> bool:
    """Whether this process speaks for the run, by what its launcher says; true before any other is started."""
    ranks = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")
    return all(int(os.environ.get(name, "0")) == 0 for name in ranks)


def lost_connection(error: RuntimeError) -> bool:
    """Whether ``error`` says that another process of the run has gone."""
    return world_size() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error))


def broadcast_object(value: Value, source: int = 0) -> Value:
    """``value`` of the process ``source``, in every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, source)
    return box[0]


def gather_objects(value: Value) -> list[Value]:
    """``value`` of each process, in every process, by rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return cast("list[Value]", values)


def gather_shares(share: list[Value]) -> list[Value]:
    """All items of a list whose item ``i`` the process ``i % world_size`` holds, in order, in every process."""
    shares = gather_objects(share)
    return [each[place] for place in range(max(map(len, shares))) for each in shares if place < len(each)]


@torch.no_grad()
def broadcast_tensors(tensors: Iterable[torch.Tensor], source: int = 0) -> None:
    """Fill ``tensors`` with those of the process ``source``, in place; they may lie on any device."""
    if world_size() == 1:
        return
    for tensor in tensors:
        sent = tensor.detach().to(_device(), copy=True).contiguous()
        dist.broadcast(sent, source)
        tensor.copy_(sent)


@torch.no_grad()
def sum_over_processes(tensor: torch.Tensor) -> None:
    """Replace ``tensor`` by its sum over the processes, in place; every process gets the same bits."""
    if world_size() > 1:
        dist.all_reduce(tensor)


def gather_rows(rows: torch.Tensor, count: int) -> torch.Tensor:
    """The first ``count`` rows of a tensor whose row ``i`` the process ``i % world_size`` holds, in every process.

    A range that is chosen from them is that of one process, bit for bit: the samples are reduced, not their statistics.

    Args:
        rows: rows of this process, ``(rows, …)``.
        count: number of rows that are wanted; fewer come back where all processes together hold fewer.
    """
    world = world_size()
    if world == 1:
        return rows[:count]
    total = sum(gather_objects(len(rows)))
    count = min(count, total)
    longest = -(-count // world)
    mine = rows.new_zeros(longest, *rows.shape[1:])
    kept = rows[:longest]
    mine[: len(kept)] = kept
    sent = mine.to(_device())
    everyones = [torch.empty_like(sent) for _ in range(world)]
    dist.all_gather(everyones, sent)
    return torch.stack(everyones, dim=1).flatten(0, 1)[:count].to(rows.device)


def require_equal(module: nn.Module, name: str) -> None:
    """Refuse to go on where the processes hold different values.

    Args:
        module: what they should hold alike.
        name: what messages call it.

    Raises:
        IsvitError: two processes differ.
    """
    sums = gather_objects(hash_of(module.state_dict()))
    if len(set(sums)) > 1:
        raise IsvitError(
            f"The {len(sums)} processes hold different weights of {name} ({', '.join(each[:8] for each in sums)}), "
            "expected the same: use equal machines and versions, or set trainer.devices to 1."
        )


def _started() -> bool:
    return dist.is_available() and dist.is_initialized()


def _device() -> torch.device:
    """Where tensors must lie to be sent."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
