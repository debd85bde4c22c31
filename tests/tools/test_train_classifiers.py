"""Training in small: it learns, it is seeded, and the command writes what it promises."""

import logging
import math
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file

from isvit_lightning.embedded import EmbeddedName, digit_images
from isvit_lightning.embedded.networks import weights_file
from isvit_lightning.errors import IsvitError
from tools import train_classifiers as training
from tools.train_classifiers import Recipe, main, save_weights, top1, train_network

ONE_EPOCH = Recipe(epochs=1, batch_size=16)


def few_digits() -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = digit_images("train")
    return images[:32], labels[:32]


@pytest.mark.parametrize("name", get_args(EmbeddedName))
def test_one_epoch(name: EmbeddedName, tmp_path: Path) -> None:
    network = train_network(name, *few_digits(), ONE_EPOCH)
    path = tmp_path / weights_file(name)
    save_weights(network, path)
    written = load_file(path)
    assert {value.dtype for value in written.values()} == {torch.float16}
    assert path.stat().st_size < 2_000_000
    network.load_state_dict(written)
    assert 0 <= top1(network, *few_digits()) <= 100


def test_seed_decides_and_the_callers_random_state_stays() -> None:
    state = torch.random.get_rng_state()
    first = train_network("swin_digits", *few_digits(), ONE_EPOCH).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(1)
    second = train_network("swin_digits", *few_digits(), ONE_EPOCH).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_command_writes_digits_and_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(training, "digit_images", lambda split: few_digits())
    with caplog.at_level(logging.INFO):
        assert main(["--network", "swin_digits", "--epochs", "1", "--out", str(tmp_path / "new")]) == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"digits.safetensors", "swin_digits.safetensors"}
    assert "top-1" in caplog.text


def test_command_tells_mistakes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["--epochs", "0", "--out", str(tmp_path)]) == 2
    assert "change --epochs" in caplog.text


def test_zero_epochs_are_refused() -> None:
    with pytest.raises(IsvitError, match="expected at least 1"):
        Recipe(epochs=0)


def test_rate_rises_and_falls_to_zero() -> None:
    recipe = Recipe(learning_rate=1.0, warmup=0.1)
    rates = [recipe.rate(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert max(rates) == 1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))
