"""A network with integer products, against the simulated one."""

from collections.abc import Callable

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import nn

import isvit_lightning
from isvit_lightning import QuantizedNetwork
from isvit_lightning.errors import IsvitError
from isvit_lightning.export import integer
from isvit_lightning.export.runtime import network as module
from isvit_lightning.export.runtime.products import has_wide_sums
from isvit_lightning.layers import QuantLinear, QuantMatMul
from isvit_lightning.quantizers import Log, Sulq
from isvit_lightning.recipe import Choice, Placement, Recipe
from isvit_lightning.stages import Ranges
from tests.helpers import tiny_swin, tiny_vit

RANGES = [Ranges("ranges"), Ranges("weights", of="weights")]


def images(network: nn.Module, count: int = 2) -> torch.Tensor:
    size = 32 if isinstance(network, SwinTransformer) else 16
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def calibrated(network: nn.Module, bits: int = 4, placement: Placement | None = None) -> QuantizedNetwork:
    recipe = Recipe("ranges", placement=placement or Placement(attn_prob=Choice(Sulq())), steps=RANGES)
    return isvit_lightning.calibrate(network, images(network, 4), bits=bits, recipe=recipe)


def observed(
    network: QuantizedNetwork, batch: torch.Tensor
) -> dict[str, tuple[tuple[torch.Tensor, ...], torch.Tensor]]:
    """What each quantized layer read and gave."""
    seen = {}
    hooks = [
        module.register_forward_hook(lambda _, inputs, output, path=path: seen.__setitem__(path, (inputs, output)))
        for path, module in network.model.named_modules()
        if isinstance(module, QuantLinear | QuantMatMul)
    ]
    network(batch)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("build", [tiny_vit, tiny_swin])
def test_each_layer_gives_the_same_for_the_same_input(build: Callable[[], nn.Module], bits: int) -> None:
    """So that codes are equal where the floats before them are."""
    network = calibrated(build(), bits, Placement() if bits > 4 else None)
    fast, batch = integer(network), images(network.model)
    with torch.inference_mode():
        for path, (inputs, output) in observed(network, batch).items():
            scale = float(output.abs().max())
            torch.testing.assert_close(fast.model.get_submodule(path)(*inputs), output, rtol=0, atol=3e-6 * scale)
    if bits < 8 or has_wide_sums():
        assert fast.float_products == {"patch_embed.proj": "its input is float"}


def test_probabilities_of_more_than_four_bits_stay_float() -> None:
    network = calibrated(tiny_vit(), 6)
    reasons = integer(network).float_products
    assert all("no integers of 8 bits" in why for path, why in reasons.items() if path.endswith("context"))
    assert sum(path.endswith("context") for path in reasons) == 2


@pytest.mark.parametrize("build", [tiny_vit, tiny_swin])
def test_the_whole_network_is_as_near_to_the_simulated_one_as_that_in_float64(build: Callable[[], nn.Module]) -> None:
    """Codes flip where the last bits of floats do, in either: at 8 bits a flip changes little."""
    network = calibrated(build(), 8, Placement())
    batch = images(network.model, 8)
    with torch.inference_mode():
        simulated, fast = network(batch), integer(network)(batch)
    assert float((fast - simulated).abs().max()) < 0.05 * float(simulated.abs().max())


def test_a_compiled_network_gives_the_same() -> None:
    network = integer(calibrated(tiny_vit(), 8, Placement()))
    with torch.inference_mode():
        expected = network(images(network.model))
        given = torch.compile(network)(images(network.model))
    torch.testing.assert_close(given, expected, rtol=0, atol=0.05 * float(expected.abs().max()))


def test_weights_take_a_quarter_of_the_memory() -> None:
    network = tiny_vit(embed_dim=256, depth=4, num_heads=4)
    share = integer(calibrated(network)).resident_bytes / sum(tensor.nbytes for tensor in network.parameters())
    assert share < 0.30


def test_formats_without_integers_stay_float_and_say_so() -> None:
    network = calibrated(tiny_vit(), 4, Placement(attn_prob=Choice(Log()), qkv_in=Choice(granularity="channel")))
    fast, batch = integer(network), images(network.model)
    kinds = {path.rpartition(".")[2] for path in fast.float_products}
    assert kinds == {"proj", "qkv", "context"}
    assert fast(batch).shape == network(batch).shape


def test_what_a_machine_cannot_sum_stays_float_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_wide_sums", lambda: False)
    network = calibrated(tiny_vit(), 8, Placement())
    reasons = integer(network).float_products
    assert reasons.pop("patch_embed.proj") == "its input is float"
    assert set(reasons.values()) == {"this machine has no product of such integers"}
    assert len(reasons) == 2 * 6 + 1


def test_the_simulated_network_is_left_untouched() -> None:
    network = calibrated(tiny_vit())
    before = network(images(network.model))
    integer(network)
    assert torch.equal(network(images(network.model)), before)


def test_a_device_that_is_not_there() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(IsvitError, match=r"There is no cuda here, .*trainer\.accelerator"):
        integer(calibrated(tiny_vit()), "cuda")
