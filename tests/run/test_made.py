"""A network is measured only under the configuration that its own file tells."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from detection.cli import DetectionCLI  # needs no mmdet until it is run
from isvit_lightning.cli import IsvitCLI
from isvit_lightning.errors import IsvitError
from isvit_lightning.recipe import Bits, read_recipe, record_of
from isvit_lightning.run.made import load_run, made_with, require_same_float, title_of
from isvit_lightning.run.task import ModelSection
from isvit_lightning.sources.preprocessing import Preprocessing
from isvit_lightning.sources.source import LoadedNetwork
from tests.command_line import DETECTION, QUICKSTART

PROGRAMS: dict[str, tuple[type[IsvitCLI], str]] = {
    "classifier": (IsvitCLI, QUICKSTART),
    "detector": (DetectionCLI, DETECTION),
}
CONFIG = "model: {}"


@pytest.fixture(params=PROGRAMS)
def model(request: pytest.FixtureRequest) -> ModelSection:
    """What a configuration says."""
    program, config = PROGRAMS[request.param]
    section: ModelSection = program(["--config", config], run=False).model
    return section


@pytest.fixture
def run(model: ModelSection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The record of the network in a run directory, which may be changed."""
    record: dict[str, Any] = json.loads(json.dumps(made_with(model, 0)))
    network = SimpleNamespace(record=record)
    monkeypatch.setattr(model.task, "load", lambda directory: network)
    (tmp_path / "quantized.safetensors").touch()
    (tmp_path / "config.yaml").write_text(CONFIG)
    return record


def load(model: ModelSection, directory: Path, seed: int = 0) -> dict[str, Any]:
    return load_run(str(directory), model, seed, CONFIG).record


def test_what_a_run_writes_agrees_with_itself(model: ModelSection, run: dict[str, Any], tmp_path: Path) -> None:
    assert load(model, tmp_path) is run
    assert {"network", "bits", "recipe", "schedule", "seed"} == run.keys()


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "bits": (lambda record: record["bits"].update(weight=8), r"model\.bits\.weight: 8 → 3"),
    "network": (lambda record: record.update(network="other"), r'model\.network: "other" → '),
    "name": (lambda record: record["recipe"].update(name="other"), r'model\.recipe\.name: "other" → "isvit"'),
    "inputs": (
        lambda record: record["recipe"]["steps"][2]["inputs"].update(read="float"),
        r'model\.recipe\.steps\.stage3\.inputs\.read: "float" → "mixed"',
    ),
    "fewer_steps": (
        lambda record: record["recipe"]["steps"].pop(1),
        r'model\.recipe\.steps: \["stage1", "stage3"\] → \["stage1", "stage2", "stage3"\]',
    ),
    "order": (
        lambda record: record["recipe"]["steps"].append(record["recipe"]["steps"].pop(1)),
        r'model\.recipe\.steps: \["stage1", "stage3", "stage2"\] → ',
    ),
    "placement": (
        lambda record: record["recipe"]["placement"]["attn_prob"].update(bits=8),
        r"model\.recipe\.placement\.attn_prob\.bits: 8 → null",
    ),
    "others": (
        lambda record: record["recipe"]["placement"]["others"].update(neck_in={"bits": 8}),
        r"model\.recipe\.placement\.others\.neck_in\.bits: 8 → none",
    ),
    "iterations": (lambda record: record["schedule"].update(iterations=7), r"model\.iterations: 7 → "),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_network_is_refused(change: str, model: ModelSection, run: dict[str, Any], tmp_path: Path) -> None:
    make, told = CHANGES[change]
    if change == "bits":
        model.bits = Bits(3, 3)
    make(run)
    with pytest.raises(IsvitError, match=rf"was calibrated otherwise than is configured \(.*{told}.*\), expected the"):
        load(model, tmp_path)


def test_another_seed_is_refused_where_the_configuration_lies_beside(
    model: ModelSection, run: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(IsvitError, match=r"\(seed_everything: 0 → 1\)"):
        load(model, tmp_path, seed=1)
    (tmp_path / "config.yaml").unlink()
    assert load(model, tmp_path, seed=1) is run
    run["bits"]["weight"] = 8
    with pytest.raises(IsvitError, match=r"model\.bits\.weight: 8 → "):
        load(model, tmp_path)


def test_fields_of_other_versions_and_rounding_do_not_count(
    model: ModelSection, run: dict[str, Any], tmp_path: Path
) -> None:
    del run["recipe"]["transforms"], run["recipe"]["steps"][2]["recalibrate"], run["seed"]
    run["recipe"]["steps"][0]["loss"]["invented"] = 3
    run["schedule"].update(micro_batch=3, compile=True)
    assert load(model, tmp_path) is run
    run.clear()
    assert load(model, tmp_path) == {}


def test_other_pieces_are_told_by_their_type(model: ModelSection, run: dict[str, Any], tmp_path: Path) -> None:
    run["recipe"]["steps"] = record_of(read_recipe("qdrop").steps)
    run["recipe"]["name"] = "qdrop"
    with pytest.raises(IsvitError, match=r'model\.recipe\.name: "qdrop" → "isvit"; .*; \d+ more\)') as caught:
        load(model, tmp_path)
    assert len(str(caught.value)) < 1000


def test_a_float_network_is_known_by_its_weights_and_preprocessing() -> None:
    own = Preprocessing((3, 8, 8), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    network: Any = SimpleNamespace(record={"weights": "a"}, preprocessing=own)

    def loaded(sha256: str, preprocessing: Preprocessing) -> LoadedNetwork:
        return LoadedNetwork(cast("Any", None), preprocessing, {"name": "n", "sha256": sha256}, cast("Any", None))

    require_same_float("run", network, loaded("a", own))
    for other, told in (
        (loaded("b", own), r'weights of model\.network: "a" → "b"'),
        (loaded("a", replace(own, crop_pct=0.5)), r"preprocessing of model\.network\.crop_pct: 1\.0 → 0\.5"),
    ):
        with pytest.raises(IsvitError, match=rf"^run was calibrated otherwise .* \({told}\)"):
            require_same_float("run", network, other)
    network.record = {}  # of an earlier version
    require_same_float("run", network, loaded("b", own))


def test_the_title_says_what_the_file_tells(tmp_path: Path) -> None:
    from isvit_lightning.export.artifact import QuantizedNetwork

    model: Any = SimpleNamespace(source=SimpleNamespace(title="net"))
    network = QuantizedNetwork.__new__(QuantizedNetwork)
    object.__setattr__(network, "record", {"bits": asdict(Bits(3, 4)), "recipe": {"name": "own"}})
    assert title_of(network, "runs/a", model) == "runs/a: net, W3/A4, own"
    object.__setattr__(network, "record", {})
    assert title_of(network, "runs/a", model) == "runs/a: net"
    assert title_of(cast("Any", None), None, model) == "net, float"
