"""Evaluation batches: pixels, what is known of each image, and images that cannot be read."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("mmdet")

from detection.data.annotations import ListedImage
from detection.data.coco import ListedSource
from detection.data.loading import EvaluationImages, evaluation_loader
from detection.data.preprocessing import rescaled, to_pixels, to_tensor
from isvit_lightning.data.files import FolderSource
from isvit_lightning.data.sources import UnreadableImageError
from tests.detection.data.samples import SIZES, coco_data, write_image

SCALE = (32, 24)


def stored(tmp_path: Path, count: int = 3) -> ListedSource:
    for number in range(count):
        write_image(tmp_path / "images" / f"{number}.jpg", SIZES[number % 3], number)
    files = FolderSource(tmp_path / "images")
    return ListedSource(files, files.names)


def images(source: ListedSource, indices: list[int]) -> EvaluationImages:
    listed = [ListedImage(100 + index, source.name(index), None, 100 + index) for index in range(len(source))]
    return EvaluationImages(source, listed, indices, SCALE)


def test_an_image_comes_resized_and_with_what_is_known_of_it(tmp_path: Path) -> None:
    source = stored(tmp_path)
    read = images(source, [2, 0])
    assert len(read) == 2
    found = read[1]
    assert not isinstance(found, UnreadableImageError)
    image, sample = found
    assert torch.equal(image, to_tensor(rescaled(to_pixels(source.image(0)), SCALE)))
    assert image.dtype == torch.uint8
    assert image.shape == (3, 21, 32)  # 20 x 30 fits 24 x 32
    assert sample.metainfo == {
        "img_id": 100,
        "img_path": "0.jpg",
        "ori_shape": (20, 30),
        "img_shape": (21, 32),
        "scale_factor": (32 / 30, 21 / 20),
    }


def test_an_image_that_cannot_be_read_is_returned_as_its_error(tmp_path: Path) -> None:
    source = stored(tmp_path)
    (tmp_path / "images" / "1.jpg").write_bytes(b"no image")
    found = images(source, [0, 1])[1]
    assert isinstance(found, UnreadableImageError)
    assert "1.jpg cannot be read" in str(found)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_come_in_order_and_keep_their_sizes(tmp_path: Path, workers: int) -> None:
    batches = list(evaluation_loader(images(stored(tmp_path, 5), [4, 0, 2, 1, 3]), 2, workers))
    assert [len(batch["inputs"]) for batch in batches] == [2, 2, 1]
    assert [sample.img_id for batch in batches for sample in batch["data_samples"]] == [104, 100, 102, 101, 103]
    shapes = [tuple(image.shape[1:]) for batch in batches for image in batch["inputs"]]
    assert shapes == [(32, 21), (21, 32), (24, 24), (32, 21), (21, 32)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_one_sentence(tmp_path: Path, workers: int) -> None:
    source = stored(tmp_path)
    (tmp_path / "images" / "1.jpg").write_bytes(b"no image")
    loader = evaluation_loader(images(source, [0, 1, 2]), 2, workers)
    with pytest.raises(UnreadableImageError, match=r"1.jpg cannot be read") as error:
        list(loader)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("count", "started"), [(2, 0), (3, 1)])
def test_no_process_is_started_for_a_single_batch(tmp_path: Path, count: int, started: int) -> None:
    loader = evaluation_loader(images(stored(tmp_path), list(range(count))), 2, workers=1)
    assert loader.num_workers == started


def test_worker_processes_change_nothing(root: Path) -> None:
    alone, helped = (list(coco_data(root, workers=workers).test_dataloader()) for workers in (0, 1))
    for one, other in zip(alone, helped, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one["inputs"], other["inputs"], strict=True))
