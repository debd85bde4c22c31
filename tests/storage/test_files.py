"""A crash leaves the old file or the new one, and no damage to a file shows as anything but a sentence."""

import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isvit_lightning.errors import IsvitError
from isvit_lightning.storage.files import read_tensors, write_atomically, write_json, write_tensors

TENSORS = {
    "words": torch.arange(-6, 6, dtype=torch.int32).view(3, 4),
    "scale": torch.tensor(0.25),
    "half": torch.randn(2, 3).half(),
    "transposed": torch.arange(6.0).view(2, 3).t(),
    "nothing": torch.empty(0, 4),
}
METADATA: dict[str, Any] = {"format": "test-1", "bits": {"weight": 3}, "names": ["ä", "b"], "nothing": None}


def test_content_and_folders_are_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deeper" / "file.bin"
    write_atomically(path, b"content")
    assert path.read_bytes() == b"content"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("broken", ["fsync", "replace", "open"])
def test_a_failed_write_leaves_the_old_file(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    write_atomically(path, b"old")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    if broken == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, broken, fail)
    with pytest.raises(IsvitError, match=r"No space left on device; expected .*trainer\.default_root_dir") as caught:
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of file sizes there")
@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_tensors(path, {"words": torch.zeros(100_000)}, METADATA),
        lambda path: write_atomically(path, bytes(400_000)),
    ],
    ids=["tensors", "bytes"],
)
def test_a_refusal_of_the_kernel_leaves_the_old_file(write: Callable[[Path], None], tmp_path: Path) -> None:
    import resource

    path = tmp_path / "quantized.safetensors"
    write_tensors(path, TENSORS, METADATA)
    old = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(IsvitError, match=rf"Cannot write {path}: .*File too large.*; .*default_root_dir"):
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["quantized.safetensors"]


@pytest.mark.skipif(sys.platform == "win32", reason="no umask there")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_follow_the_umask(mask: int, mode: int, tmp_path: Path) -> None:
    """Also over an old file, and over what a killed run left of a new one."""
    for name in ("quantized.safetensors", "quantized.safetensors.part"):
        (tmp_path / name).touch(mode=0o600)
    before = os.umask(mask)
    try:
        write_tensors(tmp_path / "quantized.safetensors", TENSORS, METADATA)
        write_json(tmp_path / "results.json", {})
        write_atomically(tmp_path / "config.yaml", b"")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("quantized.safetensors", "results.json", "config.yaml"), mode)


def test_a_folder_that_is_a_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(IsvitError, match=r"trainer\.default_root_dir"):
        write_atomically(tmp_path / "run" / "config.yaml", b"content")


def test_json_reads_back(tmp_path: Path) -> None:
    content = {"a": [1, 2.5, None], "b": {"c": "ä"}}
    write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text()) == content


def test_tensors_and_metadata_read_back(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS, METADATA)
    tensors, metadata = read_tensors(path)
    assert metadata == METADATA
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_a_missing_file_names_the_option(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(IsvitError, match=r"does not exist; expected .*--ckpt_path"):
            read_tensors(path)


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("intact") / "a.safetensors"
    write_tensors(path, TENSORS, METADATA)
    return path.read_bytes()


def truncated(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def bit_flipped(content: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def garbage(content: bytes, draw: random.Random) -> bytes:
    return draw.randbytes(draw.randrange(200))


def garbage_behind_a_plausible_length(content: bytes, draw: random.Random) -> bytes:
    return (40).to_bytes(8, "little") + draw.randbytes(100)


def only_json(content: bytes, draw: random.Random) -> bytes:
    header = draw.choice([b"{}", b"[]", b"null", b'{"a": 1}', b'{"__metadata__": {"format": "{"}}'])
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize("damage", [truncated, bit_flipped, garbage, garbage_behind_a_plausible_length, only_json])
def test_damage_is_a_sentence_or_harmless(
    damage: Callable[[bytes, random.Random], bytes], intact: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "a.safetensors"

    @given(st.randoms(use_true_random=False))
    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    def check(draw: random.Random) -> None:
        path.write_bytes(damage(intact, draw))
        try:
            tensors, metadata = read_tensors(path)
        except IsvitError as error:
            assert "--ckpt_path" in str(error)
        else:
            assert isinstance(tensors, dict)
            assert isinstance(metadata, dict)
            assert damage is not truncated

    check()
