"""Which options of Lightning's trainer are obeyed, and what does the work of those that are not."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BasePredictionWriter,
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    SpikeDetection,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.loggers import Logger

from isvit_lightning.errors import IsvitError

OBEYED = (
    "accelerator",
    "benchmark",
    "callbacks",
    "default_root_dir",
    "detect_anomaly",
    "deterministic",
    "devices",
    "enable_model_summary",
    "enable_progress_bar",
    "inference_mode",
    "log_every_n_steps",
    "logger",
    "max_time",
    "num_nodes",
    "plugins",
    "precision",
    "profiler",
    "strategy",
)
"""Options that do what Lightning says they do."""

HARMLESS = (
    "enable_autolog_hparams",
    "enable_checkpointing",
    "reload_dataloaders_every_n_epochs",
    "use_distributed_sampler",
)
"""Options that the program carries out whatever they say: finished units are kept, images are shared."""


@dataclass(frozen=True)
class Refusal:
    """An option that would change or cut the work.

    Args:
        idle: values with which it does nothing, the usual one first.
        instead: the option of this program that does it, or why none does.
    """

    idle: tuple[Any, ...]
    instead: str


_ITERATIONS = "model.iterations sets how long a unit is tuned"
_TRIAL = "a quick trial has few model.iterations, data.calibration_images and data.evaluation_images"
_EVALUATION = "data.evaluation_images sets how many images are measured and predicted on"
_NO_VALIDATION = "nothing is validated while a unit is tuned; a step Finetune holds images back by its option held_back"
_CLIPPING = "gradients are not clipped; model.recipe.changes lowers the learning rates of a step"

REFUSED: Mapping[str, Refusal] = {
    "accumulate_grad_batches": Refusal((1,), "model.batch_size and model.micro_batch set the images of a step"),
    "barebones": Refusal((False,), "callbacks keep what is finished"),
    "check_val_every_n_epoch": Refusal((1, None), _NO_VALIDATION),
    "fast_dev_run": Refusal((False, 0), _TRIAL),
    "gradient_clip_algorithm": Refusal((None, "norm", "value"), _CLIPPING),
    "gradient_clip_val": Refusal((None, 0, 0.0), _CLIPPING),
    "limit_predict_batches": Refusal((None, 1.0), _EVALUATION),
    "limit_test_batches": Refusal((None, 1.0), _EVALUATION),
    "limit_train_batches": Refusal((None, 1.0), _ITERATIONS),
    "limit_val_batches": Refusal((None, 1.0), _NO_VALIDATION),
    "max_epochs": Refusal((None, -1), f"an epoch is a unit, and all are tuned; {_ITERATIONS}"),
    "max_steps": Refusal((-1,), _ITERATIONS),
    "min_epochs": Refusal((None, 0, 1), f"an epoch is a unit, and all are tuned; {_ITERATIONS}"),
    "min_steps": Refusal((None, 0), _ITERATIONS),
    "model_registry": Refusal((None,), "a run is a directory and is not uploaded"),
    "num_sanity_val_steps": Refusal((0, None, 2), _NO_VALIDATION),
    "overfit_batches": Refusal((0.0, 0), _TRIAL),
    "sync_batchnorm": Refusal((False,), "statistics of batches stay those of the float network"),
    "val_check_interval": Refusal((None, 1.0), _NO_VALIDATION),
}
"""Options that are refused with any but their idle values."""

_WHOLE = f"every unit is tuned to its end; {_ITERATIONS}"
_BEHIND = "it would change the network behind the back of the recipe; model.recipe.steps says what is done to it"

REFUSED_CALLBACKS: Mapping[type[Callback], str] = {
    BaseFinetuning: _BEHIND,
    BasePredictionWriter: "predictions are written by isvit predict",
    BatchSizeFinder: "a batch that does not fit is halved by itself; model.micro_batch sets it",
    EarlyStopping: _WHOLE,
    GradientAccumulationScheduler: REFUSED["accumulate_grad_batches"].instead,
    LearningRateFinder: "model.recipe.changes sets the learning rates of a step",
    ModelPruning: _BEHIND,
    SpikeDetection: "a unit whose loss ends in NaN is rolled back to its best state by itself",
    StochasticWeightAveraging: _BEHIND,
    Timer: "trainer.max_time limits a run",
    WeightAveraging: _BEHIND,
}
"""Callbacks of Lightning's that would change or cut the work, with what to do instead."""


def require_same_work(options: Mapping[str, Any]) -> None:
    """Refuse options of the trainer that would change or cut the work.

    Args:
        options: the section trainer of a configuration, before anything of it is built.

    Raises:
        IsvitError: one of them has another value than those with which it does nothing, or the time limit is none.
    """
    for name, refusal in REFUSED.items():
        value = options.get(name, refusal.idle[0])
        if not any(type(value) is type(idle) and value == idle for idle in refusal.idle):
            usual = json.dumps(refusal.idle[0])
            raise IsvitError(f"trainer.{name} is {value}, expected {usual}: {refusal.instead}.")
    seconds_of(options)


def callbacks_of(options: Mapping[str, Any]) -> list[Any]:
    """Callbacks of the section trainer, which may name none, one or several.

    Raises:
        IsvitError: one of Lightning's would change or cut the work, or needs a metric that no step has.
    """
    callbacks = _listed(options["callbacks"])
    for callback in callbacks:
        reasons = [reason for kind, reason in REFUSED_CALLBACKS.items() if isinstance(callback, kind)]
        monitor = getattr(callback, "monitor", None)
        if isinstance(callback, ModelCheckpoint) and monitor is not None:
            reasons = [f"no step has the metric {monitor}; finished units are kept without it, for --resume true"]
        if reasons:
            raise IsvitError(
                f"trainer.callbacks holds {type(callback).__name__}, expected callbacks that leave the work as it is: "
                f"take it out; {reasons[0]}."
            )
    return callbacks


def seconds_of(options: Mapping[str, Any]) -> float | None:
    """The time limit of the section trainer in seconds; None where there is none.

    Raises:
        IsvitError: it is no duration, or none above 0.
    """
    limit = options["max_time"]
    try:
        seconds = Timer(limit).time_remaining()
    except (MisconfigurationException, TypeError):
        seconds = 0.0
    if seconds is not None and seconds <= 0:
        raise IsvitError(
            f"trainer.max_time is {limit}, expected days:hours:minutes:seconds such as 00:01:30:00: change "
            "trainer.max_time."
        )
    return seconds


def loggers_of(options: Mapping[str, Any]) -> list[Logger] | None:
    """Loggers of the section trainer; None where the run directory's own is wanted."""
    given = options["logger"]
    return None if given is None or given is True else _listed(given or None)


def _listed(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, Iterable) else [given]
