"""No verb of a trainer computes with a grid that nobody chose."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, TensorDataset

from isvit_lightning.callbacks import RequireCalibrated
from isvit_lightning.classifier import Evaluator
from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import open_quantized
from tests.helpers import DEFAULT_BITS, DEFAULT_METHOD, image_batch, quantized_network, quiet_trainer, tiny_vit

Verb = Callable[[Trainer, Evaluator, Any], Any]
VERB = pytest.mark.parametrize(
    "verb",
    [
        lambda trainer, model, data: trainer.test(model, data, verbose=False),
        lambda trainer, model, data: trainer.validate(model, data, verbose=False),
        lambda trainer, model, data: trainer.predict(model, data),
    ],
    ids=["test", "validate", "predict"],
)


def batches(images: torch.Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(images, torch.zeros(len(images), dtype=torch.long)), batch_size=2)


@VERB
def test_an_uncalibrated_network_is_refused(verb: Verb) -> None:
    network = open_quantized(tiny_vit(), DEFAULT_BITS, DEFAULT_METHOD).model
    with pytest.raises(IsvitError, match=r"quantizers are not calibrated, the first is .*--ckpt_path"):
        verb(quiet_trainer(RequireCalibrated()), Evaluator(network, 5), batches(image_batch(16, 4)))


@VERB
def test_one_uncalibrated_quantizer_is_enough_and_is_named(verb: Verb) -> None:
    images = image_batch(16, 4)
    network = quantized_network(tiny_vit(), images).model
    quantizer = network.blocks[1].mlp.fc2.input_quantizer
    quantizer.scale.fill_(torch.nan)
    quantizer.refresh()
    with pytest.raises(IsvitError, match=r"^1 quantizers .*blocks\.1\.mlp\.fc2\.input_quantizer"):
        verb(quiet_trainer(RequireCalibrated()), Evaluator(network, 5), batches(images))


@VERB
def test_a_calibrated_or_float_network_passes(verb: Verb) -> None:
    images = image_batch(16, 4)
    for network in (quantized_network(tiny_vit(), images).model, tiny_vit()):
        assert verb(quiet_trainer(RequireCalibrated()), Evaluator(network, 5), batches(images))
