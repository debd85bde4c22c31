"""A network that reads gray images, from the files to the number of the finished run and back."""

import json
from pathlib import Path

import pytest
from PIL import Image

from isvit_lightning.embedded.digits import digit_images
from isvit_lightning.export.artifact import load
from isvit_lightning.program import main

ARGS = {
    "VisionTransformer": ("vit_tiny_patch16_224", {"patch_size": 8, "depth": 1, "embed_dim": 32, "num_heads": 2}),
    "SwinTransformer": (
        "SwinTransformer",
        {"patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": [2], "num_heads": [2]},
    ),
}


def write_digits(folder: Path) -> None:
    """Gray files, those to evaluate on in ten folders."""
    for split, count in (("train", 16), ("held_out", 20)):
        images, _ = digit_images(split)  # type: ignore[arg-type]
        for index in range(count):
            path = folder / split / str(index % 10) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(((images[index, 0] + 1) * 127.5).round().byte().numpy()).save(path)


@pytest.mark.parametrize("kind", ARGS)
@pytest.mark.usefixtures("own_arguments")
def test_fit_test_and_predict_on_one_channel(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_digits(tmp_path)
    architecture, args = ARGS[kind]
    values = {"mean": [0.5], "std": [0.5], "model_args": {**args, "img_size": 32, "num_classes": 10, "in_chans": 1}}
    (tmp_path / "gray.json").write_text(json.dumps({"architecture": architecture, **values}))
    run = tmp_path / "run"
    options = {
        "trainer.default_root_dir": run,
        "trainer.accelerator": "cpu",
        "model.network.description": tmp_path / "gray.json",
        "model.network.pretrained": "false",
        "model.iterations": 1,
        "data": "ImageFolderDataModule",
        "data.calibration": tmp_path / "train",
        "data.evaluation": tmp_path / "held_out",
        "data.calibration_images": 16,
        "data.workers": 0,
        "baselines": "[]",
    }
    assert main(["fit", *(f"--{key}={value}" for key, value in options.items())]) == 0
    assert main(["predict", "--ckpt_path", str(run)]) == 0
    capsys.readouterr()
    assert main(["test", "--ckpt_path", str(run)]) == 0
    row = json.loads((run / "results.json").read_text())["metrics"]["quantized"]
    shown = (f"top-1 {row['top1']:.2f} %", f"agreement {row['agreement']:.2f} %", f"KL {row['kl']:.4f}")
    printed = capsys.readouterr().out
    assert all(number in printed for number in shown), printed
    network = load(run)
    assert network.preprocessing is not None
    assert network.preprocessing.input_size == (1, 32, 32)
    assert len((run / "predictions.csv").read_text().splitlines()) == 21
