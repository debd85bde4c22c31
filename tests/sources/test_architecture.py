"""How a float network is built, and a sentence for each name and argument that builds none."""

import dataclasses
import json
from typing import Any, get_args

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from isvit_lightning.embedded.networks import EmbeddedName, build_network
from isvit_lightning.errors import IsvitError
from isvit_lightning.sources import architecture as module
from isvit_lightning.sources.architecture import EMBEDDED, SWIN, Architecture

TAGGED = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
SMALL = {"img_size": 32, "depth": 1, "num_classes": 5}
SWIN_ARGS = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2]}


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    "known", [Architecture(TAGGED, SMALL), Architecture(SWIN, SWIN_ARGS), *map(Architecture, get_args(EmbeddedName))]
)
def test_stored_values_build_the_same_network_in_evaluation_mode(known: Architecture) -> None:
    stored = Architecture(**json.loads(json.dumps(dataclasses.asdict(known))))
    assert stored == known
    first, second = known.build(), stored.build()
    assert shapes(first) == shapes(second)
    assert type(first) is type(second)
    assert not any(part.training for part in first.modules())


def test_swin_is_timms_class_itself() -> None:
    assert type(Architecture(SWIN, SWIN_ARGS).build()) is SwinTransformer


@pytest.mark.parametrize("name", get_args(EmbeddedName))
def test_embedded_networks_have_trained_or_random_weights(name: EmbeddedName, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = build_network(name)
    monkeypatch.setattr(module, "embedded_network", lambda asked: trained if asked == name else None)
    assert name in EMBEDDED
    assert Architecture(name).build(pretrained=True) is trained
    assert Architecture(name).build() is not trained


def test_embedded_networks_take_no_arguments() -> None:
    with pytest.raises(IsvitError, match=r"^vit_digits ships with fixed .* got \{'depth': 1\}.* model.network.args.$"):
        Architecture("vit_digits", {"depth": 1}).build(pretrained=True)


@pytest.mark.parametrize("pretrained", [False, True])
def test_timm_is_asked_for_the_weights_that_are_wanted(pretrained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool, dict[str, Any]]] = []

    def create(name: str, pretrained: bool, **args: Any) -> nn.Module:
        asked.append((name, pretrained, args))
        return nn.Linear(1, 1)

    monkeypatch.setattr(module.timm, "create_model", create)
    monkeypatch.setattr(module, "require_reachable", lambda name: None)
    args = {**SMALL, "num_classes": 1000}
    Architecture(TAGGED, args).build(pretrained)
    assert asked == [(TAGGED, pretrained, args)]


def test_the_architecture_of_a_network_is_known_only_where_it_can_be_rebuilt() -> None:
    args = {"num_classes": 5, "img_size": [32, 32]}
    whole = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5)
    before = torch.random.get_rng_state()
    assert Architecture.of(whole) == Architecture("vit_tiny_patch16_224", args)
    assert Architecture.of(timm.create_model(TAGGED, **SMALL)) is None  # depth 1
    assert Architecture.of(timm.create_model("vit_tiny_patch16_224", num_heads=4)) is None
    assert Architecture.of(torch.nn.Linear(2, 2)) is None
    torch.random.set_rng_state(before)
    Architecture.of(whole)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("name", get_args(EmbeddedName))
def test_the_architecture_of_a_network_in_the_package_is_its_name(name: EmbeddedName) -> None:
    assert Architecture.of(build_network(name)) == Architecture(name)


def test_an_unknown_name() -> None:
    with pytest.raises(IsvitError, match=r"no network vit_tinny_patch16_224, .* such as vit_tiny_patch16_224, "):
        Architecture("vit_tinny_patch16_224").build(pretrained=True)


def test_an_unknown_tag() -> None:
    with pytest.raises(IsvitError, match=r"no tag fb for deit_tiny_patch16_224, .* deit_tiny_patch16_224.fb_in1k"):
        Architecture("deit_tiny_patch16_224.fb").build()


def test_a_name_without_tag_has_random_weights_only() -> None:
    assert isinstance(Architecture("vit_tiny_patch16_224", SMALL).build(), nn.Module)
    with pytest.raises(IsvitError, match=rf"^vit_tiny_patch16_224 has no tag, .* such as {TAGGED}, timm's default"):
        Architecture("vit_tiny_patch16_224", SMALL).build(pretrained=True)


def test_a_name_without_published_weights() -> None:
    with pytest.raises(IsvitError, match=r"^timm publishes no weights for samvit_base_patch16_224, .*checkpoint"):
        Architecture("samvit_base_patch16_224").build(pretrained=True)


@pytest.mark.parametrize("args", [{"unheard_of": 1}, {"num_classes": "ten"}, {"patch_size": 0}])
def test_arguments_that_timm_refuses(args: dict[str, Any]) -> None:
    with pytest.raises(IsvitError, match=r"could not be built with the arguments .* correct model.network.args"):
        Architecture(TAGGED, args).build()


@pytest.mark.parametrize("name", ["pretrained", "checkpoint_path", "pretrained_cfg", "cache_dir"])
@pytest.mark.parametrize("network", [TAGGED, SWIN, "vit_digits"])
def test_arguments_that_read_a_file_are_refused(network: str, name: str) -> None:
    with pytest.raises(IsvitError, match=rf"^The arguments of {network} hold {name}, expected none that reads a file"):
        Architecture(network, {name: "/etc/passwd"}).build()


def test_negative_arguments_are_refused() -> None:
    with pytest.raises(IsvitError, match=rf"^The arguments of {TAGGED} hold depth = -1, expected no negative number"):
        Architecture(TAGGED, {"img_size": 32, "depth": -1}).build()


@pytest.mark.parametrize(("name", "args"), [(TAGGED, [1]), (3, {})])
def test_values_of_another_kind_are_refused(name: Any, args: Any) -> None:
    with pytest.raises(IsvitError, match=r"^The network is .* expected a name and arguments by name: correct model.n"):
        Architecture(name, args).build()


def test_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, pretrained: bool, **args: Any) -> nn.Module:
        assert pretrained
        raise FileNotFoundError("Please check your connection.\nMore.")

    monkeypatch.setattr(module.timm, "create_model", offline)
    monkeypatch.setattr(module, "require_reachable", lambda name: None)
    with pytest.raises(IsvitError, match=r"\(Please check your connection\), .* set model.network.checkpoint"):
        Architecture(TAGGED, {"img_size": 32, "depth": 1}).build(pretrained=True)


@pytest.mark.parametrize("published", [False, True])
def test_a_network_without_head_is_refused_before_it_is_built(published: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.timm, "create_model", None)
    with pytest.raises(
        IsvitError, match=r"^vit_small_patch14_dinov2.lvd142m has no head .*: set num_classes in model.n"
    ):
        Architecture("vit_small_patch14_dinov2.lvd142m").build(published)
    with pytest.raises(IsvitError, match=r"^SwinTransformer has no head"):
        Architecture(SWIN, {**SWIN_ARGS, "num_classes": 0}).build()


def test_gray_networks_are_known() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5, in_chans=1)
    known = Architecture.of(model)
    assert known == Architecture("vit_tiny_patch16_224", {"num_classes": 5, "img_size": [32, 32], "in_chans": 1})
