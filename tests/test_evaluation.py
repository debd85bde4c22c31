"""Accuracies count images, whatever the classes are; distances to the float network are those of a slow reference."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from isvit_lightning.classifier import rounded
from isvit_lightning.errors import IsvitError
from isvit_lightning.evaluation import Evaluator, divergence
from isvit_lightning.run.strategy import UnitStrategy
from isvit_lightning.system.processes import rank, world_size
from tests.helpers import quiet_trainer
from tests.several import in_processes


def figures(evaluator: Evaluator, logits: torch.Tensor, labels: list[int], batch_size: int = 3) -> dict[str, float]:
    """What the trainer's test gives for a network that returns its input."""
    data = DataLoader(TensorDataset(logits, torch.tensor(labels)), batch_size=batch_size)
    return dict(quiet_trainer().test(evaluator, data, verbose=False)[0])


def accuracies(logits: torch.Tensor, labels: list[int], batch_size: int = 3) -> dict[str, float]:
    """Top-1 and top-5 of a network that returns its input."""
    return rounded(figures(Evaluator(nn.Identity(), logits.shape[1]), logits, labels, batch_size))


def one_hot(classes: list[int], width: int) -> torch.Tensor:
    return torch.eye(width)[classes]


def slow_divergence(wanted: list[float], given: list[float]) -> float:
    """Sum of ``p log(p / q)`` in plain numbers."""
    p, q = ([math.exp(value - max(row)) for value in row] for row in (wanted, given))
    p, q = ([value / sum(row) for value in row] for row in (p, q))
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def slow_comparison(wanted: torch.Tensor, given: torch.Tensor) -> tuple[float, float]:
    """Agreement and divergence, image by image."""
    rows = list(zip(wanted.tolist(), given.tolist(), strict=True))
    agreeing = [a.index(max(a)) == b.index(max(b)) for a, b in rows]
    return sum(agreeing) / len(rows), math.fsum(slow_divergence(a, b) for a, b in rows) / len(rows)


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


@pytest.mark.parametrize("labeled", [True, False])
def test_predictions_are_probabilities(labeled: bool) -> None:
    logits = torch.randn(5, 4)
    data: Any = TensorDataset(logits, torch.zeros(5).long()) if labeled else TensorDataset(logits)
    batches = quiet_trainer().predict(Evaluator(nn.Identity(), 4), DataLoader(data, batch_size=2))
    assert batches is not None
    assert torch.allclose(torch.cat(batches), logits.softmax(dim=1))  # type: ignore[arg-type]


LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=4, max_size=4)


@given(st.lists(st.tuples(LOGITS, LOGITS), min_size=1, max_size=3))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_the_divergence_is_that_of_plain_numbers(rows: list[tuple[list[float], list[float]]]) -> None:
    wanted, given_logits = (torch.tensor([row[side] for row in rows]) for side in (0, 1))
    found = divergence(wanted.double(), given_logits.double())
    expected = [slow_divergence(*row) for row in rows]
    assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert divergence(wanted, given_logits).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert bool((found > -1e-12).all())


def test_the_divergence_of_equal_logits_is_zero_and_has_a_direction() -> None:
    a, b = torch.randn(3, 5), torch.randn(3, 5)
    assert divergence(a, a).tolist() == [0, 0, 0]
    assert torch.allclose(divergence(a, a + 7), torch.zeros(3), atol=1e-5)
    assert not torch.allclose(divergence(a, b), divergence(b, a), rtol=1e-2)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 11])
def test_the_distance_to_the_float_network(batch_size: int) -> None:
    wanted, logits, labels = torch.randn(11, 6), torch.randn(11, 6), torch.randint(6, (11,)).tolist()
    evaluator = Evaluator(nn.Identity(), 6, wanted.split(batch_size))
    found = figures(evaluator, logits, labels, batch_size)
    agreement, kl = slow_comparison(wanted, logits)
    assert found["agreement"] == pytest.approx(agreement)
    assert found["kl"] == pytest.approx(kl, rel=1e-5)
    assert {name: found[name] for name in ("top1", "top5")} == figures(
        Evaluator(nn.Identity(), 6), logits, labels, batch_size
    )
    assert evaluator.logits == []


def test_logits_are_kept_to_compare_with() -> None:
    logits = torch.randn(11, 6)
    evaluator = Evaluator(nn.Identity(), 6)
    figures(evaluator, logits, [0] * 11, batch_size=4)
    assert [len(batch) for batch in evaluator.logits] == [4, 4, 3]
    assert torch.equal(torch.cat(evaluator.logits), logits)
    found = figures(Evaluator(nn.Identity(), 6, evaluator.logits), logits, [0] * 11, batch_size=4)
    assert (found["agreement"], found["kl"]) == (1, 0)


def test_half_precision_is_measured_in_float32() -> None:
    wanted, logits = torch.randn(4, 6), torch.randn(4, 6).half()
    found = figures(Evaluator(nn.Identity(), 6, [wanted]), logits, [0] * 4, batch_size=4)
    assert found["kl"] == pytest.approx(slow_comparison(wanted, logits.float())[1], rel=1e-5)


def test_images_without_labels_are_only_compared() -> None:
    wanted, logits, labels = torch.randn(7, 6), torch.randn(7, 6), [-1] * 7
    assert figures(Evaluator(nn.Identity(), 6), logits, labels) == {}
    found = figures(Evaluator(nn.Identity(), 6, wanted.split(3)), logits, labels)
    agreement, kl = slow_comparison(wanted, logits)
    assert found == {"agreement": pytest.approx(agreement), "kl": pytest.approx(kl, rel=1e-5)}


def test_a_batch_of_another_size_is_refused() -> None:
    with pytest.raises(IsvitError, match="measured on other images: a batch of 2 instead of 3, expected the same"):
        figures(Evaluator(nn.Identity(), 6, torch.randn(6, 6).split(2)), torch.randn(6, 6), [0] * 6)


class _Share(Dataset[tuple[torch.Tensor, int]]):
    """The images of this process: every ``count``-th."""

    def __init__(self, logits: torch.Tensor, labels: list[int]) -> None:
        mine = range(rank(), len(labels), world_size())
        self.logits, self.labels = logits[list(mine)], [labels[index] for index in mine]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.logits[index], self.labels[index]


def several_processes(logits: torch.Tensor, wanted: torch.Tensor, labels: list[int]) -> list[dict[str, float]]:
    """Measured as the float network first, then compared with it, by all processes together."""
    found = []
    float_logits = None
    for values in (wanted, logits):
        evaluator = Evaluator(nn.Identity(), logits.shape[1], float_logits)
        data = DataLoader(_Share(values, labels), batch_size=2)
        options = {"devices": world_size(), "strategy": UnitStrategy()} if world_size() > 1 else {}
        found.append(dict(quiet_trainer(**options).test(evaluator, data, verbose=False)[0]))
        float_logits = float_logits or evaluator.logits
    return found


@pytest.mark.parametrize("labeled", [True, False])
def test_two_processes_measure_what_one_does(labeled: bool) -> None:
    """Seven images, which two processes cannot share evenly."""
    logits, wanted = torch.randn(7, 6), torch.randn(7, 6)
    labels = torch.randint(6, (7,)).tolist() if labeled else [-1] * 7
    expected = several_processes(logits, wanted, labels)
    agreement, kl = slow_comparison(wanted, logits)
    assert (expected[1]["agreement"], expected[1]["kl"]) == (pytest.approx(agreement), pytest.approx(kl, rel=1e-5))
    for each in in_processes(several_processes, 2, logits, wanted, labels):
        assert [metrics.keys() for metrics in each] == [metrics.keys() for metrics in expected]
        for metrics, alone in zip(each, expected, strict=True):
            assert metrics == {name: pytest.approx(value, rel=1e-5) for name, value in alone.items()}
