"""The shipped detector: its size, its precision, and that missing weights are told."""

from importlib.resources import files

import pytest
import torch

pytest.importorskip("mmdet")

from detection.embedded import digits_detector, digits_detector_config
from detection.embedded import network as embedded
from detection.embedded.network import WEIGHTS_FILE, build_digits_detector, read_weights
from isvit_lightning.errors import IsvitError
from tools.train_detector import precision


def test_it_finds_held_out_digits() -> None:
    metrics = precision(digits_detector(), 40)
    assert metrics["box_ap"] >= 70
    assert metrics["mask_ap"] >= 75
    assert metrics["box_ap50"] >= 90


def test_weights_are_small_and_half_precision() -> None:
    assert len(files("detection.embedded").joinpath(WEIGHTS_FILE).read_bytes()) < 8_000_000
    assert {value.dtype for value in read_weights().values() if value.is_floating_point()} == {torch.float16}


def test_detector_is_float32_in_evaluation_mode() -> None:
    detector = digits_detector()
    assert not any(module.training for module in detector.modules())
    assert {parameter.dtype for parameter in detector.parameters()} == {torch.float32}


def test_description_is_new_at_every_call() -> None:
    digits_detector_config()["backbone"]["depths"] = (1,)
    assert digits_detector_config()["backbone"]["depths"] == (2, 2, 2)
    assert len(build_digits_detector().backbone.stages) == 3


def test_missing_weights_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "WEIGHTS_FILE", "absent.safetensors")
    with pytest.raises(IsvitError, match=r"^absent.safetensors is missing .* reinstall"):
        read_weights()
