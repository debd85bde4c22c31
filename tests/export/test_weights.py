"""Packed weights as another program reads them, and how many bits they take."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from isvit_lightning.export.artifact import QuantizedNetwork, load
from isvit_lightning.export.weights import pack_state, weights_of
from isvit_lightning.networks import quantizers
from isvit_lightning.quantizers import Log, PerTensor, Quantizer, Role, Spec, Uniform
from isvit_lightning.recipe import Bits, read_recipe
from isvit_lightning.search import Percentiles
from isvit_lightning.sources.architecture import Architecture
from isvit_lightning.sources.preprocessing import Preprocessing
from tests.helpers import image_batch, quantized_network, tiny_vit

VIT_B_BLOCK = {"img_size": 32, "patch_size": 16, "embed_dim": 768, "depth": 1, "num_heads": 12, "num_classes": 1000}


def with_weight_quantizer(model: nn.Module, layer: str, spec: Spec) -> None:
    """Give the weight of ``layer`` another quantizer."""
    quantizer = Quantizer(spec, Percentiles())
    quantizer.calibrate(model.get_parameter(f"{layer}.weight"))
    setattr(model.get_submodule(layer), "weight_quantizer", quantizer)  # noqa: B010


@pytest.fixture(scope="module")
def mixed() -> QuantizedNetwork:
    """Widths of 2 to 8 bits in turn, two layers with one scale, one on a logarithmic grid, and a convolution."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=7, img_size=32).eval()
    opened = quantized_network(model, image_batch(32, 4), Bits(3, 3)).model
    layers = [weight.layer for weight in weights_of(opened)]
    for place, layer in enumerate(layers):
        spec = opened.get_submodule(layer).weight_quantizer.spec
        granularity = PerTensor() if layer.endswith("fc2") else spec.granularity
        form = Log() if layer == "blocks.1.mlp.fc1" else Uniform()
        if form == Log():
            with torch.no_grad():
                opened.get_parameter(f"{layer}.weight").abs_()
        with_weight_quantizer(opened, layer, Spec(form, 2 + place % 7, granularity, Role.WEIGHT))
    return QuantizedNetwork(opened, Architecture.of(model), Preprocessing.of(model))


@torch.no_grad()
def test_a_mixed_network_reads_back(mixed: QuantizedNetwork, tmp_path: Path) -> None:
    mixed.save(tmp_path / "quantized.safetensors")
    loaded, images = load(tmp_path), image_batch(32, 4)
    assert torch.equal(loaded(images), mixed(images))
    assert loaded.specs == mixed.specs
    for name, quantizer in quantizers(mixed).items():
        for number, other in zip(quantizer.grid, quantizers(loaded)[name].grid, strict=True):
            assert torch.equal(number, other)


def test_the_names_tell_whose_schema_it_is(mixed: QuantizedNetwork) -> None:
    state = pack_state(mixed.model)
    fc1 = "blocks.0.mlp.fc1"
    rows, columns = mixed.model.get_parameter(f"{fc1}.weight").shape
    bits = mixed.model.get_submodule(f"{fc1}.weight_quantizer").bits
    assert state[f"{fc1}.weight_packed"].shape == (rows, -(-columns * int(bits) // 32))
    assert state[f"{fc1}.weight_scale"].shape == (rows, 1)
    assert state[f"{fc1}.weight_zero_point"].shape == (-(-rows * int(bits) // 32), 1)
    assert state["blocks.0.mlp.fc2.weight_scale"].shape == state["blocks.0.mlp.fc2.weight_zero_point"].shape == (1,)
    for layer in ("patch_embed.proj", "blocks.1.mlp.fc1"):
        kinds = {name.removeprefix(f"{layer}.weight_") for name in state if name.startswith(f"{layer}.weight_")}
        numbers = {
            f"quantizer.{name}" for name in mixed.model.get_submodule(f"{layer}.weight_quantizer").format.numbers
        }
        assert kinds == {"codes", "shape", *numbers}


@pytest.mark.export
@pytest.mark.parametrize("recipe", ["isvit", "isvit_rotated", "repq", None])
def test_compressed_tensors_reads_what_it_covers(recipe: str | None, mixed: QuantizedNetwork, tmp_path: Path) -> None:
    """It opens the folder into the float network by itself, and finds the weights that we compute with."""
    pytest.importorskip("compressed_tensors", reason="the extra dev is missing")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    saved = mixed if recipe is None else made_with(recipe)
    saved.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    described = QuantizationConfig.model_validate(config["quantization_config"])
    reader: Any = timm.create_model(config["architecture"]["name"], **config["architecture"]["args"])
    apply_quantization_config(reader, described)
    compressor = ModelCompressor(quantization_config=described)
    compressor.compress_model(reader)
    tensors = load_file(tmp_path / "model.safetensors")
    missing, unexpected = reader.load_state_dict(tensors, strict=False)
    compressor.decompress_model(reader)
    shared = [weight for weight in weights_of(saved.model) if weight.is_shared]
    assert len(shared) >= 7
    assert not [name for name in missing if name.rpartition(".")[0] in {weight.layer for weight in shared}]
    assert all("quantizer" in name or "weight_" in name or name.endswith("bias") for name in unexpected)
    for weight in shared:
        values = weight.module.get_parameter("weight")
        expected = weight.quantizer(values)
        assert torch.equal(reader.get_parameter(f"{weight.layer}.weight"), expected), weight.layer


def made_with(recipe: str) -> QuantizedNetwork:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=7, img_size=32).eval()
    chosen = read_recipe(recipe)
    opened = quantized_network(chosen.transformed(model), image_batch(32, 4), Bits(3, 3), chosen)
    return QuantizedNetwork(opened.model, Architecture.of(model), Preprocessing.of(model))


@pytest.mark.parametrize(("bits", "limit"), [(3, 3.3), (4, 4.1), (6, 6.1)])
def test_vit_base_takes_little_more_than_its_bits(bits: int, limit: float) -> None:
    """Codes, scales, zero points and shapes of one block, patch embedding and head of ViT-B, per quantized weight."""
    torch.manual_seed(0)
    recipe = read_recipe("round_to_nearest")
    opened = quantized_network(tiny_vit(**VIT_B_BLOCK), image_batch(32, 2), Bits(bits, bits), recipe)
    state = pack_state(opened.model)
    weights = sum(weight.module.get_parameter("weight").numel() for weight in weights_of(opened.model))
    parts = ("weight_packed", "weight_codes", "weight_scale", "weight_zero_point", "weight_shape", "weight_quantizer")
    taken = sum(8 * tensor.nbytes for name, tensor in state.items() if any(f".{part}" in name for part in parts))
    assert weights == 768 * (768 + 3 * 768 + 768 + 4 * 768 + 4 * 768 + 1000)
    print(f"ViT-B at {bits} bits: {taken / weights:.4f} bits per quantized weight")  # noqa: T201
    assert bits < taken / weights <= limit
