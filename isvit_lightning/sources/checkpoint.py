"""Loading weights into a float network."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.sources.differences import Difference, advice, differences
from isvit_lightning.sources.weights import StoredWeights, prefixes, read_weights

_LOG = logging.getLogger(__name__)


def load_checkpoint(model: nn.Module, path: Path, name: str, trusted: bool = False, key: str | None = None) -> None:
    """Load the weights in ``path`` into a classifier, all of them and nothing else.

    Args:
        model: network; floating tensors of other types are converted to its own.
        path: .safetensors file, or a torch file with tensors by name.
        name: what the network is called in messages.
        trusted: whether a torch file that holds more than tensors is read, which may run code that it brings.
        key: dotted name under which the weights lie in the file; None finds them.

    Raises:
        IsvitError: the file is missing, damaged, not trusted or belongs to another network.
    """
    load_weights(model, read_weights(path, trusted, key), name, advice)


def load_weights(
    model: nn.Module, weights: StoredWeights, name: str, advise: Callable[[Sequence[Difference]], str]
) -> None:
    """Load ``weights`` into ``model``, all of them and nothing else.

    A prefix that the names of all tensors have, such as ``model.``, is left out where everything fits without it.

    Args:
        model: network; floating tensors of other types are converted to its own.
        weights: what to load.
        name: what the network is called in messages.
        advise: which option mends differences.

    Raises:
        IsvitError: a tensor is missing, unexpected, of another shape or of another kind.
    """
    own = model.state_dict()
    prefix = _prefix(weights, own, name)
    start = f"{prefix}." if prefix else ""
    inside = {key.removeprefix(start): value for key, value in weights.tensors.items() if key.startswith(start)}
    # Older checkpoints hold buffers that timm computes by itself today, such as Swin's relative position index.
    for computed in {key for key, _ in model.named_buffers()} - own.keys():
        inside.pop(computed, None)
    outside = [
        Difference(key, None, value.shape) for key, value in weights.tensors.items() if not key.startswith(start)
    ]
    inner = differences(own, inside)
    if found := [*inner, *outside]:
        mends = advise(inner) if inner else f"set model.network.checkpoint_key to {_joined(weights.key, prefix)}"
        raise IsvitError(
            f"{weights.path} is no checkpoint of {name} with these arguments: "
            f"{f'without the prefix {start} ' if start else ''}{found[0]}"
            f"{f', first of {len(found)} differences' if found[1:] else ''}, expected the same tensors: {mends}."
        )
    model.load_state_dict(inside)
    if key := _joined(weights.key, prefix):
        others = f", not those under {' and '.join(weights.others)}: model.network.checkpoint_key chooses"
        _LOG.info("%s: the weights under %s are taken%s", weights.path, key, others if weights.others else "")


def _prefix(weights: StoredWeights, own: Mapping[str, object], name: str) -> str:
    """What stands in front of the network's own names in most names of the file, which are the only such set."""
    sets = prefixes(weights.tensors, own)
    whole = [_joined(weights.key, prefix) for prefix, count in sets.items() if 2 * count > len(own)]
    if len(whole) > 1:
        raise IsvitError(
            f"{weights.path} holds several sets of weights for {name}, under {' and '.join(sorted(whole))}, expected "
            "one: set model.network.checkpoint_key to the one that is meant."
        )
    prefix, count = sets.most_common(1)[0] if sets else ("", 0)
    return prefix if 2 * count > min(len(own), len(weights.tensors)) else ""


def _joined(*names: str) -> str:
    return ".".join(filter(None, names))
