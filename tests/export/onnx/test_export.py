"""Whole networks as ONNX files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.export.artifact import QuantizedNetwork
from isvit_lightning.export.onnx import ExportReport, OnnxNetwork, export_onnx, export_onnx_int4, read_metadata
from isvit_lightning.export.onnx.runner import session
from isvit_lightning.recipe import Bits
from isvit_lightning.sources.preprocessing import Preprocessing
from tests.helpers import image_batch, quantized_network, tiny_swin, tiny_vit

pytestmark = pytest.mark.export
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

PREPROCESSING = Preprocessing((3, 16, 16), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear", 0.9)


def vit(bits: Bits | None = None) -> tuple[QuantizedNetwork, torch.Tensor]:
    torch.manual_seed(0)
    images = image_batch(count=6)
    # One block: what a rounding error does to a code has no further blocks to grow in.
    opened = quantized_network(tiny_vit(depth=1, embed_dim=32, reg_tokens=2), images, bits or Bits())
    return QuantizedNetwork(opened.model, None, PREPROCESSING, {"bits": {"weight": 4}, "recipe": {"name": "x"}}), images


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[QuantizedNetwork, torch.Tensor, ExportReport]:
    network, images = vit()
    path = tmp_path_factory.mktemp("vit") / "network.onnx"
    report = export_onnx(network, path, images=images, classes=["a", "b", "c", "d", "e"], packed_hash="abc")
    return network, images, report


def test_the_file_gives_the_networks_logits(written: tuple[QuantizedNetwork, torch.Tensor, ExportReport]) -> None:
    network, images, report = written
    assert report.distance is not None
    assert report.distance.images == len(images)
    assert report.distance.agreement == 1
    assert report.size == report.path.stat().st_size
    engine = OnnxNetwork(report.path, threads=1)
    for batch in (images, images[:1], images[:5]):
        torch.testing.assert_close(engine(batch), network(batch), rtol=1e-4, atol=1e-4)


def test_the_engine_multiplies_integers_where_the_report_says_so(
    written: tuple[QuantizedNetwork, torch.Tensor, ExportReport], tmp_path: Path
) -> None:
    report = written[2]
    assert set(report.floats) <= {"patch_embed.proj", "blocks.0.attn.context"}
    session(onnx.load(report.path), "network", 1, tmp_path / "optimized.onnx")
    operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    # qkv, scores, context, proj, fc1, fc2 and the head.
    assert operators.count("MatMulIntegerToFloat") == 7 - ("blocks.0.attn.context" in report.floats)
    assert not {"Gemm", "FusedGemm"} & set(operators)


def test_the_file_tells_what_it_is(written: tuple[QuantizedNetwork, torch.Tensor, ExportReport]) -> None:
    values = read_metadata(written[2].path)
    assert values["preprocessing"] == {
        "input_size": [3, 16, 16],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bilinear",
        "crop_pct": 0.9,
        "crop_mode": "center",
    }
    assert values["classes"] == ["a", "b", "c", "d", "e"]
    assert (values["bits"], values["recipe"], values["packed_hash"]) == ({"weight": 4}, {"name": "x"}, "abc")


def test_opset_and_batch(written: tuple[QuantizedNetwork, torch.Tensor, ExportReport]) -> None:
    model = onnx.load(written[2].path)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 21)]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_a_swin_with_shifted_windows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = image_batch(32, count=3)
    model = quantized_network(tiny_swin(), images).model
    network = QuantizedNetwork(model, None, replace(PREPROCESSING, input_size=(3, 32, 32)))
    report = export_onnx(network, tmp_path / "swin.onnx", images=images)
    assert report.distance is not None
    assert report.distance.agreement >= report.distance.floor
    context = {path for path, _ in model.named_modules() if path.endswith(".context")}
    assert set(report.floats) <= {"patch_embed.proj"} | context
    assert OnnxNetwork(report.path)(images[:1]).shape == (1, 5)


def test_weights_of_8_bits_with_zero_points_are_told(tmp_path: Path) -> None:
    network, images = vit(Bits(8, 8))
    report = export_onnx(network, tmp_path / "network.onnx", images=images)
    assert len(report.notes) == 1
    assert "weights of 8 bits" in report.notes[0]
    torch.testing.assert_close(OnnxNetwork(report.path)(images), network(images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bits", [Bits(4, 4), Bits(4, 8), Bits(7, 8), Bits(8, 8)])
def test_sums_do_not_overflow(bits: Bits, tmp_path: Path) -> None:
    """On x86 without VNNI the engine by itself adds two products in 16 bits."""
    network, images = vit(bits)
    report = export_onnx(network, tmp_path / "network.onnx", images=images)
    torch.testing.assert_close(OnnxNetwork(report.path)(images), network(images), rtol=2e-3, atol=2e-3)


def test_without_images_a_file_is_written_and_not_compared(tmp_path: Path) -> None:
    network, _ = vit()
    assert export_onnx(network, tmp_path / "network.onnx").distance is None
    network.preprocessing = None
    with pytest.raises(IsvitError, match="pass them as images"):
        export_onnx(network, tmp_path / "network.onnx")


@pytest.mark.parametrize("bits", [3, 4])
def test_weights_of_4_bits(bits: int, tmp_path: Path) -> None:
    network, images = vit(Bits(bits, 4))
    report = export_onnx_int4(network, tmp_path / "network.onnx", images=images)
    assert report.distance is not None
    assert report.distance.largest < 1e-4
    model = onnx.load(report.path)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    scaled = [node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert len(scaled) == 6
    assert {kinds[name] for name in scaled} == {onnx.TensorProto.UINT4}


@pytest.mark.parametrize("bits", [6, 8])
def test_wider_weights_have_no_such_form(bits: int, tmp_path: Path) -> None:
    network, _ = vit(Bits(bits, 4))
    with pytest.raises(IsvitError, match=rf"patch_embed.proj has {bits} bits, expected at most 4, as ONNX has no type"):
        export_onnx_int4(network, tmp_path / "network.onnx")
