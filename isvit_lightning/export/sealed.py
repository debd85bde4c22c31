"""A packed file: tensors, a description in JSON, and a hash of both that tells whether anybody changed it."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.storage.files import read_metadata, read_tensors, write_tensors
from isvit_lightning.system.hashing import hash_of

FORMAT: Final = "isvit-packed-3"
HASH: Final = "sha256"
"""Key of the hash in the description."""
_NAME: Final = re.compile(r"isvit-packed-(\d{1,6})")


def write_packed(path: Path, tensors: Mapping[str, torch.Tensor], description: Mapping[str, Any]) -> None:
    """Write a packed file; equal content gives equal bytes.

    Args:
        path: file to write.
        tensors: by name.
        description: what else belongs to the network, plain values.

    Raises:
        IsvitError: the file cannot be written.
    """
    write_tensors(path, tensors, sealed(tensors, description))


def sealed(tensors: Mapping[str, torch.Tensor], description: Mapping[str, Any]) -> dict[str, Any]:
    """``description`` with the format and the hash of :func:`seal`, as the file of :func:`write_packed` has it."""
    described = {"format": FORMAT, **description}
    return {**described, HASH: seal(tensors, described)}


def read_packed(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and description of a file of :func:`write_packed`. Nothing in the file is executed.

    Raises:
        IsvitError: the file is missing, damaged, changed, of another kind, or of another version.
    """
    tensors, description = read_tensors(path)
    require_format(path, description.get("format"))
    if description.get(HASH) != seal(tensors, description):
        raise IsvitError(
            f"{path} was changed after it was written (its hash is another one), expected it as the run left it: fetch "
            "it again, or make it again with isvit fit or isvit export."
        )
    return tensors, description


def read_hash(path: Path) -> str:
    """The hash that a file of :func:`write_packed` carries, which names its content; empty where it has none."""
    return str(read_metadata(path).get(HASH, ""))


def seal(tensors: Mapping[str, torch.Tensor], description: Mapping[str, Any]) -> str:
    """Hash of tensors and description, whatever their order; the hash that the description may hold is left out."""
    plain = {key: value for key, value in json.loads(json.dumps(dict(description))).items() if key != HASH}
    return hashlib.sha256(f"{hash_of(tensors)} {json.dumps(plain, sort_keys=True)}".encode()).hexdigest()


def require_format(path: Path, given: object) -> None:
    """Refuse what another version wrote, or another program.

    Args:
        path: the file, for messages.
        given: the format that it names.

    Raises:
        IsvitError: it is not the format of this version.
    """
    if given == FORMAT:
        return
    found = _NAME.fullmatch(given) if isinstance(given, str) else None
    if found is None:
        raise IsvitError(f"{path} has format {given}, expected {FORMAT}: check --ckpt_path.")
    if int(found[1]) > int(FORMAT.rpartition("-")[2]):
        raise IsvitError(
            f"{path} was written by a later version, in the format {given}, expected {FORMAT}: install a newer "
            "isvit-lightning."
        )
    raise IsvitError(
        f"{path} was written by an earlier version, in the format {given}, expected a file of this one, {FORMAT}: "
        "calibrate again with isvit fit."
    )
