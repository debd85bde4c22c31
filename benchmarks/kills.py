"""Kills a run with SIGKILL at random moments, resumes it each time, and compares what it ends with.

Each attempt is a whole ``isvit fit --resume true`` on the embedded digits in a process of its own. When an attempt
ends by itself, its ``quantized.safetensors`` is compared byte for byte with that of a run that nobody disturbed, and
the next attempt starts in an empty directory. It goes on until as many kills have struck as are asked for::

    python benchmarks/kills.py --kills 20
"""

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
SHORT = (
    "--config",
    str(QUICKSTART),
    *("--model.iterations", "3"),
    *("--model.batch_size", "16"),
    *("--data.calibration_images", "16"),
    *("--data.evaluation_images", "20"),
    *("--baselines", "[]"),
)


def start(arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> BaseProcess:
    """Start ``isvit`` with ``arguments`` in a process of its own.

    Args:
        arguments: of the command line, verb first.
        log: file for what it prints.
        environment: variables to set.
    """
    # Forked from a process that has imported everything already, which spares each attempt some seconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["isvit_lightning.program"])
    process = context.Process(target=_run, args=(list(arguments), str(log), dict(environment or {})))
    process.start()
    return process


def _run(arguments: list[str], log: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    with Path(log).open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch  # noqa: PLC0415 - only after the output is redirected

    from isvit_lightning.program import main  # noqa: PLC0415

    # The pool of threads of a forked process is not the one that a program starts with; one thread needs none.
    torch.set_num_threads(1)

    sys.argv = ["isvit"]
    sys.exit(main(arguments))


def parts(directory: Path) -> list[str]:
    """Finished parts of the interrupted run in ``directory``."""
    found = (path.stem for path in (directory / "checkpoints").glob("*.safetensors"))
    return sorted(found, key=lambda part: part.removesuffix("start"))  # a stage starts before its units


@dataclass
class Tally:
    """What happened.

    Attributes:
        kills: for each kill, the seconds after which it struck and the finished parts it left.
        completed: runs that came to their end after at least one kill.
        different: those of them whose file differs from that of the undisturbed run.
    """

    kills: list[tuple[float, list[str]]] = field(default_factory=list)
    completed: int = 0
    different: int = 0


def undisturbed(folder: Path, arguments: Sequence[str]) -> tuple[bytes, float]:
    """File of a run that nobody disturbs, and its seconds."""
    start(["--help"], folder / "help.log").join()  # the first process waits for the imports
    started = time.perf_counter()
    process = start(["fit", *arguments, "--trainer.default_root_dir", str(folder / "whole")], folder / "whole.log")
    process.join()
    if process.exitcode:
        raise RuntimeError((folder / "whole.log").read_text())
    return (folder / "whole" / "quantized.safetensors").read_bytes(), time.perf_counter() - started


def kill_and_resume(folder: Path, arguments: Sequence[str], kills: int, seed: int = 0) -> Tally:
    """Kill runs until ``kills`` have struck and the last run has come to its end.

    Args:
        folder: empty folder to work in.
        arguments: of ``isvit fit``, without directory and ``--resume``.
        kills: how many.
        seed: of the moments.
    """
    expected, seconds = undisturbed(folder, arguments)
    print(f"undisturbed: {seconds:.2f} s")
    draw, tally, directory, log = random.Random(seed), Tally(), folder / "killed", folder / "killed.log"
    fit = ["fit", *arguments, "--resume", "true", "--trainer.default_root_dir", str(directory)]
    struck = 0
    while len(tally.kills) < kills or struck:
        started = time.perf_counter()
        process = start(fit, log)
        # What is left gets shorter with each kill, and so must the patience, or few kills would strike.
        patience = draw.uniform(0, 0.7 * seconds) if len(tally.kills) < kills else None
        process.join(patience)
        if process.exitcode is None:
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
            struck += 1
            tally.kills.append((patience or 0.0, parts(directory)))
            done = tally.kills[-1][1]
            print(f"kill {len(tally.kills):2d} after {patience:5.2f} s: {len(done):2d} parts, last {done[-1:]}")
            continue
        if process.exitcode:
            raise RuntimeError(log.read_text())
        equal = (directory / "quantized.safetensors").read_bytes() == expected
        print(f"run ended after {struck} kills: {'equal' if equal else 'DIFFERENT'}")
        seconds = seconds if struck else time.perf_counter() - started
        tally.completed += bool(struck)
        tally.different += not equal
        struck = 0
        shutil.rmtree(directory)
    return tally


def run() -> int:
    """Kill, print and judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options, arguments = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        tally = kill_and_resume(Path(folder), arguments or SHORT, options.kills, options.seed)
    print(f"{len(tally.kills)} kills, {tally.completed} runs ended after them, {tally.different} different")
    return 1 if tally.different else 0


if __name__ == "__main__":
    sys.exit(run())
