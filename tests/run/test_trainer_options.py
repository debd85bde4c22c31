"""Every option and every callback of Lightning's is decided: obeyed, harmless, or refused with what does its work."""

import inspect
import json
from datetime import timedelta
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer, callbacks
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, LambdaCallback, ModelCheckpoint, Timer
from lightning.pytorch.loggers.logger import DummyLogger

from isvit_lightning.errors import IsvitError
from isvit_lightning.run.trainer_options import (
    HARMLESS,
    OBEYED,
    REFUSED,
    REFUSED_CALLBACKS,
    callbacks_of,
    loggers_of,
    require_same_work,
    seconds_of,
)

DEFAULTS = {name: one.default for name, one in inspect.signature(Trainer).parameters.items()}
LEFT_ALONE = {
    "Callback",
    "Checkpoint",
    "DeviceStatsMonitor",
    "LambdaCallback",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ModelSummary",
    "OnExceptionCheckpoint",
    "ProgressBar",
    "RichModelSummary",
    "RichProgressBar",
    "TQDMProgressBar",
    "ThroughputMonitor",
}
"""Callbacks of Lightning's that look on."""


def test_every_option_of_the_trainer_is_decided_once() -> None:
    decided = [*OBEYED, *HARMLESS, *REFUSED]
    assert len(decided) == len(set(decided))
    assert set(decided) == set(DEFAULTS), "a version of Lightning has other options: decide what they do to the work"


def test_every_callback_is_decided() -> None:
    known = {name for name in callbacks.__all__ if issubclass(getattr(callbacks, name), tuple(REFUSED_CALLBACKS))}
    assert known | LEFT_ALONE == set(callbacks.__all__)
    assert not known & LEFT_ALONE


def test_lightnings_own_defaults_do_nothing() -> None:
    require_same_work(DEFAULTS)


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("max_steps", 3, "model.iterations"),
        ("max_epochs", 5, "model.iterations"),
        ("min_epochs", 9, "model.iterations"),
        ("min_steps", 100, "model.iterations"),
        ("limit_train_batches", 1, "model.iterations"),
        ("limit_train_batches", 0.5, "model.iterations"),
        ("limit_test_batches", 1, "data.evaluation_images"),
        ("limit_test_batches", 0, "data.evaluation_images"),
        ("limit_predict_batches", 0.1, "data.evaluation_images"),
        ("limit_val_batches", 1, "held_back"),
        ("val_check_interval", 5, "held_back"),
        ("val_check_interval", timedelta(hours=1), "held_back"),
        ("check_val_every_n_epoch", 2, "held_back"),
        ("num_sanity_val_steps", -1, "held_back"),
        ("overfit_batches", 1, "model.iterations"),
        ("fast_dev_run", True, "model.iterations"),
        ("fast_dev_run", 1, "model.iterations"),
        ("accumulate_grad_batches", 2, "model.micro_batch"),
        ("gradient_clip_val", 1, "model.recipe.changes"),
        ("gradient_clip_val", 0.5, "model.recipe.changes"),
        ("gradient_clip_algorithm", "foo", "model.recipe.changes"),
        ("barebones", True, "finished"),
        ("sync_batchnorm", True, "float network"),
        ("model_registry", "name", "directory"),
    ],
)
def test_what_would_change_or_cut_the_work_is_refused(name: str, value: Any, instead: str) -> None:
    with pytest.raises(IsvitError) as caught:
        require_same_work({**DEFAULTS, name: value})
    sentence = str(caught.value)
    assert sentence.startswith(f"trainer.{name} is {value}, expected {json.dumps(REFUSED[name].idle[0])}: ")
    assert instead in sentence


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("limit_train_batches", 1.0),
        ("limit_test_batches", 1.0),
        ("overfit_batches", 0),
        ("max_epochs", -1),
        ("num_sanity_val_steps", 0),
        ("fast_dev_run", 0),
        ("gradient_clip_val", 0.0),
        ("val_check_interval", 1.0),
    ],
)
def test_other_ways_to_say_nothing_are_left_alone(name: str, value: Any) -> None:
    require_same_work({**DEFAULTS, name: value})


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [(None, None), ("00:00:01:30", 90.0), ("1:00:00:00", 86400.0), (timedelta(seconds=2), 2.0), ({"hours": 1}, 3600.0)],
)
def test_a_time_limit_is_read_as_lightning_reads_it(limit: Any, seconds: float | None) -> None:
    assert seconds_of({"max_time": limit}) == seconds


@pytest.mark.parametrize("limit", ["soon", "90", "00:00:00:00", {"eons": 1}, timedelta(seconds=-1)])
def test_a_time_limit_that_is_none_is_refused(limit: Any) -> None:
    with pytest.raises(IsvitError, match=r"^trainer\.max_time is .*, expected days:hours:minutes:seconds such as "):
        require_same_work({**DEFAULTS, "max_time": limit})


def test_one_callback_or_several_or_none() -> None:
    one, other = LambdaCallback(), ModelCheckpoint()
    assert callbacks_of({"callbacks": None}) == []
    assert callbacks_of({"callbacks": one}) == [one]
    assert callbacks_of({"callbacks": [one, other]}) == [one, other]


@pytest.mark.parametrize(
    ("callback", "reason"),
    [
        (EarlyStopping("loss"), "model.iterations sets"),
        (Timer("00:00:00:01"), "trainer.max_time limits a run"),
        (EMAWeightAveraging(), "model.recipe.steps"),
        (ModelCheckpoint(monitor="val_loss"), "no step has the metric val_loss"),
    ],
)
def test_callbacks_that_would_change_or_cut_the_work_are_refused(callback: Callback, reason: str) -> None:
    name = type(callback).__name__
    with pytest.raises(IsvitError, match=rf"^trainer\.callbacks holds {name}, expected .*: take it out; .*{reason}"):
        callbacks_of({"callbacks": [LambdaCallback(), callback]})


def test_loggers_of_the_user_take_the_place_of_the_runs_own() -> None:
    logger = DummyLogger()
    assert loggers_of({"logger": True}) is None
    assert loggers_of({"logger": None}) is None
    assert loggers_of({"logger": False}) == []
    assert loggers_of({"logger": logger}) == [logger]
    assert loggers_of({"logger": [logger]}) == [logger]
