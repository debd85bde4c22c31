"""How much memory this process has taken at most."""

import contextlib
import resource
import sys
from pathlib import Path

import torch


def peak_memory() -> int:
    """Bytes: of the accelerator where one was used, else the largest resident size of this process so far."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if sys.platform == "linux" and status.exists():
        # What getrusage tells there starts at the peak of the process that started this one.
        peaks = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        if peaks:
            return int(peaks[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak() -> None:
    """Begin anew: :func:`peak_memory` then tells of what comes from now on, where the system can."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
