"""The packed file: identical logits, as small as its bits, and refused wherever it does not fit."""

import contextlib
import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from isvit_lightning.embedded.networks import EmbeddedName, embedded_network
from isvit_lightning.errors import IsvitError
from isvit_lightning.export.artifact import QuantizedNetwork, load, pack_state
from isvit_lightning.networks import open_quantized, quantizers
from isvit_lightning.quantizers import Role
from isvit_lightning.recipe.method import Bits, Method, Tuning, repq, round_to_nearest
from isvit_lightning.run.results import float_size
from isvit_lightning.sources.source import Architecture, Preprocessing
from isvit_lightning.storage.files import read_tensors, write_tensors
from tests.helpers import image_batch, quantized_network, tiny_swin, tiny_vit

PUBLISHED = Method(eta_candidates="published", extra_softmax_codes=1, clamp_zero_points=False, round_zero_point=False)
REDUCTIONS = Method(reparameterize_reductions=True)
METHODS = {
    "default": Method(),
    "published": PUBLISHED,
    "reductions": REDUCTIONS,
    "repq": repq(),
    "round_to_nearest": round_to_nearest(),
    "median_log2": Method(softmax="log2", statistic="median"),
}
WIDTHS = [Bits(2, 2), Bits(3, 3), Bits(4, 8), Bits(6, 3), Bits(7, 5), Bits(8, 8)]


def artifact(
    model: nn.Module, images: torch.Tensor, bits: Bits | None = None, method: Method | None = None
) -> QuantizedNetwork:
    bits, method = bits or Bits(3, 3), method or Method()
    opened = quantized_network(model, images, bits, method)
    return QuantizedNetwork(opened.model, Architecture.of(model), Preprocessing.of(model), bits, method)


@torch.no_grad()
def logits_of(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = network(images)
    return result


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
@pytest.mark.parametrize(("build", "size"), [(tiny_vit, 16), (tiny_swin, 32)], ids=["vit", "swin"])
def test_loaded_logits_are_identical(build: Callable[[], nn.Module], size: int, method: Method, tmp_path: Path) -> None:
    model, images = build(), image_batch(size, 4)
    saved = artifact(model, images, method=method)
    saved.save(tmp_path / "q.safetensors")
    # Only the architecture of the network that is given counts, not its weights.
    loaded = load(tmp_path / "q.safetensors", build())
    assert torch.equal(logits_of(loaded, images), logits_of(saved, images))
    assert (loaded.bits, loaded.method, loaded.preprocessing) == (saved.bits, method, saved.preprocessing)
    assert not any(module.training for module in loaded.model.modules())
    again = pack_state(loaded.model)
    assert all(torch.equal(tensor, again[name]) for name, tensor in pack_state(saved.model).items())


@pytest.mark.parametrize("bits", WIDTHS, ids=lambda bits: f"w{bits.weight}a{bits.activation}")
def test_every_width_reads_back(bits: Bits, tmp_path: Path) -> None:
    model, images = tiny_vit(), image_batch(16, 4)
    saved = artifact(model, images, bits)
    saved.save(tmp_path / "q.safetensors")
    loaded = load(tmp_path / "q.safetensors", model)
    assert torch.equal(logits_of(loaded, images), logits_of(saved, images))


def test_a_reduction_that_gets_a_bias_keeps_it(tmp_path: Path) -> None:
    model, images = tiny_swin(), image_batch(32, 4)
    assert model.layers[1].downsample.reduction.bias is None
    saved = artifact(model, images, method=REDUCTIONS)
    saved.save(tmp_path / "q.safetensors")
    loaded = load(tmp_path / "q.safetensors", tiny_swin())
    bias = loaded.model.layers[1].downsample.reduction.bias
    assert bool(bias.abs().sum() > 0)
    assert torch.equal(bias, saved.model.layers[1].downsample.reduction.bias)


@pytest.mark.parametrize("name", ["vit_digits", "swin_digits"])
def test_an_embedded_network_needs_no_network(name: EmbeddedName, tmp_path: Path) -> None:
    model, images = embedded_network(name), image_batch(32, 4)
    saved = artifact(model, images)
    saved.save(tmp_path / "quantized.safetensors")
    loaded = load(tmp_path)
    assert loaded.architecture == Architecture(name)
    assert torch.equal(logits_of(loaded, images), logits_of(saved, images))


def test_a_timm_network_with_other_classes_and_size_needs_no_network(tmp_path: Path) -> None:
    model, images = timm.create_model("test_vit", num_classes=7, img_size=32).eval(), image_batch(32, 4)
    saved = artifact(model, images)
    saved.save(tmp_path / "q.safetensors")
    loaded = load(tmp_path / "q.safetensors")
    assert loaded.preprocessing is not None
    assert loaded.preprocessing.input_size == (3, 32, 32)
    assert logits_of(loaded, images).shape == (4, 7)
    assert torch.equal(logits_of(loaded, images), logits_of(saved, images))


def test_a_loaded_network_says_that_it_is_in_evaluation_mode(tmp_path: Path) -> None:
    model = tiny_vit()
    saved = artifact(model, image_batch(16, 4))
    saved.save(tmp_path / "q.safetensors")
    assert not saved.training
    assert not load(tmp_path / "q.safetensors", model).training


def test_a_network_without_a_known_architecture_must_be_given(tmp_path: Path) -> None:
    model, images = tiny_vit(), image_batch(16, 4)
    artifact(model, images).save(tmp_path / "q.safetensors")
    with pytest.raises(IsvitError, match="pass the float network as `network`"):
        load(tmp_path / "q.safetensors")


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_weights_take_their_bits_and_the_rounding_to_words(bits: int, tmp_path: Path) -> None:
    model = tiny_vit(embed_dim=32)
    saved = artifact(model, image_batch(16, 4), Bits(bits, 4))
    saved.save(tmp_path / "q.safetensors")
    tensors, _ = read_tensors(tmp_path / "q.safetensors")
    layers = [name.rpartition(".")[0] for name, q in quantizers(saved.model).items() if q.role is Role.WEIGHT]
    assert len(layers) == 10
    for layer in layers:
        weight = model.get_submodule(layer).weight
        words = tensors[f"{layer}.weight_packed"]
        assert f"{layer}.weight" not in tensors
        assert tensors[f"{layer}.weight_shape"].tolist() == list(weight.shape)
        assert words.dtype == torch.int32
        assert words.numel() == len(weight) * -(-weight[0].numel() // (32 // bits))
        # Never more than the next width that divides a word, and one word per row.
        assert words.numel() * (32 // bits) < weight.numel() + len(weight) * (32 // bits)


def test_the_file_is_really_small(tmp_path: Path) -> None:
    model = embedded_network("vit_digits")
    saved = artifact(model, image_batch(32, 4), Bits(4, 4))
    saved.save(tmp_path / "q.safetensors")
    assert (tmp_path / "q.safetensors").stat().st_size < 0.2 * float_size(model)


def test_another_network_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "q.safetensors"
    artifact(tiny_vit(), image_batch(16, 4)).save(path)
    others = [
        tiny_vit(embed_dim=24),
        tiny_vit(depth=3),
        tiny_vit(depth=1),
        tiny_vit(num_classes=6),
        tiny_vit(class_token=False, global_pool="avg"),
        tiny_swin(),
    ]
    for other in others:
        names = set(other.state_dict()) | set(tiny_vit().state_dict())
        with pytest.raises(IsvitError, match=r"another network \(first difference: ") as caught:
            load(path, other)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert any(name in str(caught.value) or name.rpartition(".")[0] in str(caught.value) for name in names)


@pytest.mark.parametrize("section", ["bits", "method", "preprocessing", "stage1"])
def test_an_unknown_key_is_refused(section: str, tmp_path: Path) -> None:
    path = tmp_path / "q.safetensors"
    model = tiny_vit()
    artifact(model, image_batch(16, 4)).save(path)
    tensors, metadata = read_tensors(path)
    (metadata["method"]["stage1"] if section == "stage1" else metadata[section])["invented"] = 1
    write_tensors(path, tensors, metadata)
    with pytest.raises(IsvitError, match=r"unknown key 'invented' for \w+, expected .*another version"):
        load(path, model)


@pytest.mark.parametrize(
    "change",
    [
        lambda metadata: metadata.pop("bits"),
        lambda metadata: metadata.pop("method"),
        lambda metadata: metadata.pop("architecture"),
        lambda metadata: metadata.pop("preprocessing"),
        lambda metadata: metadata.update(bits=[1, 2]),
        lambda metadata: metadata.update(bits={"weight": "3", "activation": 3}),
        lambda metadata: metadata.update(method=3),
        lambda metadata: metadata.update(preprocessing={"mean": [0, 0, 0]}),
        lambda metadata: metadata["method"].update(stage1=None),
        lambda metadata: metadata.update(format="isvit-packed-0"),
        lambda metadata: metadata.clear(),
    ],
    ids=[
        "no_bits", "no_method", "no_architecture", "no_preprocessing", "bits_list", "bits_text", "method_number",
        "preprocessing_short", "stage1_null", "other_format", "empty",
    ],
)  # fmt: skip
def test_damaged_metadata_is_a_sentence(change: Callable[[dict[str, Any]], Any], tmp_path: Path) -> None:
    path, model = tmp_path / "q.safetensors", tiny_vit()
    artifact(model, image_batch(16, 4)).save(path)
    tensors, metadata = read_tensors(path)
    change(metadata)
    write_tensors(path, tensors, metadata)
    with pytest.raises(IsvitError):
        load(path, model)


@pytest.mark.parametrize("part", ["weight_packed", "weight_shape"])
@pytest.mark.parametrize("change", ["missing", "shorter", "other_type"])
def test_damaged_weights_are_a_sentence(part: str, change: str, tmp_path: Path) -> None:
    path, model = tmp_path / "q.safetensors", tiny_vit()
    artifact(model, image_batch(16, 4)).save(path)
    tensors, metadata = read_tensors(path)
    key = f"blocks.0.mlp.fc1.{part}"
    if change == "missing":
        del tensors[key]
    else:
        tensors[key] = tensors[key][:-1] if change == "shorter" else tensors[key].float() + 0.5
    write_tensors(path, tensors, metadata)
    with pytest.raises(IsvitError, match="--ckpt_path"):
        load(path, model)


def with_sorted_header(content: bytes) -> bytes:
    """The same file with its metadata in alphabetical order; safetensors orders it at random."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def test_flipped_bits_never_raise_anything_else(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("flipped") / "q.safetensors"
    model = tiny_vit(depth=1)
    artifact(model, image_batch(16, 4)).save(path)
    content = with_sorted_header(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")

    @given(st.randoms(use_true_random=False))
    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    def check(draw: random.Random) -> None:
        damaged = bytearray(content)
        for _ in range(draw.randint(1, 3)):
            # Most bytes of the header would otherwise never be hit.
            position = draw.randrange(header) if draw.random() < 0.8 else draw.randrange(len(content))
            damaged[position] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with contextlib.suppress(IsvitError):
            load(path, model)

    check()


def test_an_uncalibrated_network_is_refused() -> None:
    model = tiny_vit()
    opened = open_quantized(model, Bits(), Method())
    with pytest.raises(IsvitError, match=r"quantizers are not calibrated"):
        QuantizedNetwork(opened.model, None, None, Bits(), Method())


def test_tuning_choices_read_back(tmp_path: Path) -> None:
    method = Method(
        stage1=Tuning(learning_rate=1e-5, recalibrate="unit"), stage3=Tuning(inputs="mixed"), range_images=5
    )
    model = tiny_vit()
    saved = artifact(model, image_batch(16, 4), method=method)
    saved.save(tmp_path / "q.safetensors")
    loaded = load(tmp_path / "q.safetensors", model)
    assert loaded.method == method
    assert isinstance(loaded.method.stage1, Tuning)
    assert dataclasses.asdict(loaded.method) == dataclasses.asdict(method)


def test_a_missing_file_or_run_is_a_sentence(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent", tmp_path / "absent.safetensors"):
        with pytest.raises(IsvitError, match=r"does not exist.*--ckpt_path"):
            load(path)
