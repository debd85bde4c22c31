import json
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.command_line import parsed

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import reference

    monkeypatch.setattr(reference, "REFERENCE", tmp_path / "reference.yaml")
    return reference


def results(top1: float = 70.0, network: str = "tiny") -> dict[str, Any]:
    metrics = {name: {"top1": top1, "top5": 90.0} for name in ("round_to_nearest", "stage1", "quantized")}
    return {
        "network": network,
        "bits": {"weight": 3, "activation": 3},
        "audit": {"n_codes": {"weight": 8, "activation": 8, "attn_prob": 8}},
        "metrics": {"float": {"top1": 80.0, "top5": 95.0}, **metrics},
        "images": {"calibration": 256, "evaluation": 2000},
        "seed": 0,
        "iterations": 100,
        "size_bytes": {"float": 100, "packed": 10},
        "versions": {"torch": "2.15.0"},
    }


def write(folder: Path, content: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(content))
    return folder


def test_a_recorded_run_agrees_with_itself(
    reference: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write(tmp_path / "run", results())
    assert reference.run(["record", str(run), "isvit fit"]) == 0
    assert reference.run(["check", str(run)]) == 0
    assert "as in the reference" in capsys.readouterr().out


def test_a_run_beyond_the_tolerance_fails(
    reference: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference.record(write(tmp_path / "run", results()), "isvit fit")
    worse = write(tmp_path / "worse", results(top1=70.0 - reference.tolerance(2000) - 0.1))
    assert reference.run(["check", str(worse)]) == 1
    assert "quantized: top-1" in capsys.readouterr().out


def test_distances_to_the_float_network_are_recorded_and_checked(
    reference: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = results()
    content["metrics"]["quantized"] |= {"agreement": 90.0, "kl": 0.5}
    reference.record(write(tmp_path / "run", content), "isvit fit")
    (entry,) = reference.read()
    assert (entry["agreement"], entry["kl"]) == ({"quantized": 90.0}, {"quantized": 0.5})
    content["metrics"]["quantized"]["kl"] = 0.5 * (1 + reference.KL_TOLERANCE) + 0.01
    assert reference.run(["check", str(write(tmp_path / "worse", content))]) == 1
    assert "quantized: kl" in capsys.readouterr().out


def test_a_run_without_entry_fails(reference: ModuleType, tmp_path: Path) -> None:
    assert reference.run(["check", str(write(tmp_path / "run", results()))]) == 1


def test_recording_again_replaces_the_entry(reference: ModuleType, tmp_path: Path) -> None:
    for top1 in (60.0, 70.0):
        reference.record(write(tmp_path / "run", results(top1)), "isvit fit")
    assert [entry["top1"]["quantized"] for entry in reference.read()] == [70.0]


def test_the_imagenet_network_leads_the_table(reference: ModuleType, tmp_path: Path) -> None:
    for network in ("a_cifar10", "z_imagenet"):
        reference.record(write(tmp_path / "run", results(network=network)), "isvit fit")
    rows = reference.table(reference.published(reference.read())).splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["z_imagenet", "a_cifar10"]


def detector_results(mask_ap: float = 60.0) -> dict[str, Any]:
    rows = {
        name: {"box_ap": 70.0, "box_ap50": 90.0, "mask_ap": mask_ap, "mask_ap50": 80.0}
        for name in ("float", "quantized")
    }
    return {**results(network="detector"), "metrics": rows}


def test_a_detector_is_recorded_by_its_average_precisions(reference: ModuleType, tmp_path: Path) -> None:
    reference.record(write(tmp_path / "run", detector_results()), "isvit fit")
    (entry,) = reference.read()
    assert entry["box_ap"] == {"float": 70.0, "quantized": 70.0}
    assert entry["mask_ap"] == {"float": 60.0, "quantized": 60.0}
    assert not {"top1", "box_ap50"} & entry.keys()
    assert reference.differences(detector_results(), [entry]) == []
    (worse,) = reference.differences(detector_results(60.5 + reference.AP_TOLERANCE), [entry])[1:]
    assert worse.startswith("quantized: mask AP 62.0, reference 60.0")


def test_classifiers_and_detectors_have_tables_of_their_own(reference: ModuleType, tmp_path: Path) -> None:
    for content in (results(), detector_results()):
        reference.record(write(tmp_path / "run", content), "isvit fit")
    entries = reference.read()
    head, _, classifier = reference.table(reference.published(entries)).splitlines()
    assert head.endswith("| float | round to nearest | RepQ-style | stage 1 (float weights) | I&S-ViT |")
    assert classifier == "| tiny | 3/3 | 100 | 80.00 | 70.00 |  | 70.00 | **70.00** |"
    (detector,) = reference.table(reference.published(entries, "box_ap")).splitlines()[2:]
    assert detector == "| detector | 3/3 | 100 | 70.00 / 60.00 |  |  |  | **70.00 / 60.00** |"


def test_only_measured_costs_are_in_the_table_of_costs(reference: ModuleType, tmp_path: Path) -> None:
    cost = {
        "float_block_step_seconds": 0.4956,
        "calibration_seconds": 1451.0,
        "float_block_steps": 2928,
        "ratio_to_schedule": 1.203,
        "peak_memory_gb": 1.269,
        "threads": 1,
    }
    run = write(tmp_path / "measured", results(network="measured"))
    (run / "cost.json").write_text(json.dumps(cost))
    for folder in (run, write(tmp_path / "other", results(network="other"))):
        reference.record(folder, "isvit fit")
    entries = reference.read()
    (row,) = reference.cost_table(entries).splitlines()[2:]
    date = next(entry["date"] for entry in entries if entry["network"] == "measured")
    assert row == f"| measured | 3/3 | 100 | 496 | 2928 | 1.203 | 1.269 | {date} |"


def test_tables_are_replaced_and_the_rest_of_the_page_stays(
    reference: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = [tmp_path / name for name in ("README.md", "speed.md")]
    for page, marker in zip(pages, ("results", "cost"), strict=True):
        page.write_text(f"before\n<!-- {marker} -->\nold\n<!-- /{marker} -->\nafter\n")
    monkeypatch.setattr(reference, "PAGES", {"top1": pages[0]})
    monkeypatch.setattr(reference, "COSTS", pages[1])
    run = write(tmp_path / "run", results())
    cost = {"float_block_step_seconds": 0.5, "float_block_steps": 1, "ratio_to_schedule": 1.2, "peak_memory_gb": 1.0}
    (run / "cost.json").write_text(json.dumps(cost))
    reference.record(run, "isvit fit")
    for _ in range(2):
        assert reference.run(["table"]) == 0
        for page in pages:
            lines = page.read_text().splitlines()
            assert (lines[0], lines[-1], len(lines)) == ("before", "after", 7)
            assert lines[4].startswith("| tiny | 3/3 |")


def test_every_committed_command_parses(monkeypatch: pytest.MonkeyPatch, own_arguments: None) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("ISVIT_DATA", "/nowhere/data")
    for entry in yaml.safe_load((ROOT / "docs" / "reference.yaml").read_text()):
        model = parsed(entry["command"]).model
        assert (asdict(model.bits), model.schedule.iterations) == (entry["bits"], entry["iterations"])


def test_every_committed_entry_is_complete() -> None:
    needed = {"network", "bits", "images", "iterations", "seed", "command", "date", "tolerance", "versions"}
    for entry in yaml.safe_load((ROOT / "docs" / "reference.yaml").read_text()):
        assert needed <= set(entry)
        metrics = [entry[metric] for metric in ("top1", "box_ap", "mask_ap") if metric in entry]
        assert metrics
        assert all(rows["float"] > rows["quantized"] - entry["tolerance"] for rows in metrics)
