"""Running a function in several processes that form one gloo group."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


def in_processes(function: Callable[..., Any], count: int, *arguments: Any) -> list[Any]:
    """What ``function(*arguments)`` returns in each of ``count`` processes, by rank.

    The processes see the environment that Lightning's launcher gives them; ``function`` must be importable.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["isvit_lightning.program"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes, ends = [], []
    for rank in range(count):
        mine, theirs = context.Pipe(duplex=False)
        environment = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "OMP_NUM_THREADS": "1",
        }
        process = context.Process(target=_call, args=(theirs, environment, function, arguments))
        process.start()
        theirs.close()
        processes.append(process)
        ends.append(mine)
    results = [end.recv() for end in ends]
    for process in processes:
        process.join()
    failed = [result for result in results if isinstance(result, BaseException)]
    if failed:
        raise failed[0]
    return results


def _call(
    end: Connection, environment: dict[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ.update(environment)
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    torch.manual_seed(0)
    rank, count = int(environment["LOCAL_RANK"]), int(environment["WORLD_SIZE"])
    dist.init_process_group("gloo", rank=rank, world_size=count)
    try:
        end.send(function(*arguments))
    except BaseException as error:  # noqa: BLE001 - it is raised again in the test
        end.send(error)
    dist.destroy_process_group()
