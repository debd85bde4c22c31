"""Float32 against autocast to bfloat16 on the quickstart's network: accuracy, and time of a step, at 4 and 3 bits.

Both calibrations start from the same float network, images and draws, and both are evaluated in float32, so that what
differs is what was tuned. Steps are timed by turns, so that whatever else the machine does weighs on both.

::

    python benchmarks/precision.py [--record]
"""

import statistics
import sys

import speed
import torch
from steps import Precision, StepTimes, fit
from torch import nn

from isvit_lightning.callbacks import CalibrateQuantizers
from isvit_lightning.embedded.digits import digit_images
from isvit_lightning.embedded.networks import embedded_network
from isvit_lightning.networks import open_float
from isvit_lightning.recipe import Bits, read_recipe
from isvit_lightning.run.pipeline import Calibration, calibrate_network
from isvit_lightning.stages import Schedule, TuningStage, Work

BOTH: tuple[Precision, Precision] = ("32-true", "bf16-mixed")


@torch.no_grad()
def top1(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Per cent of ``images`` whose class is right, in float32."""
    guessed = torch.cat([network(some).argmax(dim=1) for some in torch.split(images, 50)])
    return 100 * float((guessed == labels).float().mean())


def step_seconds(model: nn.Module, images: torch.Tensor, bits: int, iterations: int) -> dict[str, float]:
    """Median seconds of a step of stage 3 on the second block, by precision, from fits by turns."""
    times, recipe = {precision: StepTimes() for precision in BOTH}, read_recipe("isvit")
    for _ in range(3):
        for precision in BOTH:
            quantized = recipe.open(model, Bits(bits, bits))
            work = Work(quantized, open_float(model), images[:64], Schedule(iterations, 32), number=len(recipe.steps))
            stage = TuningStage(recipe.steps[-1], work)
            stage.plan = [[unit.name for unit in quantized.units].index("blocks.1")]
            fit(stage, CalibrateQuantizers(), times[precision], precision=precision)
    return {precision: statistics.median(times[precision].seconds) for precision in BOTH}


def measure(bits: int, iterations: int = 50, calibration: int = 256, evaluation: int = 600) -> speed.Row:
    """One row of the table.

    Args:
        bits: width of weights and activations.
        iterations: steps per unit and stage.
        calibration: images to calibrate on.
        evaluation: images to evaluate on.
    """
    model, images = embedded_network("vit_digits"), digit_images("train")[0][:calibration]
    held_out, labels = (part[:evaluation] for part in digit_images("held_out"))
    accuracies = {}
    for precision in BOTH:
        setting = Calibration(model, images, Bits(bits, bits), read_recipe("isvit"), Schedule(iterations, 32))
        network = calibrate_network(
            setting, lambda stage, precision=precision: fit(stage, CalibrateQuantizers(), precision=precision)
        )
        accuracies[precision] = top1(network.model, held_out, labels)
    seconds = step_seconds(model, images, bits, max(4, iterations // 5))
    return {
        "bits": bits,
        "float top-1": round(top1(model, held_out, labels), 2),
        **{f"{precision} top-1": round(accuracies[precision], 2) for precision in BOTH},
        "change": round(accuracies["bf16-mixed"] - accuracies["32-true"], 2),
        **{f"{precision} step, ms": round(1e3 * seconds[precision], 1) for precision in BOTH},
        "ratio of steps": round(seconds["bf16-mixed"] / seconds["32-true"], 2),
    }


if __name__ == "__main__":
    speed.quiet()
    speed.finish("precision", [measure(bits) for bits in (4, 3)], sys.argv[1:])
