"""Whether runs still end with the same bits: a digest of every tensor, of logits and of metrics.

``--record`` writes the digests of today's code to a file; without it they are compared with that file::

    python benchmarks/gate.py --record gate.json
    python benchmarks/gate.py gate.json
    python benchmarks/gate.py gate.json --only vit swin
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parents[1] / "configs"
DATA = Path(os.environ.get("ISVIT_DATA", Path(__file__).parents[2] / "shared" / "data"))
VIT_S = [
    *("--config", str(CONFIGS / "bits" / "w4a4.yaml"), "--config", str(CONFIGS / "cifar10" / "vit_small.yaml")),
    *("--model.iterations", "4", "--data.calibration_images", "64", "--data.evaluation_images", "100"),
]


def _method(name: str) -> list[str]:
    return [*VIT_S[:4], "--config", str(CONFIGS / "methods" / f"{name}.yaml"), *VIT_S[4:]]


RUNS: dict[str, list[str]] = {
    "vit": ["--config", str(CONFIGS / "quickstart.yaml")],
    "swin": ["--config", str(CONFIGS / "quickstart_swin.yaml")],
    "detection": [
        *("--config", str(CONFIGS / "quickstart_detection.yaml"), "--model.iterations", "10"),
        *("--data.calibration_images", "16", "--data.evaluation_images", "40"),
    ],
    "vit_small": VIT_S,
    "vit_small_published": _method("isvit_published"),
    "vit_small_repq": _method("repq"),
    "vit_small_rtn": _method("round_to_nearest"),
    "vit_small_two": [*VIT_S, "--trainer.accelerator", "cpu", "--trainer.devices", "2"],
    "vit_small_killed": VIT_S,
}


def _hash(tensor: Any) -> str:
    content = tensor.detach().cpu().contiguous().float().numpy().tobytes()
    return hashlib.sha256(f"{tuple(tensor.shape)}".encode() + content).hexdigest()[:16]


def digest(directory: Path) -> dict[str, str]:
    """Hashes of the tensors, logits and metrics of a finished run."""
    import torch  # noqa: PLC0415 - in the process of one run

    import isvit_lightning  # noqa: PLC0415
    from isvit_lightning.networks import quantizers  # noqa: PLC0415

    torch.set_num_threads(1)
    if "detection" in directory.name:
        from detection.detector import Detection  # noqa: PLC0415

        network = Detection().load(directory)
    else:
        network = isvit_lightning.load(directory)
    model = network.model
    hashes = {name: _hash(tensor) for name, tensor in model.state_dict().items()}
    for name, quantizer in quantizers(model).items():
        if (
            str(
                quantizer.role.name
                if hasattr(quantizer.role, "name") and not hasattr(quantizer.role, "value")
                else quantizer.role.value
            )
            == "weight"
        ):
            path = f"{name.rpartition('.')[0]}.weight"
            hashes[path] = _hash(quantizer(model.get_parameter(path)))
    images = torch.randn(8, *(3, *network.preprocessing.input_size[1:]), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if "detection" in directory.name:
            images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
            scores, deltas = model.rpn_head(model.extract_feat(images))
            hashes |= {f"logits.{place}": _hash(value) for place, value in enumerate((*scores, *deltas))}
        else:
            hashes["logits"] = _hash(network(images))
    metrics = json.loads((directory / "results.json").read_text())["metrics"]
    hashes |= {f"metrics.{row}.{key}": str(value) for row, values in metrics.items() for key, value in values.items()}
    return hashes


def _environment() -> dict[str, str]:
    root = str(Path(__file__).parents[1])
    return {**os.environ, "OMP_NUM_THREADS": "1", "ISVIT_DATA": str(DATA), "PYTHONPATH": root}


def _start(name: str, directory: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "isvit_lightning", "fit", *RUNS[name], *more]
    with (directory.parent / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            [*command, "--trainer.default_root_dir", str(directory)], env=_environment(), stdout=log, stderr=log
        )


def run(name: str, folder: Path) -> dict[str, str]:
    """Digest of one run."""
    started, directory = time.perf_counter(), folder / name
    if "killed" in name:
        process = _start(name, directory, "--resume", "true")
        while not list((directory / "checkpoints").glob("stage3-00[4-9]*")):
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    process = _start(name, directory, *(["--resume", "true"] if "killed" in name else []))
    if process.wait():
        raise RuntimeError((folder / f"{name}.log").read_text()[-3000:])
    command = [sys.executable, __file__, "--digest", str(directory)]
    printed = subprocess.run(command, env=_environment(), check=True, stdout=subprocess.PIPE).stdout
    print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    shutil.rmtree(directory)
    return dict(json.loads(printed))


def main() -> int:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--digest", type=Path)
    parser.add_argument("--only", nargs="*", default=list(RUNS))
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    if options.digest:
        print(json.dumps(digest(options.digest)))
        return 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        found = dict(zip(options.only, pool.map(lambda name: run(name, Path(folder)), options.only), strict=True))
    if options.record:
        options.record.write_text(json.dumps(found, indent=1, sort_keys=True))
        return 0
    expected, equal = json.loads(options.file.read_text()), True
    for name in {"vit_small_repq", "vit_small_rtn"} & expected.keys():
        # Rows have the names of the steps now.
        expected[name] = {key.replace("stage1", "ranges"): value for key, value in expected[name].items()}
    for name, hashes in found.items():
        before = expected[name]
        different = [key for key in before if key in hashes and hashes[key] != before[key]]
        lost = [key for key in before if key not in hashes]
        new = [key for key in hashes if key not in before]
        verdict = "equal" if not (different or lost) else "DIFFERENT"
        equal = equal and verdict == "equal"
        print(f"{name}: {verdict} ({len(before)} digests; different {different[:4]}, lost {lost[:4]}, new {new[:4]})")
    print("equal" if equal else "DIFFERENT")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
