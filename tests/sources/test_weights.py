"""What is in a file of weights, and which of them are taken."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from isvit_lightning.errors import IsvitError
from isvit_lightning.sources.weights import prefixes, read_weights

PLAIN, SMOOTH = {"a.weight": torch.zeros(2), "b": torch.zeros(3)}, {"a.weight": torch.ones(2), "b": torch.ones(3)}
OPTIONS = argparse.Namespace(lr=0.1, data=argparse.Namespace(size=224))


def stored(folder: Path, content: object) -> Path:
    torch.save(content, folder / "w.pt")
    return folder / "w.pt"


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"state_dict": PLAIN, "state_dict_ema": SMOOTH}, "state_dict_ema"),
        ({"model": PLAIN, "model_ema": SMOOTH}, "model_ema"),
        ({"model": PLAIN, "model_ema": PLAIN, "state_dict": PLAIN, "state_dict_ema": SMOOTH}, "state_dict_ema"),
        ({"model": PLAIN, "state_dict": SMOOTH}, "state_dict"),
        ({"model": PLAIN, "state_dict": PLAIN, "model_ema": SMOOTH}, "model_ema"),
        ({"state_dict": SMOOTH, "state_dict_ema": None}, "state_dict"),
        ({"model": SMOOTH, "ema": {"module": PLAIN, "updates": 3}}, "model"),
        ({"model": "vit", **SMOOTH, "epoch": 3}, ""),
        ({"module": SMOOTH, "ds_config": {}}, ""),
    ],
)
def test_the_same_weights_as_timms_are_taken(content: dict[str, Any], key: str, tmp_path: Path) -> None:
    found = read_weights(stored(tmp_path, content))
    assert found.key == key
    assert found.tensors.keys() == SMOOTH.keys()
    assert all(tensor.eq(1).all() for tensor in found.tensors.values())


@pytest.mark.parametrize("key", ["ema", "ema.module"])
def test_a_key_names_what_is_taken(key: str, tmp_path: Path) -> None:
    path = stored(tmp_path, {"model": PLAIN, "ema": {"module": SMOOTH, "updates": 3}})
    found = read_weights(path, key=key)
    assert found.tensors["b"].eq(1).all()
    assert found.others == ("model",)


def test_a_key_that_names_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        IsvitError, match=r"no weights under ema, .* tensors, which are model and old: set .*_key to whe"
    ):
        read_weights(stored(tmp_path, {"model": PLAIN, "old": SMOOTH}), key="ema")


def test_others_are_those_of_the_same_names(tmp_path: Path) -> None:
    optimizer = torch.optim.AdamW(nn.Linear(2, 3).parameters()).state_dict()
    content = {"state_dict_ema": SMOOTH, "state_dict": PLAIN, "optimizer": optimizer, "scores": {"best": torch.ones(1)}}
    assert read_weights(stored(tmp_path, content)).others == ("state_dict",)


def test_the_averages_of_torch(tmp_path: Path) -> None:
    averaged = AveragedModel(nn.Linear(2, 3))
    found = read_weights(stored(tmp_path, {"model": {}, "model_ema": averaged.state_dict()}))
    assert found.tensors.keys() == {"weight", "bias"}


def test_the_options_of_timms_training_need_no_trust(tmp_path: Path) -> None:
    path = stored(tmp_path, {"state_dict": SMOOTH, "args": OPTIONS, "amp_scaler": {"scale": 1.0}, "metric": 71.2})
    assert read_weights(path).tensors["b"].eq(1).all()


@pytest.mark.parametrize("zipped", [True, False])
def test_other_types_are_named_and_need_trust(zipped: bool, tmp_path: Path) -> None:
    path, content = tmp_path / "w.pt", {"state_dict": SMOOTH, "args": OPTIONS, "folder": Path("x")}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(IsvitError) as refusal:
        read_weights(path)
    type_name = f"{type(Path()).__module__}.{type(Path()).__name__}"
    assert str(refusal.value) == (
        f"{path} holds more than tensors ({type_name}), expected tensors and plain values: set "
        "model.network.trust_checkpoint to true if you trust its source, as reading it may run code, or change "
        "model.network.checkpoint."
    )
    assert read_weights(path, trusted=True).tensors["b"].eq(1).all()


@pytest.mark.parametrize("place", ["alone", "inside"])
def test_a_whole_network_needs_trust(place: str, tmp_path: Path) -> None:
    model = nn.Linear(2, 3)
    path = stored(tmp_path, model if place == "alone" else {"model": model})
    with pytest.raises(IsvitError, match=r"more than tensors \(torch.nn.modules.linear.Linear\), .*trust_checkpoint"):
        read_weights(path)
    assert torch.equal(read_weights(path, trusted=True).tensors["bias"], model.bias)


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip", "ignore:.*is deprecated")
def test_a_program_of_torch_needs_trust(tmp_path: Path) -> None:
    model = nn.Linear(2, 3)
    torch.jit.trace(model, torch.ones(1, 2)).save(tmp_path / "w.pt")
    with pytest.raises(IsvitError, match=r"more than tensors \(a TorchScript program\), .*trust_checkpoint"):
        read_weights(tmp_path / "w.pt")
    assert torch.equal(read_weights(tmp_path / "w.pt", trusted=True).tensors["bias"], model.bias)


def test_safetensors_by_another_ending(tmp_path: Path) -> None:
    save_file(SMOOTH, tmp_path / "w.pt")
    assert read_weights(tmp_path / "w.pt").tensors["b"].eq(1).all()


def test_names_that_would_become_one_stay(tmp_path: Path) -> None:
    path = stored(tmp_path, {"module": {"a": torch.ones(1)}, "a": torch.zeros(1)})
    assert read_weights(path).tensors.keys() == {"module.a", "a"}


def test_a_content_that_holds_itself(tmp_path: Path) -> None:
    content: dict[str, Any] = {"a": {}}
    content["a"]["b"] = content
    with pytest.raises(IsvitError, match=r"cannot be read as weights .*: change model.network.checkpoint.$"):
        read_weights(stored(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"hello", "KeyError"), (b"PK\x03\x04", "[\\w: ]+"), (b"", "EOFError"), (b"\x80\x04\x95", "[\\w ]+")],
)
def test_the_reason_is_one_short_clause(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(IsvitError, match=rf"w.pt cannot be read as weights \({reason}\), expected"):
        read_weights(tmp_path / "w.pt")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(
        IsvitError, match=r" is a folder, expected a .safetensors or torch file: change model.network.ch"
    ):
        read_weights(tmp_path)


def test_prefixes_are_counted() -> None:
    names = ["m.a.weight", "m.b", "a.weight", "m.c"]
    assert prefixes(names, SMOOTH) == {"m": 2, "": 1}
