"""Finished parts survive; damaged ones and those of another run are not used."""

from pathlib import Path

import pytest
import torch

from isvit_lightning.storage.parts import Checkpoints, differences, run_hash

STATE = {"weight": torch.randn(3, 4), "scale": torch.tensor(0.25), "steps": torch.arange(3)}


def test_a_part_comes_back_bit_for_bit(tmp_path: Path) -> None:
    Checkpoints(tmp_path, "run").write("stage1-007", {**STATE, "unset": torch.tensor(torch.nan)}, seconds=1.5)
    checkpoints = Checkpoints(tmp_path, "run")
    read = checkpoints.read("stage1-007")
    assert read is not None
    assert read.keys() == {*STATE, "unset"}
    assert all(torch.equal(read[name], tensor) for name, tensor in STATE.items())
    assert bool(read["unset"].isnan())
    assert checkpoints.seconds == {"stage1": 1.5}


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "nowhere", "run").read("stage1-000") is None


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "renamed"])
def test_a_damaged_part_is_noticed(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path, "run")
    checkpoints.write("stage3-000", STATE)
    path = tmp_path / "stage3-000.safetensors"
    content = path.read_bytes()
    if damage == "renamed":
        path = path.rename(tmp_path / "stage3-001.safetensors")
    else:
        changed = {"cut": content[:-5], "flipped": content[:-1] + bytes([content[-1] ^ 1]), "emptied": b""}
        path.write_bytes(changed[damage])
    assert checkpoints.read(path.stem) is None
    assert "is damaged" in caplog.text
    assert checkpoints.seconds == {}


def test_a_half_written_part_leaves_the_one_before(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "run")
    checkpoints.write("stage2", STATE)
    (tmp_path / "stage2.safetensors.part").write_bytes(b"half")
    assert checkpoints.read("stage2") is not None


def test_a_part_of_another_run_is_not_used(tmp_path: Path) -> None:
    Checkpoints(tmp_path, "run").write("stage2", STATE)
    assert Checkpoints(tmp_path, "other").read("stage2") is None


def test_units_that_were_rolled_back_stand_in_the_files(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "run")
    for part, name in (
        ("stage1-010", "head"),
        ("stage1-002", "blocks.1"),
        ("stage1-003", None),
        ("stage3-000", "stem"),
    ):
        checkpoints.write(part, STATE, rolled_back=name)
    Checkpoints(tmp_path, "other").write("stage3-001", STATE, rolled_back="of another run")
    (tmp_path / "stage3-002.safetensors").write_bytes(b"damaged")
    assert checkpoints.rolled_back() == {"stage1": ["blocks.1", "head"], "stage3": ["stem"]}


def test_clear_removes_everything(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", "run")
    checkpoints.write("stage2", STATE)
    checkpoints.clear()
    assert not checkpoints.directory.exists()
    checkpoints.clear()


def test_differences_name_each_option() -> None:
    old = {"model": {"bits": {"weight": 3, "activation": 3}, "mean": (0.5, 0.5)}, "seed": 0}
    new = {"model": {"bits": {"weight": 4, "activation": 3}, "mean": [0.5, 0.5]}, "precision": "32-true"}
    assert differences(old, new) == ["model.bits.weight: 3 → 4", 'precision: none → "32-true"', "seed: 0 → none"]
    assert differences(old, old) == []
    assert run_hash(old) != run_hash(new)
    assert run_hash(old) == run_hash({**old, "model": {**old["model"], "mean": [0.5, 0.5]}})
