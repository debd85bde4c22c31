"""The quickest runs end with the bits that they ended with before; see the file of digests for machine and versions."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
DIGESTS = Path(__file__).parent / "digests.json"
DATA = Path(os.environ.get("ISVIT_DATA", ROOT.parent / "shared" / "data"))
VIT_S = ["--config", "configs/bits/w4a4.yaml", "--config", "configs/cifar10/vit_small.yaml"]
RUNS: dict[str, list[str]] = {
    "vit": ["--config", "configs/quickstart.yaml"],
    "swin": ["--config", "configs/quickstart_swin.yaml"],
    "detection": [
        *("--config", "configs/quickstart_detection.yaml", "--model.iterations", "10"),
        *("--data.calibration_images", "16", "--data.evaluation_images", "40"),
    ],
    "vit_small_repq": [
        *(*VIT_S, "--config", "configs/methods/repq.yaml"),
        *("--model.iterations", "4", "--data.calibration_images", "64", "--data.evaluation_images", "100"),
    ],
}
"""Options of `isvit fit` by name; the last run needs the real networks and images."""
REAL = ("vit_small_repq",)
DERIVED = (".agreement", ".kl")
"""Figures that follow from the logits."""


def machine() -> dict[str, str]:
    """What decides the last bits beside the program."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    # A name alone may stand for several generations.
    told = [_told(lines, key) for key in ("model name", "cpu family", "model", "stepping")]
    return {
        "processor": " ".join(told) if any(told) else platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def _told(lines: list[str], key: str) -> str:
    """What the system tells of the first processor."""
    values = [value.strip() for name, _, value in (line.partition(":") for line in lines) if name.strip() == key]
    return values[0] if values else ""


def hash_of(tensor: torch.Tensor) -> str:
    content = tensor.detach().cpu().contiguous().float().numpy().tobytes()
    return hashlib.sha256(f"{tuple(tensor.shape)}".encode() + content).hexdigest()[:16]


def digest(directory: Path, detector: bool) -> dict[str, str]:
    """One hash for each tensor of the network of a run, weights decoded, and for logits; metrics as they are."""
    import isvit_lightning
    from isvit_lightning.networks import quantizers

    if detector:
        from detection.detector import Detection

        network = Detection().load(directory)
    else:
        network = isvit_lightning.load(directory)
    model: Any = network.model
    assert network.preprocessing is not None
    hashes = {name: hash_of(tensor) for name, tensor in model.state_dict().items()}
    for name, quantizer in quantizers(model).items():
        if quantizer.role.weight:
            path = f"{name.rpartition('.')[0]}.weight"
            hashes[path] = hash_of(quantizer(model.get_parameter(path)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        if detector:
            scores, deltas = model.rpn_head(model.extract_feat(torch.randn(2, 3, 128, 128, generator=generator)))
            hashes |= {f"logits.{place}": hash_of(value) for place, value in enumerate((*scores, *deltas))}
        else:
            hashes["logits"] = hash_of(network(torch.randn(8, *network.preprocessing.input_size, generator=generator)))
    metrics = json.loads((directory / "results.json").read_text())["metrics"]
    figures = {f"metrics.{row}.{key}": str(value) for row in metrics for key, value in metrics[row].items()}
    return hashes | {name: value for name, value in figures.items() if not name.endswith(DERIVED)}


def fit(name: str, folder: Path) -> dict[str, str]:
    """Digest of a run in a process of its own, with one thread, as the recorded ones."""
    command = [sys.executable, "-m", "isvit_lightning", "fit", *RUNS[name]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ISVIT_DATA": str(DATA), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--trainer.default_root_dir", str(folder / name)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return digest(folder / name, name == "detection")


def test_the_quickest_runs_end_with_the_same_bits(tmp_path: Path) -> None:
    recorded = json.loads(DIGESTS.read_text())
    if recorded["machine"] != machine():
        pytest.skip(f"the digests are those of {recorded['machine']}, and rounding differs on {machine()}")
    names = [name for name in RUNS if name not in REAL or DATA.is_dir()]
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(names, pool.map(lambda name: fit(name, tmp_path), names), strict=True))
    for name in names:
        assert found[name] == recorded["runs"][name], name


if __name__ == "__main__":  # writes the file anew, where bits are meant to change: python -m tests.test_digests FOLDER
    runs = {name: fit(name, Path(sys.argv[1])) for name in RUNS}
    DIGESTS.write_text(json.dumps({"machine": machine(), "runs": runs}, indent=0, sort_keys=True) + "\n")
