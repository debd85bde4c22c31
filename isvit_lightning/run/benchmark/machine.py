"""What a benchmark was measured on."""

import datetime as dt
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from isvit_lightning.run.results import versions

_PACKAGES = ("onnx", "onnxruntime", "openvino")


def machine_facts(device: torch.device) -> dict[str, Any]:
    """Processor, cores, accelerator, load, date and versions, plain values.

    Args:
        device: where PyTorch computes.
    """
    return {
        "processor": _processor(),
        "cores": _cores(),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "date": dt.datetime.now(tz=dt.timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(_PACKAGES),
    }


def sentence_of(facts: Mapping[str, Any]) -> str:
    """The facts in one line, for people.

    Args:
        facts: of :func:`machine_facts`.
    """
    packages = [f"{name} {facts['versions'][name]}" for name in ("torch", "onnxruntime", "openvino")]
    where = [facts["processor"], f"{facts['cores']} cores", facts["accelerator"], f"load {facts['load']}"]
    return ", ".join(str(each) for each in (*where, *packages, facts["date"]) if each is not None)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    """Name of the processor."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
