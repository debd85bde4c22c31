"""Backbones as ONNX graphs: neck and heads of mmdet find on their maps what they find on those of PyTorch."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.ops import box_iou

from detection.runtime import import_mmdet
from isvit_lightning.errors import IsvitError
from isvit_lightning.export.artifact import QuantizedNetwork
from isvit_lightning.export.onnx import OnnxNetwork
from isvit_lightning.export.onnx.metadata import metadata_of
from isvit_lightning.export.onnx.write import write_graph
from isvit_lightning.export.openvino import OpenVinoNetwork, export_openvino
from isvit_lightning.recipe import Bits
from tests.detection.detectors import build, calibrated, mask_rcnn_config

pytestmark = pytest.mark.export
pytest.importorskip("mmdet")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
import_mmdet()

from detection.embedded.network import digits_detector  # noqa: E402 - needs mmdet's operators
from detection.embedded.scenes import SceneStyle, digit_scene  # noqa: E402
from detection.export import GraphBackbone, export_backbone  # noqa: E402
from detection.network import data_samples  # noqa: E402

BITS = Bits(6, 6)
FOUND = 0.8
"""Least share of objects that both find: sums in another order break ties of rounding otherwise."""


def scenes(first: int, count: int) -> torch.Tensor:
    """Scenes ``(count, 3, 128, 128)`` as the embedded detector reads them."""
    images = [digit_scene("held_out", first + index, 0, SceneStyle()).image for index in range(count)]
    return (torch.stack(images).float() - 127.5) / 63.75


@functools.cache
def detector() -> QuantizedNetwork:
    return QuantizedNetwork(calibrated(digits_detector(), scenes(0, 2), BITS), None, None)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_backbone(detector(), tmp_path_factory.mktemp("onnx") / "backbone.onnx", (128, 128))


@torch.no_grad()
def found(model: nn.Module, images: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Boxes and labels of each image."""
    samples = model.predict(images, data_samples(images))  # type: ignore[operator]
    return [(sample.pred_instances.bboxes, sample.pred_instances.labels) for sample in samples]


@pytest.mark.parametrize("count", [1, 3])
@torch.no_grad()
def test_the_graph_gives_the_maps_of_the_backbone(file: Path, count: int) -> None:
    images = scenes(2, count)
    maps = detector().model.get_submodule("backbone")(images)
    written = GraphBackbone(OnnxNetwork(file))(images)
    assert isinstance(written, tuple)
    for one, other in zip(written, maps, strict=True):
        assert one.shape == other.shape
        assert float((one - other).norm() / other.norm()) < 0.05


def in_onnx_runtime(file: Path) -> GraphBackbone:
    return GraphBackbone(OnnxNetwork(file))


def in_openvino(file: Path) -> GraphBackbone:
    pytest.importorskip("openvino")
    return GraphBackbone(OpenVinoNetwork(export_openvino(file, file.parent)[0]))


@pytest.mark.parametrize("engine", [in_onnx_runtime, in_openvino])
@torch.no_grad()
def test_a_detector_on_the_graph_finds_what_the_simulated_one_does(
    file: Path, engine: Callable[[Path], GraphBackbone]
) -> None:
    images, network = scenes(2, 6), detector().model
    simulated, own = found(network, images), network.backbone
    try:
        network.backbone = engine(file)
        on_graph = found(network, images)
    finally:
        network.backbone = own
    both = total = 0
    for (boxes, labels), (others, theirs) in zip(simulated, on_graph, strict=True):
        same = (box_iou(boxes, others) > 0.9) & (labels[:, None] == theirs)
        both, total = both + int(same.any(dim=1).sum()), total + max(len(boxes), len(others))
    assert total > 10
    assert both >= FOUND * total


def test_images_of_another_size_are_a_sentence(file: Path) -> None:
    with pytest.raises(IsvitError, match="Images are 96 x 128, expected 128 x 128 as the graph was written for"):
        GraphBackbone(OnnxNetwork(file))(torch.zeros(1, 3, 96, 128))


def test_another_graph_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    write_graph(nn.ReLU(), [torch.ones(2, 3)], path, ["x"], ["y"], metadata_of(detector(), None, ""))
    with pytest.raises(IsvitError, match="graph is no backbone of a detector, expected that of export_backbone"):
        GraphBackbone(OnnxNetwork(path))


def test_calibration_images_of_another_size_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(IsvitError, match="Calibration images are 128 x 128, expected 96 x 96"):
        export_backbone(detector(), tmp_path / "backbone.onnx", (96, 96), images=scenes(0, 1))
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_windows_that_do_not_fit_are_padded(tmp_path: Path) -> None:
    network = QuantizedNetwork(calibrated(build(mask_rcnn_config()), torch.randn(2, 3, 64, 96), Bits(8, 8)), None, None)
    images = torch.randn(2, 3, 52, 76)
    written = GraphBackbone(OnnxNetwork(export_backbone(network, tmp_path / "backbone.onnx", (52, 76))))(images)
    for one, other in zip(written, network.model.get_submodule("backbone")(images), strict=True):
        assert float((one - other).norm() / other.norm()) < 0.05
