"""The verbs of ``isvit`` on top of Lightning's command line, driven by configuration files."""

from pathlib import Path
from typing import Any, ClassVar

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from isvit_lightning.classifier import Classifier
from isvit_lightning.data import CalibrationDataModule
from isvit_lightning.data.selection import LARGEST_SEED
from isvit_lightning.errors import IsvitError
from isvit_lightning.run import finished
from isvit_lightning.run.arguments import default_directory, with_recipe
from isvit_lightning.run.benchmark import benchmark, options_of
from isvit_lightning.run.compare import compare
from isvit_lightning.run.exporting import export
from isvit_lightning.run.inspection import inspect
from isvit_lightning.run.messages import own_sentences, reason
from isvit_lightning.run.pictures import draw
from isvit_lightning.run.results import console
from isvit_lightning.run.runner import Runner
from isvit_lightning.run.strategy import alone, started, unit_trainer
from isvit_lightning.run.trainer_options import callbacks_of, loggers_of, require_same_work, seconds_of
from isvit_lightning.run.verbs import VERBS, Form, Runtime, Verbs
from isvit_lightning.stages.compilation import require_compiler
from isvit_lightning.system.faults import sentences
from isvit_lightning.system.processes import is_first_process
from isvit_lightning.system.termination import time_limit

_TRAINER_DEFAULTS = {
    "accelerator": "auto",
    "devices": 1,
    "logger": True,
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
            self.data_section(),
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

    def data_section(self) -> type[CalibrationDataModule]:
        """What the section data of a configuration describes: one of its subclasses."""
        return CalibrationDataModule

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
        """The program was already chosen by :func:`isvit_lightning.program.main`."""
        parser.add_argument(
            "--program", type=str, default=program_name(type(self)), help="kind of networks: the class of the program"
        )

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError:
            raise IsvitError(
                f"seed_everything is {self._section('seed_everything')}, expected a whole number from 0 to "
                f"{LARGEST_SEED}: change seed_everything."
            ) from None

    def _parse_ckpt_path(self) -> None:
        """Runs are directories here; their configuration is read by :func:`isvit_lightning.program.main`."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Carry out a verb; the trainer's own methods of the same name are not consulted."""
        seconds = seconds_of(self._section("trainer"))
        with sentences(self._directory()), time_limit(seconds, "trainer.max_time"), started(self.trainer):
            getattr(self, subcommand)(**self._prepare_subcommand_kwargs(subcommand))

    def before_instantiate_classes(self) -> None:
        """Stages run in Lightning's own trainer; its options must leave the work as it is."""
        self.trainer_class = Trainer
        require_same_work(self._section("trainer"))

    def instantiate_classes(self) -> None:
        """Build what is configured; the calibration images are drawn by the seed of the run if they have none."""
        try:
            super().instantiate_classes()
        except (ValueError, ImportError) as error:
            if own_sentences(error):
                raise
            raise IsvitError(
                f"What is configured cannot be built ({reason(error)}), expected classes that take their options and "
                "whose packages are installed: change the option, or install what is missing."
            ) from error
        callbacks_of(self._section("trainer", built=True))
        if self.datamodule.seed is None:
            self.datamodule.seed = self._seed()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Lightning's trainer; with several devices, one that shares units and images among them.

        Raises:
            IsvitError: its options do not fit together, fit this machine or leave the work as it is.
        """
        # The limit is one of the whole run, and each process loads only its own images.
        own = {"max_time": None, "use_distributed_sampler": False}
        return unit_trainer(super().instantiate_trainer, **own, **kwargs)

    def fit(
        self, evaluate: bool, baselines: list[str], resume: bool = False, overwrite: bool = False, **kwargs: Any
    ) -> None:
        """Take the steps of the recipe."""
        self._require_compiler()
        self._runner().fit(evaluate, baselines, resume, overwrite)

    def test(self, ckpt_path: str | None = None, runtime: Runtime = "simulated", **kwargs: Any) -> None:
        """Measure a finished run, or the float network where no run is named."""
        finished.measure(self._runner(), ckpt_path, runtime)

    def predict(self, ckpt_path: str | None = None, runtime: Runtime = "simulated", **kwargs: Any) -> None:
        """Write the predictions of a finished run."""
        finished.predict(self._runner(), ckpt_path, runtime)

    def inspect(self, **kwargs: Any) -> None:
        """Print what `fit` would do."""
        for table in inspect(self.model, self.datamodule):
            console().print(table)

    def compare(
        self, methods: str, bits: str | None = None, seeds: str = "0", choose_on: int = 0, **kwargs: Any
    ) -> None:
        """Put recipes side by side."""
        self._require_compiler()
        runner = self._runner()
        table = compare(runner, methods, bits, seeds, choose_on)
        console().print(table.table())
        if is_first_process():
            table.write(runner.directory)
            draw(table, runner.directory)

    def export(self, format: Form, ckpt_path: str | None = None, output: str | None = None, **kwargs: Any) -> None:  # noqa: A002
        """Write a finished run in the form of another engine."""
        export(self._runner(), ckpt_path, format, output)

    def benchmark(
        self,
        ckpt_path: str | None = None,
        threads: str = "1",
        batches: str = "1,8",
        repeats: int = 20,
        engines: str = "pytorch,onnxruntime,openvino",
        accuracy: bool = True,
        profile: bool = False,
        **kwargs: Any,
    ) -> None:
        """Measure a finished run in each engine."""
        options = options_of(threads, batches, repeats, engines, accuracy, profile)
        for each in benchmark(self._runner(), ckpt_path, options).on_console():
            console().print(each)

    def _require_compiler(self) -> None:
        if self.model.schedule.compile:
            require_compiler(self.trainer.strategy.root_device.type)

    def _directory(self) -> Path:
        """The run directory."""
        named = default_directory(self._get(self.config, "config") or [])
        if self.subcommand == "compare":
            named = named.with_name(f"compare-{named.name}")
        return Path(self._section("trainer")["default_root_dir"] or named).expanduser()

    def _section(self, name: str, built: bool = False) -> Any:
        """A section of the configuration, as plain values or with the objects that were built of them."""
        return self._get(self.config_init if built else self.config, name)

    def _seed(self) -> int:
        return int(self._section("seed_everything"))

    def _runner(self) -> Runner:
        trainer = self._section("trainer", built=True)
        return Runner(
            self.model,
            self.datamodule,
            seed=self._seed(),
            directory=self._directory(),
            config=self._dump(),
            make_trainer=self.instantiate_trainer,
            configured_callbacks=callbacks_of(trainer),
            loggers=loggers_of(trainer),
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


def program_name(program: type[IsvitCLI]) -> str:
    """Path of a program's class, as configurations name it."""
    return f"{program.__module__}.{program.__qualname__}"
