"""Batches in worker processes, and the death of one."""

import os
import signal
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from isvit_lightning.data.loading import ImageList, image_loader
from isvit_lightning.data.sources import ImageSource, TensorSource, Transform
from isvit_lightning.errors import IsvitError
from tests.data.samples import source


def identity(image: object) -> Tensor:
    raise AssertionError("the images are tensors already")


@dataclass(frozen=True)
class Deadly(TensorSource):
    """Loading image 3 kills the process that does it, as the system does when memory is short."""

    inner: ImageSource

    def tensor(self, index: int, transform: Transform) -> Tensor:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner.tensor(index, transform)


def test_batches_come_in_order_with_and_without_workers() -> None:
    for workers in (0, 2):
        loader = image_loader(ImageList(source(range(5)), [4, 0, 2, 1, 3], identity), 2, workers)
        images = torch.cat([batch for batch, _ in loader])
        assert images[:, 0, 0, 0].tolist() == [4, 0, 2, 1, 3]


@pytest.mark.filterwarnings("ignore")
def test_a_worker_that_is_killed_is_a_sentence() -> None:
    loader = image_loader(ImageList(Deadly(source(range(5))), range(5), identity), 2, workers=1)
    with pytest.raises(
        IsvitError, match=r"process that loads images died \(.*\), expected .* lower data\.workers"
    ) as e:
        list(loader)
    assert "\n" not in str(e.value)


def test_an_error_of_another_kind_passes() -> None:
    def broken(image: object) -> Tensor:
        raise RuntimeError("a mistake")

    class Encoded(Deadly):
        def tensor(self, index: int, transform: Transform) -> Tensor:
            return transform(None)  # type: ignore[arg-type]

    with pytest.raises(RuntimeError, match="a mistake"):
        list(image_loader(ImageList(Encoded(source(range(3))), range(3), broken), 2, workers=0))
