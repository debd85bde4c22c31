"""Accuracies count images, whatever the classes are; runs are found by folder or by file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from isvit_lightning.classifier import Classifier, Evaluator, per_cent, run_directory
from isvit_lightning.errors import IsvitError
from isvit_lightning.recipe.method import Bits, Method
from isvit_lightning.sources.source import NetworkSource
from tests.helpers import quiet_trainer


def accuracies(logits: torch.Tensor, labels: list[int], batch_size: int = 3) -> dict[str, float]:
    """Top-1 and top-5 of a network that returns its input."""
    data = DataLoader(TensorDataset(logits, torch.tensor(labels)), batch_size=batch_size)
    evaluator = Evaluator(nn.Identity(), logits.shape[1])
    tested = per_cent(quiet_trainer().test(evaluator, data, verbose=False)[0])
    assert per_cent(quiet_trainer().validate(evaluator, data, verbose=False)[0]) == tested
    return tested


def one_hot(classes: list[int], width: int) -> torch.Tensor:
    return torch.eye(width)[classes]


def test_images_count_and_not_classes() -> None:
    # Nine images of class 0 are right, one of class 1 is wrong: 90 % of the images, 50 % on average over classes.
    assert accuracies(one_hot([0] * 10, 6), [0] * 9 + [1])["top1"] == 90


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
def test_batches_of_any_size_count_the_same(batch_size: int) -> None:
    logits, labels = torch.randn(10, 8), torch.randint(8, (10,)).tolist()
    order = logits.argsort(dim=1, descending=True)
    top1 = sum(int(order[i, 0]) == label for i, label in enumerate(labels))
    top5 = sum(label in order[i, :5].tolist() for i, label in enumerate(labels))
    assert accuracies(logits, labels, batch_size) == {"top1": 10.0 * top1, "top5": 10.0 * top5}


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
def test_up_to_five_classes_are_always_among_the_first_five(classes: int) -> None:
    labels = [index % classes for index in range(8)]
    found = accuracies(one_hot([0] * 8, classes), labels)
    assert found["top5"] == 100
    assert found["top1"] == pytest.approx(100 * labels.count(0) / 8)


def test_per_cent_rounds_to_a_thousandth() -> None:
    assert per_cent({"top1": 1 / 3, "top5": 1.0, "other": 2.0}) == {"top1": 33.333, "top5": 100.0}


@pytest.mark.parametrize("labeled", [True, False])
def test_predictions_are_probabilities(labeled: bool) -> None:
    logits = torch.randn(5, 4)
    data: Any = TensorDataset(logits, torch.zeros(5).long()) if labeled else TensorDataset(logits)
    batches = quiet_trainer().predict(Evaluator(nn.Identity(), 4), DataLoader(data, batch_size=2))
    assert batches is not None
    assert torch.allclose(torch.cat(batches), logits.softmax(dim=1))


@pytest.mark.parametrize(
    ("name", "value"),
    [("iterations", 0), ("batch_size", 0), ("batch_size", -1), ("micro_batch", -2), ("micro_batch", 0)],
)
def test_numbers_below_one_are_refused(name: str, value: int) -> None:
    with pytest.raises(IsvitError, match=rf"model\.{name} is {value}, expected at least 1"):
        Classifier(NetworkSource("vit_digits"), **{name: value})


def test_defaults() -> None:
    classifier = Classifier(NetworkSource("vit_digits"))
    assert (classifier.bits, classifier.method, classifier.micro_batch) == (Bits(), Method(), None)


def test_a_run_is_named_by_its_folder_or_its_file(tmp_path: Path) -> None:
    (tmp_path / "quantized.safetensors").write_bytes(b"")
    assert run_directory(str(tmp_path)) == tmp_path
    assert run_directory(str(tmp_path / "quantized.safetensors")) == tmp_path


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "alone.safetensors").write_bytes(b"")
    for given in (
        tmp_path / "absent",
        tmp_path / "empty",
        tmp_path / "empty" / "quantized.safetensors",
        tmp_path / "alone.safetensors",
    ):
        with pytest.raises(IsvitError, match=r"holds no finished run; expected .*--ckpt_path"):
            run_directory(str(given))
