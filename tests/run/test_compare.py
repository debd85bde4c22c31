"""Cells are measured once, go on where they were stopped, and fail alone."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from torch import nn

from isvit_lightning.classifier import Classifier
from isvit_lightning.data import DigitsDataModule
from isvit_lightning.errors import IsvitError
from isvit_lightning.recipe import Bits, read_recipe
from isvit_lightning.run import compare as module
from isvit_lightning.run.compare import compare
from isvit_lightning.run.comparison import Comparison
from isvit_lightning.run.runner import Runner
from isvit_lightning.search import Percentiles
from isvit_lightning.sources.source import NetworkSource
from isvit_lightning.storage.files import read_metadata
from isvit_lightning.system.termination import TerminatedError
from tests.helpers import quiet_trainer
from tests.stages.fitting import StopAt, StopError

METRICS = {"top1", "top5", "agreement", "kl"}
DISTANCES = {"seen_kl", "unseen_over_seen"}
COSTS = {"seconds", "float_block_steps", "peak_memory_bytes"}
AUDIT = {"n_codes", "n_values", "beyond", "float", "ranges", "stem", "head", "calibration", "steps"}


@dataclass
class Watched(Runner):
    """Notes what is measured: whether it is the float network."""

    measured: list[bool] = field(default_factory=list)

    def measure(self, network: nn.Module, is_float: bool = False) -> dict[str, float]:
        self.measured.append(is_float)
        return super().measure(network, is_float)


class Killed(BaseException):
    """Stands for the end of the process: nothing in it is an exception that somebody may handle."""


class KillAt(StopAt):
    """Kills the program in the middle of a unit."""

    def on_train_batch_end(self, *given: Any, **named: Any) -> None:
        try:
            super().on_train_batch_end(*given, **named)
        except StopError:
            raise Killed from None


class Units(Callback):
    """Notes the units that are finished."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.seen.append((pl_module.name, pl_module.unit.name))


def make_trainer(**options: Any) -> Trainer:
    return quiet_trainer(*options.pop("callbacks", []), **options)


def runner(directory: Path, *callbacks: Callback, data: dict[str, Any] | None = None, **schedule: Any) -> Watched:
    options = {"iterations": 1, "batch_size": 4, **schedule}
    model = Classifier(NetworkSource("vit_digits"), recipe=read_recipe("isvit"), bits=Bits(3, 3), **options)
    images = DigitsDataModule(**{"calibration_images": 8, "evaluation_images": 20, "workers": 0, **(data or {})})
    return Watched(model, images, 0, directory, "model: {}", make_trainer, list(callbacks))


def recipe_file(path: Path, **changes: Any) -> str:
    """A recipe that tunes once."""
    steps = [{"class_path": "isvit_lightning.stages.Tune", "init_args": {"name": "only"}}]
    path.write_text(yaml.safe_dump({"model": {"recipe": {"name": "own", "steps": steps, **changes}}}))
    return str(path)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (directory / "cells").iterdir()}


def metrics(table: Comparison) -> dict[str, list[dict[str, Any]]]:
    """What does not depend on the hour, by row."""
    return {
        title: [{name: cell[name] for name in cell.keys() - COSTS} for cell in cells]
        for title, cells in table.rows.items()
    }


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> str:
    return recipe_file(tmp_path_factory.mktemp("recipes") / "own.yaml")


@pytest.fixture(scope="module")
def finished(own: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    """Directory and table of two recipes at two widths with two seeds; not to be changed."""
    directory = tmp_path_factory.mktemp("compare") / "run"
    run = runner(directory)
    table = compare(run, f"round_to_nearest,{own}", "w3a3,w4a4", "0,1")
    assert run.measured == [True, *[False] * 8]
    return directory, table


@pytest.fixture
def copied(finished: tuple[Path, Comparison], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """I&S-ViT with one seed, and units of it."""
    return compare(runner(tmp_path_factory.mktemp("undisturbed")), "isvit", None, "3")


def test_every_cell_is_measured(finished: tuple[Path, Comparison]) -> None:
    directory, table = finished
    assert list(table.rows) == ["round_to_nearest w3a3", "own w3a3", "round_to_nearest w4a4", "own w4a4"]
    assert table.float_row.keys() == {"top1", "top5"}
    assert (table.network, table.images) == ("vit_digits", 20)
    for cells in table.rows.values():
        assert [cell["seed"] for cell in cells] == [0, 1]
        for cell in cells:
            assert cell.keys() == {"seed"} | METRICS | DISTANCES | COSTS | AUDIT
            assert cell["seconds"] > 0
            assert cell["float_block_steps"] > 0
            assert cell["peak_memory_bytes"] > 50_000_000
            assert (cell["beyond"], cell["float"], cell["ranges"]) == ([], ["patch_embed.proj.input"], "static")
    assert all(len(set(cell["n_codes"].values())) == 1 for cells in table.rows.values() for cell in cells)
    assert table.rows["own w4a4"][0]["n_codes"]["attn_prob"] == 16
    titles = [f"{title.replace(' ', '-')}-seed{seed}.json" for title in table.rows for seed in (0, 1)]
    assert sorted(contents(directory)) == sorted(titles)
    assert list((directory / "parts").iterdir()) == []


def test_seeds_are_those_of_the_steps(finished: tuple[Path, Comparison]) -> None:
    rows = metrics(finished[1])
    first, second = ({**cell, "seed": 0} for cell in rows["round_to_nearest w3a3"])
    assert first == second
    first, second = ({**cell, "seed": 0} for cell in rows["own w3a3"])
    assert first["kl"] != second["kl"]


@pytest.mark.parametrize("name", ["round_to_nearest", "own"])
def test_a_cell_is_what_fit_gives(name: str, own: str, finished: tuple[Path, Comparison], tmp_path: Path) -> None:
    run = runner(tmp_path)
    run.model.recipe = read_recipe(own if name == "own" else name)
    results = run.fit(evaluate=True, baselines=[])
    cell = finished[1].rows[f"{name} w3a3"][0]
    assert results.metrics["quantized"] == {metric: cell[metric] for metric in METRICS}
    assert results.metrics["float"] == finished[1].float_row
    assert results.audit == {key: cell[key] for key in AUDIT}


def test_the_same_again_measures_nothing_anew(own: str, finished: tuple[Path, Comparison], copied: Path) -> None:
    before, run = contents(copied), runner(copied)
    table = compare(run, f"round_to_nearest,{own}", "w3a3,w4a4", "0,1")
    assert run.measured == [True]
    assert table == finished[1]
    assert contents(copied) == before


def test_more_cells_come_beside_those_that_are_there(own: str, finished: tuple[Path, Comparison], copied: Path) -> None:
    before, run = contents(copied), runner(copied)
    table = compare(run, f"{own},repq", "w3a3", "1,0")
    assert run.measured == [True, False, False]
    assert list(table.rows) == ["own w3a3", "repq w3a3"]
    assert table.rows["own w3a3"] == finished[1].rows["own w3a3"][::-1]
    assert {name: content for name, content in contents(copied).items() if name in before} == before


@pytest.mark.parametrize("damage", ["removed", "truncated"])
def test_a_cell_that_is_gone_is_measured_again(
    damage: str, own: str, finished: tuple[Path, Comparison], copied: Path
) -> None:
    path = copied / "cells" / "own-w3a3-seed1.json"
    path.write_bytes(path.read_bytes()[:-20])
    if damage == "removed":
        path.unlink()
    run = runner(copied)
    table = compare(run, f"round_to_nearest,{own}", "w3a3,w4a4", "0,1")
    assert run.measured == [True, False]
    assert metrics(table) == metrics(finished[1])
    assert json.loads(path.read_text())["row"] == {
        name: value for name, value in table.rows["own w3a3"][1].items() if name != "seed"
    }


@pytest.mark.parametrize(
    ("step", "unit", "left"),
    [
        ("stage1", "blocks.2", ["stage1"] * 3 + ["stage2"] * 4 + ["stage3"] * 6),
        ("stage3", "blocks.2", ["stage3"] * 3),
    ],
)
def test_a_killed_cell_goes_on_within(
    step: str, unit: str, left: list[str], undisturbed: Comparison, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        compare(runner(tmp_path, KillAt(step, unit)), "isvit,round_to_nearest", None, "3")
    assert not (tmp_path / "cells").exists()
    parts = tmp_path / "parts" / "isvit-w3a3-seed3"
    spent = sum(float(read_metadata(path)["seconds"]) for path in parts.iterdir())
    assert spent > 0
    units = Units()
    run = runner(tmp_path, units)
    table = compare(run, "isvit,round_to_nearest", None, "3")
    assert run.measured == [True, False, False]
    assert [name for name, _ in units.seen] == left
    assert next(name for _, name in units.seen if name.startswith("blocks")) == unit
    assert metrics(table)["isvit w3a3"] == metrics(undisturbed)["isvit w3a3"]
    assert table.rows["isvit w3a3"][0]["seconds"] >= round(spent, 2)
    assert not parts.exists()


def test_what_a_killed_cell_left_is_not_for_another_schedule(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        compare(runner(tmp_path, KillAt("stage3", "blocks.2"), iterations=2), "isvit", None, "3")
    units = Units()
    compare(runner(tmp_path, units), "isvit", None, "3")
    assert len(units.seen) == 15


def test_a_cell_that_fails_in_the_middle_is_tried_again_from_there(undisturbed: Comparison, tmp_path: Path) -> None:
    table = compare(runner(tmp_path, StopAt("stage3", "blocks.2")), "isvit,round_to_nearest", None, "3")
    assert table.rows["isvit w3a3"] == [{"seed": 3, "failed": "StopError: StopError"}]
    assert table.rows["round_to_nearest w3a3"][0].keys() >= METRICS
    units = Units()
    run = runner(tmp_path, units)
    again = compare(run, "isvit,round_to_nearest", None, "3")
    assert run.measured == [True, False]
    assert len(units.seen) == 3
    assert metrics(again)["isvit w3a3"] == metrics(undisturbed)["isvit w3a3"]
    assert again.rows["round_to_nearest w3a3"] == table.rows["round_to_nearest w3a3"]


def test_a_recipe_for_other_networks_is_a_row_that_says_why(tmp_path: Path) -> None:
    path = recipe_file(tmp_path / "heads.yaml", placement={"others": {"box_head_in": {"bits": 8}}})
    run = runner(tmp_path / "run")
    table = compare(run, f"{path},round_to_nearest", None, "0,1")
    for cell in table.rows["heads w3a3"]:
        assert cell.keys() == {"seed", "failed"}
        assert "box_head_in" in cell["failed"]
        assert cell["failed"].count(", expected") == 1
    assert run.measured == [True, False, False]
    assert table.lines()[2][2] == f"failed: {table.rows['heads w3a3'][0]['failed']}"
    # The recipe mended: what failed counts for nothing.
    recipe_file(tmp_path / "heads.yaml")
    read_recipe.cache_clear()
    again = runner(tmp_path / "run")
    mended = compare(again, f"{path},round_to_nearest", None, "0,1")
    assert again.measured == [True, False, False]
    assert all(cell.keys() >= METRICS for cell in mended.rows["heads w3a3"])


def test_a_search_that_raises_is_a_row_that_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    choose = Percentiles.choose

    def fails(search: Percentiles, *given: Any) -> Any:
        if search.percentiles == (0.75,):
            raise ZeroDivisionError("no range\nat all")
        return choose(search, *given)

    monkeypatch.setattr(Percentiles, "choose", fails)
    path = recipe_file(tmp_path / "bad.yaml", placement={"query": {"search": {"percentiles": [0.75]}}})
    run = runner(tmp_path / "run")
    table = compare(run, f"{path},round_to_nearest", None, "0")
    assert table.rows["bad w3a3"] == [{"seed": 0, "failed": "ZeroDivisionError: no range"}]
    assert table.rows["round_to_nearest w3a3"][0].keys() >= METRICS
    assert run.measured == [True, False]
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.getMessage() == "bad w3a3 seed 0 failed"
    # Nothing of it is left in the float network.
    alone = compare(runner(tmp_path / "alone"), "round_to_nearest", None, "0")
    assert metrics(table)["round_to_nearest w3a3"] == metrics(alone)["round_to_nearest w3a3"]


class Raises(Callback):
    """Raises an error before the first unit."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        raise self.error


def test_a_lost_process_or_sigterm_is_no_row(own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TerminatedError):
        compare(runner(tmp_path, Raises(TerminatedError())), own, None, "0")
    monkeypatch.setattr(module, "lost_connection", lambda error: "gloo" in str(error))
    with pytest.raises(RuntimeError, match="gloo"):
        compare(runner(tmp_path, Raises(RuntimeError("gloo: closed"))), own, None, "0")
    assert not (tmp_path / "cells").exists()
    table = compare(runner(tmp_path, Raises(RuntimeError("other"))), own, None, "0")
    assert table.rows["own w3a3"][0]["failed"] == "RuntimeError: other"


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"data": {"calibration_images": 9}}, r"calibration images\.number: 8 → 9"),
        ({"data": {"seed": 5}}, r"calibration images\.sha256"),
        ({"data": {"evaluation_images": 21}}, r"evaluation images\.number: 20 → 21"),
        ({"iterations": 2}, r"schedule\.iterations: 1 → 2"),
        ({"batch_size": 8}, r"schedule\.batch_size: 4 → 8"),
    ],
    ids=["number", "draw", "evaluation", "iterations", "batch_size"],
)
def test_other_conditions_are_refused(changes: dict[str, Any], difference: str, copied: Path) -> None:
    before, run = contents(copied), runner(copied, **changes)
    with pytest.raises(
        IsvitError, match=rf"was made under other conditions \(.*{difference}.*expected the same for all"
    ):
        compare(run, "repq,round_to_nearest", "w3a3", "0")
    assert run.measured == []
    assert contents(copied) == before


def test_another_recipe_of_the_name_is_refused(tmp_path: Path, copied: Path) -> None:
    changed = recipe_file(tmp_path / "own.yaml", range_images=3)
    with pytest.raises(IsvitError, match=r"own-w3a3-seed0\.json was made under .*\(recipe\.range_images: 64 → 3\)"):
        compare(runner(copied), changed, "w3a3", "0")


@pytest.mark.parametrize("options", [("nothing", None, "0"), ("repq", "w1a1", "0"), ("repq", None, "-1")])
def test_options_are_read_before_anything_is_done(
    options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NetworkSource, "build", None)
    with pytest.raises(IsvitError):
        compare(runner(tmp_path / "run"), *options)
    assert not (tmp_path / "run").exists()


def test_how_values_are_kept_is_no_condition(own: str, finished: tuple[Path, Comparison], copied: Path) -> None:
    from isvit_lightning.storage.caches import Caches

    run = runner(copied, caches=Caches("recompute"))
    table = compare(run, f"round_to_nearest,{own}", "w3a3,w4a4", "0,1")
    assert run.measured == [True]
    assert table == finished[1]


def test_the_log_tells_each_cell_and_how_long_it_will_take(
    finished: tuple[Path, Comparison], copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger=module.__name__)
    compare(runner(copied), "round_to_nearest,repq", "w3a3", "0,1")
    told = [message for message in caplog.messages if message.startswith(("cell", "2 of"))]
    assert told[0] == f"2 of 4 cells are left to be measured in {copied}"
    assert [message.partition(":")[0] for message in told[1:]] == [
        "cell 3/4 repq w3a3 seed 0",
        "cell 4/4 repq w3a3 seed 1",
    ]
    assert all("top1 " in message and "kl " in message for message in told[1:])
    assert told[2].endswith("; about 0 s left")


def test_the_float_step_is_timed_where_cells_compute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run, went = runner(tmp_path), []

    class Model(nn.Module):
        def to(self, device: torch.device) -> "Model":  # type: ignore[override]
            went.append(str(device))
            return self

        def cpu(self) -> "Model":  # type: ignore[override]
            went.append("back")
            return self

    def timed(network: Any, images: Any, *sizes: Any) -> float:
        went.append((network, images, *sizes))
        return 2.5

    monkeypatch.setattr(module, "open_float", lambda model, reconstruct: (type(model).__name__, reconstruct))
    monkeypatch.setattr(module, "float_block_step", timed)
    calibration = SimpleNamespace(model=Model(), images="images", recipe=run.model.recipe, schedule=run.model.schedule)
    run.machine = {"accelerator": "cuda"}
    assert module._step_seconds(run, calibration) == 2.5
    assert went == ["cuda", (("Model", "backbone"), "images", 4, None), "back"]
