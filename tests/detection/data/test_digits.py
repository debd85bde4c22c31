"""The scenes as data of a detector."""

from typing import Any

import pytest
import torch

pytest.importorskip("mmdet")

from detection.data import DigitsDetectionDataModule
from detection.data.digits import SEED
from detection.embedded.scenes import digit_scene
from isvit_lightning.errors import IsvitError
from tests.detection.data.samples import PREPROCESSING


def digits(**options: Any) -> DigitsDetectionDataModule:
    data = DigitsDetectionDataModule(**{"calibration_images": 4, "evaluation_images": 5, **options})
    data.attach(PREPROCESSING)
    return data


def test_calibration_takes_scenes_of_training_digits() -> None:
    data = digits(selection="first")
    expected = digit_scene("train", 2, SEED).image.float() / 255
    mean, std = (torch.tensor(value)[:, None, None] for value in (PREPROCESSING.mean, PREPROCESSING.std))
    torch.testing.assert_close(data.calibration_tensor()[2], (expected - mean) / std, rtol=1e-4, atol=1e-5)
    assert data.calibration_list().names[2] == "digits-train-00002.png"


def test_evaluation_takes_scenes_of_held_out_digits() -> None:
    data = digits()
    batches = list(data.test_dataloader())
    truth = data.ground_truth()
    assert len(batches) == data.num_evaluation_images == 5
    for number, batch in enumerate(batches):
        scene = digit_scene("held_out", number, SEED)
        assert torch.equal(batch["inputs"][0], scene.image.flip(0))  # mmdet's images are blue first
        image_id = batch["data_samples"][0].img_id
        objects = [each for each in truth.dataset["annotations"] if each["image_id"] == image_id]
        assert [truth.category_ids.index(each["category_id"]) for each in objects] == scene.labels.tolist()
    assert truth.class_names == tuple("0123456789")


def test_calibration_list_is_seeded() -> None:
    assert digits().calibration_list() == digits().calibration_list()
    assert digits().calibration_list() != digits(seed=1).calibration_list()


def test_canvas_and_numbers() -> None:
    data = digits(canvas=(64, 96), max_objects=1)
    assert data.calibration_tensor().shape == (4, 3, 64, 96)
    assert {tuple(batch["inputs"][0].shape) for batch in data.test_dataloader()} == {(3, 64, 96)}
    assert len(data.ground_truth().dataset["annotations"]) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration_images": 1025}, "there are 1024 images"),
        ({"evaluation_images": 0}, "data.evaluation_images is 0"),
        ({"canvas": (32, 32)}, "<= the canvas"),
    ],
)
def test_impossible_choices(options: dict[str, Any], message: str) -> None:
    with pytest.raises(IsvitError, match=message):
        digits(**options).calibration_tensor()
