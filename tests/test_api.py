"""Three lines from Python, and what they say to a mistake."""

import copy
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import LayerNorm
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

import isvit_lightning
from isvit_lightning.embedded.digits import digit_images
from isvit_lightning.embedded.networks import embedded_network
from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import quantizers
from isvit_lightning.quantizers import Log
from isvit_lightning.recipe import Bits, read_recipe, record_of
from tests.helpers import image_batch, tiny_swin, tiny_vit


def quick(network: nn.Module, images: Any, **options: Any) -> Any:
    return isvit_lightning.calibrate(network, images, **{"iterations": 1, "accelerator": "cpu", **options})


def test_three_lines(tmp_path: Path) -> None:
    network, images = embedded_network("vit_digits"), digit_images("train")[0][:16]
    quantized = quick(network, images, bits=4)
    quantized.save(tmp_path / "quantized.safetensors")
    loaded = isvit_lightning.load(tmp_path / "quantized.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded(images), quantized(images))
        agree = (loaded(images).argmax(dim=1) == network(images).argmax(dim=1)).float().mean()
    assert float(agree) > 0.6


@pytest.mark.parametrize(("bits", "widths"), [(3, Bits(3, 3)), (Bits(4, 6), Bits(4, 6))])
def test_bits_are_one_number_or_two(bits: int | Bits, widths: Bits) -> None:
    quantized = quick(tiny_vit(), image_batch(16, 4), bits=bits)
    assert quantized.record["bits"] == record_of(widths)
    for quantizer in quantizers(quantized).values():
        assert quantizer.bits == (widths.weight if quantizer.role.weight else widths.activation)


def test_batches_are_as_good_as_one_tensor() -> None:
    model, images = tiny_swin(), image_batch(32, 6)
    whole = quick(model, images, bits=4)
    parts = quick(model, iter(images.split(4)), bits=4)
    with torch.no_grad():
        assert torch.equal(whole(images), parts(images))


def test_the_seed_decides_the_draws() -> None:
    model, images = tiny_vit(), image_batch(16, 12)
    logits = [quick(model, images, seed=seed, batch_size=4)(images) for seed in (0, 0, 1)]
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


@pytest.mark.parametrize("by_name", [True, False])
def test_the_recipe_is_used_and_kept(by_name: bool) -> None:
    recipe = read_recipe("repq")
    quantized = quick(tiny_vit(), image_batch(16, 4), recipe="repq" if by_name else recipe, seed=3)
    assert quantized.record["recipe"] == record_of(recipe)
    assert (quantized.record["seed"], quantized.record["schedule"]["iterations"]) == (3, 1)
    formats = {quantizer.format for quantizer in quantizers(quantized).values() if quantizer.role.name == "attn_prob"}
    assert formats == {Log(steps_per_octave=2)}


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(IsvitError, match=r"no recipe isvitt, expected one of .*isvit"):
        quick(tiny_vit(), image_batch(16, 4), recipe="isvitt")


def test_the_network_is_left_untouched() -> None:
    model, images = tiny_vit().train(), image_batch(16, 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quick(model, images)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_each_unit_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "isvit_lightning")
    quick(tiny_vit(), image_batch(16, 4))
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("isvit_lightning")]
    assert len([line for line in lines if " unit " in line]) == 3 + 2 + 4


@pytest.mark.parametrize("bits", [1, 9, 0, -3])
def test_bits_outside_2_to_8_are_refused(bits: int) -> None:
    with pytest.raises(IsvitError, match=rf"is {bits}, expected 2 to 8"):
        quick(tiny_vit(), image_batch(16, 4), bits=bits)


@pytest.mark.parametrize("images", [torch.zeros(0, 3, 16, 16), torch.zeros(3, 16, 16), torch.zeros(4)])
def test_images_of_another_shape_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(IsvitError, match=r"expected \(n, 3, 16, 16\).*argument images|no images, expected \(n, ch"):
        quick(tiny_vit(), images)


def test_no_batches_are_refused() -> None:
    with pytest.raises(IsvitError, match="argument images"):
        quick(tiny_vit(), [])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_not_finite_are_refused(value: float) -> None:
    images = image_batch(16, 4)
    images[1, 0, 3, 3] = value
    with pytest.raises(IsvitError, match="NaN or infinity"):
        quick(tiny_vit(), images)


@pytest.mark.parametrize("shape", [(2, 3, 20, 20), (2, 1, 16, 16)])
def test_images_that_the_network_does_not_take_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(IsvitError):
        quick(tiny_vit(), torch.randn(shape))


@pytest.mark.parametrize("options", [{"iterations": 0}, {"batch_size": 0}])
def test_an_empty_schedule_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(IsvitError, match=f"{next(iter(options))}.*expected at least 1"):
        quick(tiny_vit(), image_batch(16, 4), **options)


def test_an_unsupported_network_is_refused() -> None:
    with pytest.raises(IsvitError, match=r"expected|supported"):
        quick(nn.Sequential(nn.Conv2d(3, 4, 3)), image_batch(16, 4))


def test_a_recipe_without_tuning() -> None:
    network, images = tiny_vit(), image_batch(16, 4)
    quantized = quick(network, images, recipe="round_to_nearest")
    assert all(quantizer.calibrated for quantizer in quantizers(quantized).values())
    tuned = quick(network, images)
    for name, parameter in network.named_parameters():
        assert torch.equal(quantized.model.get_parameter(name), parameter)
    assert not torch.equal(tuned.model.get_parameter("head.weight"), network.head.weight)


def logits_of(network: Any, images: Any = None, **options: Any) -> torch.Tensor:
    """Of a network that is rounded to nearest, which draws nothing."""
    images = SOME if images is None else images
    with torch.no_grad():
        found: torch.Tensor = quick(network, images, recipe="round_to_nearest", **options)(SOME)
    return found


SOME = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_images_of_a_loader_are_those_of_a_tensor() -> None:
    network = tiny_vit()
    loader = DataLoader(TensorDataset(SOME, torch.arange(4)), 3)
    assert torch.equal(logits_of(network, loader), logits_of(network))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_of_another_type_is_calculated_in_float32(dtype: torch.dtype) -> None:
    network = tiny_vit().to(dtype)
    assert torch.equal(logits_of(network), logits_of(copy.deepcopy(network).float()))
    assert next(network.parameters()).dtype == dtype


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": lambda network: torch.compile(network, backend="eager"),  # type: ignore[dict-item, return-value]
    "data_parallel": nn.DataParallel,
    "averaged": AveragedModel,
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_wrapped_network_is_unwrapped(kind: str) -> None:
    network = tiny_vit()
    expected = logits_of(network)
    assert torch.equal(logits_of(WRAPPED[kind](network)), expected)
    network.compile(backend="eager")
    network(SOME)
    assert torch.equal(logits_of(network), expected)


def test_a_caller_without_gradients_does_not_count() -> None:
    network = tiny_vit()
    expected = quick(network, SOME)(SOME)
    with torch.inference_mode():
        assert torch.equal(quick(network, SOME)(SOME), expected)


REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "name": (lambda: "vit_tiny", {}, r"network is a str, expected a torch\.nn\.Module"),
    "state": (lambda: tiny_vit().state_dict(), {}, r"network is a OrderedDict, expected"),
    "meta": (lambda: tiny_vit().to("meta"), {}, r"device meta, .*expected one with weights"),
    "no_weights": (nn.Identity, {}, r"Cannot open torch\.nn\.modules\.linear\.Identity"),
    "quantized": (lambda: quick(tiny_vit(), SOME, recipe="round_to_nearest").model, {}, r"proj: it is a Quant"),
    "recipe": (tiny_vit, {"recipe": None}, r"recipe is a NoneType, expected a name"),
    "argument": (tiny_vit, {"iteration": 3}, r"no argument iteration, expected one of iterations, batch_size"),
    "bits": (tiny_vit, {"bits": "4"}, r"is '4', expected 2 to 8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_arguments_are_refused_in_a_sentence(case: str) -> None:
    make, options, message = REFUSED[case]
    with pytest.raises(IsvitError, match=message):
        quick(make(), SOME, **options)


def test_a_network_that_is_opened_as_something_else_is_refused_before_anything_is_tuned() -> None:
    network = tiny_vit()
    network.patch_embed.register_forward_hook(lambda _, __, output: 2 * output)
    with pytest.raises(IsvitError, match=r"differs from the float one in what lies between patch_embed\.proj"):
        quick(network, SOME, recipe="round_to_nearest")


def test_a_network_with_hooks_is_not_loaded_without_them(tmp_path: Path) -> None:
    """The file names an architecture only where that gives the whole network."""
    network, images = embedded_network("vit_digits"), digit_images("train")[0][:4]
    network.get_submodule("blocks.0").register_forward_hook(lambda _, __, output: 1.5 * output)
    quantized = quick(network, images, recipe="round_to_nearest")
    quantized.save(tmp_path / "quantized.safetensors")
    with pytest.raises(IsvitError, match="pass the float network"):
        isvit_lightning.load(tmp_path / "quantized.safetensors")
    loaded = isvit_lightning.load(tmp_path / "quantized.safetensors", network)
    assert torch.equal(loaded(images), quantized(images))


NORMS = {"isvit": {"bias": False}, "isvit_rotated": {"affine": False}}


@pytest.mark.parametrize("recipe", NORMS)
def test_norms_without_affine_part_or_bias(recipe: str, tmp_path: Path) -> None:
    network = tiny_vit(norm_layer=partial(LayerNorm, **NORMS[recipe]))
    assert network.blocks[0].norm1.bias is None
    quantized = quick(network, SOME, recipe=recipe, bits=8)
    quantized.save(tmp_path / "quantized.safetensors")
    loaded = isvit_lightning.load(tmp_path / "quantized.safetensors", network)
    with torch.no_grad():
        assert torch.equal(loaded(SOME), quantized(SOME))
        assert float((loaded(SOME) - network(SOME)).norm() / network(SOME).norm()) < 0.2
    assert network.blocks[0].norm1.bias is None
