"""The command line on detectors from end to end, in this process, and one sentence for each mistake."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

pytest.importorskip("mmdet")

from detection.detector import Detection
from isvit_lightning.export.artifact import QuantizedNetwork
from isvit_lightning.export.runs import export_hub, export_packed
from isvit_lightning.program import main
from isvit_lightning.storage.files import read_tensors
from tests.detection.detectors import mask_rcnn_config

QUICKSTART = str(Path(__file__).parents[2] / "configs" / "quickstart_detection.yaml")
PARTS = ["neck", "rpn", "box_head", "mask_head"]
ROLES = {"weight", "qkv_in", "query", "key", "attn_prob", "value", "proj_in", "fc1_in", "gelu_out", "reduction_in",
         *(f"{part}_{kind}" for part in PARTS for kind in ("in", "weight"))}  # fmt: skip
METRICS = ["box_ap", "box_ap50", "mask_ap", "mask_ap50"]
SMALL = ["--model.iterations", "1", "--model.batch_size", "2", "--data.calibration_images", "3",
         "--data.evaluation_images", "3", "--model.recipe.range_images", "2"]  # fmt: skip


@pytest.fixture(autouse=True)
def own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """``main`` replaces the process's arguments."""
    monkeypatch.setattr(sys, "argv", ["pytest"])


def tiny_options(folder: Path) -> list[str]:
    """A detector of four small blocks with random weights, of ten classes."""
    (folder / "tiny.py").write_text(f"model = {mask_rcnn_config()!r}\n")
    return ["--model.network.config", str(folder / "tiny.py"), "--model.network.pretrained", "false",
            "--model.network.classes", "10"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a tiny detector, its caches on disk."""
    folder = tmp_path_factory.mktemp("runs")
    caches = ["--model.caches.where", "disk", "--model.caches.directory", str(folder / "caches"),
              "--model.caches.chunk", "2"]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pytest"])
        arguments = ["fit", "--config", QUICKSTART, *SMALL, *tiny_options(folder), *caches]
        assert main([*arguments, "--trainer.default_root_dir", str(folder / "run")]) == 0
    assert not list((folder / "caches").iterdir())
    return folder / "run"


def test_results_carry_average_precision(run: Path) -> None:
    content = json.loads((run / "results.json").read_text())
    assert list(content["metrics"]) == ["float", "round_to_nearest", "repq", "stage1", "quantized"]
    for metrics in content["metrics"].values():
        assert list(metrics) == METRICS
        assert all(0 <= value <= 100 for value in metrics.values())
    assert content["images"] == {"calibration": 3, "evaluation": 3}
    assert content["recipe"] == "isvit"
    assert content["audit"]["n_codes"] == dict.fromkeys(ROLES, 16)
    assert 0 < content["size_bytes"]["packed"] < content["size_bytes"]["float"]
    assert content["versions"]["mmdet"].startswith("3.3")
    # One of the two is there: mmcv has compiled operators, mmcv-lite has not.
    assert {content["versions"][name] for name in ("mmcv", "mmcv-lite")} > {"not installed"}


def test_results_tell_the_canvas_and_that_no_head_is_one_layer(run: Path) -> None:
    audit = json.loads((run / "results.json").read_text())["audit"]
    config = yaml.safe_load((run / "config.yaml").read_text())
    canvas = " × ".join(map(str, (3, *config["data"]["init_args"]["canvas"])))
    assert audit["calibration"]["transform"].startswith(f"input size {canvas}, mean ")
    assert audit["calibration"]["images"] == config["data"]["init_args"]["calibration_images"]
    assert audit["stem"]["weight"] == config["model"]["bits"]["weight"]
    assert audit["head"] is None


def test_test_gives_the_same_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = json.loads((run / "results.json").read_text())["metrics"]["quantized"]
    assert main(["test", "--ckpt_path", str(run)]) == 0
    printed = capsys.readouterr().out
    assert f"box AP {stored['box_ap']:.2f} %" in printed
    assert f"mask AP50 {stored['mask_ap50']:.2f} %" in printed
    assert "on 3 images" in printed


def test_the_verbs_run_with_integer_products(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", str(run), "--runtime", "integer"]) == 0
    printed = capsys.readouterr().out
    assert "integer products" in printed
    assert "box AP" in printed
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("predictions"))
    assert main(["predict", str(tmp_path / "run"), "--runtime", "integer"]) == 0
    assert len(list((tmp_path / "run" / "predictions").rglob("*.png"))) == 3


@torch.no_grad()
def test_the_file_alone_gives_the_same_network(run: Path, tmp_path: Path) -> None:
    """No configuration file of mmdet is needed any more, and every output is the same to the last bit."""
    first = Detection().load(run)
    first.save(tmp_path / "quantized.safetensors")
    second = Detection().load(tmp_path)
    images = torch.randn(1, 3, 64, 96)
    for one, other in zip(first.model.extract_feat(images), second.model.extract_feat(images), strict=True):  # type: ignore[operator]
        assert torch.equal(one, other)
    tensors, metadata = read_tensors(run / "quantized.safetensors")
    assert metadata["architecture"]["name"] == "MaskRCNN"
    assert metadata["preprocessing"]["divisor"] == 32
    assert "roi_head.bbox_head.shared_fcs.0.weight_packed" in tensors
    assert "backbone.stages.0.blocks.0.attn.w_msa.qkv.weight_packed" in tensors


@torch.no_grad()
def test_a_hub_folder_gives_the_same_network(run: Path, tmp_path: Path) -> None:
    folder = export_hub(run, tmp_path / "hub", Detection().load)
    first, second = Detection().load(run), Detection().load(folder)
    images = torch.randn(1, 3, 64, 96)
    for one, other in zip(first.model.extract_feat(images), second.model.extract_feat(images), strict=True):  # type: ignore[operator]
        assert torch.equal(one, other)
    card, results = (folder / "README.md").read_text(), json.loads((run / "results.json").read_text())
    assert "pipeline_tag: object-detection" in card
    assert f"{results['metrics']['quantized']['box_ap']:.6g}" in card
    assert "box ap" in card
    assert export_packed(run, tmp_path / "packed", Detection().load).stat().st_size == results["size_bytes"]["packed"]


@pytest.mark.export
def test_its_backbone_leaves_as_a_graph(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("onnx", "onnxruntime", "onnxscript", "openvino"):
        pytest.importorskip(package)
    from detection.export import GraphBackbone
    from isvit_lightning.export.openvino import OpenVinoNetwork

    assert main(["export", str(run), "--format", "openvino", "--output", str(tmp_path)]) == 0
    backbone = GraphBackbone(OpenVinoNetwork(tmp_path / "openvino" / "model.xml"))
    assert [level.shape[2] for level in backbone(torch.randn(1, 3, *backbone.size))] == [
        level.shape[2] for level in Detection().load(run).model.backbone(torch.randn(1, 3, *backbone.size))
    ]
    assert main(["export", str(run), "--format", "onnx-int4", "--output", str(tmp_path)]) == 2
    assert "onnx-int4 holds classifiers" in capsys.readouterr().err


def test_the_saved_network_is_the_measured_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[QuantizedNetwork] = []
    save = QuantizedNetwork.save
    monkeypatch.setattr(QuantizedNetwork, "save", lambda self, path: (kept.append(self), save(self, path)))
    arguments = ["fit", "--config", QUICKSTART, *SMALL, *tiny_options(tmp_path), "--evaluate", "false"]
    assert main([*arguments, "--trainer.default_root_dir", str(tmp_path / "run")]) == 0
    loaded, images = Detection().load(tmp_path / "run"), torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        for one, other in zip(
            kept[0].model.extract_feat(images),  # type: ignore[operator]
            loaded.model.extract_feat(images),  # type: ignore[operator]
            strict=True,
        ):
            assert torch.equal(one, other)


def test_predict_draws_both_detectors(run: Path) -> None:
    assert main(["predict", "--ckpt_path", str(run)]) == 0
    pictures = sorted((run / "predictions").rglob("*.png"))
    assert len(pictures) == 3
    width, height = Image.open(pictures[0]).size
    assert width > 1.5 * height  # two pictures of a square side by side


def test_inspect_tells_memory_and_what_stays_float(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--config", QUICKSTART, *SMALL, *tiny_options(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "backbone.stages.1.blocks.1" in printed
    assert "3 images take 1 MB, caches up to" in printed
    assert "1 layers stay float" in printed
    assert "roi_head.mask_head.upsample" in printed


def test_a_disk_that_is_too_small_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage: Callable[[object], Any] = lambda _: type("Usage", (), {"free": 1000})  # noqa: E731
    monkeypatch.setattr("shutil.disk_usage", usage)
    arguments = ["fit", "--config", QUICKSTART, *SMALL, *tiny_options(tmp_path), "--model.caches.where", "disk"]
    assert main([*arguments, "--trainer.default_root_dir", str(tmp_path / "run")]) == 2
    assert "GB free, expected room for them" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--model.network.config", "mask-rcnn_r50_fpn"], "Cannot open the backbone ResNet"),
        (["--model.network.config", "nonsense"], "There is no configuration nonsense"),
        (["--model.network.classes", "3"], "knows 10 classes but mask_rcnn_swin_digits has 3"),
        (
            ["--model.recipe.placement.others", "{box_head_in: {bits: 9}}"],
            "bits under model.recipe.placement.others is 9",
        ),
        (["--model.batch_size", "0"], "model.batch_size is 0"),
        (["--data.canvas", "[100, 128]"], "data.canvas is"),
    ],
)
def test_a_mistake_is_one_sentence(
    options: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrained = ["--model.network.pretrained", "false"] if "mask-rcnn_r50_fpn" in options else []
    arguments = ["fit", "--config", QUICKSTART, *options, *pretrained, "--trainer.default_root_dir", str(tmp_path)]
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("isvit: ")
    assert sentence in error


def test_a_role_that_the_detector_lacks_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[object] = []
    monkeypatch.setattr(Detection, "measure", lambda self, network, *_: measured.append(network) or {})
    arguments = ["fit", "--config", QUICKSTART, *SMALL, *tiny_options(tmp_path), "--baselines", "[]"]
    others = ["--model.recipe.placement.others", "{box_head: {bits: 8}}"]
    assert main([*arguments, *others, "--trainer.default_root_dir", str(tmp_path / "run")]) == 2
    assert "no tensor of the role box_head, expected one of" in capsys.readouterr().err
    assert measured == []
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_swin_t_of_mmdet_passes_inspect_fit_and_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", QUICKSTART, *SMALL, "--model.network.config", "mask-rcnn_swin-t-p4-w7_fpn_1x_coco",
                 "--model.network.pretrained", "false", "--model.network.classes", "10", "--data.canvas", "[128, 160]",
                 # One candidate instead of nine: most of the time would be spent on ranges of 48 million weights.
                 "--model.recipe.placement.weight.search.percentiles", "[0.999]",
                 "--trainer.default_root_dir", str(tmp_path / "run")]  # fmt: skip
    assert main(["inspect", *arguments]) == 0
    assert "20 units" in capsys.readouterr().out
    assert main(["fit", *arguments, "--evaluate", "false"]) == 0
    assert main(["test", "--ckpt_path", str(tmp_path / "run")]) == 0
    assert "box AP" in capsys.readouterr().out
