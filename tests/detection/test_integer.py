"""Detectors with integer products: each layer computes what the simulated one does, and the verbs run on them."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detection.detector import Detection
from detection.runtime import import_mmdet
from detection.source import DetectorSource
from isvit_lightning.export import integer
from isvit_lightning.export.artifact import QuantizedNetwork
from isvit_lightning.export.lower import lower
from isvit_lightning.export.runtime.layers import FloatConv2d, FloatLinear, FloatMatMul
from isvit_lightning.export.runtime.network import integer_model
from isvit_lightning.quantizers import Quantizer
from isvit_lightning.recipe import Bits
from tests.detection.detectors import build, calibrated, cascade_config, mask_rcnn_config

pytest.importorskip("mmdet")
import_mmdet()

from detection.network import DetectorAdapter, data_samples  # noqa: E402 - needs mmdet's operators

# Tokens of the first map fill windows of 4, windows in part, and less than one window.
SIZES = [(2, 64, 96), (1, 52, 76), (1, 33, 50)]


@functools.cache
def network_of(kind: str) -> QuantizedNetwork:
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    config = {"mask": mask_rcnn_config, "cascade": cascade_config}[kind]()
    return QuantizedNetwork(calibrated(build(config), images, Bits(4, 4)), None, None)


@pytest.mark.parametrize("kind", ["mask", "cascade"])
def test_every_layer_multiplies_integers_but_that_of_the_image(kind: str) -> None:
    network = network_of(kind)
    made = integer(network)
    floats = [path for path, layer in made.model.named_modules() if isinstance(layer, FloatLinear | FloatMatMul)]
    assert floats == ["backbone.patch_embed.projection"]
    assert isinstance(made.model.get_submodule(floats[0]), FloatConv2d)
    assert made.float_products == {floats[0]: "its input is float"}
    assert not any(isinstance(module, Quantizer) for module in made.model.modules())
    assert len(lower(network.model)) > 30


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["mask", "cascade"])
@torch.no_grad()
def test_every_layer_computes_what_the_simulated_one_does(kind: str, size: tuple[int, int, int]) -> None:
    """Of the very inputs that the layer has in the network, whatever batch, maps and boxes these belong to."""
    network, errors = network_of(kind), dict[str, float]()
    made = integer(network).model

    def compare(path: str, _layer: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        found = made.get_submodule(path)(*inputs)
        assert found.shape == output.shape
        errors[path] = max(errors.get(path, 0.0), float((found - output).abs().max() / output.abs().max()))

    layers = {path: network.model.get_submodule(path) for path in lower(network.model)}
    hooks = [layer.register_forward_hook(functools.partial(compare, path)) for path, layer in layers.items()]
    DetectorAdapter(network.model).run(torch.randn(size[0], 3, *size[1:]))  # type: ignore[arg-type]
    for hook in hooks:
        hook.remove()
    assert errors.keys() == layers.keys()
    assert max(errors.values()) < 2e-6


@torch.no_grad()
def test_a_backbone_alone_has_an_integer_form() -> None:
    backbone = network_of("mask").model.get_submodule("backbone")
    made, images = integer_model(backbone, torch.device("cpu")), torch.randn(1, 3, 64, 96)
    for found, expected in zip(made(images), integer(network_of("mask")).model.backbone(images), strict=True):  # type: ignore[operator]
        assert torch.equal(found, expected)


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_backbone_computes_the_same() -> None:
    backbone = integer_model(network_of("mask").model.get_submodule("backbone"), torch.device("cpu"))
    compiled, images = torch.compile(backbone), torch.randn(1, 3, 52, 76)
    for found, expected in zip(compiled(images), backbone(images), strict=True):
        # A compiler sums in another order, so that some numbers change their codes.
        assert float((found - expected).norm() / expected.norm()) < 0.05


@torch.no_grad()
def test_the_timed_part_is_the_backbone_in_every_form() -> None:
    network, task = network_of("mask"), Detection()
    for form in (network, network.model, integer(network)):
        part = task.timed_part(form)
        assert [tuple(level.shape) for level in part(torch.randn(1, 3, 64, 96))] == [(1, 8, 16, 24), (1, 16, 8, 12)]


@torch.no_grad()
def test_the_shipped_detector_is_small_on_disk_and_in_memory_and_reads_back_as_it_was(tmp_path: Path) -> None:
    loaded = DetectorSource("mask_rcnn_swin_digits").build()
    size = sum(tensor.nbytes for tensor in loaded.model.parameters())
    images = torch.randn(1, 3, 128, 128)
    network = QuantizedNetwork(calibrated(loaded.model, images, Bits(4, 4)), loaded.architecture, loaded.preprocessing)
    assert integer(network).resident_bytes < 0.3 * size
    network.save(tmp_path / "quantized.safetensors")
    assert (tmp_path / "quantized.safetensors").stat().st_size < 0.17 * size  # 4 of 32 bits, scales, and what is float
    again = Detection().load(tmp_path)
    first, second = (each.model.predict(images, data_samples(images)) for each in (network, again))  # type: ignore[operator]
    assert len(first[0].pred_instances)
    for key, value in first[0].pred_instances.items():
        assert torch.equal(value, second[0].pred_instances[key])
