"""Weights that timm publishes: which of them fit, and what is told where they cannot be had."""

from typing import Any

import pytest

from isvit_lightning.errors import IsvitError
from isvit_lightning.sources import published as module
from isvit_lightning.sources.published import require_head, require_reachable

TAGGED, HEADLESS = "vit_tiny_patch16_224.augreg_in21k_ft_in1k", "vit_small_patch14_dinov2.lvd142m"


@pytest.mark.parametrize(
    ("name", "args", "published"),
    [
        (TAGGED, {}, True),
        (TAGGED, {"num_classes": 1000}, True),
        (TAGGED, {"num_classes": None}, True),
        (TAGGED, {"num_classes": 10}, False),
        (HEADLESS, {"num_classes": 10}, False),
        ("vit_base_patch32_clip_224.openai", {}, True),
        ("SwinTransformer", {}, False),
    ],
)
def test_heads_that_are_trained_or_meant_to_be_random(name: str, args: dict[str, Any], published: bool) -> None:
    require_head(name, args, published)


@pytest.mark.parametrize(
    ("name", "args", "published", "sentence"),
    [
        (
            HEADLESS,
            {},
            True,
            "^vit_small_.* has no head .*: set num_classes in model.network.args, and model.network.che",
        ),
        (HEADLESS.partition(".")[0], {}, False, "has no head"),
        ("vit_base_patch16_224.mae", {}, True, "has no head"),
        (TAGGED, {"num_classes": 0}, False, "has no head"),
        (
            TAGGED,
            {"num_classes": 10},
            True,
            "have a head of 1000 classes, and one of 10 would stay random,.* or leave nu",
        ),
        (HEADLESS, {"num_classes": 10}, True, "have no head, and one of 10 would stay random, .* fine-tuned weights.$"),
    ],
)
def test_heads_that_are_missing_or_would_stay_random(
    name: str, args: dict[str, Any], published: bool, sentence: str
) -> None:
    with pytest.raises(IsvitError, match=sentence):
        require_head(name, args, published)


class Connection:
    """Stands for the network: counts the connections, which all fail or all succeed."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, fault: str = "", cached: bool = False, proxy: bool = False
    ) -> None:
        self.asked: list[tuple[str, int]] = []
        self.fault = fault
        monkeypatch.setattr(module.socket, "create_connection", self.connect)
        monkeypatch.setattr(module, "try_to_load_from_cache", lambda *_, **__: "/cache/x" if cached else None)
        monkeypatch.setattr(module, "getproxies", lambda: {"https": "proxy"} if proxy else {})
        monkeypatch.setattr(module.constants, "ENDPOINT", "https://hub.invalid")
        monkeypatch.setattr(module.constants, "HF_HUB_OFFLINE", False)

    def connect(self, address: tuple[str, int], timeout: float) -> "Connection":
        self.asked.append(address)
        assert timeout <= 10
        if self.fault:
            raise OSError(self.fault)
        return self

    def close(self) -> None:
        pass


def test_a_host_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Connection(monkeypatch, "Name or service not known")
    sentence = (
        rf"^The weights of {TAGGED} could not be downloaded \(Name or service not known\), .* set model.network.ch"
    )
    with pytest.raises(IsvitError, match=sentence):
        require_reachable(TAGGED)
    assert network.asked == [("hub.invalid", 443)]


def test_weights_on_this_machine_need_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Connection(monkeypatch, "down", cached=True)
    require_reachable(TAGGED)
    assert not network.asked


def test_behind_a_proxy_the_hub_is_asked_by_its_own_client(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Connection(monkeypatch, "down", proxy=True)
    require_reachable(TAGGED)
    assert not network.asked


def test_a_host_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Connection(monkeypatch)
    require_reachable(TAGGED)
    assert len(network.asked) == 1
