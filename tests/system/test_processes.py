"""What processes tell each other, against what one process would compute from everything."""

from typing import Any

import pytest
import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.system.processes import (
    broadcast_object,
    broadcast_tensors,
    gather_objects,
    gather_rows,
    gather_shares,
    is_first_process,
    rank,
    require_equal,
    sum_over_processes,
    world_size,
)
from tests.several import in_processes


def exchange() -> dict[str, Any]:
    """Every exchange once, from values that differ in each process."""
    me, world = rank(), world_size()
    rows = torch.arange(7.0).reshape(7, 1).expand(7, 2)
    shared, summed = torch.full((2, 3), float(me)), torch.tensor([1.0, float(me)])
    broadcast_tensors([shared], source=1)
    sum_over_processes(summed)
    layer = nn.Linear(2, 2)
    broadcast_tensors(layer.state_dict().values())
    require_equal(layer, "layer")
    with torch.no_grad():
        layer.bias[0] += me * 1e-7
    try:
        require_equal(layer, "layer")
        refused = ""
    except IsvitError as error:
        refused = str(error)
    return {
        "me": (me, world, is_first_process()),
        "rows": [gather_rows(rows[me::world], count).tolist() for count in (1, 3, 7, 9)],
        "shares": gather_shares(list("abcdefg")[me::world]),
        "objects": gather_objects(me),
        "object": broadcast_object({"from": me}, source=1),
        "shared": shared.tolist(),
        "summed": summed.tolist(),
        "refused": refused,
    }


@pytest.mark.parametrize("count", [2, 3])
def test_everyone_gets_the_same(count: int) -> None:
    results = in_processes(exchange, count)
    rows = [[float(i)] * 2 for i in range(7)]
    for me, result in enumerate(results):
        assert result["me"] == (me, count, me == 0)
        assert result["rows"] == [rows[:1], rows[:3], rows, rows]
        assert result["shares"] == list("abcdefg")
        assert result["objects"] == list(range(count))
        assert result["object"] == {"from": 1}
        assert result["shared"] == [[1.0] * 3] * 2
        assert result["summed"] == [float(count), float(sum(range(count)))]
        assert f"The {count} processes hold different weights of layer" in result["refused"]


def test_one_process_needs_no_one() -> None:
    rows, summed = torch.randn(5, 2), torch.ones(2)
    sum_over_processes(summed)
    require_equal(nn.Linear(2, 2), "layer")
    assert (rank(), world_size(), is_first_process()) == (0, 1, True)
    assert torch.equal(gather_rows(rows, 3), rows[:3])
    assert gather_shares([1, 2]) == [1, 2]
    assert torch.equal(summed, torch.ones(2))
