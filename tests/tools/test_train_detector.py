"""Training in small: it learns, it is seeded, and the command writes what it promises."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("mmdet")

from detection.embedded.network import WEIGHTS_FILE
from isvit_lightning.errors import IsvitError
from tools import train_detector as training
from tools.train_detector import Recipe, main, train_detector

TWO_STEPS = Recipe(steps=2, batch_size=2)


def test_seed_decides_and_the_callers_random_state_stays() -> None:
    state = torch.random.get_rng_state()
    first = train_detector(TWO_STEPS).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(1)
    second = train_detector(TWO_STEPS).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_steps_reach_every_part() -> None:
    one, two = (dict(train_detector(Recipe(steps=steps, batch_size=2)).named_parameters()) for steps in (1, 2))
    still = [name for name in one if torch.equal(one[name], two[name])]
    assert still == []


def test_command_writes_and_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(training, "MEASURED", 2)
    with caplog.at_level(logging.INFO):
        assert main(["--steps", "1", "--out", str(tmp_path / "new")]) == 0
    written: dict[str, Any] = load_file(tmp_path / "new" / WEIGHTS_FILE)
    assert {value.dtype for value in written.values()} == {torch.float16}
    assert "box_ap" in caplog.text


def test_zero_steps_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(IsvitError, match="expected at least 1"):
        Recipe(steps=0)
    assert main(["--steps", "0", "--out", str(tmp_path)]) == 2
    assert "change --steps" in caplog.text


def test_rate_rises_and_falls_to_zero() -> None:
    recipe = Recipe(steps=100, learning_rate=1.0, warmup=0.1)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))
