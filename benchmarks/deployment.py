"""Networks with random weights at 4 bits in every engine: what `isvit benchmark` measures, without accuracy.

Weights do not matter to the time, so that no download and no calibration worth the name is needed::

    python benchmarks/deployment.py [deit_small] [vit_base] [swin_tiny] [--threads 1,2] [--batches 1,8] [--record]

Forms take turns; ratios are to the fastest float form of the same engine on as many threads and images.
"""

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import speed
import timm
import torch
from torch import nn

from isvit_lightning import calibrate
from isvit_lightning.recipe import Recipe, read_recipe
from isvit_lightning.run.benchmark import tables
from isvit_lightning.run.benchmark.engines import forms_of
from isvit_lightning.run.benchmark.forms import Absent, Form, Subject
from isvit_lightning.run.benchmark.options import Options, options_of
from isvit_lightning.run.benchmark.timing import Speed, time_forms
from isvit_lightning.stages import Fold, Ranges

NETWORKS = {
    "deit_small": "deit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "swin_tiny": "swin_tiny_patch4_window7_224",
}
WANTED = {
    ("OpenVINO", "quantized"): {"deit_small": 2.0, "vit_base": 2.0, "swin_tiny": 1.6},
    ("ONNX Runtime", "quantized"): {"deit_small": 1.4, "vit_base": 1.4},
    ("PyTorch", "integer, compiled"): {"deit_small": 1.8, "vit_base": 2.3},
}
"""Ratios to float that are worth the trouble."""
_CALIBRATION_IMAGES = 8
_SHARPER = 4.0


def ranges_only() -> Recipe:
    """I&S-ViT without the steps that tune: the same quantizers in seconds."""
    recipe = read_recipe("isvit")
    folds = [step for step in recipe.steps if isinstance(step, Fold)]
    return replace(recipe, steps=[Ranges("ranges"), *folds, Ranges("weights", of="weights")])


def subject_of(name: str, folder: Path) -> Subject:
    """A network with random weights, calibrated at 4 bits.

    Args:
        name: of timm.
        folder: where its packed file is written.
    """
    torch.manual_seed(0)
    network = timm.create_model(name).eval()
    _sharpen(network)
    size: tuple[int, int, int] = network.default_cfg["input_size"]
    images = torch.randn(_CALIBRATION_IMAGES, *size)
    simulated = calibrate(network, images, bits=4, recipe=ranges_only(), accelerator="cpu")
    simulated.save(folder / "quantized.safetensors")
    packed = (folder / "quantized.safetensors").stat().st_size
    return Subject(simulated, network, size, packed, images)


@torch.no_grad()
def _sharpen(network: nn.Module) -> None:
    """Queries and keys of a network that has learnt something.

    With those of a new one all probabilities are alike, and a grid of them has three values in place of fifteen.
    """
    for path, layer in network.named_modules():
        if path.endswith("attn.qkv") and isinstance(layer, nn.Linear):
            layer.weight[: 2 * layer.in_features] *= _SHARPER


def measure(name: str, options: Options) -> tuple[list[speed.Row], list[speed.Row]]:
    """Tables of speed and of sizes.

    Args:
        name: one of :data:`NETWORKS`, or a name of timm.
        options: of the benchmark.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        subject = subject_of(NETWORKS.get(name, name), folder)
        forms = list(forms_of(subject, options.engines, torch.device("cpu"), folder))
        absent = [form for form in forms if isinstance(form, Absent)]
        timed = [form for form in forms if isinstance(form, Form) and form.is_timed]
        images = torch.randn(max(options.batches), *subject.size)
        speeds = time_forms(timed, images, options.threads, options.batches, options.repeats)
        rows = tables.speed_rows(speeds, absent)
        wanted = [wanted_of(name, row) for row in speeds] + [""] * len(absent)
        sizes = tables.form_rows(timed, [], [])
        return [{**row, "wanted": goal} for row, goal in zip(rows, wanted, strict=True)], [*sizes]


def wanted_of(name: str, row: Speed) -> str:
    """The ratio that a row should have; nothing where none is set."""
    ratio = WANTED.get((row.engine, row.form), {}).get(name)
    return "" if ratio is None else str(ratio)


def main(arguments: Sequence[str]) -> None:
    """Measure networks, and record their tables where that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--engines", default="pytorch,onnxruntime,openvino")
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args(arguments)
    options = options_of(given.threads, given.batches, given.repeats, given.engines, accuracy=False, profile=False)
    recorded = ["--record"] if given.record else []
    for name in given.networks:
        speeds, sizes = measure(name, options)
        speed.finish(f"deployment_{name}", speeds, recorded)
        speed.finish(f"deployment_{name}_size", sizes, recorded)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    speed.quiet()
    main(sys.argv[1:])
