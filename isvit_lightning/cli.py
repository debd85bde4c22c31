"""``isvit``: fit, test, predict, inspect and compare, driven by configuration files."""

import contextlib
import os
import sys
import time
from argparse import ArgumentError
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from isvit_lightning.callbacks import progress
from isvit_lightning.classifier import Classifier
from isvit_lightning.data import CalibrationDataModule
from isvit_lightning.errors import IsvitError
from isvit_lightning.run.arguments import content_of, default_directory, values_of, with_recipe, with_run_config
from isvit_lightning.run.compare import compare
from isvit_lightning.run.inspection import inspect
from isvit_lightning.run.messages import one_sentence, own_sentences
from isvit_lightning.run.results import console
from isvit_lightning.run.runner import Runner
from isvit_lightning.run.strategy import UnitStrategy, alone, require_precision, require_supported, started
from isvit_lightning.run.verbs import VERBS, Verbs
from isvit_lightning.stages.compilation import require_compiler
from isvit_lightning.system.bootstrap import begin_process
from isvit_lightning.system.faults import sentences
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


class IsvitCLI(LightningCLI):
    """The command line: Lightning's, with `fit` taking the steps of a recipe in order."""

    model_section: ClassVar[type[LightningModule]] = Classifier
    """What the section model of a configuration describes."""

    def __init__(self, args: ArgsType, run: bool = True) -> None:
        self._verb = next((one for one in args or () if one in VERBS), None) if isinstance(args, list | tuple) else None
        super().__init__(
            self.model_section,
            CalibrationDataModule,
            save_config_callback=None,
            trainer_class=Verbs,
            trainer_defaults=_TRAINER_DEFAULTS,
            seed_everything_default=0,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=with_recipe(list(args or []), VERBS) if isinstance(args, list | tuple) else args,
            run=run,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Lightning's parser, raising instead of leaving the process, so that errors read alike."""
        return super().init_parser(**{**kwargs, "exit_on_error": False, "prog": kwargs.get("prog", "isvit")})

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Options of the verb that is given alone: those of all others would take longer than everything else."""
        if subcommand == self._verb:
            return super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        self._subcommand_method_arguments[subcommand] = []
        return self.init_parser(**kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The verbs; each takes all arguments of its method of :class:`Verbs`."""
        return {verb: set() for verb in VERBS}

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

    def fit(
        self, evaluate: bool, baselines: list[str], resume: bool = False, overwrite: bool = False, **kwargs: Any
    ) -> None:
        """Take the steps of the recipe."""
        self._require_compiler()
        self._runner().fit(evaluate, baselines, resume, overwrite)

    def test(self, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Measure a finished run, or the float network where no run is named."""
        self._runner().test(ckpt_path)

    def predict(self, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Write the predictions of a finished run."""
        self._runner().predict(ckpt_path)

    def inspect(self, **kwargs: Any) -> None:
        """Print what `fit` would do."""
        for table in inspect(self.model, self.datamodule):
            console().print(table)

    def compare(self, methods: str, bits: str | None = None, seeds: str = "0", **kwargs: Any) -> None:
        """Put recipes side by side."""
        self._require_compiler()
        runner = self._runner()
        table = compare(runner, methods, bits, seeds)
        console().print(table.table())
        if is_first_process():
            table.write(runner.directory)

    def _require_compiler(self) -> None:
        if self.model.schedule.compile:
            require_compiler(self.trainer.strategy.root_device.type)

    def _directory(self) -> Path:
        """The run directory."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        named = default_directory(config.get("config") or [])
        if self.subcommand == "compare":
            named = named.with_name(f"compare-{named.name}")
        return Path(config["trainer"]["default_root_dir"] or named).expanduser()

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
    files = [content_of(Path(path)) for path in values_of("--config", arguments)]
    named = [str(file["program"]) for file in files if isinstance(file, dict) and file.get("program")]
    named += values_of("--program", arguments)
    if not named:
        return default
    module, _, name = named[-1].rpartition(".")
    try:
        program = getattr(import_module(module), name)
    except (ImportError, ValueError, AttributeError) as error:
        raise IsvitError(
            f"The program {named[-1]} cannot be imported ({error}), expected one such as {program_name(IsvitCLI)}, or "
            "that of an extra that is installed: change program."
        ) from None
    if not (isinstance(program, type) and issubclass(program, IsvitCLI)):
        raise IsvitError(f"{named[-1]} is no program, expected one such as {program_name(IsvitCLI)}: change program.")
    return program


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
    begin_process(told_by_all=[progress.__name__])
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
