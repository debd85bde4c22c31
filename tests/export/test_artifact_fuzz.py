"""A packed network whose bytes or description somebody changed: a sentence, or a network that computes; never code."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import isvit_lightning
from isvit_lightning.errors import IsvitError
from isvit_lightning.export.artifact import QuantizedNetwork
from isvit_lightning.recipe import Bits, read_recipe, record_of
from isvit_lightning.sources.architecture import Architecture
from isvit_lightning.sources.preprocessing import Preprocessing
from isvit_lightning.storage.files import read_tensors
from tests.helpers import image_batch, quantized_network, write_resealed
from tests.sources.test_checkpoint import Payload, torch_file, truncated

TINY = {"img_size": 32, "patch_size": 16, "embed_dim": 8, "depth": 1, "num_heads": 2, "num_classes": 3}
ODD = [
    None,
    True,
    -1,
    0,
    3,
    1e30,
    float("nan"),
    "",
    "nan",
    [],
    {},
    [1, 2, 3],
    {"a": 1},
    "../../etc/passwd",
    float("inf"),
    10**30,
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed timm network that can be built from its description alone."""
    torch.manual_seed(0)
    architecture = Architecture("vit_tiny_patch16_224", TINY)
    model, bits, recipe = architecture.build(), Bits(3, 3), read_recipe("isvit")
    opened = quantized_network(model, image_batch(32, 2), bits, recipe)
    record = record_of({"recipe": recipe, "bits": bits})
    path = tmp_path_factory.mktemp("packed") / "quantized.safetensors"
    QuantizedNetwork(opened.model, architecture, Preprocessing.of(model), record).save(path)
    return path


def sentence_or_network(path: Path) -> bool:
    """Whether the file loads; where it does not, only a sentence may come."""
    try:
        network = isvit_lightning.load(path)
    except IsvitError as error:
        assert "\n" not in str(error)
        return False
    assert network(image_batch(32, 1)).shape[0] == 1
    return True


def test_the_intact_file_loads(path: Path) -> None:
    assert sentence_or_network(path)


def test_truncated_files_are_sentences(path: Path) -> None:
    content, damaged = path.read_bytes(), path.with_name("truncated.safetensors")

    @given(st.randoms(use_true_random=False))
    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    def check(draw: random.Random) -> None:
        damaged.write_bytes(truncated(content, draw))
        assert not sentence_or_network(damaged)

    check()


def places(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values in nested JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(*prefix, key) for key, _ in inner] + [p for key, child in inner for p in places(child, (*prefix, key))]


def kinds_of_places(metadata: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Paths of all values but the record, which is not read, and those of the specs of one quantizer of each role."""
    roles = {values["role"]["name"]: path for path, values in metadata["specs"].items()}
    described = {**metadata, "specs": {path: metadata["specs"][path] for path in roles.values()}, "record": None}
    return places(json.loads(json.dumps(described)))


def test_changed_descriptions_are_sentences_or_networks(path: Path) -> None:
    """Every value of the description in turn is replaced by odd ones, or left out."""
    tensors, metadata = read_tensors(path)
    damaged = path.with_name("described.safetensors")
    loaded = 0

    @given(st.sampled_from(kinds_of_places(metadata)), st.sampled_from([*ODD, "left out"]))
    @settings(max_examples=400, deadline=None, derandomize=True, database=None)
    def check(place: tuple[Any, ...], value: Any) -> None:
        nonlocal loaded
        changed = copy.deepcopy(metadata)
        parent = changed
        for key in place[:-1]:
            parent = parent[key]
        if value == "left out":
            del parent[place[-1]]
        else:
            parent[place[-1]] = value
        write_resealed(damaged, tensors, changed)
        loaded += sentence_or_network(damaged)

    check()
    assert loaded > 5


def test_every_change_of_a_spec_is_a_sentence_or_a_network(path: Path) -> None:
    """All values of the specs of an input, a probability and a weight, each with all odd ones."""
    tensors, metadata = read_tensors(path)
    damaged = path.with_name("specs.safetensors")
    wrong: list[str] = []
    for name in ("blocks.0.mlp.fc1.weight_quantizer", "blocks.0.attn.context.left_quantizer"):
        for place in places(metadata["specs"][name]):
            for value in ODD:
                changed = copy.deepcopy(metadata)
                parent = changed["specs"][name]
                for key in place[:-1]:
                    parent = parent[key]
                parent[place[-1]] = value
                write_resealed(damaged, tensors, changed)
                try:
                    sentence_or_network(damaged)
                except Exception as error:  # noqa: BLE001 - each of them is told
                    wrong.append(f"{name} {place} {value!r}: {type(error).__name__} {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained"])
def test_a_description_cannot_read_other_files(key: str, path: Path, tmp_path: Path) -> None:
    trace, payload = tmp_path / "ran", tmp_path / "payload.pt"
    payload.write_bytes(torch_file(Payload(trace)))
    tensors, metadata = read_tensors(path)
    metadata["architecture"]["args"][key] = str(payload)
    write_resealed(tmp_path / "q.safetensors", tensors, metadata)
    with pytest.raises(IsvitError, match=rf"hold {key}, expected none that reads a file"):
        isvit_lightning.load(tmp_path / "q.safetensors")
    assert not trace.exists()


@pytest.mark.parametrize("name", ["hf-hub:timm/vit_tiny_patch16_224.augreg_in21k", "local-dir:/tmp", "../x", 3, None])
def test_a_description_cannot_name_a_place(name: Any, path: Path, tmp_path: Path) -> None:
    tensors, metadata = read_tensors(path)
    metadata["architecture"]["name"] = name
    write_resealed(tmp_path / "q.safetensors", tensors, metadata)
    with pytest.raises(IsvitError, match=", expected "):
        isvit_lightning.load(tmp_path / "q.safetensors")
