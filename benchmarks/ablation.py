"""What each choice of the method is worth: the default recipe, and the same with one choice changed.

Arguments are those of ``isvit fit``; a line of the table is printed as soon as it is known::

    python benchmarks/ablation.py --config configs/bits/w3a3.yaml --config configs/cifar10/swin_micro.yaml \
        --model.iterations 25
"""

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from isvit_lightning.cli import main

_STAGES = ("stage1", "stage3")


@dataclass(frozen=True)
class Variant:
    """The recipe with one choice changed.

    Args:
        title: the choice in words.
        options: the options that change it.
    """

    title: str
    options: tuple[str, ...] = ()


def both(key: str, value: str) -> tuple[str, ...]:
    """The same option for both tuning stages."""
    return tuple(word for stage in _STAGES for word in (f"--model.method.{stage}.{key}", value))


VARIANTS = (
    Variant("default recipe"),
    Variant("learning rate 6e-4 for all weights", both("learning_rate", "6e-4")),
    Variant("learning rate 2e-4 for all weights", both("learning_rate", "2e-4")),
    Variant("stage 1 on float inputs (published)", ("--model.method.stage1.inputs", "float")),
    Variant("stage 1 on a mixture of both", ("--model.method.stage1.inputs", "mixed")),
    Variant("stage 3 on quantized inputs only (published)", ("--model.method.stage3.inputs", "quantized")),
    Variant("median instead of mean in stage 2", ("--model.method.statistic", "median")),
    Variant("uniform softmax quantizer", ("--model.method.softmax", "uniform")),
    Variant("published list of shifts", ("--model.method.eta_candidates", "published")),
    Variant("learning rate 4e-5 (published)", both("learning_rate", "4e-5")),
    Variant("stage 3 on float inputs only", ("--model.method.stage3.inputs", "float")),
    Variant("ranges anew before stage 3", ("--model.method.stage3.recalibrate", "stage")),
    Variant("ranges anew before each unit of stage 3", ("--model.method.stage3.recalibrate", "unit")),
    Variant("scales of activations fixed", both("range_learning_rate", "0")),
    Variant("squared loss (published)", both("loss", "squared")),
    Variant("ranges by the squared error (published)", ("--model.method.range_error", "squared")),
    Variant("patch merging in stage 2 too", ("--model.method.reparameterize_reductions", "true")),
    Variant("no stage 1", ("--model.method.stage1.enabled", "false")),
    Variant("everything as published", ("--config", "configs/methods/isvit_published.yaml")),
)


def measure(variant: Variant, arguments: list[str], directory: Path) -> dict[str, dict[str, float]]:
    """The metrics of one run of ``isvit fit``."""
    options = [*variant.options, "--baselines", "false", "--trainer.default_root_dir", str(directory)]
    if main(["fit", *arguments, *options]):
        raise SystemExit(2)
    metrics: dict[str, dict[str, float]] = json.loads((directory / "results.json").read_text())["metrics"]
    return metrics


def run(arguments: list[str]) -> None:
    """Measure all variants."""
    print("| recipe | stage 1 | final | against default |\n|---|---|---|---|", flush=True)
    base = 0.0
    for index, variant in enumerate(VARIANTS):
        with tempfile.TemporaryDirectory() as folder:
            metrics = measure(variant, arguments, Path(folder))
        final = metrics["quantized"]["top1"]
        base = base if index else final
        stage1 = f"{metrics['stage1']['top1']:.2f}" if "--model.method.stage1.enabled" not in variant.options else ""
        difference = f"{final - base:+.2f}" if index else ""
        print(f"| {variant.title} | {stage1} | {final:.2f} | {difference} |", flush=True)


if __name__ == "__main__":
    run(sys.argv[1:])
