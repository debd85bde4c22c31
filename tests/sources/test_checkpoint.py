"""Weights from files that somebody wrote in one of many ways, damaged, or made to do harm."""

import io
import logging
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.sources.checkpoint import load_checkpoint


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))


def torch_file(content: object, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


FILES = {
    "new.pt": torch_file(network().state_dict()),
    "old.pt": torch_file(network().state_dict(), zipped=False),
    "w.safetensors": save(network().state_dict()),
}


def truncated(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def flipped(content: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def overwritten(content: bytes, draw: random.Random) -> bytes:
    start, length = draw.randrange(len(content)), draw.randint(1, 40)
    return content[:start] + draw.randbytes(length) + content[start + length :]


def moved(content: bytes, draw: random.Random) -> bytes:
    start, length, target = (draw.randrange(len(content)) for _ in range(3))
    return content[:target] + content[start : start + length] + content[target:]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [truncated, flipped, overwritten, moved])
def test_damage_is_a_sentence_or_harmless(
    name: str, damage: Callable[[bytes, random.Random], bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damaged") / name

    @given(st.randoms(use_true_random=False))
    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    def check(draw: random.Random) -> None:
        path.write_bytes(damage(FILES[name], draw))
        try:
            load_checkpoint(network(), path, "tiny")
        except IsvitError as error:
            assert "model.network.checkpoint" in str(error)
            assert "\n" not in str(error)

    check()


class Payload:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["zip", "old", "pickle"])
@pytest.mark.parametrize("place", ["alone", "beside"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
def test_a_payload_is_refused_and_does_not_run(form: str, place: str, suffix: str, tmp_path: Path) -> None:
    trace, path = tmp_path / "ran", tmp_path / f"weights{suffix}"
    content: object = Payload(trace)
    if place == "beside":
        content = {"state_dict": network().state_dict(), "epoch": content}
    path.write_bytes(pickle.dumps(content) if form == "pickle" else torch_file(content, zipped=form == "zip"))
    with pytest.raises(IsvitError, match=r"(cannot be read|holds more than tensors) .*model\.network\.checkpoint"):
        load_checkpoint(network(), path, "tiny")
    assert not trace.exists()
    if form == "pickle" and place == "alone":
        pickle.loads(path.read_bytes())
        assert trace.exists(), "the payload is one"


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(4, 3).to_sparse(),
        torch.zeros(4, 3, dtype=torch.complex64),
        torch.zeros(4, 3, device="meta"),
        torch.zeros(4, 3, dtype=torch.int8),
        torch.zeros(4, 3, dtype=torch.bool),
    ],
)
def test_tensors_of_odd_kinds_are_sentences(value: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(torch_file({**network().state_dict(), "0.weight": value}))
    with pytest.raises(IsvitError, match=r"(0\.weight is no dense tensor|cannot be read).*model\.network\.checkpoint"):
        load_checkpoint(network(), path, "tiny")


def named(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


def assert_loads(path: Path, weights: nn.Module, **options: str) -> None:
    """``path`` gives a network with the outputs of ``weights``, bit for bit."""
    model, inputs = network(), torch.randn(2, 3)
    load_checkpoint(model, path, "tiny", key=options.get("key"))
    assert torch.equal(model(inputs), weights(inputs))


PREFIXES = [
    "model.",
    "_orig_mod.",
    "module.",
    "net.",
    "backbone.",
    "encoder.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model._orig_mod.backbone.",
]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_common_prefix_is_left_out(prefix: str, suffix: str, tmp_path: Path) -> None:
    trained, path = network(), tmp_path / f"w{suffix}"
    state = named(trained.state_dict(), prefix)
    path.write_bytes(save(state) if suffix == ".safetensors" else torch_file(state))
    assert_loads(path, trained)


def test_a_compiled_part_is_left_out_of_the_names(tmp_path: Path) -> None:
    trained, path = network(), tmp_path / "w.pt"
    path.write_bytes(torch_file({key.replace("0.", "0._orig_mod."): v for key, v in trained.state_dict().items()}))
    assert_loads(path, trained)


def test_a_prefix_is_named_where_not_everything_fits_without_it(tmp_path: Path) -> None:
    path, state = tmp_path / "w.ckpt", network().state_dict()
    path.write_bytes(
        torch_file({"state_dict": named({"0.weight": state["0.weight"], "1.bias": state["1.bias"]}, "m.")})
    )
    with pytest.raises(
        IsvitError, match=r"these arguments: without the prefix m\. 0\.bias is missing, first of 2 diff"
    ):
        load_checkpoint(network(), path, "tiny")


def test_weights_beside_the_network_are_refused_unless_it_is_named(tmp_path: Path) -> None:
    trained, path = network(), tmp_path / "w.ckpt"
    path.write_bytes(
        torch_file({"state_dict": {**named(trained.state_dict(), "model."), "loss.weight": torch.ones(2)}})
    )
    sentence = r"without the prefix model\. loss\.weight is unexpected.*: set .*checkpoint_key to state_dict\.model\.$"
    with pytest.raises(IsvitError, match=sentence):
        load_checkpoint(network(), path, "tiny")
    assert_loads(path, trained, key="state_dict.model")


def test_several_sets_of_weights_are_refused_unless_one_is_named(tmp_path: Path) -> None:
    student, teacher, path = network(), network(), tmp_path / "w.pt"
    content = {"student": named(student.state_dict(), "module.backbone."), "teacher": teacher.state_dict(), "epoch": 3}
    path.write_bytes(torch_file(content))
    with pytest.raises(
        IsvitError, match=r"several sets of weights for tiny, under student\.backbone and teacher, .*key"
    ):
        load_checkpoint(network(), path, "tiny")
    assert_loads(path, student, key="student.backbone")
    assert_loads(path, teacher, key="teacher")


def test_one_log_line_says_which_weights_are_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain, smooth, path = network(), network(), tmp_path / "w.pt"
    path.write_bytes(torch_file({"state_dict": plain.state_dict(), "state_dict_ema": smooth.state_dict()}))
    with caplog.at_level(logging.INFO, "isvit_lightning"):
        assert_loads(path, smooth)
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(f"{path}: the weights under state_dict_ema are taken, not those under state_dict: model.net")
