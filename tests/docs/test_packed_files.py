"""``docs/packed_files.md`` names every key of a file, and its code reads one."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from isvit_lightning.export.artifact import QuantizedNetwork
from isvit_lightning.export.weights import weights_of
from isvit_lightning.quantizers import formats
from isvit_lightning.quantizers.formats import Format
from isvit_lightning.recipe import Bits
from isvit_lightning.sources.architecture import Architecture
from isvit_lightning.sources.preprocessing import Preprocessing
from isvit_lightning.storage.files import read_tensors
from tests.helpers import image_batch, quantized_network

PAGE = (Path(__file__).parents[2] / "docs" / "packed_files.md").read_text()


@pytest.fixture(scope="module")
def network() -> QuantizedNetwork:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=7, img_size=32).eval()
    opened = quantized_network(model, image_batch(32, 4), Bits(3, 4))
    return QuantizedNetwork(opened.model, Architecture.of(model), Preprocessing.of(model))


@pytest.fixture(scope="module")
def folder(network: QuantizedNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    network.save_pretrained(folder)
    return folder


def code_under(mark: str) -> dict[str, Any]:
    """What the code block behind a comment of the page defines."""
    block = re.search(rf"<!-- {mark} -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    assert block
    names: dict[str, Any] = {}
    exec(block[1], names)
    return names


def test_a_weight_is_read_by_hand(network: QuantizedNetwork, folder: Path) -> None:
    read = code_under("by hand")["weight_of"]
    shared = [weight for weight in weights_of(network.model) if weight.is_shared]
    for weight in shared:
        found = read(folder / "model.safetensors", weight.layer)
        assert torch.equal(found, weight.quantizer(weight.module.get_parameter("weight")))


@pytest.mark.export
def test_compressed_tensors_reads_all_linear_layers(network: QuantizedNetwork, folder: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="the extra dev is missing")
    read = code_under("compressed-tensors")["network_of"](folder)
    for weight in weights_of(network.model):
        if weight.is_shared:
            expected = weight.quantizer(weight.module.get_parameter("weight"))
            assert torch.equal(read.get_parameter(f"{weight.layer}.weight"), expected)


def test_every_key_is_told(network: QuantizedNetwork, folder: Path) -> None:
    tensors, description = read_tensors(folder / "model.safetensors")
    floats = timm.create_model("test_vit", num_classes=7, img_size=32).state_dict()
    keys = set(re.findall(r"`(X\.\w+(?:\.NUMBER)?)`", PAGE))
    assert len(keys) == 9
    patterns = {key: re.compile(re.escape(key).replace("X", ".+", 1).replace("NUMBER", r"\w+")) for key in keys}
    own = tensors.keys() - floats.keys()
    assert [name for name in own if not any(pattern.fullmatch(name) for pattern in patterns.values())] == []
    assert [key for key, pattern in patterns.items() if not any(map(pattern.fullmatch, own))] == []
    config = json.loads((folder / "config.json").read_text())
    for key in (*description, *config, *config["quantization_config"], *config["isvit"]):
        assert f"`{key}`" in PAGE or key in {"version", "quantization_status"}, key


def test_every_format_is_told() -> None:
    kinds = [kind for kind in vars(formats).values() if isinstance(kind, type) and issubclass(kind, Format)]
    for kind in kinds:
        if kind is not Format:
            numbers = ", ".join(f"`{name}`" for name in kind.numbers)
            assert f"| `{kind.__name__}` | {numbers} |" in PAGE
