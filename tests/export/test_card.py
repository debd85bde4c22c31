"""A model card tells the numbers of the run, and survives whatever stands in its place."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

import isvit_lightning
from isvit_lightning.export.artifact import QuantizedNetwork
from isvit_lightning.export.card import card_of


def text_of(network: QuantizedNetwork, **options: Any) -> str:
    return str(network.generate_model_card(**options))


@pytest.fixture(scope="module")
def network(quickstart_run: Path) -> QuantizedNetwork:
    return isvit_lightning.load(quickstart_run)


def row_of(text: str, title: str) -> list[str]:
    """Cells of the row of a table that begins with ``title``."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {title} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_front_matter_is_what_hubs_read(network: QuantizedNetwork) -> None:
    text = text_of(network)
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "isvit-lightning"
    assert front["pipeline_tag"] == "image-classification"
    assert {"quantization", "vision-transformer"} < set(front["tags"])
    assert "license" not in front
    assert yaml.safe_load(text_of(network, license="mit").split("---")[1])["license"] == "mit"
    assert ModelCard(text).data.to_dict()["library_name"] == "isvit-lightning"


def test_numbers_are_those_of_the_run(network: QuantizedNetwork, quickstart_run: Path) -> None:
    results = json.loads((quickstart_run / "results.json").read_text())
    text = text_of(network)
    titles = {"top1": "top-1 %", "top5": "top-5 %", "agreement": "agreement with float %", "kl": "KL to float"}
    (header,) = [line for line in text.splitlines() if "top-1 %" in line]
    columns = [cell.strip() for cell in header.strip("|").split("|")][1:]
    for row in ("float", "quantized"):
        cells = dict(zip(columns, row_of(text, row), strict=True))
        for key, value in results["metrics"][row].items():
            assert float(cells[titles[key]]) == pytest.approx(value, rel=1e-5)
    assert f"On {results['images']['evaluation']} evaluation images" in text
    assert f"packed {results['size_bytes']['packed'] / 1e6:.2f} MB" in text
    assert row_of(text, "calibration images") == [str(results["images"]["calibration"])]
    assert row_of(text, "seed") == [str(results["seed"])]
    assert row_of(text, "recipe") == [results["recipe"]]
    assert row_of(text, "bits of weights") == [str(results["bits"]["weight"])]


def test_it_tells_what_is_quantized_what_stays_float_and_how_it_is_loaded(network: QuantizedNetwork) -> None:
    text = text_of(network)
    specs = network.specs.values()
    assert row_of(text, "attn_prob")[:2] == ["Sulq", str(next(s.bits for s in specs if s.role.name == "attn_prob"))]
    rows = text.partition("| tensor |")[2].partition("##")[0].splitlines()[2:]
    assert sum(int(row.strip(" |").rpartition("|")[2]) for row in rows if row) == len(specs)
    assert "* `patch_embed.proj.input` stays float." in text
    assert "No engine computes with 3 or 4 bits natively" in text
    for word in ("isvit_lightning.load(", "onnxruntime.InferenceSession(", "--format openvino", "compile_model("):
        assert word in text


@pytest.mark.parametrize("results", [None, {}, {"metrics": {}}, {"metrics": [1]}, {"metrics": {"float": 3}}])
def test_without_numbers_it_says_so(results: dict[str, Any] | None, network: QuantizedNetwork) -> None:
    text = card_of(network.model, "name", "image-classification", {}, results)
    assert "Nothing is known of it" in text


@pytest.mark.parametrize("odd", [None, 3, "a | b\nc", [1], {"name": {"a": 1}}, float("nan")])
def test_odd_records_and_results_end_in_no_error(odd: Any, network: QuantizedNetwork) -> None:
    """Nothing checks them when a network is loaded."""
    keys = ("network", "recipe", "bits", "schedule", "seed", "metrics", "images", "size_bytes", "versions", "weights")
    values = dict.fromkeys(keys, odd)
    text = card_of(network.model, "name", "image-classification", values, {**values, "metrics": {"float": values}})
    assert not [line for line in text.splitlines() if line.startswith("| a | b")]
