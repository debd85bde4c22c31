"""The forms of PyTorch."""

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import nn

from isvit_lightning import calibrate
from isvit_lightning.run.benchmark import pytorch
from isvit_lightning.run.benchmark.forms import Absent, Form, Subject
from isvit_lightning.run.benchmark.pytorch import PyTorch, compiled, weight_bytes
from tests.helpers import image_batch, tiny_vit

CPU = torch.device("cpu")


@pytest.fixture(scope="module", name="subject")
def a_subject() -> Subject:
    torch.manual_seed(0)
    network = tiny_vit()
    return Subject(calibrate(network, image_batch(), bits=4, recipe="round_to_nearest"), network, (3, 16, 16), 1000)


def forms_by_name(subject: Subject) -> dict[str, Form | Absent]:
    return {form.name: form for form in PyTorch(subject, CPU).forms()}


def test_forms_compute_what_they_are_named_after(subject: Subject) -> None:
    forms, images = forms_by_name(subject), image_batch()
    assert list(forms) == [
        "float, eager",
        "float, compiled",
        "simulated, eager",
        "simulated, float64",
        "integer, eager",
        "integer, compiled",
    ]
    logits = {}
    with torch.inference_mode():
        for name in ("float, eager", "simulated, eager", "simulated, float64", "integer, eager"):
            form = cast("Form", forms[name])
            logits[name] = form.make(1)(form.placed(images))
        torch.testing.assert_close(logits["float, eager"], cast("nn.Module", subject.float_network)(images))
        torch.testing.assert_close(logits["simulated, eager"], subject.simulated(images))
    assert logits["simulated, float64"].dtype == torch.float64
    assert not torch.equal(logits["simulated, eager"], logits["float, eager"])


def test_the_networks_of_a_subject_are_left_as_they_are(subject: Subject) -> None:
    network = cast("nn.Module", subject.float_network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    forms_by_name(subject)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert next(network.parameters()).requires_grad
    assert next(subject.simulated.parameters()).dtype == torch.float32


def test_references_are_not_timed(subject: Subject) -> None:
    references = [cast("Form", form) for form in PyTorch(subject, CPU).references()]
    assert [form.name for form in references] == ["float, eager", "simulated, eager", "simulated, float64"]
    assert not any(form.is_timed for form in references)


def test_a_part_is_timed_and_the_whole_is_measured(subject: Subject) -> None:
    part: Callable[[nn.Module], nn.Module] = lambda network: getattr(network, "model", network).patch_embed  # noqa: E731
    forms = {form.name: form for form in PyTorch(replace(subject, part=part), CPU).forms()}
    assert "simulated, float64" not in forms
    simulated = cast("Form", forms["simulated, eager"])
    assert simulated.make(1)(image_batch()).shape == (3, 4, 16)
    assert cast("nn.Module", simulated.whole)(image_batch()).shape == (3, 5)


def test_no_compiler_is_a_row(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytorch, "missing_compiler", lambda device: "there is no C++ compiler c")
    row = compiled(Form("PyTorch", "float, eager", lambda _: nn.Identity()))
    assert isinstance(row, Absent)
    assert row.name == "float, compiled"
    assert row.reason.startswith("It cannot be compiled: there is no C++ compiler c, expected one")


def test_memory_counts_shared_tensors_once() -> None:
    layer = nn.Linear(3, 2)
    assert weight_bytes(nn.Sequential(layer, layer)) == 4 * 8
