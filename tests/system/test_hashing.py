"""The hash of tensors tells every bit, and nothing but names, types, shapes and bytes."""

import pytest
import torch
from torch import nn

from isvit_lightning.system.hashing import hash_of

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(0.25), "c": torch.tensor([True, False])}


def test_order_storage_and_gradients_do_not_count() -> None:
    expected = hash_of(TENSORS)
    assert hash_of(dict(reversed(TENSORS.items()))) == expected
    assert hash_of({**TENSORS, "a": TENSORS["a"].t().contiguous().t()}) == expected
    assert hash_of({**TENSORS, "a": torch.cat([torch.ones(1, 3), TENSORS["a"]])[1:]}) == expected
    assert hash_of({**TENSORS, "a": nn.Parameter(TENSORS["a"])}) == expected


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"a": TENSORS["a"]},
        {**TENSORS, "d": torch.empty(0)},
        {"e": TENSORS["a"], "b": TENSORS["b"], "c": TENSORS["c"]},
        {**TENSORS, "a": TENSORS["a"].view(3, 2)},
        {**TENSORS, "a": TENSORS["a"].t()},
        {**TENSORS, "a": TENSORS["a"].double()},
        {**TENSORS, "a": TENSORS["a"].view(torch.int32)},
        {**TENSORS, "a": torch.nextafter(TENSORS["a"], torch.tensor(9.0))},
        {**TENSORS, "a": torch.tensor([[-0.0, 1, 2], [3, 4, 5]])},
        {**TENSORS, "b": torch.tensor([0.25])},
        {**TENSORS, "c": torch.tensor([1, 0], dtype=torch.uint8)},
    ],
    ids=[
        "nothing", "fewer", "more", "name", "shape", "transposed", "double", "type", "last_bit", "sign_of_zero",
        "dimension", "bool",
    ],
)  # fmt: skip
def test_everything_else_does(other: dict[str, torch.Tensor]) -> None:
    assert hash_of(other) != hash_of(TENSORS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_every_type_is_hashed(dtype: torch.dtype) -> None:
    tensors = {"a": torch.tensor([0, 1, 1]).to(dtype), "empty": torch.empty(0, 3, dtype=dtype)}
    assert hash_of(tensors) == hash_of({name: tensor.clone() for name, tensor in tensors.items()})
    assert hash_of({**tensors, "a": tensors["a"].flip(0)}) != hash_of(tensors)


def test_one_bit_of_a_layer_is_seen() -> None:
    layer = nn.Linear(3, 3)
    before = hash_of(layer.state_dict())
    assert before == hash_of(layer.state_dict())
    with torch.no_grad():
        layer.weight[2, 2] = torch.nextafter(layer.weight[2, 2], torch.tensor(9.0))
    assert hash_of(layer.state_dict()) != before


def test_a_nan_equals_itself() -> None:
    assert hash_of({"a": torch.tensor(torch.nan)}) == hash_of({"a": torch.tensor(torch.nan)})
