"""Filling maps of tokens up to whole windows."""

import torch


def padded_with(x: torch.Tensor, value: torch.Tensor, bottom: int, right: int) -> torch.Tensor:
    """``x (batch, height, width, channels)`` with ``value (channels,)`` in new rows below and columns on the right.

    Written beside the tokens: padding with zeros what ``value`` was subtracted from would round every token.
    """
    batch, height, width, channels = x.shape
    padded = value.expand(batch, height + bottom, width + right, channels).clone()
    padded[:, :height, :width] = x
    return padded
