import copy
import json
import logging
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from isvit_lightning.embedded.networks import build_network
from isvit_lightning.errors import IsvitError
from isvit_lightning.sources import architecture
from isvit_lightning.sources.architecture import Architecture
from isvit_lightning.sources.preprocessing import Preprocessing
from isvit_lightning.sources.source import NetworkSource

TAGGED = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
SMALL = {"img_size": 32, "depth": 1, "num_classes": 5}
SWIN = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2]}


@pytest.fixture
def vit() -> nn.Module:
    return timm.create_model(TAGGED, **SMALL)


def small(**options: Any) -> NetworkSource:
    return NetworkSource(**{"name": TAGGED, "args": SMALL, **options})


def describe(path: Path, **content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def test_random_weights(vit: nn.Module) -> None:
    loaded = small(pretrained=False).build()
    assert type(loaded.model) is type(vit)
    assert not loaded.model.training
    assert loaded.architecture == Architecture(TAGGED, SMALL)


def test_preprocessing_is_the_networks_own_at_the_size_of_its_arguments() -> None:
    preprocessing = small(pretrained=False).build().preprocessing
    assert preprocessing == Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.9, "center")


def test_preprocessing_can_be_overridden() -> None:
    changed = small(pretrained=False, mean=(0.1, 0.2, 0.3), std=(1, 2, 3), crop_pct=0.5, interpolation="bilinear")
    preprocessing = changed.build().preprocessing
    assert preprocessing == Preprocessing((3, 32, 32), (0.1, 0.2, 0.3), (1, 2, 3), "bilinear", 0.5)


@pytest.mark.parametrize("name", ["vit_digits", "swin_digits"])
def test_embedded_networks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architecture, "embedded_network", lambda name: build_network(name).requires_grad_(False))
    loaded = NetworkSource(name).build()
    assert loaded.preprocessing == Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3)
    random = NetworkSource(name, pretrained=False).build()
    # The stand-in for the trained network is frozen.
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert all(parameter.requires_grad for parameter in random.model.parameters())
    assert Architecture.of(loaded.model) == Architecture(name)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_a_checkpoint_in_half_precision(tmp_path: Path, vit: nn.Module, suffix: str, wrapper: str | None) -> None:
    state = {key: value.half() for key, value in vit.state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, path)
    loaded = small(checkpoint=str(path)).build().model.state_dict()
    assert all(value.dtype == torch.float32 for value in loaded.values())
    assert all(torch.equal(value, state[key].float()) for key, value in loaded.items())


def test_a_checkpoint_of_timms_training_gives_the_averaged_weights(tmp_path: Path) -> None:
    trained, averaged = build_network("vit_digits").eval(), build_network("vit_digits").eval()
    content = {"state_dict": trained.state_dict(), "state_dict_ema": averaged.state_dict(), "args": Namespace(lr=0.1)}
    torch.save(content, tmp_path / "last.pth.tar")
    images = torch.randn(4, 3, 32, 32)
    for key, weights in ((None, averaged), ("state_dict", trained)):
        loaded = NetworkSource("vit_digits", checkpoint=str(tmp_path / "last.pth.tar"), checkpoint_key=key).build()
        assert torch.equal(loaded.model(images), weights(images))


def test_a_checkpoint_of_lightning_that_is_trusted(tmp_path: Path) -> None:
    trained = build_network("vit_digits").eval()
    state = {f"net.{key}": value for key, value in trained.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": {"root": Path("x")}}, tmp_path / "last.ckpt")
    loaded = NetworkSource("vit_digits", checkpoint=str(tmp_path / "last.ckpt"), trust_checkpoint=True).build()
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(loaded.model(images), trained(images))


def test_a_checkpoint_with_buffers_that_timm_computes(tmp_path: Path) -> None:
    model = SwinTransformer(**SWIN)
    buffers = {key: value for key, value in model.named_buffers() if key not in model.state_dict()}
    assert buffers
    torch.save({**model.state_dict(), **buffers}, tmp_path / "swin.pth")
    description = describe(tmp_path / "swin.json", architecture="SwinTransformer", model_args=SWIN)
    loaded = NetworkSource(description=description, checkpoint=str(tmp_path / "swin.pth")).build().model
    assert torch.equal(loaded.patch_embed.proj.weight, model.patch_embed.proj.weight)


def test_a_description_overrides_name_arguments_and_preprocessing(tmp_path: Path) -> None:
    values = {"input_size": [3, 32, 32], "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "interpolation": "bilinear"}
    description = describe(
        tmp_path / "micro.json", architecture="SwinTransformer", model_args=SWIN, crop_pct=0.75, classes=["a"], **values
    )
    loaded = NetworkSource("ignored", pretrained=False, description=description, args={"depth": 3}).build()
    assert isinstance(loaded.model, SwinTransformer)
    assert loaded.preprocessing == Preprocessing((3, 32, 32), (0.1, 0.2, 0.3), (1, 1, 1), "bilinear", 0.75)
    changed = NetworkSource(pretrained=False, description=description, crop_pct=0.5)
    assert changed.build().preprocessing.crop_pct == 0.5
    assert changed.title == changed.build().fingerprint["name"] == "micro"
    assert NetworkSource("name", description=description).title == "name"


def test_a_gray_network_is_told_with_its_mean(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "isvit_lightning"):
        loaded = small(pretrained=False, args={**SMALL, "in_chans": 1}, mean=(0.25,)).build()
    assert loaded.preprocessing == Preprocessing((1, 32, 32), (0.25,), (0.5,), "bicubic", 0.9, "center")
    assert [record.getMessage() for record in caplog.records] == [
        f"{TAGGED} reads gray images with mean 0.25 and std 0.5"
    ]


@pytest.mark.parametrize("channels", [0, 2, 4, 5])
def test_inputs_that_are_no_images_are_refused_before_anything_is_built(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Architecture, "build", None)
    with pytest.raises(
        IsvitError, match=rf"^The network reads inputs of {channels} channels, .*: change in_chans in model."
    ):
        small(pretrained=False, args={**SMALL, "in_chans": channels}).build()


@pytest.mark.parametrize(
    ("size", "args"),
    [([3, 64, 64], SWIN), ([1, 32, 32], SWIN), ([3, 32, 32], {**SWIN, "in_chans": 1})],
)
def test_an_input_size_that_the_network_does_not_take(size: list[int], args: dict[str, Any], tmp_path: Path) -> None:
    values = {"input_size": size, "mean": [0.5] * size[0], "std": [0.5] * size[0]}
    described = describe(tmp_path / "micro.json", architecture="SwinTransformer", model_args=args, **values)
    with pytest.raises(
        IsvitError, match=r"^micro reads inputs of \(\d, 32, 32\) but its description has input_size .*: cor"
    ):
        NetworkSource(description=described, pretrained=False).build()


def test_a_network_of_any_size_takes_that_of_its_description(tmp_path: Path) -> None:
    def source(size: list[int]) -> NetworkSource:
        values = {"model_args": {**SMALL, "dynamic_img_size": True}, "input_size": size}
        described = describe(tmp_path / "any.json", architecture="vit_tiny_patch16_224", **values)
        return NetworkSource(description=described, pretrained=False)

    assert source([3, 64, 48]).build().preprocessing.input_size == (3, 64, 48)
    with pytest.raises(
        IsvitError, match=r"reads inputs of \(3, 32, 32\) but its description has input_size \(3, 60, 48\)"
    ):
        source([3, 60, 48]).build()


def test_random_weights_depend_on_the_seed_alone() -> None:
    def drawn(seed: int, before: int) -> str:
        torch.manual_seed(seed)
        torch.rand(before)
        state = torch.random.get_rng_state()
        found = small(pretrained=False).build().fingerprint["sha256"]
        assert torch.equal(torch.random.get_rng_state(), state)
        return found

    assert drawn(1, before=0) == drawn(1, before=3) != drawn(2, before=0)


def test_a_description_needs_weights(tmp_path: Path) -> None:
    description = describe(tmp_path / "micro.json", architecture="SwinTransformer", model_args=SWIN)
    for described in (NetworkSource(description=description), NetworkSource("SwinTransformer", args=SWIN)):
        with pytest.raises(
            IsvitError, match=r"describes a SwinTransformer without weights, .* model.network.checkpoint"
        ):
            described.build()


@pytest.mark.parametrize("content", [None, "no json", "[]", "{}", '{"architecture": "x", "model_args": 1}'])
def test_descriptions_that_describe_nothing(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "network.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(IsvitError, match=r"network.json does not describe .*: change model.network.description.$"):
        NetworkSource(description=str(path)).build()


def test_the_fingerprint_tells_weights_apart(tmp_path: Path, vit: nn.Module) -> None:
    def fingerprint(model: nn.Module) -> dict[str, str]:
        save_file(model.state_dict(), tmp_path / "weights.safetensors")
        return small(checkpoint=str(tmp_path / "weights.safetensors")).build().fingerprint

    changed = copy.deepcopy(vit)
    with torch.no_grad():
        changed.head.bias[0] += 1
    assert fingerprint(vit) == fingerprint(vit) != fingerprint(changed)
    assert fingerprint(vit)["name"] == TAGGED
    assert len(fingerprint(vit)["sha256"]) == 64


def test_no_name() -> None:
    with pytest.raises(IsvitError, match=r"^No network is named, .* set model.network.name"):
        NetworkSource().build()


def test_a_name_without_tag(tmp_path: Path, vit: nn.Module) -> None:
    with pytest.raises(IsvitError, match=rf"^vit_tiny_patch16_224 has no tag, .* such as {TAGGED}, timm's default"):
        NetworkSource("vit_tiny_patch16_224").build()
    save_file(vit.state_dict(), tmp_path / "weights.safetensors")
    checkpoint = str(tmp_path / "weights.safetensors")
    NetworkSource("vit_tiny_patch16_224", checkpoint=checkpoint, args=SMALL).build()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("damage", ["missing", "garbage", "truncated", "empty"])
def test_damaged_checkpoints(tmp_path: Path, vit: nn.Module, name: str, damage: str) -> None:
    path = tmp_path / name
    if name.endswith(".pth"):
        torch.save(vit.state_dict(), path)
    else:
        save_file(vit.state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes({"garbage": b"garbage" * 99, "truncated": whole[: len(whole) // 2], "empty": b""}.get(damage, b""))
    if damage == "missing":
        path.unlink()
    fault = "does not exist" if damage == "missing" else "cannot be read as weights"
    with pytest.raises(IsvitError, match=rf"^\S*{name} {fault}.*: change model.network.checkpoint.$"):
        small(checkpoint=str(path)).build()


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"model": Path("x")}, tmp_path / "w.pth")
    with pytest.raises(
        IsvitError, match=r"holds more than tensors \(pathlib\..*model.network.trust_checkpoint to true"
    ):
        small(checkpoint=str(tmp_path / "w.pth")).build()


@pytest.mark.parametrize("content", [{"epoch": 3}, {}, {1: torch.zeros(1)}, [torch.zeros(1)]])
def test_a_file_without_state_dict(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(IsvitError, match=r"w.pth holds no state dict, .*: change model.network.checkpoint.$"):
        small(checkpoint=str(tmp_path / "w.pth")).build()


@pytest.mark.parametrize(
    ("args", "difference"),
    [
        ({**SMALL, "depth": 2}, "blocks.1.norm1.weight is missing"),
        ({**SMALL, "init_values": 1.0}, r"blocks.0.ls1.gamma is missing"),
        ({**SMALL, "num_classes": 4}, r"head.weight has shape \(5, 192\) instead of \(4, 192\)"),
    ],
)
def test_a_checkpoint_of_another_network(tmp_path: Path, vit: nn.Module, args: dict[str, Any], difference: str) -> None:
    save_file(vit.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(IsvitError, match=rf"is no checkpoint of {TAGGED} .*: {difference}, first of .* differences"):
        small(checkpoint=str(tmp_path / "w.safetensors"), args=args).build()


@pytest.mark.real
def test_a_real_network_from_description_and_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(os.environ.get("ISVIT_DATA", Path(__file__).parents[3] / "shared" / "data"))
    name = "vit_small_patch14_98_cifar10"
    if not (root / f"{name}.safetensors").exists():
        pytest.skip(f"{root / name}.safetensors is absent: set ISVIT_DATA to a folder that holds it")
    monkeypatch.setenv("ISVIT_DATA", str(root))
    described = NetworkSource(description=f"$ISVIT_DATA/{name}.json", checkpoint=f"$ISVIT_DATA/{name}.safetensors")
    loaded = described.build()
    assert loaded.preprocessing.input_size == (3, 98, 98)
    assert loaded.model(torch.zeros(1, 3, 98, 98)).shape == (1, 10)
    assert described.title == name
