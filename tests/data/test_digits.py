from dataclasses import replace
from typing import Any

import pytest
import torch

from isvit_lightning.data import DigitsDataModule
from isvit_lightning.embedded.digits import digit_images, digit_names
from isvit_lightning.errors import IsvitError
from isvit_lightning.sources.preprocessing import Preprocessing

EXPECTED = Preprocessing(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)


def digits(**options: Any) -> DigitsDataModule:
    data = DigitsDataModule(**{"calibration_images": 8, "workers": 0, "selection": "first", **options})
    data.attach(EXPECTED)
    return data


def test_calibration_draws_from_the_training_digits() -> None:
    data = digits()
    assert torch.equal(data.calibration_tensor(), digit_images("train")[0][:8])
    assert data.calibration_list().names == tuple(digit_names("train")[:8])


def test_evaluation_takes_the_held_out_digits() -> None:
    data = digits()
    images, labels = (torch.cat(parts) for parts in zip(*data.test_dataloader(), strict=True))
    assert torch.equal(images, digit_images("held_out")[0])
    assert torch.equal(labels, digit_images("held_out")[1])
    assert data.num_evaluation_images == 600
    assert data.num_classes == 10


def test_all_training_digits_are_disjoint_from_the_evaluation() -> None:
    assert len(digits(calibration_images=1197).calibration_tensor()) == 1197


def test_few_evaluation_images_meet_every_class() -> None:
    labels = torch.cat([labels for _, labels in digits(evaluation_images=12).test_dataloader()])
    assert len(labels) == 12
    assert set(labels.tolist()) == set(range(10))


def test_too_many_calibration_images() -> None:
    with pytest.raises(IsvitError, match=r"^1198 calibration images .* there are 1197 images, .*calibration_images"):
        digits(calibration_images=1198).calibration_tensor()


@pytest.mark.parametrize(
    ("name", "value"), [("input_size", (3, 224, 224)), ("mean", (0.485, 0.456, 0.406)), ("std", (1.0, 1.0, 1.0))]
)
def test_a_network_that_expects_other_images(name: str, value: Any) -> None:
    with pytest.raises(IsvitError, match=rf"^The network expects images of {name} .* model.network.name to vit_digits"):
        DigitsDataModule().attach(replace(EXPECTED, **{name: value}))
