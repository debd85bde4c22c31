"""Writing files so that a crash leaves the old one or the new one, never half of one."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from isvit_lightning.errors import IsvitError, first_line

_METADATA = "isvit"


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` beside ``path``, flush it to the disk, rename it, and flush the folder too.

    Raises:
        IsvitError: the disk is full or the folder cannot be written.
    """
    with _replaced(path, len(content)) as part:
        part.write_bytes(content)


@contextlib.contextmanager
def _replaced(path: Path, size: int) -> Iterator[Path]:
    """A file to write beside ``path``, which takes its place when it is whole.

    Args:
        path: file to replace.
        size: bytes that it will take, for messages.

    Raises:
        IsvitError: the disk is full or the folder cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        part.touch()
        allowed = part.stat().st_mode  # as the umask has it, whatever a library makes of it
        yield part
        if part.stat().st_mode != allowed:
            part.chmod(allowed)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
        _flush_folder(path.parent)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            part.unlink()
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        raise IsvitError(
            f"Cannot write {path}: {reason}; expected a writable folder with {size} bytes free: free some or set "
            "trainer.default_root_dir elsewhere."
        ) from error


def _flush_folder(folder: Path) -> None:
    """Put the name of a new file on the disk, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as indented JSON, atomically."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a safetensors file whose header carries ``metadata`` as one JSON text.

    One text, because safetensors writes several in random order: equal networks give equal bytes.
    """
    header = {_METADATA: json.dumps(metadata, sort_keys=True)}
    dense = {key: value.contiguous().cpu() for key, value in tensors.items()}
    with _replaced(path, sum(value.nbytes for value in dense.values())) as part:
        save_file(dense, part, header)


def read_metadata(path: Path) -> dict[str, Any]:
    """Metadata of a file of :func:`write_tensors`, without its tensors; nothing where the file is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(json.loads((file.metadata() or {}).get(_METADATA, "{}")))
    except (SafetensorError, OSError, ValueError, TypeError):
        return {}


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and metadata of a file of :func:`write_tensors`. Nothing in the file is executed.

    Raises:
        IsvitError: the file is missing, damaged or of another kind.
    """
    if not path.is_file():
        raise IsvitError(f"{path} does not exist; expected a file of a finished run: check --ckpt_path.")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - a file is no mapping
        return tensors, dict(header)
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise IsvitError(
            f"{path} is damaged or no file of this program ({error}); expected a quantized.safetensors of a finished "
            "run: check --ckpt_path."
        ) from error
