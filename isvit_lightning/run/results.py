"""What a run measured: ``results.json`` and the table at its end."""

import json
import platform
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from isvit_lightning.networks import quantizers
from isvit_lightning.recipe.method import Bits
from isvit_lightning.storage.files import write_json
from isvit_lightning.system.processes import broadcast_object, rank

_PACKAGES = ("isvit-lightning", "torch", "lightning", "timm", "torchmetrics")
_TITLES = {
    "float": "float",
    "round_to_nearest": "round to nearest",
    "repq": "RepQ-style, no tuning",
    "stage1": "after stage 1, float weights",
    "isvit": "I&S-ViT",
}


@dataclass
class Results:
    """Filled while a run goes on, and written whenever a figure is added.

    Args:
        path: ``results.json`` of the run.
        network: name of the network.
        method: name of the method.
        bits: widths.
        images: numbers of calibration and evaluation images.
        seed: seed of the run.
        iterations: steps per unit and stage.
        metrics: accuracies in per cent by row of the table.
        seconds: durations by part of the run.
        baseline_seconds: durations of the baselines, shown in the table only.
        size_bytes: sizes of the float and the packed network.
        n_codes: codes by kind of tensor.
        rolled_back: units whose loss ended in NaN or infinity and that got their best state back, by stage.
        peak_memory_bytes: largest memory of the process, or of the accelerator where one was used.
        columns: metrics in the table, each with its title.
        packages: those that decide the result of this kind of network, beside the ones of every run.
    """

    path: Path
    network: str
    method: str
    bits: Bits
    images: dict[str, int]
    seed: int
    iterations: int
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    baseline_seconds: dict[str, float] = field(default_factory=dict)
    size_bytes: dict[str, int] = field(default_factory=dict)
    n_codes: dict[str, int] = field(default_factory=dict)
    rolled_back: dict[str, list[str]] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    columns: tuple[tuple[str, str], ...] = (("top1", "top-1 %"), ("top5", "top-5 %"))
    packages: tuple[str, ...] = ()

    def write(self) -> None:
        """Write the file, atomically; with several processes, the first one does."""
        self.peak_memory_bytes = peak_memory()
        if rank() == 0:
            write_json(self.path, self.as_dict())

    def restore(self) -> None:
        """Take over what an earlier run of the same kind left in the file, if it measured on as many images."""
        content = broadcast_object(_read(self.path) if rank() == 0 else {})
        self.rolled_back |= content.get("rolled_back", {})
        if content.get("images") == self.images:
            self.metrics |= content["metrics"]
            self.seconds |= content["seconds"]
            self.size_bytes |= content["size_bytes"]
            self.n_codes |= content["n_codes"]

    def as_dict(self) -> dict[str, Any]:
        """The content of ``results.json``."""
        return {
            "network": self.network,
            "method": self.method,
            "bits": {"weight": self.bits.weight, "activation": self.bits.activation, **self.bits.parts},
            "n_codes": self.n_codes,
            "metrics": self.metrics,
            "images": self.images,
            "seed": self.seed,
            "iterations": self.iterations,
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "rolled_back": self.rolled_back,
            "peak_memory_bytes": self.peak_memory_bytes,
            "size_bytes": self.size_bytes,
            "versions": versions(self.packages),
        }

    def table(self) -> Table:
        """One row for each way that was measured."""
        table = Table(title=f"{self.network}, {self.images['evaluation']} evaluation images")
        titles = (title for _, title in self.columns)
        for column in ("", *titles, "bits W/A", "softmax codes", "size", "seconds"):
            table.add_column(column, justify="left" if not column else "right")
        for name, metrics in self.metrics.items():
            table.add_row(*self._row(name, metrics))
        return table

    def _row(self, name: str, metrics: Mapping[str, float]) -> tuple[str, ...]:
        widths = {"float": "32/32", "stage1": f"32/{self.bits.activation}"}
        bits = widths.get(name, f"{self.bits.weight}/{self.bits.activation}")
        codes = {"float": "", "quantized": str(self.n_codes["attn_prob"])}.get(name, str(2**self.bits.activation))
        size = self.size_bytes.get("float" if name in widths else "packed")
        seconds = {"quantized": self.seconds.get("total"), "stage1": self.seconds.get("stage1")}.get(name)
        seconds = self.baseline_seconds.get(name) if seconds is None else seconds
        return (
            _TITLES.get(self.method if name == "quantized" else name, self.method),
            *(f"{metrics[key]:.2f}" if key in metrics else "" for key, _ in self.columns),
            bits,
            codes,
            "" if size is None else f"{size / 1e6:.2f} MB",
            "" if seconds is None else f"{seconds:.1f}",
        )


def _read(path: Path) -> dict[str, Any]:
    """Content of a file of :meth:`Results.write`; nothing where there is none."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


def console() -> Console:
    """Standard output; wide where nobody's window bounds it, so that files and pipes get whole rows."""
    out = Console()
    return out if out.is_terminal else Console(width=140)


def count_codes(model: nn.Module) -> dict[str, int]:
    """Largest number of codes among weights, activations and attention probabilities of ``model``."""
    counts = {"weight": 0, "activation": 0, "attn_prob": 0}
    for quantizer in quantizers(model).values():
        role = quantizer.role.value if quantizer.role.value in counts else "activation"
        counts[role] = max(counts[role], quantizer.n_codes)
    return counts


def float_size(model: nn.Module) -> int:
    """Bytes of all parameters and buffers of ``model`` in float32."""
    return 4 * sum(tensor.numel() for tensor in model.state_dict().values())


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


def versions(packages: tuple[str, ...] = ()) -> dict[str, str]:
    """Versions of Python and of the packages that decide a result.

    Args:
        packages: distributions beside those of every run.
    """
    return {"python": platform.python_version()} | {name: _version(name) for name in (*_PACKAGES, *packages)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
