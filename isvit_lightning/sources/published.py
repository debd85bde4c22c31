"""Weights that timm publishes: whether they fit, and whether they can be had."""

import logging
import socket
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
from huggingface_hub import constants, try_to_load_from_cache

from isvit_lightning.errors import IsvitError

_LOG = logging.getLogger(__name__)
_FILES: Final = ("model.safetensors", "pytorch_model.bin")
_SECONDS: Final = 5.0


def require_head(name: str, args: Mapping[str, Any], published: bool) -> None:
    """Refuse a network of timm without a classifier, or with one whose published weights are for other classes.

    Args:
        name: of the network, with or without a tag.
        args: keyword arguments of timm's create_model.
        published: whether the published weights are loaded.

    Raises:
        IsvitError: it has no head, or the head would keep random weights.
    """
    config = timm.get_pretrained_cfg(name)
    known = None if config is None else config.num_classes
    classes = known if args.get("num_classes") is None else args["num_classes"]
    if classes == 0:
        raise IsvitError(
            f"{name} has no head (num_classes is 0), expected a classifier: set num_classes in model.network.args, and "
            "model.network.checkpoint to a file that holds the head too."
        )
    if published and classes != known:
        raise IsvitError(
            f"The weights that timm publishes as {name} have {f'a head of {known} classes' if known else 'no head'}, "
            f"and one of {classes} would stay random, expected a trained one: set model.network.checkpoint to a file "
            f"of fine-tuned weights{', or leave num_classes out of model.network.args' if known else ''}."
        )


def require_reachable(name: str) -> None:
    """Refuse weights that are neither on this machine nor can be fetched, which the hub would try for a minute.

    Args:
        name: of a network of timm with its tag.

    Raises:
        IsvitError: nothing answers.
    """
    config = timm.get_pretrained_cfg(name)
    hub, _, revision = str((config and config.hf_hub_id) or "").partition("@")
    if not hub or any(isinstance(try_to_load_from_cache(hub, file, revision=revision or None), str) for file in _FILES):
        return
    reason = unreachable(f"The weights of {name}")
    if reason:
        raise unavailable(name, reason)


def unreachable(what: str = "") -> str | None:
    """Why the hub does not answer; None where it does, or where that cannot be told, behind a proxy.

    Args:
        what: what is about to be fetched, for the log; nothing is said without it.
    """
    host = urlsplit(constants.ENDPOINT)
    if what:
        _LOG.info("%s: not on this machine yet, asking %s", what, host.hostname)
    if getproxies() or constants.HF_HUB_OFFLINE:
        return None
    try:
        port = host.port or (80 if host.scheme == "http" else 443)
        socket.create_connection((str(host.hostname), port), timeout=_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def unavailable(name: str, reason: str) -> IsvitError:
    """The error that tells that published weights cannot be had."""
    return IsvitError(
        f"The weights of {name} could not be downloaded ({reason}), expected a connection to their host: set "
        "model.network.checkpoint to a file that holds them."
    )
