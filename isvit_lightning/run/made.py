"""What a network was made with, as its file tells, against what is configured."""

import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.export import IntegerNetwork
from isvit_lightning.export.artifact import QuantizedNetwork
from isvit_lightning.recipe import record_of
from isvit_lightning.run.config import require_same_network, run_directory
from isvit_lightning.run.task import FinishedNetwork, ModelSection
from isvit_lightning.sources.source import LoadedNetwork
from isvit_lightning.storage.parts import differences

_OPTIONS = {
    "network": "model.network",
    "weights": "weights of model.network",
    "preprocessing": "preprocessing of model.network",
    "bits": "model.bits",
    "recipe": "model.recipe",
    "schedule": "model",
    "seed": "seed_everything",
}
"""The option that says what a part of a record does."""
_DECIDING = ("type", "iterations", "batch_size")
"""What of a schedule decides more than the last bits."""


def made_with(model: ModelSection, seed: int) -> dict[str, Any]:
    """What is configured, as a network's file tells it.

    Args:
        model: the model section of the configuration.
        seed: seed of the run.
    """
    choices = {"recipe": model.recipe, "bits": model.bits, "schedule": model.schedule, "seed": seed}
    record: dict[str, Any] = record_of({"network": model.source.title, **choices})
    return record


def load_run(checkpoint: str, model: ModelSection, seed: int, config: str) -> QuantizedNetwork:
    """The network of a finished run, which was made with what is configured.

    A file that lies alone, without the configuration of its run, says nothing of iterations, batch size and seed that
    anybody would give again.

    Args:
        checkpoint: run directory or file, as ``--ckpt_path`` names it.
        model: the model section of the configuration.
        seed: seed of the run.
        config: the configuration as YAML.

    Raises:
        IsvitError: there is none, or its name, bits, recipe, iterations, batch size or seed are others.
    """
    directory = run_directory(checkpoint)
    require_same_network(directory, config)
    network = model.task.load(directory)
    given = made_with(model, seed)
    if not (directory / "config.yaml").exists():
        given = {key: given[key] for key in ("network", "bits", "recipe")}
    _require_same(checkpoint, network.record, given)
    return network


def title_of(network: nn.Module, checkpoint: str | None, model: ModelSection) -> str:
    """Which network is measured, of which directory; what its file does not tell is left out.

    Args:
        network: float or quantized.
        checkpoint: run directory or file of a quantized one.
        model: the model section of the configuration.
    """
    if not isinstance(network, FinishedNetwork):
        return f"{model.source.title}, float"
    record = network.record
    widths = [f"W{record['bits']['weight']}/A{record['bits']['activation']}"] if "bits" in record else []
    recipe = [record["recipe"]["name"]] if "recipe" in record else []
    runtime = ["integer products"] if isinstance(network, IntegerNetwork) else []
    return ", ".join([f"{checkpoint}: {model.source.title}", *widths, *recipe, *runtime])


def require_same_float(checkpoint: str, network: FinishedNetwork, loaded: LoadedNetwork) -> None:
    """Refuse to compare a network with another float network than the one that it was made from.

    Args:
        checkpoint: run directory or file, for messages.
        network: the network.
        loaded: the float network that is configured.

    Raises:
        IsvitError: weights or preprocessing differ.
    """
    stored = {"preprocessing": record_of(network.preprocessing)} | {
        key: network.record[key] for key in ("weights",) if key in network.record
    }
    given = {"weights": loaded.fingerprint["sha256"], "preprocessing": record_of(loaded.preprocessing)}
    _require_same(checkpoint, stored, given)


def _require_same(checkpoint: str, record: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Compare the parts that both have; a file from Python, or of an earlier version, may have fewer."""
    both = [key for key in _OPTIONS if key in record and key in given]
    old, new = ({key: _deciding(key, values[key]) for key in both} for values in (record, given))
    changed = differences(_named(_known(old, new)), _named(_known(new, old)))
    if changed:
        raise IsvitError(
            f"{checkpoint} was calibrated otherwise than is configured ({changed}), expected the same: leave out what "
            "contradicts it, undo what was changed in its directory, or calibrate again with isvit fit."
        )


def _deciding(key: str, values: Any) -> Any:
    plain = json.loads(json.dumps(values))
    return {name: plain[name] for name in _DECIDING if name in plain} if key == "schedule" else plain


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` under the options that say them."""
    return {_OPTIONS[key]: value for key, value in values.items()}


def _known(values: Any, other: Any) -> Any:
    """``values`` without the fields of choices that ``other`` does not have: those of another version."""
    if isinstance(values, Mapping) and isinstance(other, Mapping):
        is_choice = "type" in values and values["type"] == other.get("type")
        return {key: _known(value, other.get(key)) for key, value in values.items() if key in other or not is_choice}
    if isinstance(values, list) and isinstance(other, list) and len(values) == len(other):
        return list(map(_known, values, other))
    return values
