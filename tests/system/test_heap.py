"""Temporaries of a step stay in the heap, caches go back to the system."""

import subprocess
import sys

import pytest

_PROGRAM = """
import resource

import torch

from isvit_lightning.system.heap import keep_one_heap


def resident() -> int:
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()


keep_one_heap()
torch.ones(2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    torch.ones(2**20)  # 4 MB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

before, cache = resident(), torch.ones(2**24)  # 64 MB
held = resident() - before
del cache
print(held, held - (resident() - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is told")
def test_what_is_kept_and_what_goes_back() -> None:
    printed = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True
    ).stdout.split()
    faults, held, given_back = map(int, printed)
    assert faults < 50 * 2**22 / 4096 / 10  # one in ten of the pages that were asked for
    assert held > 0.9 * 2**26
    assert given_back > 0.9 * 2**26
