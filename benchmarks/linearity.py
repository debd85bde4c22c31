"""Cost of a calibration against images, iterations and depth: processor time, a straight line and its R², and a plot.

Processor time of one thread, because it does not count what other programs take. With ``--record`` the plot
``docs/linearity.svg`` is drawn too::

    python benchmarks/linearity.py [--record]
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import speed
import torch
from steps import fit
from timm.models.vision_transformer import VisionTransformer

from isvit_lightning.callbacks import CalibrateQuantizers
from isvit_lightning.embedded.networks import VIT_DIGITS
from isvit_lightning.recipe import Bits, read_recipe
from isvit_lightning.run.pipeline import Calibration, calibrate_network
from isvit_lightning.stages import Schedule

PLOT = Path(__file__).parent.parent / "docs" / "linearity.svg"
SERIES = {"images": (128, 256, 512, 1024), "iterations": (8, 16, 32, 64), "depth": (2, 4, 6, 8)}
_FIXED = {"images": 64, "iterations": 2, "depth": 2}


@dataclass(frozen=True)
class Line:
    """Least squares: ``seconds ≈ slope · value + offset``."""

    slope: float
    offset: float
    r2: float


def straight_line(values: Sequence[float], seconds: Sequence[float]) -> Line:
    """The line through ``seconds`` over ``values``, and the share of their variance that it explains."""
    x, y = torch.tensor(values, dtype=torch.float64), torch.tensor(seconds, dtype=torch.float64)
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    offset = y.mean() - slope * x.mean()
    rest = (y - slope * x - offset).square().sum()
    return Line(float(slope), float(offset), float(1 - rest / (y - y.mean()).square().sum()))


def cost(images: int, iterations: int, depth: int) -> float:
    """Processor seconds of a calibration of a small ViT with random weights."""
    torch.manual_seed(0)
    model = VisionTransformer(**{**VIT_DIGITS, "depth": depth}).eval()
    drawn, recipe = torch.randn(images, 3, 32, 32), read_recipe("isvit")
    calibration = Calibration(model, drawn, Bits(4, 4), recipe, Schedule(iterations, 16))
    ranges = CalibrateQuantizers()
    started = time.process_time()
    calibrate_network(calibration, lambda stage: fit(stage, ranges))
    return time.process_time() - started


def measure(series: dict[str, tuple[int, ...]]) -> dict[str, list[float]]:
    """Seconds for each value of each quantity, the others held at small values."""
    cost(16, 1, 1)  # the first run of a process pays for what the libraries set up
    return {name: [cost(**{**_FIXED, name: value}) for value in values] for name, values in series.items()}


def rows(series: dict[str, tuple[int, ...]], measured: dict[str, list[float]]) -> list[speed.Row]:
    """One row for each quantity."""
    found: list[speed.Row] = []
    for name, values in series.items():
        line = straight_line(values, measured[name])
        found.append(
            {
                "quantity": name,
                "values": ", ".join(map(str, values)),
                "seconds": ", ".join(f"{value:.2f}" for value in measured[name]),
                "seconds for one more": float(f"{line.slope:.3g}"),
                "R²": round(line.r2, 4),
            }
        )
    return found


def plot(series: dict[str, tuple[int, ...]], measured: dict[str, list[float]]) -> str:
    """Three panels as SVG: points, and the line through them."""
    width, height, margin = 240, 180, 40
    parts = []
    for panel, (name, values) in enumerate(series.items()):
        line, top = straight_line(values, measured[name]), 1.1 * max(measured[name])
        left = panel * (width + margin) + margin

        def place(
            x: float, y: float, left: int = left, last: int = values[-1], top: float = top
        ) -> tuple[float, float]:
            return round(left + x / (1.05 * last) * width, 1), round(height - y / top * (height - 20), 1)

        (x1, y1), (x2, y2) = (place(x, line.slope * x + line.offset) for x in (values[0], values[-1]))
        parts.append(f'<path d="M{left} 20V{height}H{left + width}" fill="none" stroke="gray"/>')
        parts.append(f'<path d="M{x1} {y1}L{x2} {y2}" stroke="steelblue"/>')
        for value, seconds in zip(values, measured[name], strict=True):
            x, y = place(value, seconds)
            parts.append(f'<circle cx="{x}" cy="{y}" r="3"/><text x="{x}" y="{height + 14}">{value}</text>')
            parts.append(f'<text x="{x}" y="{y - 8}">{seconds:.1f} s</text>')
        parts.append(f'<text x="{left + width / 2}" y="{height + 30}">{name}, R² = {line.r2:.4f}</text>')
    size = f'width="{3 * (width + margin) + margin}" height="{height + 40}"'
    style = 'font-family="sans-serif" font-size="10" text-anchor="middle"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n' + "\n".join(parts) + "\n</svg>\n"


def main(arguments: Sequence[str], series: dict[str, tuple[int, ...]]) -> None:
    """Measure, print, and record where asked to."""
    torch.set_num_threads(1)
    measured = measure(series)
    speed.finish("linearity", rows(series, measured), arguments)
    if "--record" in arguments:
        PLOT.write_text(plot(series, measured), encoding="utf-8")


if __name__ == "__main__":
    speed.quiet()
    main(sys.argv[1:], SERIES)
