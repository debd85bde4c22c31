"""A folder of a hub: which files it has, where they come from, and whether they belong together."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
from torch import nn

from isvit_lightning.errors import IsvitError, first_line
from isvit_lightning.export.quantization_config import quantization_config
from isvit_lightning.export.sealed import FORMAT, HASH, read_hash, require_format
from isvit_lightning.sources.published import unreachable
from isvit_lightning.storage.files import write_json

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
RESULTS: Final = "results.json"
CARD: Final = "README.md"
RUN: Final = "quantized.safetensors"
"""The packed network in a run directory."""
_REPOSITORY: Final = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_MINE: Final = "isvit"


def locate(path: str | Path, **options: Any) -> Path:
    """The packed file that ``path`` means.

    Args:
        path: the file, a run directory, a folder of a hub, or, as a text, the name of a repository, ``owner/name``,
            which is fetched where nothing lies at that path.
        **options: of huggingface_hub's ``snapshot_download``: revision, token, cache_dir, force_download,
            local_files_only.

    Raises:
        IsvitError: the repository cannot be had, or the configuration of the folder belongs to another file.
    """
    folder = Path(path).expanduser()
    if isinstance(path, str) and _is_repository(path):
        folder = fetch(path, **options)
    if not folder.is_dir():
        return folder
    if (folder / WEIGHTS).is_file() and not (folder / RUN).is_file():
        _require_own_config(folder)
        return folder / WEIGHTS
    if not (folder / RUN).exists() and (folder / "checkpoints").is_dir():
        raise IsvitError(
            f"{folder} holds no finished run, but an interrupted one, expected {RUN}: go on with isvit fit and "
            "--resume true, or check --ckpt_path."
        )
    return folder / RUN


def _is_repository(path: str) -> bool:
    """Whether ``path`` can only be the name of a repository; below a folder that exists it is a wrong path."""
    folder = Path(path)
    is_file = folder.suffix == ".safetensors"
    return bool(_REPOSITORY.fullmatch(path)) and not (is_file or folder.exists() or folder.parent.exists())


def fetch(repository: str, **options: Any) -> Path:
    """Fetch the folder of a repository, and return where it lies on this machine.

    Args:
        repository: its name, ``owner/name``.
        **options: see :func:`locate`.

    Raises:
        IsvitError: there is none, nothing answers, or it holds no network of this program.
    """
    options = {name: value for name, value in options.items() if value is not None}
    try:
        if not options.get("local_files_only"):
            options |= _without_connection(repository, options)
        folder = Path(snapshot_download(repository, allow_patterns=[CONFIG, WEIGHTS, RESULTS, CARD], **options))
    except IsvitError:
        raise
    except Exception as error:  # noqa: BLE001 - the client raises errors of its own and of the libraries below it
        raise _unavailable(repository, first_sentence(error)) from None
    if not (folder / WEIGHTS).is_file():
        raise IsvitError(
            f"{repository} holds no {WEIGHTS}, expected a repository that push_to_hub of a quantized network made: "
            "correct the name."
        )
    return folder


def _without_connection(repository: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options for where nothing answers, which the client would try for a minute: take what was fetched before.

    Raises:
        IsvitError: nothing answers, and nothing was fetched before.
    """
    place = {name: options[name] for name in ("cache_dir", "revision") if name in options}
    cached = isinstance(try_to_load_from_cache(repository, WEIGHTS, **place), str)
    reason = unreachable("" if cached else repository)
    if reason and not cached:
        raise _unavailable(repository, reason)
    return {"local_files_only": True} if reason else {}


def first_sentence(error: Exception) -> str:
    """What the client reports, whose messages have several sentences and lines."""
    return first_line(error).split(". ")[0].rstrip(".")


def _unavailable(repository: str, reason: str) -> IsvitError:
    return IsvitError(
        f"{repository} is no path here and could not be fetched from {constants.ENDPOINT} ({reason}), expected a "
        "file, a run directory, or the owner and name of a repository that can be reached: correct it."
    )


def write_config(folder: Path, model: nn.Module, description: Mapping[str, Any]) -> None:
    """Write ``config.json`` of a folder whose ``model.safetensors`` is written.

    Args:
        folder: the folder.
        model: network with quantizers.
        description: that of the packed file.

    Raises:
        IsvitError: it cannot be written.
    """
    shown = {key: description[key] for key in ("architecture", "preprocessing")}
    mine = {"format": FORMAT, HASH: read_hash(folder / WEIGHTS), "record": description["record"]}
    config = {
        "library_name": "isvit-lightning",
        **shown,
        "quantization_config": quantization_config(model),
        _MINE: mine,
    }
    write_json(folder / CONFIG, config)


def _require_own_config(folder: Path) -> None:
    """Refuse a folder whose configuration is missing, damaged, of another version, or of another packed file.

    Raises:
        IsvitError: it is one of these.
    """
    path = folder / CONFIG
    try:
        mine = json.loads(path.read_text(encoding="utf-8"))[_MINE]
        given, hashed = mine["format"], mine[HASH]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IsvitError(
            f"{path} is missing or damaged ({first_line(error)}), expected the one that belongs to {WEIGHTS}: fetch "
            "the folder again, or make it again with isvit export."
        ) from None
    require_format(path, given)
    own = read_hash(folder / WEIGHTS)
    if own and hashed != own:  # a file that is too damaged to have one is told of when it is read
        raise IsvitError(
            f"{path} belongs to another {WEIGHTS} (its {HASH} is another one), expected that of the file beside it: "
            "fetch the folder again, or make it again with isvit export."
        )


def read_results(file: Path) -> dict[str, Any] | None:
    """What the run of a packed file measured; None where nothing is told beside it.

    Args:
        file: the packed file.
    """
    if file.name not in (RUN, WEIGHTS):
        return None
    try:
        return dict(json.loads((file.parent / RESULTS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
