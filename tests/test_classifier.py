"""Classifiers are measured by accuracy, and by their distance to the float network."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from isvit_lightning.classifier import Classification, Classifier, rounded
from isvit_lightning.data import DigitsDataModule
from isvit_lightning.embedded.digits import digit_images
from isvit_lightning.embedded.networks import embedded_network
from isvit_lightning.errors import IsvitError
from isvit_lightning.recipe import Bits, read_recipe
from isvit_lightning.run.strategy import UnitStrategy
from isvit_lightning.sources.preprocessing import Preprocessing
from isvit_lightning.sources.source import NetworkSource
from isvit_lightning.stages import Schedule
from isvit_lightning.stages.losses import divergence
from isvit_lightning.storage.caches import Caches
from isvit_lightning.system.processes import world_size
from tests.helpers import quiet_trainer
from tests.several import in_processes

ISVIT = read_recipe("isvit")


def test_shares_are_rounded_to_a_thousandth_of_a_per_cent() -> None:
    metrics = {"top1": 1 / 3, "top5": 1.0, "agreement": 2 / 3, "kl": 1 / 7, "other": 2.0}
    assert rounded(metrics) == {"top1": 33.333, "top5": 100.0, "agreement": 66.667, "kl": 0.142857}
    assert rounded({"kl": torch.tensor(0.5), "agreement": 1.0}) == {"agreement": 100.0, "kl": 0.5}  # type: ignore[dict-item]
    assert rounded({}) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [("iterations", 0), ("batch_size", 0), ("batch_size", -1), ("micro_batch", -2), ("micro_batch", 0)],
)
def test_numbers_below_one_are_refused(name: str, value: int) -> None:
    with pytest.raises(IsvitError, match=rf"model\.{name} is {value}, expected at least 1"):
        Classifier(NetworkSource("vit_digits"), recipe=ISVIT, **{name: value})


def test_defaults() -> None:
    source = NetworkSource("vit_digits")
    classifier = Classifier(source, recipe=ISVIT)
    assert (classifier.source, classifier.recipe, classifier.bits) == (source, ISVIT, Bits())
    assert classifier.schedule == Schedule(1000, 64, None, Caches(), compile=False)
    assert classifier.task.float_logits is None


def test_the_schedule_is_told_field_by_field() -> None:
    caches = Caches(where="recompute")
    given: dict[str, Any] = {"iterations": 3, "batch_size": 2, "micro_batch": 1, "caches": caches, "compile": True}
    classifier = Classifier(NetworkSource("vit_digits"), recipe=ISVIT, bits=Bits(2, 3), **given)
    assert classifier.schedule == Schedule(**given)
    assert classifier.bits == Bits(2, 3)


def measured(task: Classification, network: nn.Module, images: int = 50, **options: Any) -> dict[str, float]:
    data = DigitsDataModule(evaluation_images=images, batch_size=20, workers=0)
    data.attach(Preprocessing.of(embedded_network("vit_digits")))
    return task.measure(network, data, quiet_trainer(), **options)


def test_the_float_network_is_measured_first_and_compared_with() -> None:
    task, network = Classification(), embedded_network("vit_digits")
    alone = measured(task, network)
    assert alone.keys() == {"top1", "top5"}
    assert task.float_logits is None
    assert measured(task, network, is_float=True) == alone
    assert task.float_logits is not None
    assert [len(batch) for batch in task.float_logits] == [20, 20, 10]
    assert measured(task, network) == {**alone, "agreement": 100.0, "kl": 0.0}
    with torch.no_grad():
        network.head.weight.mul_(0.5)
    changed = measured(task, network)
    assert changed["kl"] > 0
    assert [len(batch) for batch in task.float_logits] == [20, 20, 10]
    # Measured as the float one, it is compared with nothing, and is what later ones are compared with.
    assert measured(task, network, is_float=True).keys() == {"top1", "top5"}
    assert measured(task, network)["kl"] == 0


def test_other_images_than_those_of_the_float_network_are_refused() -> None:
    task, network = Classification(), embedded_network("vit_digits")
    measured(task, network, is_float=True)
    with pytest.raises(IsvitError, match="measured on other images: a batch of 10 instead of 15, expected the same"):
        measured(task, network, images=55)


def several_processes(images: torch.Tensor) -> list[dict[str, float]]:
    """Distances of two networks, measured by all processes together."""

    def make_trainer() -> Trainer:
        return quiet_trainer(**({"devices": world_size(), "strategy": UnitStrategy()} if world_size() > 1 else {}))

    network = embedded_network("vit_digits")
    distance = Classification().distance(network, images, 4, make_trainer)
    found = [distance(network)]
    with torch.no_grad():
        network.head.weight.mul_(0.5)
    return [*found, distance(network)]


def test_the_distance_on_given_images_is_that_of_all_of_them() -> None:
    """Seven images, which two processes cannot share evenly."""
    images, network = digit_images("train")[0][:7], embedded_network("vit_digits")
    expected = several_processes(images)
    assert expected[0] == {"agreement": 100.0, "kl": 0.0}
    with torch.no_grad():
        wanted = network(images)
        found = wanted - 0.5 * network.head(network.forward_head(network.forward_features(images), pre_logits=True))
        found += 0.5 * network.head.bias
    assert expected[1]["kl"] == pytest.approx(float(divergence(wanted, found).mean()), abs=2e-6)
    for each in in_processes(several_processes, 2, images):
        assert each == [{name: pytest.approx(value, abs=2e-6) for name, value in one.items()} for one in expected]


def test_other_classes_than_those_of_the_images_are_refused() -> None:
    network, trainer = embedded_network("vit_digits"), quiet_trainer()
    for classes in (9, 11):
        data: Any = SimpleNamespace(num_classes=classes)
        with pytest.raises(IsvitError, match=rf"have {classes} classes but the network has 10, expected as many"):
            Classification().measure(network, data, trainer)


def test_a_run_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IsvitError, match="does not exist"):
        Classification().load(tmp_path)
