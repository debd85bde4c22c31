"""What differs between a network and a file, and the option that is named for it."""

import pytest
import torch

from isvit_lightning.sources.differences import Difference, advice, differences

FILE = "change model.network.checkpoint"
ANYTHING = f"{FILE}, model.network.name or model.network.args"


def test_missing_unexpected_reshaped_and_integer_tensors() -> None:
    own = {"a": torch.zeros(1), "b": torch.zeros(2), "c": torch.zeros(3), "d": torch.zeros(4, dtype=torch.int64)}
    given = {"b": torch.zeros(3), "c": torch.zeros(3, dtype=torch.int8), "d": torch.zeros(4), "e": torch.zeros(1)}
    assert [str(one) for one in differences(own, given)] == [
        "a is missing",
        "e is unexpected",
        "b has shape (3,) instead of (2,)",
        "c is no dense tensor of floating-point numbers",
    ]


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_other_floating_types_are_no_difference(kind: torch.dtype) -> None:
    assert differences({"a": torch.zeros(2)}, {"a": torch.zeros(2).to(kind)}) == []


def difference(name: str, own: tuple[int, ...] | None, given: tuple[int, ...] | None) -> Difference:
    return Difference(name, None if own is None else torch.Size(own), None if given is None else torch.Size(given))


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ([difference("head.weight", (9, 8), (7, 8)), difference("head.bias", (9,), (7,))], "set num_classes 7 in "),
        ([difference("head.fc.weight", (9, 8), (7, 8)), difference("head.fc.bias", (9,), (7,))], "set num_classes 7 "),
        ([difference("head.weight", (9, 8), (9, 16))], ANYTHING),
        (
            [difference("head.weight", (9, 8), None), difference("head.bias", (9,), None)],
            f"{FILE} to a file that holds",
        ),
        ([difference("head_dist.weight", None, (9, 8))], ANYTHING),
        (
            [difference("patch_embed.proj.weight", (8, 3, 4, 4), (8, 1, 4, 4))],
            "set in_chans 1 in model.network.args, or ",
        ),
        (
            [difference("patch_embed.proj.weight", (8, 3, 4, 4), (8, 3, 16, 16))],
            "set patch_size 16 in model.network.args",
        ),
        (
            [difference("pos_embed", (1, 5, 8), (1, 9, 8)), difference("head.bias", (9,), (7,))],
            "set img_size and num_cl",
        ),
        (
            [difference("pos_embed", (1, 5, 8), (1, 9, 8)), difference("blocks.0.ls1.gamma", (8,), None)],
            "set img_size a",
        ),
        (
            [difference("norm.bias", (8,), None), difference("fc_norm.bias", None, (8,))],
            "set global_pool in model.netw",
        ),
        ([difference("layers.0.blocks.0.attn.relative_position_bias_table", (9, 1), (4, 1))], "set window_size in "),
        ([difference("blocks.2.norm1.bias", (8,), None), difference("head.bias", (9,), (7,))], ANYTHING),
        ([difference("head.weight", (9, 8), (9, 8))], ANYTHING),
    ],
)
def test_the_option_that_explains_all_differences_is_named(found: list[Difference], wanted: str) -> None:
    assert advice(found).startswith(wanted)
