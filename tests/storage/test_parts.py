"""Finished parts survive; damaged ones and those of another run are not used."""

from pathlib import Path

import pytest
import torch

from isvit_lightning.storage.parts import Parts, differences, run_hash

STATE = {"weight": torch.randn(3, 4), "scale": torch.tensor(0.25), "steps": torch.arange(3)}


def test_a_part_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state = {**STATE, "unset": torch.tensor(torch.nan)}
    Parts(tmp_path, "run").write("stage1-007", state, seconds=1.5)
    parts = Parts(tmp_path, "run")
    read = parts.read("stage1-007")
    assert read is not None
    assert read.tensors.keys() == {*STATE, "unset"}
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in STATE.items())
    assert bool(read.tensors["unset"].isnan())
    assert read.description == {}
    assert parts.seconds() == {"stage1": 1.5}


def test_a_description_comes_back(tmp_path: Path) -> None:
    description = {"blocks.0": {"bits": 3, "format": {"type": "Uniform"}}, "none": None, "list": [1, 2.5]}
    Parts(tmp_path, "run").write("fold", STATE, description=description)
    read = Parts(tmp_path, "run").read("fold")
    assert read is not None
    assert read.description == description


def test_seconds_are_summed_by_step(tmp_path: Path) -> None:
    parts = Parts(tmp_path, "run")
    named = {"stage1-start": 1.0, "stage1-000": 2.0, "stage1-123": 4.0, "stage2": 8.0, "two-parts": 16.0}
    for name, seconds in {**named, "two-parts-007": 32.0, "two-parts-start": 64.0, "start": 128.0}.items():
        parts.write(name, STATE, seconds)
    Parts(tmp_path, "other").write("stage3", STATE, seconds=1.0)
    assert parts.seconds() == {"stage1": 7.0, "stage2": 8.0, "two-parts": 112.0, "start": 128.0}
    assert Parts(tmp_path / "nowhere", "run").seconds() == {}


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    assert Parts(tmp_path / "nowhere", "run").read("stage1-000") is None


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "renamed"])
def test_a_damaged_part_is_noticed(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    parts = Parts(tmp_path, "run")
    parts.write("stage3-000", STATE, seconds=1.0)
    path = tmp_path / "stage3-000.safetensors"
    content = path.read_bytes()
    if damage == "renamed":
        path = path.rename(tmp_path / "stage3-001.safetensors")
    else:
        changed = {"cut": content[:-5], "flipped": content[:-1] + bytes([content[-1] ^ 1]), "emptied": b""}
        path.write_bytes(changed[damage])
    assert parts.read(path.stem) is None
    assert "is damaged" in caplog.text
    # Headers tell of time; those of damaged tensors are whole. What was done again counts once.
    assert parts.seconds() == ({"stage3": 1.0} if damage == "flipped" else {})
    parts.write(path.stem, STATE, seconds=2.0)
    assert parts.read(path.stem) is not None
    assert parts.seconds() == {"stage3": 2.0}


def test_a_half_written_part_leaves_the_one_before(tmp_path: Path) -> None:
    parts = Parts(tmp_path, "run")
    parts.write("stage2", STATE)
    (tmp_path / "stage2.safetensors.part").write_bytes(b"half")
    assert parts.read("stage2") is not None


def test_a_part_of_another_run_is_not_used(tmp_path: Path) -> None:
    Parts(tmp_path, "run").write("stage2", STATE)
    assert Parts(tmp_path, "other").read("stage2") is None


def test_units_that_were_rolled_back_stand_in_the_files(tmp_path: Path) -> None:
    parts = Parts(tmp_path, "run")
    for part, name in (
        ("stage1-010", "head"),
        ("stage1-002", "blocks.1"),
        ("stage1-003", None),
        ("stage3-000", "stem"),
    ):
        parts.write(part, STATE, rolled_back=name)
    Parts(tmp_path, "other").write("stage3-001", STATE, rolled_back="of another run")
    (tmp_path / "stage3-002.safetensors").write_bytes(b"damaged")
    assert parts.rolled_back() == {"stage1": ["blocks.1", "head"], "stage3": ["stem"]}


def test_clear_removes_everything(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "checkpoints", "run")
    parts.write("stage2", STATE)
    parts.clear()
    assert not parts.directory.exists()
    parts.clear()


def test_differences_name_each_option() -> None:
    old = {"model": {"bits": {"weight": 3, "activation": 3}, "mean": (0.5, 0.5)}, "seed": 0}
    new = {"model": {"bits": {"weight": 4, "activation": 3}, "mean": [0.5, 0.5]}, "precision": "32-true"}
    assert differences(old, new) == 'model.bits.weight: 3 → 4; precision: none → "32-true"; seed: 0 → none'
    assert differences(old, old) == ""
    assert run_hash(old) != run_hash(new)
    assert run_hash(old) == run_hash({**old, "model": {**old["model"], "mean": [0.5, 0.5]}})
