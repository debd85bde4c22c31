"""Granularities: shapes, grouping, refusals."""

import pytest
import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.quantizers import PerChannel, PerTensor, per_head
from tests.helpers import GRANULARITIES


@pytest.mark.parametrize(
    ("granularity", "expected"),
    [
        (PerTensor(), ()),
        (PerChannel(7), (7,)),
        (per_head(3), (3, 1, 1)),
        (PerChannel(6, axis=-2), (6, 1)),
        (PerChannel(4, axis=-4), (4, 1, 1, 1)),
    ],
)
def test_shape(granularity: PerTensor | PerChannel, expected: tuple[int, ...]) -> None:
    assert granularity.shape == expected


@pytest.mark.parametrize("name", GRANULARITIES)
def test_shape_broadcasts_against_the_tensor(name: str) -> None:
    granularity, shape = GRANULARITIES[name]
    assert torch.broadcast_shapes(granularity.shape, shape) == shape


@pytest.mark.parametrize("name", GRANULARITIES)
def test_group_collects_the_elements_that_share_a_scale(name: str) -> None:
    granularity, shape = GRANULARITIES[name]
    tensor = torch.randn(shape)
    # Label every element with the index of its scale: each row of the groups must hold one label and all of it.
    count = max(1, torch.Size(granularity.shape).numel())
    labels = torch.arange(count).reshape(granularity.shape).expand(shape)
    assert torch.equal(
        granularity.group(labels), torch.arange(count).unsqueeze(1).expand(count, tensor.numel() // count)
    )
    groups = granularity.group(tensor)
    for label in range(count):
        assert torch.equal(groups[label].sort().values, tensor[labels == label].sort().values)


def test_groups_of_one_flat_vector() -> None:
    assert PerTensor().group(torch.ones(4)).shape == (1, 4)
    assert PerTensor().group(torch.tensor(2.0)).shape == (1, 1)
    assert PerChannel(4).group(torch.ones(4)).shape == (4, 1)


def test_axis_from_the_front_is_refused() -> None:
    with pytest.raises(IsvitError, match="counted from the end; got 0"):
        PerChannel(3, axis=0)


@pytest.mark.parametrize("shape", [(2, 7, 4), (4, 5, 6), (6,)])
def test_tensor_of_another_size_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(IsvitError, match=r"5 scales on axis -1.*expected 5"):
        PerChannel(5).group(torch.zeros(shape))


def test_tensor_of_too_few_axes_is_refused() -> None:
    with pytest.raises(IsvitError, match="axis -3"):
        per_head(3).group(torch.zeros(3, 3))


def test_equality_is_by_value_and_str_names_the_axis() -> None:
    assert PerChannel(5) == PerChannel(5, axis=-1) != PerChannel(5, axis=-2)
    assert PerTensor() == PerTensor()
    assert hash(per_head(3)) == hash(PerChannel(3, axis=-3))
    assert str(PerTensor()) == "per tensor"
    assert str(PerChannel(5)) == "per channel(-1)"
    assert str(per_head(3)) == "per head(3)"
