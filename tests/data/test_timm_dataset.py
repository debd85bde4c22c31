from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torchvision.datasets import CIFAR10

from isvit_lightning.data import TimmDataModule, timm_dataset
from isvit_lightning.errors import IsvitError
from tests.data.samples import PNG, PREPROCESSING, calibration_files, evaluation_files, png, values, write, write_tar


def timm_data(root: Path | None = None, **options: Any) -> TimmDataModule:
    options = {"calibration_images": 3, "workers": 0, "selection": "first", **options}
    data = TimmDataModule(root=None if root is None else str(root), **options)
    data.attach(PREPROCESSING)
    return data


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    write(tmp_path / "train", {f"any/{name}": content for name, content in calibration_files().items()})
    write(tmp_path / "validation", evaluation_files())
    return tmp_path


def labels(data: TimmDataModule) -> list[int]:
    return [label for _, batch in data.test_dataloader() for label in batch.tolist()]


def test_a_folder_with_splits(splits: Path) -> None:
    data = timm_data(splits)
    assert values(data.calibration_tensor()) == [0, 1, 2]
    assert data.calibration_list().names == ("any/0000.png", "any/0001.png", "any/0002.png")
    assert labels(data) == [0] * 4 + [1] * 4 + [2] * 4
    assert data.num_evaluation_images == 12
    assert data.num_classes == 3


def test_worker_processes(splits: Path) -> None:
    data = timm_data(splits, workers=2, batch_size=2, calibration_images=6)
    assert values(data.calibration_tensor()) == list(range(6))


def test_a_class_map(splits: Path, tmp_path: Path) -> None:
    class_map = tmp_path / "classes.txt"
    class_map.write_text("dog\nant\ncat\nbird\n")
    data = timm_data(splits, class_map=str(class_map))
    assert labels(data) == [3] * 4 + [2] * 4 + [0] * 4
    assert data.num_classes == 4


def test_an_archive_in_worker_processes(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "images.tar", evaluation_files())
    data = timm_data(path, calibration_split=None, workers=2, batch_size=3)
    data.predict_names()
    data._evaluation.source.read(0)  # opens the archive before the workers start
    found = [value for images, _ in data.test_dataloader() for value in values(images)]
    assert found == list(range(100, 112))
    assert labels(data) == [0] * 4 + [1] * 4 + [2] * 4


def test_an_unreadable_image_is_not_replaced_by_the_next(splits: Path) -> None:
    write(splits / "train", {"any/0001.png": PNG})
    with pytest.raises(IsvitError, match=r"any/0001.png cannot be read"):
        timm_data(splits).calibration_tensor()
    assert values(timm_data(splits, on_unreadable="skip").calibration_tensor()) == [0, 2, 3]


def test_one_folder_for_both_splits(splits: Path) -> None:
    with pytest.raises(IsvitError, match=r"^The calibration image .* data.calibration_split or data.evaluation_split"):
        timm_data(splits / "validation").calibration_tensor()


def test_a_copy_is_no_evaluation_image(splits: Path) -> None:
    write(splits / "train", {"any/0001.png": png(103)})
    with pytest.raises(IsvitError, match=r"train/any/0001.png is the evaluation image \S*bird/3.png"):
        timm_data(splits).calibration_tensor()


class FakeCifar10(CIFAR10):
    """Six images instead of a download."""

    def __init__(self, root: str | None, train: bool, download: bool) -> None:
        self.train = train
        self.classes = [str(number) for number in range(10)]
        self.targets = [5, 4, 3, 2, 1, 0]

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("L", (8, 8), index if self.train else 100 + index), self.targets[index]


def test_a_dataset_of_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(timm_dataset.create_dataset.__globals__["_TORCH_BASIC_DS"], "cifar10", FakeCifar10)
    data = timm_data(dataset="torch/cifar10")
    assert values(data.calibration_tensor()) == [0, 1, 2]
    assert labels(data) == [5, 4, 3, 2, 1, 0]
    assert data.num_classes == 10
    assert len(data.calibration_list().sha256) == 64
    assert data._evaluation.source.location(2) == "torch/cifar10/validation/00000002"


def test_a_torchvision_dataset_may_not_serve_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(timm_dataset.create_dataset.__globals__["_TORCH_BASIC_DS"], "cifar10", FakeCifar10)
    with pytest.raises(IsvitError, match="share no image"):
        timm_data(dataset="torch/cifar10", evaluation_split="train").calibration_tensor()


@pytest.mark.parametrize(("dataset", "exists"), [("", False), ("torch/nothing", True), ("torch/cifar10", True)])
def test_datasets_that_timm_cannot_open(tmp_path: Path, dataset: str, exists: bool) -> None:
    data = timm_data(tmp_path if exists else tmp_path / "none", dataset=dataset)
    with pytest.raises(IsvitError, match=rf"^timm cannot open split train of dataset '{dataset}' at .*: change data."):
        data.calibration_tensor()


def test_a_stream_is_refused() -> None:
    with pytest.raises(IsvitError, match=r"^The dataset tfds/imagenet2012 is a stream, .*: change data.dataset.$"):
        timm_data(dataset="tfds/imagenet2012")


def test_missing_splits(splits: Path) -> None:
    with pytest.raises(IsvitError, match=r"set data.evaluation_split.$"):
        timm_data(splits, evaluation_split=None).test_dataloader()
    with pytest.raises(IsvitError, match=r"set data.calibration_split.$"):
        timm_data(splits, calibration_split=None).calibration_tensor()
