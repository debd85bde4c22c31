"""Forms on evaluation images: classes kept, batches filled up, failures told."""

import torch
from torch import nn

from isvit_lightning.run.benchmark.forms import Form
from isvit_lightning.run.benchmark.parity import Recorder


class Sums(nn.Module):
    """Logits: the image's number in two classes, and how many images came together."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, torch.dtype]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append((len(images), images.dtype))
        value = images.flatten(1).mean(1)
        return torch.stack([value, -value], dim=1)


def test_images_come_in_the_type_that_the_form_reads_and_logits_leave_in_float32() -> None:
    network = Sums()
    recorder = Recorder(Form("A", "a", lambda _: network, dtype=torch.float64), 1, 2, 4)
    images = torch.tensor([1.0, -1.0, 2.0]).view(3, 1, 1, 1)
    logits = recorder(images)
    assert logits.dtype == torch.float32
    assert logits[:, 0].tolist() == [1.0, -1.0, 2.0]
    assert network.seen == [(3, torch.float64)]
    assert torch.cat(recorder.classes).tolist() == [0, 1, 0]


def test_small_batches_of_a_compiled_form_are_filled_up() -> None:
    network = Sums()
    recorder = Recorder(Form("A", "a", lambda _: network, is_fixed=True), 1, 2, 4)
    whole, small = torch.randn(4, 3, 2, 2), torch.randn(1, 3, 2, 2)
    logits = [recorder(images) for images in (whole, small)]
    assert [count for count, _ in network.seen] == [4, 4]
    assert [len(each) for each in logits] == [4, 1]
    torch.testing.assert_close(logits[1][:, 0], small.mean((1, 2, 3)))


def test_a_trainer_does_not_move_the_network() -> None:
    network = nn.Linear(1, 1)
    recorder = Recorder(Form("A", "a", lambda _: network), 1, 2, 4)
    assert list(recorder.parameters()) == []
    recorder.double()
    assert network.weight.dtype == torch.float32
