"""What the verbs do: rows of the results, baselines by name, and an interrupted run that measures nothing twice."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from torch import nn

from isvit_lightning.classifier import Classifier
from isvit_lightning.data import DigitsDataModule
from isvit_lightning.data.selection import CalibrationList, EvaluationList
from isvit_lightning.errors import IsvitError
from isvit_lightning.export.artifact import QuantizedNetwork, load
from isvit_lightning.networks import quantizers
from isvit_lightning.recipe import Bits, Recipe, read_recipe, record_of
from isvit_lightning.run.audit import calibrated_on
from isvit_lightning.run.results import Results
from isvit_lightning.run.runner import Runner
from isvit_lightning.sources.source import NetworkSource
from isvit_lightning.stages import Fold, Inputs, Ranges, Tune
from isvit_lightning.storage.files import read_metadata
from tests.helpers import quiet_trainer
from tests.stages.fitting import StopAt, StopError

BASELINES = ["round_to_nearest", "repq"]
TUNED = Recipe(
    "tuned_twice",
    read_recipe("isvit").placement,
    steps=[
        Ranges("first"),
        Fold("folded"),
        Tune("weights_too", inputs=Inputs("float")),
        Tune("again", inputs=Inputs("quantized"), iterations=2),
    ],
)


def make_trainer(**options: Any) -> Trainer:
    return quiet_trainer(*options.pop("callbacks", []), **options)


@dataclass
class Watched(Runner):
    """Notes what is measured and which recipes are calibrated to compare with."""

    measured: list[str] = field(default_factory=list)
    compared: list[str] = field(default_factory=list)

    def measure(self, network: nn.Module, is_float: bool = False) -> dict[str, float]:
        kind = "artifact" if isinstance(network, QuantizedNetwork) else "float" if is_float else "network"
        self.measured.append(kind)
        return super().measure(network, is_float)

    def calibrated(self, calibration: Any) -> tuple[nn.Module, float]:
        self.compared.append(calibration.recipe.name)
        return super().calibrated(calibration)


def runner(
    directory: Path, recipe: str | Recipe = "isvit", *callbacks: Callback, bits: Bits | None = None, **schedule: Any
) -> Watched:
    read = read_recipe(recipe) if isinstance(recipe, str) else recipe
    options = {"iterations": 1, "batch_size": 8, **schedule}
    model = Classifier(NetworkSource("vit_digits"), recipe=read, bits=bits or Bits(3, 4), **options)
    data = DigitsDataModule(calibration_images=8, evaluation_images=20, workers=0)
    return Watched(model, data, 0, directory, "model: {}", make_trainer, list(callbacks))


def content(directory: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((directory / "results.json").read_text())
    return read


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed, with both baselines."""
    directory = tmp_path_factory.mktemp("runner") / "run"
    runner(directory).fit(evaluate=True, baselines=BASELINES)
    return directory


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str | Recipe], tuple[Path, Results]]:
    """Directory and results of a run of a recipe that nobody disturbed, with one baseline; made once."""
    made: dict[str, tuple[Path, Results]] = {}

    def make(recipe: str | Recipe) -> tuple[Path, Results]:
        name = recipe if isinstance(recipe, str) else recipe.name
        if name not in made:
            directory = tmp_path_factory.mktemp("undisturbed") / name
            made[name] = directory, runner(directory, recipe).fit(evaluate=True, baselines=["repq"])
        return made[name]

    return make


def test_rows_are_those_of_float_baselines_steps_and_result(finished: Path) -> None:
    metrics = content(finished)["metrics"]
    assert list(metrics) == ["float", "round_to_nearest", "repq", "stage1", "quantized"]
    assert metrics["float"].keys() == {"top1", "top5"}
    for name, row in metrics.items():
        assert name == "float" or row.keys() == {"top1", "top5", "agreement", "kl"}
    assert metrics["stage1"]["kl"] < metrics["round_to_nearest"]["kl"]


@pytest.mark.parametrize(
    ("recipe", "rows", "widths"),
    [
        ("repq", ["ranges"], {"ranges": "32/4"}),
        ("round_to_nearest", ["ranges"], {"ranges": "32/4"}),
        ("isvit", ["stage1"], {"stage1": "32/4"}),
        ("isvit_published", ["stage1"], {"stage1": "32/4"}),
        (TUNED, ["first", "weights_too"], {"first": "32/4"}),
        (Recipe("one", steps=[Tune("only")]), [], {}),
    ],
    ids=["repq", "round_to_nearest", "isvit", "published", "own", "one_step"],
)
def test_each_step_but_a_fold_and_the_last_has_a_row(
    recipe: str | Recipe, rows: list[str], widths: dict[str, str], tmp_path: Path
) -> None:
    run = runner(tmp_path, recipe)
    results = run.fit(evaluate=True, baselines=[])
    assert list(results.metrics) == ["float", *rows, "quantized"]
    assert results.widths == {"float": "32/32", **widths}
    assert run.measured == ["float", *("network" for _ in rows), "artifact"]
    steps = [step.name for step in run.model.recipe.steps]
    assert list(results.seconds) == ["calibrate", *steps, "total"]
    assert results.seconds["total"] == pytest.approx(sum(results.seconds[name] for name in steps))
    assert content(tmp_path)["recipe"] == run.model.recipe.name


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_is_what_its_recipe_gives_alone(name: str, finished: Path, tmp_path: Path) -> None:
    results = runner(tmp_path, name).fit(evaluate=True, baselines=[])
    assert results.metrics["quantized"] == content(finished)["metrics"][name]
    assert results.metrics["quantized"] != content(finished)["metrics"]["quantized"]


def test_baselines_change_nothing_of_the_result(finished: Path, tmp_path: Path) -> None:
    runner(tmp_path).fit(evaluate=True, baselines=[])
    assert (tmp_path / "quantized.safetensors").read_bytes() == (finished / "quantized.safetensors").read_bytes()
    without = {name: row for name, row in content(finished)["metrics"].items() if name not in BASELINES}
    assert content(tmp_path)["metrics"] == without


def test_a_baseline_may_tune_and_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    steps = [{"class_path": "isvit_lightning.stages.Tune", "init_args": {"name": "only", "iterations": 1}}]
    path.write_text(yaml.safe_dump({"model": {"recipe": {"name": "own", "steps": steps}}}))
    run = runner(tmp_path / "run", "repq")
    results = run.fit(evaluate=True, baselines=[str(path)])
    assert run.compared == ["own"]
    assert list(results.metrics) == ["float", str(path), "ranges", "quantized"]
    assert results.baseline_seconds.keys() == {str(path)}
    assert not (tmp_path / "run" / "logs" / "only").exists()


def test_an_unknown_baseline_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(IsvitError, match="no recipe nothing, expected one of"):
        runner(tmp_path / "run").fit(evaluate=True, baselines=["nothing"])
    assert not (tmp_path / "run").exists()


def test_nothing_is_measured_where_nobody_wants_it(finished: Path, tmp_path: Path) -> None:
    run = runner(tmp_path)
    results = run.fit(evaluate=False, baselines=BASELINES)
    assert (results.metrics, run.measured, run.compared) == ({}, [], [])
    assert content(tmp_path)["images"] == {"calibration": 8, "evaluation": 0}
    assert (tmp_path / "quantized.safetensors").read_bytes() == (finished / "quantized.safetensors").read_bytes()


def test_the_run_directory_is_whole(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names == {"config.yaml", "calibration.json", "results.json", "quantized.safetensors", "logs"}
    assert (finished / "config.yaml").read_text() == "model: {}"
    loaded = load(finished)
    model = runner(finished).model
    choices = {"recipe": model.recipe, "bits": model.bits, "schedule": model.schedule, "seed": 0}
    weights = model.source.build().fingerprint["sha256"]
    assert loaded.record == record_of({"network": "vit_digits", "weights": weights, **choices})
    assert {spec.bits for spec in loaded.specs.values() if spec.role.weight} == {3}
    found = content(finished)
    assert found["size_bytes"]["packed"] == (finished / "quantized.safetensors").stat().st_size
    assert found["audit"]["n_codes"]["weight"] == 8
    assert found["audit"]["n_codes"]["attn_prob"] == 16
    listing = json.loads((finished / "calibration.json").read_text())
    assert found["audit"]["calibration"] == calibrated_on(
        CalibrationList(tuple(listing["images"]), listing["sha256"]), load(finished).preprocessing
    )
    assert found["audit"]["stem"] == {"input": 32, "weight": 3}
    assert found["audit"]["head"] == {"input": 4, "weight": 3}
    tuned = {"iterations_per_unit": 1, "batch_size": 8}
    assert found["audit"]["steps"] == {"stage1": tuned, "stage2": {}, "stage3": tuned}
    assert found["audit"]["n_values"] == found["n_values"]["quantized"]
    assert len(listing["images"]) == 8
    assert listing["run"]["model"]["recipe"] == record_of(model.recipe)


@pytest.mark.parametrize(
    ("recipe", "step", "unit", "measured"),
    [
        ("isvit", "stage1", "head", ["float", "network", "artifact"]),
        ("isvit", "stage3", "blocks.0", ["float", "artifact"]),
        (TUNED, "weights_too", "blocks.1", ["float", "network", "artifact"]),
        (TUNED, "again", "head", ["float", "artifact"]),
    ],
    ids=["before_its_row", "behind_its_row", "own_first", "own_second"],
)
def test_an_interrupted_run_measures_no_row_twice(
    recipe: str | Recipe,
    step: str,
    unit: str,
    measured: list[str],
    undisturbed: Callable[[str | Recipe], tuple[Path, Results]],
    tmp_path: Path,
) -> None:
    directory = tmp_path / "run"
    whole, expected = undisturbed(recipe)
    with pytest.raises(StopError):
        runner(directory, recipe, StopAt(step, unit)).fit(evaluate=True, baselines=["repq"])
    assert (directory / "checkpoints").is_dir()
    rows, baseline = list(content(directory)["metrics"]), content(directory)["baseline_seconds"]
    kept = {path.stem: read_metadata(path)["seconds"] for path in (directory / "checkpoints").iterdir()}
    again = runner(directory, recipe)
    results = again.fit(evaluate=True, baselines=["repq"], resume=True)
    assert again.compared == []
    assert again.measured == measured
    assert list(results.metrics) == list(expected.metrics)
    assert list(results.metrics)[: len(rows)] == rows
    assert results.metrics == expected.metrics
    assert (directory / "quantized.safetensors").read_bytes() == (whole / "quantized.safetensors").read_bytes()
    assert not (directory / "checkpoints").exists()
    # What the table says of a row does not depend on when it was measured.
    assert results.widths == expected.widths
    cells = [[list(column.cells) for column in each.table().columns[:-1]] for each in (results, expected)]
    assert cells[0] == cells[1]
    # Seconds of a step are its own, those before the interruption included.
    steps = [each.name for each in again.model.recipe.steps]
    for name in steps:
        assert results.seconds[name] >= sum(spent for part, spent in kept.items() if part.startswith(name))
    assert results.seconds["total"] == pytest.approx(sum(results.seconds[name] for name in steps))
    assert results.baseline_seconds == baseline
    assert baseline["repq"] > 0


def test_a_finished_run_is_left_alone(finished: Path) -> None:
    run, before = runner(finished), (finished / "results.json").read_bytes()
    results = run.fit(evaluate=True, baselines=BASELINES, resume=True)
    assert (run.measured, run.compared) == ([], [])
    assert results.metrics == content(finished)["metrics"]
    assert results.widths == {"float": "32/32", "stage1": "32/4"}
    assert (finished / "results.json").read_bytes() == before


def test_another_recipe_cannot_be_resumed(finished: Path) -> None:
    changed = replace(read_recipe("isvit"), range_images=3)
    with pytest.raises(IsvitError, match=r"holds another run \(model\.recipe\.range_images: 64 → 3\)"):
        runner(finished, changed).fit(evaluate=True, baselines=[], resume=True)
    assert (finished / "quantized.safetensors").exists()


def test_figures_of_other_images_are_measured_anew(
    undisturbed: Callable[[str | Recipe], tuple[Path, Results]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many, but others, or of other classes."""
    _, expected = undisturbed("isvit")
    with monkeypatch.context() as patch:
        patch.setattr(DigitsDataModule, "evaluation_list", lambda _: EvaluationList(20, "other"))
        with pytest.raises(StopError):
            runner(tmp_path, "isvit", StopAt("stage3", "blocks.0")).fit(evaluate=True, baselines=[])
    again = runner(tmp_path, "isvit")
    results = again.fit(evaluate=True, baselines=[], resume=True)
    assert again.measured == ["float", "network", "artifact"]
    assert results.metrics == {name: row for name, row in expected.metrics.items() if name != "repq"}


def test_what_takes_long_says_that_it_begins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    runner(tmp_path, Recipe("one", steps=[Tune("only")])).fit(evaluate=True, baselines=["round_to_nearest"])
    own = [record.getMessage() for record in caplog.records if record.name.startswith("isvit_lightning")]
    assert [line for line in own if " unit " not in line] == [
        "loading vit_digits",
        "reading 8 calibration images",
        *["comparing the opened network with the float one on 2 calibration images"] * 2,
        "float: measuring on 20 images",
        "round_to_nearest: calibrating to compare with",
        "ranges begins",
        "weights begins",
        "round_to_nearest: measuring on 20 images",
        "only begins",
        "quantized: measuring on 20 images",
        f"wrote {tmp_path}",
    ]


@pytest.mark.parametrize("recipe", ["isvit", "repq"])
def test_the_float_network_is_left_untouched(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Any] = []
    build: Callable[[NetworkSource], Any] = NetworkSource.build
    monkeypatch.setattr(NetworkSource, "build", lambda source: built.append(build(source)) or built[-1])
    run = runner(tmp_path, recipe)
    expected = {name: tensor.clone() for name, tensor in build(run.model.source).model.state_dict().items()}
    run.fit(evaluate=True, baselines=["repq"])
    (loaded,) = built
    assert not quantizers(loaded.model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.model.state_dict().items())
