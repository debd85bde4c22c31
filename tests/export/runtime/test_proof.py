"""The count of differing codes tells a network whose codes are equal from one whose codes are not."""

import torch

from isvit_lightning.export import integer
from isvit_lightning.export.runtime.proof import prove
from isvit_lightning.recipe import Placement
from tests.export.runtime.test_network import calibrated, images
from tests.helpers import tiny_swin, tiny_vit


def test_no_code_differs() -> None:
    for build, bits in ((tiny_vit, 3), (tiny_vit, 8), (tiny_swin, 4)):
        network = calibrated(build(), bits, Placement() if bits > 4 else None)
        proof = prove(network, integer(network), images(network.model))
        assert proof.differing == 0
        assert proof.codes > 2000
        assert max(proof.distance.values()) < 3e-6


def test_another_scale_is_counted() -> None:
    network = calibrated(tiny_vit())
    fast = integer(network)
    fast.get_buffer("model.blocks.0.attn.qkv.operand.encode.scale").mul_(1.2)
    proof = prove(network, fast, images(network.model))
    assert 0 < proof.differing < proof.codes
    assert proof.distance["blocks.0.attn.qkv"] > 1e-3
    assert proof.distance["blocks.0.attn.proj"] < 3e-6


def test_hooks_are_gone_afterwards() -> None:
    network = calibrated(tiny_vit())
    prove(network, integer(network), images(network.model))
    assert not any(module._forward_hooks for module in network.modules())
    assert torch.equal(network(images(network.model)), network(images(network.model)))
