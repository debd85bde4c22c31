"""Weights in a file: how it is read, and which of them are taken."""

import argparse
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from isvit_lightning.errors import IsvitError

_ENTRIES: Final = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Where torch files keep weights; the first that a file has is taken, as timm does."""
_WRAPPERS: Final = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""What DataParallel, compilation and other wrappers of torch put into the names of the tensors inside."""
_COUNTER: Final = "n_averaged"
"""What torch's AveragedModel keeps beside the weights."""
_SHOWN: Final = 3
_FOREIGN: Final = re.compile(r"GLOBAL ([\w.]+)")
_PLACE: Final = re.compile(r"^\[enforce fail at [^]]*\] \. ")


@dataclass(frozen=True)
class StoredWeights:
    """One set of weights in a file.

    Args:
        path: the file.
        tensors: by name, without what torch's wrappers add to it.
        key: dotted name under which they lie; empty for the whole file.
        others: dotted names under which the file holds other tensors of the same names.
        content: all that the file holds.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    key: str = ""
    others: tuple[str, ...] = ()
    content: Mapping[str, Any] = field(default_factory=dict)


def read_weights(path: Path, trusted: bool = False, key: str | None = None) -> StoredWeights:
    """The weights in a checkpoint file.

    Args:
        path: .safetensors file, or a torch file with tensors by name, plain or nested.
        trusted: whether a torch file that holds more than tensors is read all the same, which may run code that it
            brings. The options of timm's own training, an ``argparse.Namespace``, are read without.
        key: dotted name under which they lie; by default the first of ``state_dict_ema``, ``model_ema``,
            ``state_dict`` and ``model`` that a torch file has, as timm does, or else the whole file.

    Raises:
        IsvitError: the file is missing or damaged, holds more than tensors and is not trusted, or has no such key.
    """
    content, tensors = _read(path, trusted)
    if not tensors:
        raise IsvitError(
            f"{path} holds no state dict, expected tensors by name, plain or under {_listed(_ENTRIES)}: change "
            "model.network.checkpoint."
        )
    if key is None:
        key = next((entry for entry in _ENTRIES if isinstance(content.get(entry), Mapping | nn.Module)), "")
    start = f"{inner}." if (inner := _without_segments(key)) else ""
    taken = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
    if not taken:
        found = _listed(dict.fromkeys(name.partition(".")[0] for name in tensors))
        raise IsvitError(
            f"{path} holds no weights under {key}, expected a name that begins those of its tensors, which are "
            f"{found}: set model.network.checkpoint_key to where they lie."
        )
    rest = [name for name in tensors if not name.startswith(start)]
    others = [other for other, count in prefixes(rest, taken).items() if 2 * count > len(taken)]
    return StoredWeights(path, taken, inner, tuple(others), content)


def prefixes(names: Iterable[str], wanted: Collection[str]) -> Counter[str]:
    """What stands in front of the wanted names, each with the number of names that begin so.

    Args:
        names: dotted names.
        wanted: dotted names that may be the end of some of them.
    """
    found = Counter[str]()
    for name in names:
        parts = name.split(".")
        ends = (cut for cut in range(len(parts)) if ".".join(parts[cut:]) in wanted)
        found.update(".".join(parts[:cut]) for cut in ends)
    return found


def _read(path: Path, trusted: bool) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """What a file holds, and all tensors in it by their dotted names."""
    if not path.is_file():
        raise IsvitError(
            f"{path} {'is a folder' if path.is_dir() else 'does not exist'}, expected a .safetensors or torch file: "
            "change model.network.checkpoint."
        )
    try:
        content = load_file(path) if _is_safetensors(path) else _read_torch(path, trusted)
        return content, _without_wrappers(dict(_named(content)))
    except IsvitError:
        raise
    except Exception as error:  # noqa: BLE001 - damaged bytes make the readers raise almost anything
        raise IsvitError(
            f"{path} cannot be read as weights ({_reason(error)}), expected an undamaged .safetensors file or a "
            "torch file of tensors: change model.network.checkpoint."
        ) from None


def _is_safetensors(path: Path) -> bool:
    """Whether a file is read as safetensors; some of them are called otherwise."""
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _read_torch(path: Path, trusted: bool) -> Mapping[str, Any]:
    try:
        # An empty object with attributes: reading it runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=not trusted)
    except (UnpicklingError, RuntimeError) as error:
        foreign = [] if trusted else _foreign_types(path, error)
        if not foreign:
            raise
        raise IsvitError(
            f"{path} holds more than tensors ({_listed(foreign)}), expected tensors and plain values: set "
            "model.network.trust_checkpoint to true if you trust its source, as reading it may run code, or change "
            "model.network.checkpoint."
        ) from None
    if isinstance(content, nn.Module):
        content = content.state_dict()
    return content if isinstance(content, Mapping) else {}


def _foreign_types(path: Path, error: Exception) -> list[str]:
    """Names of what a torch file holds that could run code; none where the file is damaged."""
    if "TorchScript" in str(error):
        return ["a TorchScript program"]
    try:
        found = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        return sorted(found - {"argparse.Namespace"})
    except Exception:  # noqa: BLE001 - a file of torch's earlier format, or a damaged one
        return _FOREIGN.findall(str(error))[:1]


def _reason(error: Exception) -> str:
    """Why a file could not be read, without the place in torch and the advice around it."""
    told = _PLACE.sub("", str(error).rpartition("WeightsUnpickler error: ")[2]).strip()
    line = told.partition("\n")[0].partition(". ")[0].rstrip(".")
    return line if re.search("[a-z]", line) else type(error).__name__


def _named(content: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors at any depth by their dotted names; what has a number in place of a name is no weight."""
    if isinstance(content, nn.Module):
        content = content.state_dict()
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            if isinstance(key, str) and key != _COUNTER:
                yield from _named(value, f"{name}.{key}" if name else key)


def _without_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` with names as without torch's wrappers, unless two would have one name then."""
    short = {_without_segments(name): tensor for name, tensor in tensors.items()}
    return short if len(short) == len(tensors) else tensors


def _without_segments(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _listed(names: Collection[str]) -> str:
    """``a, b and c``, the first few of many."""
    shown = list(names)
    if len(shown) > _SHOWN + 1:
        shown = [*shown[:_SHOWN], f"{len(names) - _SHOWN} more"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
