"""Every configuration of a detector parses, instantiates and composes with those of bits and methods."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("mmdet")

from detection.cli import DetectionCLI
from detection.data import CocoDataModule, DigitsDetectionDataModule
from isvit_lightning.program import chosen_program

CONFIGS = Path(__file__).parents[2] / "configs"
QUICKSTART = CONFIGS / "quickstart_detection.yaml"
COCO = sorted(CONFIGS.glob("coco/*.yaml"))


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCO", "/nowhere/coco")
    monkeypatch.setattr(sys, "argv", ["pytest"])


def instantiate(*paths: Path) -> Any:
    arguments = [argument for path in paths for argument in ("--config", str(path))]
    program = chosen_program(arguments)
    assert program is DetectionCLI
    return program(arguments, run=False)


@pytest.mark.parametrize("path", COCO, ids=lambda path: path.stem)
def test_the_settings_of_the_paper(path: Path) -> None:
    cli = instantiate(path, CONFIGS / "bits" / "w4a4.yaml")
    model, data = cli.model, cli.datamodule
    assert (model.bits.weight, model.bits.activation, model.recipe.placement.others) == (4, 4, {})
    assert (model.schedule.iterations, model.schedule.batch_size) == (1000, 1)
    assert (model.recipe.name, model.recipe.range_images, model.recipe.reconstruct) == ("isvit", 4, "backbone")
    assert model.source.config == path.stem
    assert model.source.checkpoint == f"$COCO/{path.stem}.pth"
    assert not model.source.trust_checkpoint
    assert (model.schedule.caches.where, model.schedule.caches.precision) == ("disk", "float16")
    assert isinstance(data, CocoDataModule)
    assert (data.calibration_images, data.canvas, data.scale) == (1024, (800, 1344), (1333, 800))


def test_the_quickstart() -> None:
    cli = instantiate(QUICKSTART)
    assert isinstance(cli.datamodule, DigitsDetectionDataModule)
    assert cli.datamodule.seed == cli.config["seed_everything"] == 0
    assert cli.model.source.config == "mask_rcnn_swin_digits"


@pytest.mark.parametrize("network", [QUICKSTART, COCO[0]], ids=lambda path: path.stem)
@pytest.mark.parametrize("part", [*CONFIGS.glob("bits/*.yaml"), *CONFIGS.glob("methods/*.yaml")], ids=lambda p: p.stem)
def test_bits_and_methods_compose_in_either_order(network: Path, part: Path) -> None:
    content = yaml.safe_load(part.read_text())["model"]
    for cli in (instantiate(network, part), instantiate(part, network)):
        for name, value in content.get("bits", {}).items():
            assert network == QUICKSTART or getattr(cli.model.bits, name) == value  # the quickstart has bits of its own
        assert cli.model.recipe.name == content.get("recipe", {}).get("name", "isvit")
    if "iterations" in content:
        assert instantiate(network, part).model.schedule.iterations == content["iterations"]
