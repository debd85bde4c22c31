"""A process begins with its logs set up, and one that another started ends with it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

_LEVELS = """
import logging
import warnings

from isvit_lightning.system.bootstrap import begin_process

begin_process(["told.by.all"])
for name in ("isvit_lightning", "told.by.all"):
    logging.getLogger(name).info("%s informs", name)
    logging.getLogger(name).warning("%s warns", name)
logging.getLogger("lightning.pytorch.utilities.rank_zero").info("advice")
logging.getLogger("lightning.pytorch.utilities.rank_zero").warning("a warning of Lightning")
logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").info("a process ended")
warnings.warn_explicit("not for us", UserWarning, "file.py", 1, module="lightning.pytorch.trainer")
warnings.warn_explicit("our own", UserWarning, "file.py", 1, module="isvit_lightning.cli")
print("out")
"""

_CHILD = """
import time

from isvit_lightning.system.bootstrap import begin_process

begin_process([])
print("begun", flush=True)
time.sleep(60)
"""

_PARENT = """
import os
import subprocess
import sys

child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, env={**os.environ, **RANK})
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


def messages(local_rank: str) -> list[str]:
    environment = {**os.environ, "LOCAL_RANK": local_rank}
    done = subprocess.run([sys.executable, "-c", _LEVELS], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "out\n"
    return [line for line in done.stderr.splitlines() if not line.startswith("  ")]


def test_the_first_process_tells_all_but_advice() -> None:
    told = messages("0")
    for name in ("isvit_lightning", "told.by.all"):
        assert f"{name} informs" in told
        assert f"{name} warns" in told
    assert "a warning of Lightning" in told
    assert "a process ended" in told
    assert "advice" not in told
    assert not any("not for us" in line for line in told)
    assert any("our own" in line for line in told)


def test_the_others_tell_warnings_and_what_all_tell() -> None:
    told = messages("1")
    assert "isvit_lightning informs" not in told
    assert "isvit_lightning warns" in told
    assert "told.by.all informs" in told


def runs(number: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
@pytest.mark.parametrize("first", [False, True])
def test_a_process_ends_with_the_one_that_started_it(first: bool) -> None:
    program = _PARENT.replace("RANK", repr({"LOCAL_RANK": "0" if first else "1"}))
    parent = subprocess.Popen([sys.executable, "-c", program, _CHILD], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        assert runs(child)
        parent.kill()
        parent.wait()
        until = time.monotonic() + (0.5 if first else 20)
        while runs(child) and time.monotonic() < until:
            time.sleep(0.02)
        # The first process was started by a shell, which may end before it.
        assert runs(child) == first
    finally:
        parent.stdout.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
