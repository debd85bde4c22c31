import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from isvit_lightning.data import CalibrationDataModule, ImageFolderDataModule
from isvit_lightning.errors import IsvitError
from tests.data.samples import (
    PNG,
    PREPROCESSING,
    MemoryDataModule,
    calibration_files,
    evaluation_files,
    png,
    values,
    write,
)
from tests.helpers import quiet_trainer


def numbers(data: CalibrationDataModule) -> list[int]:
    return [int(image[0, 0, 0]) for image in data.calibration_tensor()]


def evaluated(data: CalibrationDataModule) -> list[int]:
    return [int(image[0, 0, 0]) - 100 for images, _ in data.test_dataloader() for image in images]


def folders(
    tmp_path: Path, calibration: dict[str, bytes], evaluation: dict[str, bytes] | None = None, **options: Any
) -> ImageFolderDataModule:
    write(tmp_path / "calibration", calibration)
    write(tmp_path / "evaluation", evaluation or evaluation_files())
    options = {"calibration_images": 3, "workers": 0, "selection": "first", **options}
    data = ImageFolderDataModule(str(tmp_path / "calibration"), str(tmp_path / "evaluation"), **options)
    data.attach(PREPROCESSING)
    return data


def test_the_first_images_come_in_name_order() -> None:
    data = MemoryDataModule(selection="first")
    assert numbers(data) == [0, 1, 2, 3]
    assert data.calibration_list().names == ("0", "1", "2", "3")


def test_random_images_depend_on_the_seed_and_match_the_list() -> None:
    first, again, other = (MemoryDataModule(count=50, seed=seed) for seed in (1, 1, 2))
    torch.manual_seed(123)
    assert numbers(first) == numbers(again) != numbers(other)
    assert [str(number) for number in numbers(first)] == list(first.calibration_list().names)
    assert len(set(numbers(first))) == 4


def test_the_tensor_is_float32_of_the_input_size_whatever_the_batch_size() -> None:
    images = MemoryDataModule(calibration_images=10, batch_size=3, selection="first").calibration_tensor()
    assert images.shape == (10, 3, 8, 8)
    assert images.dtype == torch.float32
    assert [int(image.mean()) for image in images] == list(range(10))


def test_the_hash_tells_names_order_and_contents_apart(tmp_path: Path) -> None:
    def sha(name: str, files: dict[str, bytes]) -> str:
        return folders(tmp_path / name, files).calibration_list().sha256

    files = calibration_files(3)
    same = sha("a", files)
    assert sha("b", files) == same
    assert sha("c", {**files, "0001.png": png(77)}) != same
    assert sha("d", {("x.png" if name == "0002.png" else name): content for name, content in files.items()}) != same


def test_all_evaluation_images_by_default() -> None:
    data = MemoryDataModule(labels=[0, 0, 1, 1, 2], batch_size=2)
    assert evaluated(data) == [0, 1, 2, 3, 4]
    assert data.num_evaluation_images == 5
    assert data.num_classes == 3


def test_fewer_evaluation_images_meet_every_class() -> None:
    labels = [number % 5 for number in range(50)]
    data = MemoryDataModule(labels=labels, evaluation_images=5)
    assert sorted(labels[index] for index in evaluated(data)) == [0, 1, 2, 3, 4]
    assert data.num_evaluation_images == 5


def test_labels_are_int64_and_belong_to_their_images() -> None:
    labels = [2, 0, 1, 1, 0]
    for images, batch in MemoryDataModule(labels=labels, batch_size=2).val_dataloader():
        assert batch.dtype == torch.int64
        assert [labels[int(image[0, 0, 0]) - 100] for image in images] == batch.tolist()


def test_processes_share_the_evaluation_images(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rank:
        world_size = 3

        def __init__(self, rank: int) -> None:
            self.global_rank = rank

    data = MemoryDataModule(labels=[0] * 7)
    seen = []
    for rank in range(3):
        monkeypatch.setattr(data, "trainer", Rank(rank))
        seen += evaluated(data)
        assert list(data.predict_names()) == [str(100 + index) for index in evaluated(data)]
    assert sorted(seen) == list(range(7))
    assert data.num_evaluation_images == 7


def test_a_trainer_counts_every_image_once() -> None:
    class Count(LightningModule):
        seen = 0

        def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
            self.seen += len(batch[0])

        def predict_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            return batch[0][:, 0, 0, 0]

    data, count = MemoryDataModule(labels=[0, 1, 0, 1, 0], batch_size=2), Count()
    trainer = quiet_trainer()
    trainer.test(count, datamodule=data, verbose=False)
    assert count.seen == 5
    predicted = torch.cat(trainer.predict(count, datamodule=data))
    assert [str(int(number)) for number in predicted] == list(data.predict_names())


def test_worker_processes_load_the_same(tmp_path: Path) -> None:
    data = folders(tmp_path, calibration_files(), calibration_images=6, workers=2, batch_size=2)
    assert values(data.calibration_tensor()) == list(range(6))


def test_the_module_survives_pickling_after_use(tmp_path: Path) -> None:
    data = folders(tmp_path, calibration_files())
    data.calibration_tensor()
    assert values(pickle.loads(pickle.dumps(data)).calibration_tensor()) == [0, 1, 2]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(tmp_path: Path, workers: int) -> None:
    data = folders(tmp_path, {**calibration_files(3), "0001.png": PNG}, workers=workers, batch_size=1)
    with pytest.raises(IsvitError, match=r"^The image \S*calibration/0001.png cannot be read \(.*\), .*on_unread.*$"):
        data.calibration_tensor()


def test_an_unreadable_evaluation_image_is_named(tmp_path: Path) -> None:
    data = folders(tmp_path, calibration_files(3), {**evaluation_files(), "cat/0.png": png(3)[:-30]}, workers=1)
    with pytest.raises(IsvitError, match=r"evaluation/cat/0.png cannot be read"):
        list(data.test_dataloader())


def test_skipping_takes_the_next_image_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = folders(tmp_path, {**calibration_files(5), "0001.png": PNG}, on_unreadable="skip")
    with caplog.at_level(logging.WARNING):
        assert data.calibration_list().names == ("0000.png", "0002.png", "0003.png")
    assert data.calibration_list().skipped == ("0001.png",)
    assert values(data.calibration_tensor()) == [0, 2, 3]
    assert caplog.messages == ["Skipped 1 unreadable calibration images: 0001.png"]


def test_skipping_may_run_out_of_images(tmp_path: Path) -> None:
    data = folders(tmp_path, {**calibration_files(3), "0001.png": PNG}, on_unreadable="skip")
    with pytest.raises(IsvitError, match="3 calibration images are asked for, but there are 2 readable images"):
        data.calibration_list()


def test_more_calibration_images_than_there_are() -> None:
    with pytest.raises(IsvitError, match=r"^11 calibration .* there are 10 images, .* lower data.calibration_images"):
        MemoryDataModule(calibration_images=11).calibration_tensor()


def test_more_evaluation_images_than_there_are() -> None:
    with pytest.raises(IsvitError, match=r"^3 evaluation .* there are 2, .* lower data.evaluation_images"):
        MemoryDataModule(labels=[0, 1], evaluation_images=3).test_dataloader()


def test_the_same_file_is_no_evaluation_image(tmp_path: Path) -> None:
    write(tmp_path, evaluation_files())
    data = ImageFolderDataModule(str(tmp_path / "cat"), str(tmp_path), calibration_images=1, workers=0)
    data.attach(PREPROCESSING)
    pattern = r"^The calibration image (\S+/cat/\d.png) is the evaluation image \1, .* data.calibration or data.eval"
    for use in (data.calibration_tensor, data.test_dataloader):
        with pytest.raises(IsvitError, match=pattern):
            use()


def test_a_copy_is_no_evaluation_image(tmp_path: Path) -> None:
    data = folders(tmp_path, {**calibration_files(3), "0001.png": evaluation_files()["dog/2.png"]})
    with pytest.raises(IsvitError, match=r"image \S*calibration/0001.png is the evaluation image \S*dog/2.png"):
        data.calibration_tensor()


def test_calibration_images_that_are_not_drawn_may_be_evaluated(tmp_path: Path) -> None:
    data = folders(tmp_path, {**calibration_files(3), "9.png": evaluation_files()["dog/2.png"]})
    assert len(data.calibration_tensor()) == 3


def test_calibration_alone_and_evaluation_alone() -> None:
    assert len(MemoryDataModule(labels=None).calibration_tensor()) == 4
    assert evaluated(MemoryDataModule(count=0, labels=[0, 1])) == [0, 1]
    assert MemoryDataModule(labels=None).num_evaluation_images == 0
    assert MemoryDataModule(labels=None).num_classes is None
    with pytest.raises(IsvitError, match=r"no images to evaluate on, .*: set data.evaluation.$"):
        MemoryDataModule(labels=None).test_dataloader()
    with pytest.raises(IsvitError, match=r"no images to calibrate on, .*: set data.calibration.$"):
        MemoryDataModule(count=0).calibration_tensor()


@pytest.mark.parametrize(
    ("option", "value"), [("calibration_images", 0), ("evaluation_images", 0), ("batch_size", 0), ("workers", -1)]
)
def test_numbers_out_of_range(option: str, value: Any) -> None:
    with pytest.raises(IsvitError, match=f"^data.{option} is {value}, expected .* or more: raise data.{option}.$"):
        MemoryDataModule(**{option: value})


def test_images_need_a_preprocessing() -> None:
    data = ImageFolderDataModule("anywhere")
    with pytest.raises(RuntimeError, match="attach"):
        _ = data._transform
