"""Images from Python: what is taken, and what is said to the rest."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from isvit_lightning.data.given import joined
from isvit_lightning.errors import IsvitError

IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(5)
SIZE = (3, 8, 8)


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Mappings, as data sets of language models give them."""

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"labels": LABELS[index], "pixel_values": IMAGES[index]}


TAKEN: dict[str, Callable[[], Any]] = {
    "tensor": lambda: IMAGES,
    "batches": lambda: IMAGES.split(2),
    "generator": lambda: iter(IMAGES.split(2)),
    "loader_of_pairs": lambda: DataLoader(TensorDataset(IMAGES, LABELS), 2),
    "loader_of_tensors": lambda: DataLoader(TensorDataset(IMAGES), 2),
    "loader_of_mappings": lambda: DataLoader(Rows(), 2),
    "one_mapping": lambda: {"image": IMAGES, "label": LABELS},
    "nested_pairs": lambda: [((IMAGES, LABELS), 0, 0)],
    "array": IMAGES.numpy,
    "array_of_float64": lambda: IMAGES.numpy().astype("float64"),
    "reversed_array": lambda: IMAGES.flip(0).numpy()[::-1],
    "arrays": lambda: [IMAGES.numpy()[:2], IMAGES.numpy()[2:]],
    "float64": IMAGES.double,
    "with_gradient": lambda: IMAGES.clone().requires_grad_(),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_images_are_joined_in_float32(kind: str) -> None:
    found = joined(TAKEN[kind](), SIZE)
    assert torch.equal(found, IMAGES)
    assert found.dtype == torch.float32
    assert not found.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_images_are_widened(dtype: torch.dtype) -> None:
    found = joined(IMAGES.to(dtype), SIZE)
    assert found.dtype == torch.float32
    assert torch.equal(found, IMAGES.to(dtype).float())


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "uint8": ((IMAGES * 50).byte, r"are torch\.uint8, expected preprocessed ones .*subtract"),
    "uint8_array": (lambda: np.zeros((2, 3, 8, 8), "uint8"), r"are torch\.uint8, expected"),
    "bool": (lambda: IMAGES > 0, r"are torch\.bool, expected"),
    "complex": (lambda: IMAGES.to(torch.complex64), r"are torch\.complex64, expected"),
    "big_endian": (lambda: IMAGES.numpy().astype(">f4"), r"an array of >f4 \(.*byte order.*\), expected"),
    "objects": (lambda: np.array([None]), r"an array of object \(.*\), expected"),
    "channels_last": (lambda: IMAGES.permute(0, 2, 3, 1).numpy(), r"shape \(5, 8, 8, 3\), expected \(n, 3, 8, 8\)"),
    "data_set": (lambda: [TensorDataset(IMAGES, LABELS)[0]], r"shape \(3, 8, 8\), expected .*into a DataLoader first"),
    "other_size": (lambda: torch.zeros(2, 3, 9, 8), r"shape \(2, 3, 9, 8\), expected .*8, 8\)"),
    "two_of_four_dimensions": (lambda: {"a": IMAGES, "b": IMAGES}, r"2 entries of four dim.*a, b\), expected one"),
    "no_images_in_a_mapping": (lambda: [{"label": LABELS}], r"0 entries of four dimensions .*label\)"),
    "none": (lambda: None, r"images are a NoneType, expected"),
    "path": (lambda: "folder", r"images are a str, expected"),
    "paths": (lambda: ["a.png"], r"A batch is a str, expected"),
    "empty": (list, r"There are no images"),
    "empty_loader": (lambda: DataLoader(TensorDataset(IMAGES[:0], LABELS[:0]), 2), r"There are no images"),
    "empty_batch": (lambda: [()], r"A batch is a tuple, expected"),
    "nan": (lambda: IMAGES.where(IMAGES < 1, torch.nan), r"hold NaN or infinity, expected finite"),
    "too_large_for_half": ((IMAGES * 1e5).half, r"hold NaN or infinity"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_anything_else_is_refused_in_a_sentence(kind: str) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(IsvitError, match=message):
        joined(make(), SIZE)


def test_any_size_is_taken_where_the_network_does() -> None:
    assert joined(torch.zeros(2, 1, 9, 8), None).shape == (2, 1, 9, 8)
