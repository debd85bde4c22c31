"""SIGTERM becomes an error in the first process, ends the others, and nothing of it remains."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader

from isvit_lightning.errors import IsvitError
from isvit_lightning.system.termination import EXIT_STATUS, KeepSigterm, TerminatedError, sentence_on_sigterm
from tests.helpers import quiet_trainer


@pytest.fixture(autouse=True)
def same_handler() -> Iterator[None]:
    """A handler of a signal must not outlive its test."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_signal_becomes_an_error_that_is_a_sentence() -> None:
    with pytest.raises(TerminatedError), sentence_on_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert issubclass(TerminatedError, IsvitError)
    assert EXIT_STATUS == 143


def test_the_handler_before_comes_back_whatever_happens() -> None:
    def own(*_: Any) -> None:
        """Nothing."""

    before = signal.signal(signal.SIGTERM, own)
    try:
        with sentence_on_sigterm():
            assert signal.getsignal(signal.SIGTERM) is not own
        assert signal.getsignal(signal.SIGTERM) is own
        with pytest.raises(KeyError), sentence_on_sigterm():
            raise KeyError
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_another_process_than_the_first_just_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with sentence_on_sigterm():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("verb", "advice"),
    [
        ("fit", "every finished unit is kept; go on with the same command and --resume true."),
        ("test", "give the same command again."),
        ("predict", "give the same command again."),
        ("", "give the same command again."),
    ],
)
def test_the_advice_is_that_of_the_verb(verb: str, advice: str) -> None:
    sentence = TerminatedError().sentence(verb)
    assert sentence.startswith("The run was stopped by SIGTERM before its end, expected ")
    assert sentence.endswith(advice)
    assert "\n" not in sentence


class Signalled(LightningModule):
    """Gets SIGTERM in its first step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.steps = 0

    def _step(self) -> None:
        self.steps += 1
        signal.raise_signal(signal.SIGTERM)

    def training_step(self, batch: torch.Tensor) -> None:
        self._step()

    def test_step(self, batch: torch.Tensor) -> None:
        self._step()

    def predict_step(self, batch: torch.Tensor) -> None:
        self._step()

    def configure_optimizers(self) -> None:
        """Nothing is tuned."""


@pytest.mark.parametrize("verb", ["fit", "test", "predict"])
def test_a_trainer_is_interrupted_in_the_middle(verb: str) -> None:
    """Lightning's own handler would let the trainer go on to the end of its step."""
    module, data = Signalled(), DataLoader(torch.zeros(4, 1))  # type: ignore[arg-type]
    with pytest.raises(TerminatedError), sentence_on_sigterm():
        getattr(quiet_trainer(KeepSigterm(), max_epochs=1), verb)(module, data)
    assert module.steps == 1
