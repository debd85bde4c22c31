"""The packed file: identical logits, as small as its bits, and refused wherever it does not fit."""

import contextlib
import json
import random
from collections.abc import Callable
from dataclasses import replace
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
from isvit_lightning.export.artifact import QuantizedNetwork, load
from isvit_lightning.export.packing import words_of
from isvit_lightning.export.sealed import read_hash
from isvit_lightning.export.weights import pack_state
from isvit_lightning.networks import quantizers
from isvit_lightning.quantizers import Log, PerChannel, PerTensor, Quantizer, Role, Spec, Sulq, Uniform
from isvit_lightning.recipe import Bits, Choice, Recipe, read_recipe, record_of
from isvit_lightning.run.results import float_size
from isvit_lightning.sources.source import Architecture, Preprocessing
from isvit_lightning.storage.files import read_tensors, write_tensors
from tests.helpers import image_batch, quantized_network, tiny_swin, tiny_vit, write_resealed


def placed(recipe: Recipe, **choices: Choice) -> Recipe:
    """``recipe`` with other choices for some roles."""
    return replace(recipe, placement=replace(recipe.placement, **choices))


ISVIT = read_recipe("isvit")
REDUCTIONS = placed(ISVIT, reduction_in=Choice(granularity="channel"))
RECIPES = {
    "default": ISVIT,
    "published": read_recipe("isvit_published"),
    "reductions": REDUCTIONS,
    "repq": read_recipe("repq"),
    "round_to_nearest": read_recipe("round_to_nearest"),
    "median_log2": replace(placed(ISVIT, attn_prob=Choice(Log())), changes={"stage2": {"statistic": "median"}}),
    "by_head_and_token": placed(
        ISVIT,
        query=Choice(granularity="head"),
        key=Choice(granularity="channel", bits=5),
        norm_in=Choice(granularity="channel", bits=8),
        head_in=Choice(format=None),
        image=Choice(bits=8),
    ),
}
WIDTHS = [Bits(2, 2), Bits(3, 3), Bits(4, 8), Bits(6, 3), Bits(7, 5), Bits(8, 8)]


def artifact(
    model: nn.Module, images: torch.Tensor, bits: Bits | None = None, recipe: Recipe = ISVIT
) -> QuantizedNetwork:
    bits = bits or Bits(3, 3)
    opened = quantized_network(model, images, bits, recipe)
    record = record_of({"recipe": recipe, "bits": bits})
    return QuantizedNetwork(opened.model, Architecture.of(model), Preprocessing.of(model), record)


@torch.no_grad()
def logits_of(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = network(images)
    return result


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
@pytest.mark.parametrize(("build", "size"), [(tiny_vit, 16), (tiny_swin, 32)], ids=["vit", "swin"])
def test_loaded_logits_are_identical(build: Callable[[], nn.Module], size: int, recipe: Recipe, tmp_path: Path) -> None:
    model, images = build(), image_batch(size, 4)
    saved = artifact(model, images, recipe=recipe)
    saved.save(tmp_path / "q.safetensors")
    # Only the architecture of the network that is given counts, not its weights.
    loaded = load(tmp_path / "q.safetensors", build())
    assert torch.equal(logits_of(loaded, images), logits_of(saved, images))
    assert (loaded.specs, loaded.preprocessing) == (saved.specs, saved.preprocessing)
    assert loaded.record == saved.record == record_of({"recipe": recipe, "bits": Bits(3, 3)})
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
    saved = artifact(model, images, recipe=REDUCTIONS)
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
    layers = [name.rpartition(".")[0] for name, q in quantizers(saved.model).items() if q.role == Role.WEIGHT]
    assert len(layers) == 10
    for layer in layers:
        weight = model.get_submodule(layer).weight
        words = tensors[f"{layer}.weight_codes" if weight.dim() == 4 else f"{layer}.weight_packed"]
        assert f"{layer}.weight" not in tensors
        assert tensors[f"{layer}.weight_shape"].tolist() == list(weight.shape)
        assert words.dtype == torch.int32
        assert words.numel() == len(weight) * -(-weight[0].numel() * bits // 32)


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
        modules = {name.partition(".")[0] for network in (other, tiny_vit()) for name in network.state_dict()}
        with pytest.raises(IsvitError, match=r"first difference: \w+") as caught:
            load(path, other)
        message = str(caught.value)
        assert "another network" in message
        assert "\n" not in message
        difference = message.partition("first difference: ")[2].removeprefix("size mismatch for ")
        assert any(difference.startswith(name) for name in modules)
        assert str(path) in message


def test_an_unknown_key_is_refused(tmp_path: Path) -> None:
    path, model = tmp_path / "q.safetensors", tiny_vit()
    artifact(model, image_batch(16, 4)).save(path)
    tensors, metadata = read_tensors(path)
    metadata["preprocessing"]["invented"] = 1
    write_resealed(path, tensors, metadata)
    with pytest.raises(IsvitError, match=r"unknown key 'invented' for \w+, expected .*another version"):
        load(path, model)


@pytest.mark.parametrize("section", ["format", "granularity", "role"])
def test_an_unknown_key_of_a_spec_is_refused(section: str, tmp_path: Path) -> None:
    path, model = tmp_path / "q.safetensors", tiny_vit()
    artifact(model, image_batch(16, 4)).save(path)
    tensors, metadata = read_tensors(path)
    metadata["specs"]["blocks.0.mlp.fc1.weight_quantizer"][section]["invented"] = 1
    write_resealed(path, tensors, metadata)
    with pytest.raises(
        IsvitError, match=r"garbles the description of a quantizer \(.*invented.*\), expected .*version"
    ):
        load(path, model)


def test_the_record_is_kept_and_not_read(tmp_path: Path) -> None:
    path, model, images = tmp_path / "q.safetensors", tiny_vit(), image_batch(16, 4)
    saved = artifact(model, images)
    saved.save(path)
    tensors, metadata = read_tensors(path)
    record = {"recipe": {"type": "Recipe", "steps": [{"type": "OfALaterVersion"}]}, "invented": [1, {"a": None}]}
    write_resealed(path, tensors, {**metadata, "record": record})
    loaded = load(path, model)
    assert loaded.record == record
    assert torch.equal(logits_of(loaded, images), logits_of(saved, images))
    loaded.save(path)
    assert load(path, model).record == record


def test_loading_needs_no_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, model, images = tmp_path / "q.safetensors", tiny_swin(), image_batch(32, 4)
    saved = artifact(model, images, recipe=REDUCTIONS)
    QuantizedNetwork(saved.model, None, None).save(path)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a recipe was made")

    monkeypatch.setattr(Recipe, "__post_init__", refuse)
    monkeypatch.setattr(Recipe, "open", refuse)
    loaded = load(path, tiny_swin())
    assert (loaded.record, loaded.architecture, loaded.preprocessing) == ({}, None, None)
    assert loaded.specs == saved.specs
    assert torch.equal(logits_of(loaded, images), logits_of(saved, images))


@pytest.mark.parametrize("version", [0, 1, 2])
def test_an_earlier_format_is_one_sentence(version: int, tmp_path: Path) -> None:
    path, model = tmp_path / "q.safetensors", tiny_vit()
    artifact(model, image_batch(16, 4)).save(path)
    tensors, metadata = read_tensors(path)
    write_tensors(path, tensors, {**metadata, "format": f"isvit-packed-{version}"})
    with pytest.raises(IsvitError, match=r"written by an earlier version, .* expected .*: calibrate again") as caught:
        load(path, model)
    assert_is_a_sentence(caught.value, path)


@pytest.mark.parametrize("version", [4, 10, 999])
def test_a_later_format_is_one_sentence(version: int, tmp_path: Path) -> None:
    path, model = tmp_path / "q.safetensors", tiny_vit()
    artifact(model, image_batch(16, 4)).save(path)
    tensors, metadata = read_tensors(path)
    write_resealed(path, tensors, {**metadata, "format": f"isvit-packed-{version}", "invented": 1})
    with pytest.raises(IsvitError, match=r"written by a later version, .* expected .*: install a newer") as caught:
        load(path, model)
    assert_is_a_sentence(caught.value, path)


def assert_is_a_sentence(error: IsvitError, path: Path) -> None:
    assert str(path) in str(error)
    assert "\n" not in str(error)
    assert str(error).count(". ") == 0


CHANGES: dict[str, Callable[[dict[str, torch.Tensor], dict[str, Any]], Any]] = {
    "code": lambda tensors, _: tensors["blocks.1.mlp.fc2.weight_packed"][3, 1].bitwise_xor_(1),
    "scale": lambda tensors, _: tensors["blocks.0.attn.qkv.weight_scale"][0].mul_(1.001),
    "norm": lambda tensors, _: tensors["norm.bias"][0].add_(1e-4),
    "one_more": lambda tensors, _: tensors.update(invented=torch.zeros(1)),
    "one_less": lambda tensors, _: tensors.pop("norm.bias"),
    "preprocessing": lambda _, described: described["preprocessing"].update(mean=[0.5, 0.5, 0.4]),
    "record": lambda _, described: described["record"].update(seed=7),
    "unhashed": lambda _, described: described.pop("sha256"),
    "hash": lambda _, described: described.update(sha256="0" * 64),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_altered_file_is_one_sentence(change: str, tmp_path: Path) -> None:
    """Each of these would load, and most would compute something else."""
    path, model = tmp_path / "q.safetensors", tiny_vit()
    artifact(model, image_batch(16, 4)).save(path)
    tensors, metadata = read_tensors(path)
    CHANGES[change](tensors, metadata)
    write_tensors(path, tensors, metadata)
    with pytest.raises(IsvitError, match=r"changed after it was written .*, expected .*: fetch it again") as caught:
        load(path, model)
    assert_is_a_sentence(caught.value, path)


def test_equal_networks_have_equal_hashes(tmp_path: Path) -> None:
    hashes = []
    for name, bits in (("a", 3), ("b", 3), ("c", 4)):
        torch.manual_seed(0)
        artifact(tiny_vit(), image_batch(16, 4), Bits(bits, 4)).save(tmp_path / name)
        hashes.append(read_hash(tmp_path / name))
        assert load(tmp_path / name, tiny_vit()).sha256 == hashes[-1]
    assert len(hashes[0]) == 64
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_code_out_of_range_is_one_sentence(tmp_path: Path) -> None:
    """Formats of published arithmetic have other numbers of codes than their bits allow."""
    path, images = tmp_path / "q.safetensors", image_batch(16, 4)
    opened = quantized_network(tiny_vit(), images, Bits(3, 3)).model
    fc1 = "blocks.0.mlp.fc1"
    with torch.no_grad():
        opened.get_parameter(f"{fc1}.weight").abs_()
    spec = Spec(Sulq(extra_codes=1), 3, PerTensor(), Role.WEIGHT)
    with_other_quantizer(opened, f"{fc1}.weight_quantizer", spec, opened.get_parameter(f"{fc1}.weight"))
    saved = QuantizedNetwork(opened, None, None)
    saved.save(path)
    assert torch.equal(logits_of(load(path, tiny_vit()), images), logits_of(saved, images))
    tensors, metadata = read_tensors(path)
    codes = tensors[f"{fc1}.weight_codes"]
    assert codes.shape == (64, words_of(16, 4))
    codes[5, 1] |= 9 << 8
    write_resealed(path, tensors, metadata)
    with pytest.raises(IsvitError, match=rf"holds the code \d+ for {fc1}, expected codes of 0 to 8: ") as caught:
        load(path, tiny_vit())
    assert_is_a_sentence(caught.value, path)


def by_tensor(opened: nn.Module, layer: str, bits: int) -> None:
    """Give the weight of a layer one scale."""
    spec = Spec(Uniform(), bits, PerTensor(), Role.WEIGHT)
    with_other_quantizer(opened, f"{layer}.weight_quantizer", spec, opened.get_parameter(f"{layer}.weight"))


@pytest.mark.parametrize("stored", [-5, 4])
def test_a_zero_point_out_of_range_is_one_sentence(stored: int, tmp_path: Path) -> None:
    path = tmp_path / "q.safetensors"
    opened = quantized_network(tiny_vit(), image_batch(16, 4), Bits(3, 3)).model
    by_tensor(opened, "blocks.0.mlp.fc1", 3)
    QuantizedNetwork(opened, None, None).save(path)
    tensors, metadata = read_tensors(path)
    assert tensors["blocks.0.mlp.fc1.weight_zero_point"].dtype == torch.int8
    tensors["blocks.0.mlp.fc1.weight_zero_point"][0] = stored
    write_resealed(path, tensors, metadata)
    with pytest.raises(IsvitError, match=rf"zero point {stored} .*, expected one of -4 to 3 at 3 bits: ") as caught:
        load(path, tiny_vit())
    assert_is_a_sentence(caught.value, path)


def with_other_quantizer(opened: nn.Module, path: str, spec: Spec, samples: torch.Tensor) -> None:
    """Put a calibrated quantizer in the place of another one."""
    parent, _, name = path.rpartition(".")
    quantizer = Quantizer(spec, quantizers(opened)[path].search)
    quantizer.calibrate(samples)
    setattr(opened.get_submodule(parent), name, quantizer)


def test_widths_that_differ_from_layer_to_layer_read_back(tmp_path: Path) -> None:
    """Each weight has a width of its own, some inputs too, and one its own format and granularity."""
    model, images = tiny_vit(), image_batch(16, 4)
    opened = quantized_network(model, images, Bits(3, 3)).model
    widths: dict[str, int] = {}
    for index, (path, quantizer) in enumerate(quantizers(opened).items()):
        widths[path] = 2 + index % 7
        if quantizer.role.weight:
            weight = opened.get_parameter(f"{path.rpartition('.')[0]}.weight")
            with_other_quantizer(opened, path, replace(quantizer.spec, bits=widths[path]), weight)
        elif not isinstance(quantizer.granularity, PerChannel):
            with_other_quantizer(opened, path, replace(quantizer.spec, bits=widths[path]), torch.rand(2, 3, 4))
    probabilities, fc1 = "blocks.0.attn.context.left_quantizer", "blocks.1.mlp.fc1.input_quantizer"
    with_other_quantizer(opened, probabilities, Spec(Log(2), 4, PerTensor(), Role.ATTN_PROB), torch.rand(2, 3, 4))
    with_other_quantizer(opened, fc1, Spec(Uniform(), 6, PerChannel(16), Role.FC1_IN), torch.randn(2, 5, 16))
    saved = QuantizedNetwork(opened, None, None)
    assert len({spec.bits for spec in saved.specs.values()}) == 7
    assert len({spec.bits for spec in saved.specs.values() if spec.role.weight}) > 3
    saved.save(tmp_path / "q.safetensors")
    loaded = load(tmp_path / "q.safetensors", tiny_vit())
    assert loaded.specs == saved.specs
    assert torch.equal(logits_of(loaded, images), logits_of(saved, images))
    tensors, _ = read_tensors(tmp_path / "q.safetensors")
    for path, spec in saved.specs.items():
        if spec.role.weight:
            weight = opened.get_parameter(f"{path.rpartition('.')[0]}.weight")
            kind = "weight_codes" if weight.dim() == 4 else "weight_packed"
            words = tensors[f"{path.rpartition('.')[0]}.{kind}"]
            assert words.shape == (len(weight), words_of(weight[0].numel(), spec.bits))


FC1, FC1_WEIGHT, SCORES = (
    f"blocks.0.{name}" for name in ("mlp.fc1.input_quantizer", "mlp.fc1.weight_quantizer", "attn.scores.left_quantizer")
)


@pytest.mark.parametrize(
    "change",
    [
        lambda specs: specs.pop(FC1),
        lambda specs: specs.pop(FC1_WEIGHT),
        lambda specs: specs.clear(),
        lambda specs: specs.update({"blocks.7.mlp.fc1.input_quantizer": specs[FC1]}),
        lambda specs: specs.update({"": specs[FC1]}),
        lambda specs: specs[FC1].update(granularity={"type": "PerChannel", "size": 16, "axis": -1}),
        lambda specs: specs[FC1_WEIGHT].update(granularity={"type": "PerTensor"}),
        lambda specs: specs[FC1_WEIGHT].update(granularity={"type": "PerChannel", "size": 63, "axis": -2}),
        lambda specs: specs[FC1_WEIGHT].update(granularity={"type": "PerChannel", "size": -1, "axis": -2}),
        lambda specs: specs[FC1].update(format={"type": "Log", "steps_per_octave": 1}),
        lambda specs: specs[FC1].update(format={"type": "Sulq", "extra_codes": 0}),
        lambda specs: specs[FC1_WEIGHT].update(bits=8),
        lambda specs: specs[FC1_WEIGHT].update(bits=2),
        lambda specs: specs[FC1_WEIGHT]["role"].update(weight=False),
        lambda specs: specs[SCORES]["role"].update(weight=True),
    ],
    ids=[
        "no_input", "no_weight", "none", "another_layer", "no_path", "input_by_channel", "weight_by_tensor",
        "fewer_channels", "negative_channels", "log", "sulq", "more_bits", "fewer_bits", "weight_is_none",
        "score_is_weight",
    ],
)  # fmt: skip
def test_specs_that_disagree_with_the_tensors_are_one_sentence(
    change: Callable[[dict[str, Any]], Any], tmp_path: Path
) -> None:
    path, model = tmp_path / "q.safetensors", tiny_vit()
    artifact(model, image_batch(16, 4)).save(path)
    tensors, metadata = read_tensors(path)
    change(metadata["specs"])
    write_resealed(path, tensors, metadata)
    with pytest.raises(IsvitError, match=", expected |; expected ") as caught:
        load(path, model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda metadata: metadata.pop("specs"),
        lambda metadata: metadata.pop("record"),
        lambda metadata: metadata.pop("architecture"),
        lambda metadata: metadata.pop("preprocessing"),
        lambda metadata: metadata.update(specs=[1, 2]),
        lambda metadata: metadata.update(specs=None),
        lambda metadata: metadata["specs"].update({FC1: None}),
        lambda metadata: metadata["specs"][FC1].update(version=2),
        lambda metadata: metadata["specs"][FC1].pop("version"),
        lambda metadata: metadata["specs"][FC1].update(bits="many"),
        lambda metadata: metadata["specs"][FC1].update(bits=9),
        lambda metadata: metadata["specs"][FC1].update(bits=float("inf")),
        lambda metadata: metadata["specs"][FC1].update(bits=2.5),
        lambda metadata: metadata["specs"][FC1].update(format={"type": "Posit"}),
        lambda metadata: metadata["specs"][FC1].update(granularity="tensor"),
        lambda metadata: metadata["specs"][FC1].update(role="fc1_in"),
        lambda metadata: metadata["specs"][FC1]["role"].update(name=["fc1_in"]),
        lambda metadata: metadata.update(record=3),
        lambda metadata: metadata.update(preprocessing={"mean": [0, 0, 0]}),
        lambda metadata: metadata.update(format="isvit-packed-0"),
        lambda metadata: metadata.update(format=None),
        lambda metadata: metadata.clear(),
    ],
    ids=[
        "no_specs", "no_record", "no_architecture", "no_preprocessing", "specs_list", "specs_null", "spec_null",
        "spec_later", "spec_versionless", "bits_text", "bits_nine", "bits_infinite", "bits_fraction", "format_unknown",
        "granularity_text", "role_text", "role_list", "record_number", "preprocessing_short", "other_format",
        "no_format", "empty",
    ],
)  # fmt: skip
def test_damaged_metadata_is_a_sentence(change: Callable[[dict[str, Any]], Any], tmp_path: Path) -> None:
    path, model = tmp_path / "q.safetensors", tiny_vit()
    artifact(model, image_batch(16, 4)).save(path)
    tensors, metadata = read_tensors(path)
    change(metadata)
    write_resealed(path, tensors, metadata)
    with pytest.raises(IsvitError) as caught:
        load(path, model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["weight_packed", "weight_shape", "weight_scale", "weight_zero_point"])
@pytest.mark.parametrize("change", ["missing", "shorter", "other_type"])
def test_damaged_weights_are_a_sentence(part: str, change: str, tmp_path: Path) -> None:
    path, model = tmp_path / "q.safetensors", tiny_vit()
    artifact(model, image_batch(16, 4)).save(path)
    tensors, metadata = read_tensors(path)
    key = f"blocks.0.mlp.fc1.{part}"
    if change == "missing":
        del tensors[key]
    else:
        tensors[key] = tensors[key][:-1] if change == "shorter" else tensors[key].double() + 0.5
    write_resealed(path, tensors, metadata)
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
    model, images = tiny_vit(depth=1), image_batch(16, 4)
    artifact(model, images).save(path)
    expected = logits_of(load(path, model), images)
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
            # A bit of no meaning, such as one that orders the header.
            assert torch.equal(logits_of(load(path, model), images), expected)

    check()


def test_an_uncalibrated_network_is_refused() -> None:
    opened = ISVIT.open(tiny_vit(), Bits())
    with pytest.raises(IsvitError, match=r"quantizers are not calibrated"):
        QuantizedNetwork(opened.model, None, None)


def test_a_missing_file_or_run_is_a_sentence(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent", tmp_path / "absent.safetensors"):
        with pytest.raises(IsvitError, match=r"does not exist.*--ckpt_path"):
            load(path)
