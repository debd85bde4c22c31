"""What the command line makes of the section trainer, of the seeds and of what stops a run."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Callback, Trainer

from isvit_lightning.program import main
from tests.command_line import QUICKSTART, SMALL, parsed, refused

pytestmark = pytest.mark.usefixtures("own_arguments")

QUICK = ["fit", "--config", QUICKSTART, *SMALL, "--evaluate", "false", "--baselines", "[]"]
ENDS = "tests.test_cli_trainer.Ends"


class Ends(Callback):
    """Does something in the third unit of stage 3.

    Args:
        by: interrupt sends the signal of Ctrl-C, sleep waits for the time limit, fail raises, stop asks the trainer.
    """

    def __init__(self, by: str) -> None:
        self.by = by

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if (pl_module.name, pl_module.unit_name) != ("stage3", "blocks.1"):
            return
        if self.by == "interrupt":
            signal.raise_signal(signal.SIGINT)
        elif self.by == "sleep":
            signal.setitimer(signal.ITIMER_REAL, 0.01)  # the hour is over
            time.sleep(60)
        elif self.by == "stop":
            trainer.should_stop = True
        else:
            raise KeyError(self.by)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--trainer.max_steps", "3"], "trainer.max_steps is 3, expected -1: model.iterations sets"),
        (["--trainer.limit_test_batches", "1"], "limit_test_batches is 1, expected null: data.evaluation_images sets"),
        (["--trainer.accelerator", "tpu"], "Lightning's trainer cannot be built (Requirement 'torch_xla"),
        (["--trainer.logger", "WandbLogger"], "WandbLogger': Requirement 'wandb"),
        (
            ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "loss"],
            "holds EarlyStopping, expect",
        ),
        (["--trainer.callbacks+", "Timer"], "trainer.callbacks holds Timer, expected"),
        (["--seed_everything", "-1"], "seed_everything is -1, expected a whole number from 0 to 4294967295: change"),
        (
            ["--data.seed", "4294967296"],
            "data.seed is 4294967296, expected a whole number from 0 to 4294967295: change",
        ),
        (["--data", "torch.nn.Linear"], 'Parser key "data": Import path does not correspond to a subclass of Calibra'),
    ],
    ids=" ".join,
)
def test_what_is_refused_before_anything_runs(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert sentence in refused([*QUICK, *arguments, "--trainer.default_root_dir", str(run)], capsys)
    assert not run.exists()


def test_images_of_a_classifier_for_a_detector_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mmdet")
    detection = QUICKSTART.replace("quickstart", "quickstart_detection")
    line = refused(["fit", "--config", detection, "--data", "isvit_lightning.data.ImageFolderDataModule"], capsys)
    assert "does not correspond to a subclass of DetectionDataModule" in line


@pytest.mark.parametrize(
    ("options", "seed"),
    [("", 0), ("--seed_everything 7", 7), ("--seed_everything 7 --data.seed 5", 5), ("--data.seed 0", 0)],
)
def test_the_seed_of_the_data_is_that_of_the_run_unless_it_has_its_own(options: str, seed: int) -> None:
    program = parsed(f"isvit fit --config {QUICKSTART} --data.calibration_images 16 {options}")
    assert program.datamodule.seed == seed


def test_a_single_callback_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    callback = {"class_path": ENDS, "init_args": {"by": "stop"}}
    path.write_text(yaml.safe_dump({"trainer": {"callbacks": callback}}))
    run = tmp_path / "run"
    assert main([*QUICK, "--config", str(path), "--trainer.default_root_dir", str(run)]) == 2
    assert (run / "checkpoints").exists()


@pytest.mark.parametrize(
    ("by", "status", "sentence"),
    [
        (
            "interrupt",
            130,
            "stopped by Ctrl-C before its end, expected to be left alone: every finished unit is kept; ",
        ),
        ("sleep", 143, "stopped by trainer.max_time before its end, expected to end within that time: every finished "),
        ("stop", 2, "The step stage3 was stopped after 3 of its 6 iterations, expected all of them: take out what "),
        ("fail", 1, "The program failed (KeyError: 'fail'), expected to go on to its end: "),
    ],
)
def test_what_ends_a_run_is_told_and_the_run_goes_on_from_there(
    by: str, status: int, sentence: str, quickstart_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, traceback = tmp_path / "run", tmp_path / "run" / "traceback.txt"
    arguments = [*QUICK, "--trainer.default_root_dir", str(run)]
    ending = ["--trainer.callbacks+", ENDS, "--trainer.callbacks.by", by]
    limit = ["--trainer.max_time", "00:01:00:00"] if by == "sleep" else []
    assert main([*arguments, *ending, *limit]) == status
    printed = capsys.readouterr().err
    assert sentence in printed
    assert "Traceback" not in printed
    assert traceback.exists() == (by == "fail")
    assert not (run / "quantized.safetensors").exists()
    described = json.loads((run / "calibration.json").read_text())["run"]
    assert described == json.loads((quickstart_run / "calibration.json").read_text())["run"]
    assert {path.stem for path in (run / "checkpoints").glob("stage3*")} >= {"stage3-start", "stage3-000", "stage3-001"}
    assert main([*arguments, "--resume", "true"]) == 0
    assert (run / "quantized.safetensors").read_bytes() == (quickstart_run / "quantized.safetensors").read_bytes()
