"""``isvit``: fit, validate, test, predict and inspect, driven by configuration files."""

import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from isvit_lightning.callbacks import progress
from isvit_lightning.classifier import Classifier, run_directory
from isvit_lightning.data import CalibrationDataModule
from isvit_lightning.errors import IsvitError
from isvit_lightning.run.inspection import inspect
from isvit_lightning.run.results import console
from isvit_lightning.run.runner import Runner
from isvit_lightning.run.strategy import UnitStrategy, alone, require_precision, require_supported, started
from isvit_lightning.stages.compilation import require_compiler
from isvit_lightning.system.faults import sentences
from isvit_lightning.system.heap import keep_one_heap
from isvit_lightning.system.processes import is_first_process, lost_connection, world_size
from isvit_lightning.system.termination import EXIT_STATUS, TerminatedError, sentence_on_sigterm

_GRACE_SECONDS = 2.0
_TRAINER_DEFAULTS = {
    "accelerator": "auto",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
}


class _Verbs(Trainer):
    """Lightning's trainer, which runs each stage. Here: the options of the verbs, and their help."""

    def fit(self, evaluate: bool = True, baselines: bool = True, resume: bool = False) -> None:  # type: ignore[override]
        """Calibrate a network and write its run directory.

        Args:
            evaluate: end with an evaluation and the table.
            baselines: evaluate round-to-nearest and RepQ-style networks beside the result.
            resume: go on with the interrupted run in the run directory; starts afresh where there is none.
        """

    def validate(self, ckpt_path: str | None = None) -> None:  # type: ignore[override]
        """Measure a finished run; the same as test.

        Args:
            ckpt_path: run directory or its quantized.safetensors; none measures the float network.
        """

    def test(self, ckpt_path: str | None = None) -> None:  # type: ignore[override]
        """Measure a finished run: top-1 and top-5 of a classifier, average precision of a detector.

        Args:
            ckpt_path: run directory or its quantized.safetensors; none measures the float network.
        """

    def predict(self, ckpt_path: str | None = None) -> None:  # type: ignore[override]
        """Write what is found on each evaluation image: a table of classes, or pictures of a detector's objects.

        A classifier needs no labels: data.evaluation may name any folder of images, flat or nested.

        Args:
            ckpt_path: run directory or its quantized.safetensors; none predicts with the float network.
        """

    def inspect(self, **kwargs: Any) -> None:
        """Print units, pairs, quantizers and the memory of the caches, and calibrate nothing."""


class IsvitCLI(LightningCLI):
    """The command line: Lightning's, with `fit` running the stages in order."""

    model_section: ClassVar[type[LightningModule]] = Classifier
    """What the section model of a configuration describes."""

    def __init__(self, args: ArgsType, run: bool = True) -> None:
        super().__init__(
            self.model_section,
            CalibrationDataModule,
            save_config_callback=None,
            trainer_class=_Verbs,
            trainer_defaults=_TRAINER_DEFAULTS,
            seed_everything_default=0,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
            run=run,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Lightning's parser, raising instead of leaving the process, so that errors read alike."""
        return super().init_parser(**{**kwargs, "exit_on_error": False, "prog": kwargs.get("prog", "isvit")})

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The verbs; each takes all arguments of its method of :class:`_Verbs`."""
        return {verb: set() for verb in ("fit", "validate", "test", "predict", "inspect")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The seed of the run draws the calibration images too; the program was already chosen by :func:`main`."""
        parser.add_argument(
            "--program", type=str, default=program_name(type(self)), help="kind of networks: the class of the program"
        )
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)

    def _parse_ckpt_path(self) -> None:
        """Runs are directories here; their configuration is read by :func:`main`."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Carry out a verb; the trainer's own methods of the same name are not consulted."""
        with sentences(self._directory()), started(self.trainer):
            getattr(self, subcommand)(**self._prepare_subcommand_kwargs(subcommand))

    def before_instantiate_classes(self) -> None:
        """Stages run in Lightning's own trainer."""
        self.trainer_class = Trainer

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Lightning's trainer; with several devices, one that shares units and images among them."""
        trainer = super().instantiate_trainer(**kwargs)
        if self.trainer_class is Trainer:
            require_precision(trainer)
        if trainer.world_size == 1 or self.trainer_class is not Trainer:
            return trainer
        require_supported(trainer)
        return super().instantiate_trainer(**{**kwargs, "strategy": UnitStrategy()})

    def fit(self, evaluate: bool, baselines: bool, resume: bool = False, **kwargs: Any) -> None:
        """Run the stages."""
        if self.model.compile_units:
            require_compiler(self.trainer.strategy.root_device.type)
        self._runner().fit(evaluate, baselines, resume)

    def test(self, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Measure a finished run, or the float network where no run is named."""
        self._runner().test(ckpt_path)

    def validate(self, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """The same as test."""
        self._runner().test(ckpt_path)

    def predict(self, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Write the predictions of a finished run."""
        self._runner().predict(ckpt_path)

    def inspect(self, **kwargs: Any) -> None:
        """Print what `fit` would do."""
        for table in inspect(self.model, self.datamodule):
            console().print(table)

    def _directory(self) -> Path:
        """The run directory."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        return Path(config["trainer"]["default_root_dir"] or default_directory(config.get("config") or []))

    def _runner(self) -> Runner:
        config = self.config[self.subcommand] if self.subcommand else self.config
        return Runner(
            self.model,
            self.datamodule,
            seed=int(config["seed_everything"]),
            directory=self._directory(),
            config=self._dump(),
            make_trainer=self.instantiate_trainer,
            configured_callbacks=list(config_callbacks(self.config_init, self.subcommand)),
            alone=alone(self.trainer) if self.trainer.world_size > 1 else {},
            machine={
                "accelerator": self.trainer.strategy.root_device.type,
                "processes": self.trainer.world_size,
                "precision": str(self.trainer.precision),
            },
        )

    def _dump(self) -> str:
        """The configuration as YAML, without what belongs to one verb only."""
        self._dump_config()
        kept = ("program", "seed_everything", "trainer", "model", "data")
        return yaml.safe_dump({key: self.config_dump[key] for key in kept}, sort_keys=False)


def config_callbacks(config: Any, verb: str | None) -> Sequence[Any]:
    """Callbacks that the configuration names."""
    section = config[verb] if verb else config
    return section["trainer"]["callbacks"] or []


def default_directory(configs: Sequence[Any]) -> Path:
    """``runs/`` and the names of the configuration files."""
    names = [Path(str(config)).stem for config in configs]
    return Path("runs") / ("-".join(names) or "default")


def with_run_config(arguments: list[str]) -> list[str]:
    """Put the configuration of the run that ``--ckpt_path`` names before all others.

    Raises:
        IsvitError: there is no such run.
    """
    expanded = [part for argument in arguments for part in _split(argument)]
    if "--ckpt_path" not in expanded[:-1]:
        return arguments
    position = expanded.index("--ckpt_path") + 1
    directory = run_directory(expanded[position])
    expanded[position] = str(directory)
    config = directory / "config.yaml"
    inherited = ["--config", str(config)] if config.exists() else []
    return [*expanded[:1], *inherited, *expanded[1:]]


def _split(argument: str) -> list[str]:
    name, equals, value = argument.partition("=")
    return [name, value] if equals and name in ("--ckpt_path", "--config", "--program") else [argument]


def program_name(program: type[IsvitCLI]) -> str:
    """Path of a program's class, as configurations name it."""
    return f"{program.__module__}.{program.__qualname__}"


def chosen_program(arguments: Sequence[str], default: type[IsvitCLI] = IsvitCLI) -> type[IsvitCLI]:
    """The program that the last ``--program``, or else the last configuration file with a key ``program``, names.

    Args:
        arguments: command line, with the configuration of a run that it names.
        default: the program where nothing names one.

    Raises:
        IsvitError: there is no such program.
    """
    parts = [part for argument in arguments for part in _split(argument)]
    values = {
        option: [value for name, value in pairwise(parts) if name == option] for option in ("--config", "--program")
    }
    named = [name for path in values["--config"] if (name := _named_program(Path(path)))] + values["--program"]
    if not named:
        return default
    module, _, name = named[-1].rpartition(".")
    try:
        program = getattr(import_module(module), name)
    except (ImportError, ValueError, AttributeError) as error:
        raise IsvitError(
            f"The program {named[-1]} cannot be imported ({error}), expected one such as {program_name(IsvitCLI)}, or "
            'detection.cli.DetectionCLI after pip install "isvit-lightning[detection]": change program.'
        ) from None
    if not (isinstance(program, type) and issubclass(program, IsvitCLI)):
        raise IsvitError(f"{named[-1]} is no program, expected one such as {program_name(IsvitCLI)}: change program.")
    return program


def _named_program(path: Path) -> str | None:
    """The key ``program`` of a configuration file; the parser tells what is wrong with the file."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return str(content["program"]) if isinstance(content, dict) and content.get("program") else None


def main(arguments: Sequence[str] | None = None, program: type[IsvitCLI] = IsvitCLI) -> int:
    """Entry point of ``isvit``.

    Args:
        arguments: command line without the program's name; the process's own by default.
        program: the command line to run where the configuration names none; a subclass adds to what is done.

    Returns:
        Exit status: 0; 2 after a mistake in the input, 3 when another process of the run ended, 143 after SIGTERM.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    first = is_first_process()
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, format="%(message)s", stream=sys.stderr)
    _quieten()
    keep_one_heap()
    if not first:
        logging.getLogger(progress.__name__).setLevel(logging.INFO)
        _end_with_parent()
    # Lightning starts the other processes with the arguments of this one.
    sys.argv = [*sys.argv[:1], *given]
    with contextlib.ExitStack() as stack:
        if not first:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        stack.enter_context(sentence_on_sigterm())
        return _status(program, given, first)


def _status(program: type[IsvitCLI], given: list[str], first: bool) -> int:
    """Run the program and tell mistakes in one sentence."""
    try:
        given = with_run_config(given)
        chosen_program(given, program)(given)
    except TerminatedError as error:
        _tell(error.sentence(given[0] if given else ""), first)
        return EXIT_STATUS
    except IsvitError as error:
        _tell(str(error), first)
        return 2
    except (ArgumentError, ValueError) as error:
        # The parser wraps what a constructor raises; any other ValueError is no mistake of the user.
        if isinstance(error, ValueError) and not own_sentences(error):
            raise
        _tell(one_sentence(error), first)
        return 2
    except RuntimeError as error:
        if not lost_connection(error):
            raise
        _tell(
            f"Another process of this run ended, expected all {world_size()} to go on: every finished unit is kept; go "
            "on with the same command and --resume true.",
            first,
        )
        return 3
    return 0


def _tell(sentence: str, first: bool) -> None:
    """Write ``sentence`` to standard error; a mistake that all processes make comes from the first one alone."""
    if not first:
        time.sleep(_GRACE_SECONDS)  # the first process ends the others when it fails too
    sys.stderr.write(f"isvit: {sentence}\n")


def own_sentences(error: Exception) -> list[str]:
    """The sentences of this program inside a parser's complaint."""
    lines = [line.strip(" -") for line in str(error).splitlines()]
    return [line for line in lines if ", expected" in line and line.endswith(".")]


def one_sentence(error: Exception) -> str:
    """A parser's complaint in one line; where one of this program's own sentences is inside, that alone."""
    own = own_sentences(error)
    return own[0] if own else f"{' '.join(str(error).split())}; `isvit fit --help` lists the expected keys."


def _end_with_parent() -> None:
    """On Linux: end when the first process, which started this one, is killed, instead of working on without it."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _quieten() -> None:
    """Silence advice of the libraries that does not apply to calibration."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Of its reports, only the end of a process is worth reading.
    logging.getLogger("lightning.fabric.strategies.launchers").setLevel(logging.INFO)
    logging.getLogger("lightning.pytorch.trainer.connectors.signal_connector").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", module="timm.*")
