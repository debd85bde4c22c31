from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from timm.data.readers.reader_image_folder import ReaderImageFolder
from torchvision.datasets import CIFAR10, ImageFolder

from isvit_lightning.data import TimmDataModule, timm_dataset
from isvit_lightning.data.loading import UNLABELED
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


def test_a_class_map_in_the_folder_of_the_dataset(splits: Path) -> None:
    (splits / "classes.txt").write_bytes(b"\xef\xbb\xbfdog\r\ncat\r\nbird\r\n")
    assert labels(timm_data(splits, class_map="classes.txt")) == [2] * 4 + [1] * 4 + [0] * 4


TEN = [f"class{number}" for number in range(1, 11)]


def test_images_come_in_the_order_of_timm(tmp_path: Path) -> None:
    names = ["10/2.PNG", "9/10.png", "9/2.png", "B/1.png", "a/1.png", "a/x/3.png"]
    root = write(tmp_path / "train", {name: png(number) for number, name in enumerate(names)})
    expected = [str(Path(path).relative_to(root)) for path, _ in ReaderImageFolder(str(root)).samples]
    assert expected == ["9/2.png", "9/10.png", "10/2.PNG", "a/1.png", "a/x/3.png", "B/1.png"]
    assert list(timm_data(tmp_path, calibration_images=6).calibration_list().names) == expected


def test_images_come_in_the_order_of_torchvision(tmp_path: Path) -> None:
    names = ["9/b/1.png", "9/a.png", "9 b/1.png", "10/2.png", "B/1.png", "a/x/3.png", "a/x.png"]
    root = write(tmp_path / "train", {name: png(number) for number, name in enumerate(names)})
    expected = [str(Path(path).relative_to(root)) for path, _ in ImageFolder(str(root)).samples]
    data = timm_data(tmp_path, dataset="torch/folder", calibration_images=7)
    assert list(data.calibration_list().names) == expected


@pytest.mark.parametrize("dataset", ["", "torch/folder", "Torch/image_folder"])
def test_one_rule_orders_classes(tmp_path: Path, dataset: str) -> None:
    write(tmp_path / "val", evaluation_files(TEN, 1))
    with pytest.raises(IsvitError, match=r"sort as class1, class10, class2, … by .* set data.class_order to plain, as"):
        timm_data(tmp_path, dataset=dataset).test_dataloader()
    for order, expected in (("natural", [0, 9, 1, 2, 3, 4, 5, 6, 7, 8]), ("plain", list(range(10)))):
        images = timm_data(tmp_path, dataset=dataset, class_order=order)._evaluation
        by_name = {images.source.name(index): label for index, label in enumerate(images.labels)}
        assert [label for _, label in sorted(by_name.items())] == expected
    assert len(timm_data(tmp_path, dataset=dataset).predict_names()) == 10


@pytest.mark.parametrize("dataset", ["", "torch/folder"])
def test_a_missing_split_does_not_take_the_others(tmp_path: Path, dataset: str) -> None:
    files = {f"{split}/{name}": content for split in ("train", "test") for name, content in evaluation_files().items()}
    root = write(tmp_path, files)
    with pytest.raises(IsvitError, match=rf"holds test, train, .* such as {root}/test, with data.evaluation_split"):
        timm_data(root, dataset=dataset, calibration_split=None).test_dataloader()
    with pytest.raises(IsvitError, match="holds test, train, which are parts of a data set"):
        timm_data(root, dataset=dataset, calibration_split="dev").calibration_tensor()
    assert timm_data(root, dataset=dataset, evaluation_split=f"{root}/test").num_evaluation_images == 12


@pytest.mark.parametrize("dataset", ["", "torch/folder"])
def test_a_link_to_a_parent_and_endings_that_timm_does_not_know(splits: Path, dataset: str) -> None:
    (splits / "validation" / "cat" / "up").symlink_to("../..")
    write(splits / "validation", {"cat/1.webp": png(9), "dog/2.JFIF": png(8)})
    data = timm_data(splits, dataset=dataset)
    assert (data.num_evaluation_images, data.num_classes) == (14, 3)


def test_options_that_a_dataset_has_no_use_for(tmp_path: Path) -> None:
    for options in ({"class_order": "plain"}, {"class_map": "classes.txt"}):
        with pytest.raises(
            IsvitError, match=r"the dataset torch/cifar10 has its own order of classes, .*: leave out data"
        ):
            timm_data(dataset="torch/cifar10", **options)
    with pytest.raises(IsvitError, match=r"^data.class_order is plain but the dataset hfds/mine has its own order"):
        timm_data(dataset="hfds/mine", class_order="plain")


def test_images_in_one_folder_have_no_classes(tmp_path: Path) -> None:
    data = timm_data(write(tmp_path / "images", calibration_files()), calibration_split=None)
    assert (labels(data), data.num_classes) == ([UNLABELED] * 6, 0)


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


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(IsvitError, match=r"none does not exist, expected a folder of images .*: change data.root.$"):
        timm_data(tmp_path / "none").calibration_tensor()
    with pytest.raises(IsvitError, match=r"^There is no folder .*: set data.root or data.dataset.$"):
        timm_data().calibration_tensor()


@pytest.mark.parametrize("dataset", ["torch/nothing", "torch/cifar10"])
def test_datasets_that_timm_cannot_open(tmp_path: Path, dataset: str) -> None:
    data = timm_data(tmp_path, dataset=dataset)
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
