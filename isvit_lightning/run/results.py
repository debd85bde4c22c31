"""What a run measured: ``results.json`` and the table at its end."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from isvit_lightning.recipe import Bits
from isvit_lightning.storage.files import write_json
from isvit_lightning.system.memory import peak_memory
from isvit_lightning.system.processes import broadcast_object, rank

_DIGITS = {"kl": 4}
"""Digits behind the point of a metric, where they are not two."""
_PACKAGES = ("isvit-lightning", "torch", "lightning", "timm", "torchmetrics")


@dataclass
class Results:
    """Filled while a run goes on, and written whenever a figure is added.

    Args:
        path: ``results.json`` of the run.
        network: name of the network.
        recipe: name of the recipe.
        bits: widths.
        images: numbers of calibration and evaluation images.
        seed: seed of the run.
        iterations: steps per unit and stage.
        metrics: accuracies in per cent by row of the table: float, recipes that it is compared with, steps that tune,
            and the result, which is called quantized.
        widths: bits of weights and activations of a row, where they are not those of the result.
        seconds: durations by step, of the choice of ranges (calibrate), and of all steps (total).
        baseline_seconds: durations of the recipes that it is compared with.
        size_bytes: sizes of the float and the packed network.
        audit: what the result rests on: codes, values and ranges, calibration images, iterations of each step.
        n_values: most distinct values of a grid by row of the table and role of the tensor.
        rolled_back: units whose loss ended in NaN or infinity and that got their best state back, by stage.
        peak_memory_bytes: largest memory of the process, or of the accelerator where one was used.
        evaluation: hash of the evaluation images, to tell whether figures of an interrupted run still hold.
        columns: metrics in the table, each with its title.
        packages: those that decide the result of this kind of network, beside the ones of every run.
    """

    path: Path
    network: str
    recipe: str
    bits: Bits
    images: dict[str, int]
    seed: int
    iterations: int
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    widths: dict[str, str] = field(default_factory=lambda: {"float": "32/32"})
    seconds: dict[str, float] = field(default_factory=dict)
    baseline_seconds: dict[str, float] = field(default_factory=dict)
    size_bytes: dict[str, int] = field(default_factory=dict)
    audit: dict[str, Any] = field(default_factory=dict)
    n_values: dict[str, dict[str, int]] = field(default_factory=dict)
    rolled_back: dict[str, list[str]] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    evaluation: str = ""
    columns: tuple[tuple[str, str], ...] = ()
    packages: tuple[str, ...] = ()

    def write(self) -> None:
        """Write the file, atomically; with several processes, the first one does."""
        self.peak_memory_bytes = peak_memory()
        if rank() == 0:
            write_json(self.path, self.as_dict())

    def restore(self) -> None:
        """Take over what an earlier run of the same kind left in the file, if it measured on the same images."""
        content = broadcast_object(_read(self.path) if rank() == 0 else {})
        self.rolled_back |= content.get("rolled_back", {})
        if (content.get("images"), content.get("evaluation")) == (self.images, self.evaluation):
            self.metrics |= content["metrics"]
            self.seconds |= content["seconds"]
            self.baseline_seconds |= content["baseline_seconds"]
            self.size_bytes |= content["size_bytes"]
            self.audit |= content.get("audit", {})
            self.n_values |= content.get("n_values", {})

    def as_dict(self) -> dict[str, Any]:
        """The content of ``results.json``."""
        return {
            "network": self.network,
            "recipe": self.recipe,
            "bits": {"weight": self.bits.weight, "activation": self.bits.activation},
            "n_values": self.n_values,
            "audit": self.audit,
            "metrics": self.metrics,
            "images": self.images,
            "evaluation": self.evaluation,
            "seed": self.seed,
            "iterations": self.iterations,
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "baseline_seconds": {name: round(value, 2) for name, value in self.baseline_seconds.items()},
            "rolled_back": self.rolled_back,
            "peak_memory_bytes": self.peak_memory_bytes,
            "size_bytes": self.size_bytes,
            "versions": versions(self.packages),
        }

    def table(self) -> Table:
        """One row for each way that was measured."""
        table = Table(title=f"{self.network}, {self.images['evaluation']} evaluation images")
        shown = [(key, title) for key, title in self.columns if any(key in row for row in self.metrics.values())]
        for column in ("", *(title for _, title in shown), "bits W/A", "softmax values", "size", "seconds"):
            table.add_column(column, justify="left" if not column else "right")
        for name, metrics in self.metrics.items():
            table.add_row(*self._row(name, metrics, [key for key, _ in shown]))
        return table

    def _row(self, name: str, metrics: Mapping[str, float], shown: Sequence[str]) -> tuple[str, ...]:
        bits = self.widths.get(name, f"{self.bits.weight}/{self.bits.activation}")
        values = self.n_values.get(name, {}).get("attn_prob", "")
        size = self.size_bytes.get("float" if name in self.widths else "packed")
        seconds = self.seconds.get("total" if name == "quantized" else name, self.baseline_seconds.get(name))
        title = self.recipe if name == "quantized" else name
        is_open = name in self.widths and name != "float"
        return (
            f"{title.replace('_', ' ')}{' (float weights)' if is_open else ''}",
            *(f"{metrics[key]:.{_DIGITS.get(key, 2)}f}" if key in metrics else "" for key in shown),
            bits,
            str(values),
            "" if size is None else f"{size / 1e6:.2f} MB",
            "" if seconds is None else f"{seconds:.1f}",
        )


def _read(path: Path) -> dict[str, Any]:
    """Content of a file of :meth:`Results.write`; nothing where there is none, or a damaged one."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def line_of(metrics: Mapping[str, float], columns: Sequence[tuple[str, str]]) -> str:
    """Metrics in one line, such as ``top-1 92.45 %  KL 0.0123``.

    Args:
        metrics: by name.
        columns: those that are shown, each with its title.
    """
    shown = [(title, metrics[name]) for name, title in columns if name in metrics]
    return "  ".join(
        f"{title.removesuffix(' %')} {value:.2f} %" if title.endswith("%") else f"{title} {value:.4f}"
        for title, value in shown
    )


def console() -> Console:
    """Standard output; wide where nobody's window bounds it, so that files and pipes get whole rows."""
    out = Console()
    return out if out.is_terminal else Console(width=300)


def float_size(model: nn.Module) -> int:
    """Bytes of all parameters and buffers of ``model`` in float32."""
    return 4 * sum(tensor.numel() for tensor in model.state_dict().values())


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
