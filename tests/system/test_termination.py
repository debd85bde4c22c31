"""SIGTERM, Ctrl-C and the time limit become an error in the first process, and nothing of it remains."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader

from isvit_lightning.system.termination import KeepSigterm, TerminatedError, sentence_on_signals, time_limit
from tests.helpers import quiet_trainer


@pytest.fixture(autouse=True)
def same_handler() -> Iterator[None]:
    """A handler of a signal must not outlive its test."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize(
    ("number", "name", "status"), [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGINT, "Ctrl-C", 130)]
)
def test_a_signal_becomes_an_error_that_is_a_sentence(number: int, name: str, status: int) -> None:
    with pytest.raises(TerminatedError) as caught, sentence_on_signals():
        signal.raise_signal(number)
    assert caught.value.status == status
    assert f"stopped by {name} before" in caught.value.sentence(["fit"])


def test_what_goes_on_after_errors_does_not_go_on_after_a_signal() -> None:
    """As the rows of a comparison do, and some loggers."""
    with pytest.raises(TerminatedError), sentence_on_signals(), contextlib.suppress(Exception):
        signal.raise_signal(signal.SIGTERM)


def test_a_second_signal_ends_at_once() -> None:
    with sentence_on_signals():
        with pytest.raises(TerminatedError):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def test_ctrl_c_stays_ignored_where_it_was() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with sentence_on_signals():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_process_that_loads_images_leaves_ctrl_c_to_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    with sentence_on_signals():
        own = os.getpid()
        monkeypatch.setattr(os, "getpid", lambda: own + 1)
        signal.raise_signal(signal.SIGINT)


def test_a_time_limit_is_an_interruption_that_names_its_option() -> None:
    with pytest.raises(TerminatedError) as caught, time_limit(0.05, "trainer.max_time"):
        time.sleep(5)
    assert caught.value.status == 143
    assert "stopped by trainer.max_time before its end, expected" in caught.value.sentence(["fit"])


def test_nothing_happens_within_a_time_limit_or_without_one() -> None:
    for seconds in (None, 0.02):
        with time_limit(seconds, "trainer.max_time"):
            pass
        time.sleep(0.03)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_the_first_process_alone_watches_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with time_limit(0.01, "trainer.max_time"):
        time.sleep(0.03)


def test_the_handler_before_comes_back_whatever_happens() -> None:
    def own(*_: Any) -> None:
        """Nothing."""

    before = signal.signal(signal.SIGTERM, own)
    try:
        with sentence_on_signals():
            assert signal.getsignal(signal.SIGTERM) is not own
        assert signal.getsignal(signal.SIGTERM) is own
        with pytest.raises(KeyError), sentence_on_signals():
            raise KeyError
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_another_process_than_the_first_just_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with sentence_on_signals():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize(
    ("command", "advice"),
    [
        ("fit", "every finished unit is kept; go on with the same command and --resume true."),
        ("fit --resume true", ": every finished unit is kept; go on with the same command."),
        ("fit --resume=true", ": every finished unit is kept; go on with the same command."),
        ("compare", ": every finished cell and unit is kept; give the same command again."),
        ("test", ": give the same command again."),
        ("predict", ": give the same command again."),
        ("", ": give the same command again."),
    ],
)
def test_the_advice_is_that_of_the_command(command: str, advice: str) -> None:
    sentence = TerminatedError().sentence(command.split())
    assert sentence.startswith("The run was stopped by SIGTERM before its end, expected ")
    assert sentence.endswith(advice)
    assert "\n" not in sentence


class Signalled(LightningModule):
    """Gets a signal in its first step."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.number = number
        self.steps = 0

    def _step(self) -> None:
        self.steps += 1
        signal.raise_signal(self.number)

    def training_step(self, batch: torch.Tensor) -> None:
        self._step()

    def test_step(self, batch: torch.Tensor) -> None:
        self._step()

    def predict_step(self, batch: torch.Tensor) -> None:
        self._step()

    def configure_optimizers(self) -> None:
        """Nothing is tuned."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("verb", ["fit", "test", "predict"])
def test_a_trainer_is_interrupted_in_the_middle(verb: str, number: int) -> None:
    """Lightning's own handler would let the trainer go on to the end of its step, and it ends the program on Ctrl-C."""
    module, data = Signalled(number), DataLoader(torch.zeros(4, 1))  # type: ignore[arg-type]
    with pytest.raises(TerminatedError), sentence_on_signals():
        getattr(quiet_trainer(KeepSigterm(), max_epochs=1), verb)(module, data)
    assert module.steps == 1
