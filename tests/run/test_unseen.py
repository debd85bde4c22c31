"""Images are held out once and for all, and what a row tells of them is what was measured on them."""

from typing import Any

import pytest
import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.run import unseen
from isvit_lightning.run.unseen import COLUMNS, Distances, hold_out, require_hold_out


def numbered(count: int) -> torch.Tensor:
    """Images that tell their places."""
    return torch.arange(float(count)).view(-1, 1, 1, 1).repeat(1, 3, 2, 2)


def places(images: torch.Tensor) -> list[int]:
    assert torch.equal(images, images[:, :1, :1, :1].expand_as(images))
    return [int(place) for place in images[:, 0, 0, 0]]


@pytest.mark.parametrize("count", [1, 5, 11])
def test_every_image_is_either_seen_or_held_out(count: int) -> None:
    seen, held = hold_out(numbered(12), count, 3)
    assert (len(seen), len(held)) == (12 - count, count)
    assert sorted(places(seen) + places(held)) == list(range(12))
    assert places(seen) == sorted(places(seen))
    assert places(held) == sorted(places(held))


def test_the_draw_is_that_of_the_seed() -> None:
    draws = [tuple(places(hold_out(numbered(40), 8, seed)[1])) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    # Not a stretch of the list, whose images may be of one class.
    assert all(max(draw) - min(draw) > 20 for draw in draws)


def test_no_image_is_held_in_memory_twice() -> None:
    images = numbered(6)
    seen, held = hold_out(images, 2, 0)
    assert seen.data_ptr() == images.data_ptr()
    assert held.untyped_storage().data_ptr() != images.untyped_storage().data_ptr()


def test_nothing_is_held_out_of_nothing() -> None:
    images = numbered(4)
    seen, held = hold_out(images, 0, 0)
    assert torch.equal(seen, numbered(4))
    assert held.shape == (0, 3, 2, 2)


@pytest.mark.parametrize(("count", "processes"), [(-1, 1), (8, 1), (9, 1), (1, 2), (7, 2)])
def test_a_hold_out_leaves_images_to_measure_and_to_calibrate_on(
    count: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unseen, "world_size", lambda: processes)
    with pytest.raises(IsvitError) as caught:
        require_hold_out(count, 8, comparable=True)
    assert str(caught.value) == (
        f"--choose_on is {count}, expected at least {processes} of the 8 calibration images, and as many left to "
        "calibrate on: change --choose_on or raise data.calibration_images."
    )


@pytest.mark.parametrize(("count", "processes"), [(0, 1), (1, 1), (7, 1), (0, 9), (2, 2), (6, 2)])
def test_hold_outs_that_can_be(count: int, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unseen, "world_size", lambda: processes)
    require_hold_out(count, 8, comparable=True)


def test_networks_that_are_compared_with_nothing_cannot_be_chosen_on_images() -> None:
    require_hold_out(0, 8, comparable=False)
    with pytest.raises(IsvitError, match=r"not compared with the float one, expected a classifier .*: leave --choose_"):
        require_hold_out(2, 8, comparable=False)


def known(agreement: float, kl: float) -> Any:
    return lambda network: {"agreement": agreement, "kl": kl}


def test_a_row_tells_the_held_out_images_apart_from_the_seen_ones() -> None:
    row = Distances(known(99.0, 0.25), known(80.0, 0.5)).row(nn.Identity(), {"top1": 70.0, "kl": 4.0})
    assert row == {"held_out_agreement": 80.0, "held_out_kl": 0.5, "seen_kl": 0.25, "unseen_over_seen": 2.0}
    assert list(row) == [name for name, _ in COLUMNS]


def test_evaluation_images_are_unseen_where_none_are_held_out() -> None:
    assert Distances(known(99.0, 0.25)).row(nn.Identity(), {"kl": 1.0}) == {"seen_kl": 0.25, "unseen_over_seen": 4.0}


@pytest.mark.parametrize(("metrics", "seen"), [({}, 0.25), ({"kl": 0.5}, 0.0), ({"kl": 0.5}, float("nan"))])
def test_a_ratio_of_nothing_is_none(metrics: dict[str, float], seen: float) -> None:
    assert Distances(known(99.0, seen)).row(nn.Identity(), metrics).keys() == {"seen_kl"}


def test_networks_that_are_compared_with_nothing_have_no_such_columns() -> None:
    assert Distances().row(nn.Identity(), {"box_ap": 30.0}) == {}
