"""Recipes are chosen on calibration images that no cell has seen."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from isvit_lightning.errors import IsvitError
from isvit_lightning.recipe import Bits, read_recipe
from isvit_lightning.run.compare import compare
from isvit_lightning.run.comparison import Comparison
from isvit_lightning.run.fitting import UnitFitter
from isvit_lightning.run.pipeline import calibrate_network
from isvit_lightning.run.unseen import hold_out
from isvit_lightning.stages.losses import divergence
from tests.run.test_compare import Watched, make_trainer, recipe_file, runner

HELD = 5
DATA = {"calibration_images": 17}
METHODS = "round_to_nearest,repq"


class Images(Callback):
    """Notes the images of every stage."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.seen.append(pl_module.images.clone())


def given(run: Watched) -> Any:
    """The calibration of a run, with all of its images."""
    return run.calibration(run.load_network())[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    """Directory and table of two recipes; not to be changed."""
    directory = tmp_path_factory.mktemp("chosen") / "run"
    run = runner(directory, data=DATA)
    return directory, compare(run, METHODS, "w3a3", "0", HELD)


def slow(wanted: torch.Tensor, found: torch.Tensor) -> dict[str, float]:
    """Agreement and KL of logits, all images at once."""
    same = (wanted.argmax(dim=1) == found.argmax(dim=1)).double().mean()
    return {"agreement": 100 * float(same), "kl": float(divergence(wanted.double(), found.double()).mean())}


def test_figures_are_those_of_the_images_seen_and_of_those_held_out(
    finished: tuple[Path, Comparison], tmp_path: Path
) -> None:
    run = runner(tmp_path, data=DATA)
    calibration = given(run)
    seen, held = hold_out(calibration.images.clone(), HELD, run.data.seed or 0)
    recipe = read_recipe("repq")
    own = dataclasses.replace(calibration, images=seen, recipe=recipe, bits=Bits(3, 3))
    model = calibrate_network(own, UnitFitter(make_trainer, {})).model.eval()
    with torch.no_grad():
        expected = [slow(calibration.model(images), model(images)) for images in (seen, held)]
    (row,) = finished[1].rows["repq w3a3"]
    assert row["seen_kl"] == pytest.approx(expected[0]["kl"], abs=1e-5)
    assert row["held_out_kl"] == pytest.approx(expected[1]["kl"], abs=1e-5)
    assert row["held_out_agreement"] == pytest.approx(expected[1]["agreement"], abs=1e-3)
    assert row["unseen_over_seen"] == pytest.approx(row["held_out_kl"] / row["seen_kl"], abs=1e-4)
    assert (row["calibration"]["images"], row["calibration"]["held_out"]) == (12, HELD)
    assert row["kl"] not in (row["seen_kl"], row["held_out_kl"])


def test_no_cell_is_calibrated_on_an_image_that_is_held_out(tmp_path: Path) -> None:
    own, images = recipe_file(tmp_path / "own.yaml"), Images()
    run = runner(tmp_path / "run", images, data=DATA)
    compare(run, own, None, "0,1", HELD)
    seen, held = hold_out(given(runner(tmp_path / "other", data=DATA)).images, HELD, 0)
    assert len(images.seen) == 2
    for stage in images.seen:
        assert torch.equal(stage, seen)
        assert not any(torch.equal(image, other) for image in stage for other in held)


def test_the_recipe_of_lowest_divergence_on_them_is_chosen(finished: tuple[Path, Comparison]) -> None:
    table = finished[1]
    figures = {title.split()[0]: cells[0]["held_out_kl"] for title, cells in table.rows.items()}
    best = min(figures, key=lambda name: figures[name])
    assert table.chosen() == {"w3a3": best}
    assert (table.held_out, table.images) == (HELD, 20)
    assert all(cell.keys() >= {"top1", "kl"} for cells in table.rows.values() for cell in cells)


def test_the_same_again_measures_nothing_anew(finished: tuple[Path, Comparison], tmp_path: Path) -> None:
    run = runner(finished[0], data=DATA)
    assert compare(run, METHODS, "w3a3", "0", HELD) == finished[1]
    assert run.measured == [True]


@pytest.mark.parametrize(
    ("choose_on", "seed", "difference"),
    [
        (HELD - 1, None, rf"calibration images\.held out\.number: {HELD} → {HELD - 1}"),
        (0, None, rf"calibration images\.held out\.number: {HELD} → none"),
        (HELD, 1, r"calibration images\.held out\.seed: 0 → 1"),
    ],
)
def test_another_hold_out_is_another_condition(
    choose_on: int, seed: int | None, difference: str, finished: tuple[Path, Comparison]
) -> None:
    run = runner(finished[0], data={**DATA, "seed": seed, "selection": "random" if seed is None else "first"})
    with pytest.raises(IsvitError, match=difference):
        compare(run, METHODS, "w3a3", "0", choose_on)
    assert run.measured == []


def test_a_hold_out_that_cannot_be_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runner(tmp_path / "run", data=DATA)
    with pytest.raises(IsvitError, match=r"^--choose_on is 17, expected at least 1 of the 17 calibration images"):
        compare(run, METHODS, None, "0", 17)
    monkeypatch.setattr(type(run.model.task), "compares_with_float", False)
    with pytest.raises(IsvitError, match="leave --choose_on out"):
        compare(run, METHODS, None, "0", 2)
    assert not (tmp_path / "run").exists()


def test_without_a_hold_out_the_evaluation_images_are_the_unseen_ones(tmp_path: Path) -> None:
    (row,) = compare(runner(tmp_path), "round_to_nearest", "w3a3", "0").rows["round_to_nearest w3a3"]
    assert "held_out_kl" not in row
    assert row["unseen_over_seen"] == pytest.approx(row["kl"] / row["seen_kl"], abs=1e-4)


def test_networks_without_such_a_distance_have_rows_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runner(tmp_path)
    monkeypatch.setattr(type(run.model.task), "distance", lambda *given: None)
    (row,) = compare(run, "round_to_nearest", "w3a3", "0").rows["round_to_nearest w3a3"]
    assert "top1" in row
    assert "seen_kl" not in row


def test_the_float_network_is_where_and_as_it_was(tmp_path: Path) -> None:
    run = runner(tmp_path)
    loaded = run.load_network()
    distance = run.model.task.distance(loaded.model, torch.randn(4, 3, 32, 32), 3, run.evaluating_trainer)
    assert distance is not None
    assert {parameter.device.type for parameter in loaded.model.parameters()} == {"cpu"}
    assert distance(loaded.model) == {"agreement": 100.0, "kl": 0.0}
