"""Evaluating and predicting with several processes: each image counts once, and one process speaks."""

import contextlib
import io
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy, SingleDeviceStrategy

from benchmarks.kills import QUICKSTART
from isvit_lightning.errors import IsvitError
from isvit_lightning.program import main
from isvit_lightning.run.strategy import (
    UnitStrategy,
    alone,
    require_precision,
    require_supported,
    started,
    unit_trainer,
)
from tests.several import in_processes


def printed(verb: str, *arguments: str) -> tuple[int, str]:
    """Exit status and standard output of a verb on the embedded digits."""
    sys.argv, out = ["isvit"], io.StringIO()
    with contextlib.redirect_stdout(out):
        status = main([verb, "--config", str(QUICKSTART), *arguments])
    return status, out.getvalue()


def measured_and_predicted(folder: Path) -> tuple[tuple[int, str], tuple[int, str]]:
    """51 images, which two processes cannot share evenly."""
    several = ("--data.evaluation_images", "51", "--data.batch_size", "10", "--trainer.devices", "2")
    return printed("test", *several), printed("predict", *several, "--trainer.default_root_dir", str(folder))


@pytest.fixture(autouse=True)
def own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pytest"])


def test_each_image_counts_once_and_in_order(tmp_path: Path) -> None:
    first, second = in_processes(measured_and_predicted, 2, tmp_path / "two")
    single = ("--data.evaluation_images", "51")
    assert first[0] == printed("test", *single)
    assert second == ((0, ""), (0, ""))
    assert printed("predict", *single, "--trainer.default_root_dir", str(tmp_path / "one"))[0] == 0
    one, two = ((tmp_path / name / "predictions.csv").read_text().splitlines() for name in ("one", "two"))
    assert len(one) == 52
    assert [line.rpartition(",")[0] for line in two] == [line.rpartition(",")[0] for line in one]


def too_many() -> int:
    """Two processes and one image."""
    return printed("test", "--data.evaluation_images", "1", "--trainer.devices", "2")[0]


def test_more_processes_than_images_are_refused() -> None:
    assert in_processes(too_many, 2) == [2, 2]


def test_a_strategy_that_splits_the_network_is_refused() -> None:
    strange: Any = SimpleNamespace(strategy=FSDPStrategy())
    with pytest.raises(IsvitError, match="FSDPStrategy, expected auto or ddp"):
        require_supported(strange)
    require_supported(Trainer(strategy="ddp", devices=2, accelerator="cpu", logger=False))


def test_ddp_on_one_device_is_one_process_without_it() -> None:
    make = partial(Trainer, accelerator="cpu", logger=False, strategy="ddp")
    one, two = unit_trainer(make, devices=1), unit_trainer(make, devices=2)
    assert isinstance(one.strategy, SingleDeviceStrategy)
    assert isinstance(two.strategy, UnitStrategy)
    assert (one.world_size, two.world_size) == (1, 2)


@pytest.mark.parametrize(
    "options",
    [
        {"accelerator": "tpu"},
        {"accelerator": "gpuu"},
        {"accelerator": "cpu", "devices": 0},
        {"accelerator": "cpu", "devices": [0, 1]},
        {"accelerator": "cpu", "strategy": "fsdp"},
        {"accelerator": "cpu", "strategy": "foo"},
        {"accelerator": "cpu", "profiler": "foo"},
        {"accelerator": "cpu", "callbacks": [ModelCheckpoint()], "enable_checkpointing": False},
    ],
    ids=str,
)
def test_a_trainer_that_lightning_cannot_build_is_one_sentence(options: dict[str, Any]) -> None:
    told = (
        r"^Lightning's trainer cannot be built \(.+\), expected options that fit together and this machine: change trai"
    )
    with pytest.raises(IsvitError, match=told):
        unit_trainer(Trainer, logger=False, **options)


def test_a_trainer_of_one_process_on_the_same_device() -> None:
    several = Trainer(strategy=UnitStrategy(), devices=2, accelerator="cpu", logger=False)
    assert Trainer(accelerator="cpu", logger=False, **alone(several)).world_size == 1
    accelerated: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=SimpleNamespace(index=3)))
    assert alone(accelerated) == {"devices": [3], "num_nodes": 1, "strategy": "auto"}


class Launcher:
    """Notes what it is asked to do."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def launch(self, function: Any, trainer: Any) -> None:
        self.calls.append("launch")

    def kill(self, number: int) -> None:
        self.calls.append("kill")


@pytest.mark.parametrize("fails", [False, True])
def test_the_others_end_when_the_first_fails(fails: bool) -> None:
    trainer = Trainer(strategy=UnitStrategy(), devices=2, accelerator="cpu", logger=False)
    trainer.strategy._launcher = launcher = Launcher()  # type: ignore[assignment]
    with contextlib.suppress(KeyError), started(trainer):
        if fails:
            raise KeyError
    assert launcher.calls == (["launch", "kill"] if fails else ["launch"])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_autocast_around_float32_is_supported(precision: Any) -> None:
    require_precision(Trainer(accelerator="cpu", logger=False, precision=precision))


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_other_precisions_are_one_sentence(precision: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", str(QUICKSTART), "--trainer.precision", precision]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"isvit: trainer.precision is {precision}, expected 32-true")
    assert len(message.splitlines()) == 1
