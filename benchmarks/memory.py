"""Peak memory of ``isvit fit`` in a process of its own, against the network and two caches.

The libraries' share, what a process holds that has imported the program and done nothing, is printed apart. Arguments
are those of ``isvit fit``; without any, the quickstart and the ViT-S::

    python benchmarks/memory.py --config configs/bits/w4a4.yaml --config configs/imagenet/vit_tiny_sample.yaml
    python benchmarks/memory.py --record
"""

import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import speed

from isvit_lightning.cli import IsvitCLI
from isvit_lightning.networks import open_float
from isvit_lightning.run.inspection import cache_values
from isvit_lightning.run.results import float_size

CONFIGS = Path(__file__).parent.parent / "configs"
RUNS = (
    ("--config", str(CONFIGS / "quickstart.yaml")),
    ("--config", str(CONFIGS / "bits" / "w4a4.yaml"), "--config", str(CONFIGS / "cifar10" / "vit_small.yaml")),
)
# More steps or images to evaluate take longer, not more memory.
_SHORT = ("--model.iterations", "2", "--data.evaluation_images", "64")
_IMPORT = "import isvit_lightning.cli\nfrom isvit_lightning.run.results import peak_memory\nprint(peak_memory())"
_FIT = "import sys\nfrom isvit_lightning.program import main\nsys.exit(main(['fit', *sys.argv[1:]]))"


def imported() -> int:
    """Bytes of a process that has only imported the program."""
    return int(subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True).stdout)


def peak(arguments: Sequence[str]) -> int:
    """Largest resident size of a short run, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        given = [*arguments, *_SHORT, "--trainer.accelerator", "cpu", "--trainer.default_root_dir", folder]
        subprocess.run([sys.executable, "-c", _FIT, *given], capture_output=True, text=True, check=True)
        return int(json.loads((Path(folder) / "results.json").read_text())["peak_memory_bytes"])


def needed(arguments: Sequence[str]) -> tuple[int, int, int]:
    """Bytes of the network, of the calibration images, and of the largest input and output of a unit for all images."""
    cli = IsvitCLI([*arguments], run=False)
    loaded, images = cli.model.source.build(), cli.datamodule.calibration_images
    size = loaded.preprocessing.input_size
    caches = 4 * max(sum(pair) for pair in cache_values(open_float(loaded.model), size).values())
    return float_size(loaded.model), 4 * images * size[0] * size[1] * size[2], images * caches


def measure(arguments: Sequence[str]) -> speed.Row:
    """One row for the run of ``arguments``."""
    network, images, caches = needed(arguments)
    libraries, total = imported(), peak(arguments)
    configs = [Path(value).stem for flag, value in itertools.pairwise(arguments) if flag == "--config"]
    megabytes = {
        "network, MB": network,
        "images, MB": images,
        "two caches, MB": caches,
        "libraries, MB": libraries,
        "peak, MB": total,
        "peak beyond libraries, MB": total - libraries,
    }
    ratio = (total - libraries) / (network + caches)
    row = {name: round(value / 1e6) for name, value in megabytes.items()}
    return {"run": " ".join(configs), **row, "ratio to network + caches": round(ratio, 2)}


if __name__ == "__main__":
    given = [part for part in sys.argv[1:] if part != "--record"]
    speed.finish("memory", [measure(run) for run in ([given] if given else RUNS)], sys.argv[1:])
