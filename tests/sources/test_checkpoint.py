"""Weights from files that somebody damaged, or made to do harm."""

import io
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
    with pytest.raises(IsvitError, match=r"cannot be read as weights .*model\.network\.checkpoint"):
        load_checkpoint(network(), path, "tiny")
    assert not trace.exists()
    if form == "pickle" and place == "alone":
        pickle.loads(path.read_bytes())
        assert trace.exists(), "the payload is one"


@pytest.mark.parametrize(
    "value", [torch.zeros(4, 3).to_sparse(), torch.zeros(4, 3, dtype=torch.complex64), torch.zeros(4, 3, device="meta")]
)
def test_tensors_of_odd_kinds_are_sentences(value: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(torch_file({**network().state_dict(), "0.weight": value}))
    with pytest.raises(IsvitError, match=r"(0\.weight is no dense tensor|cannot be read).*model\.network\.checkpoint"):
        load_checkpoint(network(), path, "tiny")
