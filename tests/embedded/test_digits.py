"""The shipped digits: shapes, split, names, and that the file is what its script writes."""

from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import load_file

from isvit_lightning.embedded import Split, digit_images, digit_names
from isvit_lightning.embedded.digits import DIGITS_FILE, write_digits
from isvit_lightning.embedded.files import read_embedded
from isvit_lightning.errors import IsvitError


@pytest.mark.parametrize(("split", "count"), [("train", 1197), ("held_out", 600)])
def test_images_are_ready_for_a_network(split: Split, count: int) -> None:
    images, labels = digit_images(split)
    assert images.shape == (count, 3, 32, 32)
    assert images.dtype == torch.float32
    assert images.min() == -1
    assert images.max() == 1
    assert torch.equal(images[:, 0], images[:, 1])
    assert torch.equal(images[:, 0], images[:, 2])
    assert labels.shape == (count,)
    assert labels.dtype == torch.int64
    assert len(digit_names(split)) == count


def test_split_is_disjoint_and_complete() -> None:
    train, held_out = set(digit_names("train")), set(digit_names("held_out"))
    assert train.isdisjoint(held_out)
    assert train | held_out == {f"digit-{number:04d}" for number in range(1797)}


def test_every_class_has_its_share_of_the_held_out_digits() -> None:
    _, train = digit_images("train")
    _, held_out = digit_images("held_out")
    share = held_out.bincount(minlength=10) / (train.bincount(minlength=10) + held_out.bincount(minlength=10))
    assert (share - 600 / 1797).abs().max() < 0.01


def test_upsampling_keeps_the_digit() -> None:
    stored = read_embedded(DIGITS_FILE)
    images, labels = digit_images("held_out")
    number = int(digit_names("held_out")[7].removeprefix("digit-"))
    # Bilinear upsampling blurs a little, so that the mean of a cell resembles the stored pixel without equalling it.
    small = torch.nn.functional.avg_pool2d(images[7, :1], 4).flatten()
    original = stored["images"][number].float().flatten()
    assert torch.corrcoef(torch.stack([small, original]))[0, 1] > 0.95
    assert labels[7] == stored["labels"][number]


def test_unknown_split_is_refused() -> None:
    with pytest.raises(IsvitError, match="expected one of train, held_out"):
        digit_images(cast("Split", "test"))


def test_file_is_what_the_script_writes(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    write_digits(tmp_path / DIGITS_FILE)
    written, shipped = load_file(tmp_path / DIGITS_FILE), read_embedded(DIGITS_FILE)
    assert written.keys() == shipped.keys()
    for name, value in written.items():
        assert value.dtype == shipped[name].dtype
        assert torch.equal(value, shipped[name])
