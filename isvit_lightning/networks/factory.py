"""Building the quantized layers of a network; which quantizer stands where is said by someone else."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from timm.layers import LayerNorm, LayerNormFp32
from torch import nn

from isvit_lightning.layers import QuantConv2d, QuantLayerNorm, QuantLinear, QuantMatMul
from isvit_lightning.networks.known import require_known
from isvit_lightning.quantizers import PerChannel, Quantizer, Role


@dataclass(frozen=True)
class Axes:
    """The granularities that fit a tensor beside one grid for all of it; None where it has no such axis.

    Args:
        channel: a grid for each channel; output channel, for a weight.
        head: a grid for each attention head.
        token: a grid for each place in the sequence of tokens.
        map: whether the tensor is a map that a convolution reads, not tokens.
    """

    channel: PerChannel | None = None
    head: PerChannel | None = None
    token: PerChannel | None = None
    map: bool = False


_NORMS = (nn.LayerNorm, LayerNorm, LayerNormFp32)
"""PyTorch's own and timm's, which compute the same in float32."""

Build = Callable[[Role, Axes], Quantizer | None]
"""The quantizer of a tensor of this role and these axes; None leaves it float."""


class LayerFactory:
    """Builds quantized layers for the adapters.

    Args:
        build: says which quantizer stands in front of a tensor.

    Attributes:
        roles: roles of the tensors that were asked for so far.
    """

    def __init__(self, build: Build) -> None:
        self._build = build
        self._paths: dict[nn.Module, str] = {}
        self.roles: set[Role] = set()

    def enter(self, model: nn.Module) -> None:
        """Begin with ``model``, whose layers messages name by their paths."""
        self._paths = {module: path for path, module in model.named_modules()}

    def quantizer(self, role: Role, axes: Axes) -> Quantizer | None:
        """Quantizer of a tensor; None leaves it float."""
        self.roles.add(role)
        return self._build(role, axes)

    def linear(
        self,
        linear: nn.Linear,
        role: Role,
        weight_role: Role = Role.WEIGHT,
        tokens: int | None = None,
        known: tuple[type[nn.Linear], ...] = (nn.Linear,),
    ) -> QuantLinear:
        """Quantized form of ``linear``.

        Args:
            linear: the float layer.
            role: of its input.
            weight_role: of its weight.
            tokens: places in the sequence of its input, where they are always as many.
            known: types that compute what PyTorch's own does.

        Raises:
            IsvitError: the layer may compute something else.
        """
        self._require_known(linear, *known)
        axes = Axes(channel=PerChannel(linear.in_features), token=_per_token(tokens))
        return QuantLinear(linear, self.quantizer(role, axes), self._weight(linear.weight, weight_role))

    def conv(
        self,
        conv: nn.Conv2d,
        role: Role,
        weight_role: Role = Role.WEIGHT,
        known: tuple[type[nn.Conv2d], ...] = (nn.Conv2d,),
    ) -> QuantConv2d:
        """Quantized form of ``conv``.

        Args:
            conv: the float layer.
            role: of its input.
            weight_role: of its weight.
            known: types that compute what PyTorch's own does.

        Raises:
            IsvitError: the layer may compute something else.
        """
        self._require_known(conv, *known)
        axes = Axes(channel=PerChannel(conv.in_channels, axis=-3), map=True)
        return QuantConv2d(conv, self.quantizer(role, axes), self._weight(conv.weight, weight_role))

    def norm(self, norm: nn.LayerNorm) -> nn.LayerNorm:
        """Quantized form of ``norm``; itself where its input stays float, but known, as a fold changes it.

        Raises:
            IsvitError: the layer may compute something else.
        """
        self._require_known(norm, *_NORMS)
        quantizer = self.quantizer(Role.NORM_IN, Axes(channel=PerChannel(norm.normalized_shape[0])))
        return norm if quantizer is None else QuantLayerNorm(norm, quantizer)

    def scores(self, heads: int, head_channels: int, tokens: int | None = None) -> QuantMatMul:
        """Product of queries ``(batch, heads, tokens, channels)`` and transposed keys."""
        head = PerChannel(heads, axis=-3)
        query = Axes(PerChannel(head_channels), head, _per_token(tokens))
        key = Axes(PerChannel(head_channels, axis=-2), head, _per_token(tokens, axis=-1))
        return QuantMatMul(self.quantizer(Role.QUERY, query), self.quantizer(Role.KEY, key))

    def context(self, heads: int, head_channels: int, tokens: int | None = None) -> QuantMatMul:
        """Product of attention probabilities ``(batch, heads, tokens, tokens)`` and values."""
        head, token = PerChannel(heads, axis=-3), _per_token(tokens)
        value = Axes(PerChannel(head_channels), head, token)
        return QuantMatMul(self.quantizer(Role.ATTN_PROB, Axes(None, head, token)), self.quantizer(Role.VALUE, value))

    def _require_known(self, module: nn.Module, *known: type[nn.Module]) -> None:
        require_known(module, self._paths.get(module, "a layer"), *known)

    def _weight(self, weight: torch.Tensor, role: Role) -> Quantizer | None:
        return self.quantizer(role, Axes(channel=PerChannel(weight.shape[0], axis=-weight.dim())))


def _per_token(tokens: int | None, axis: int = -2) -> PerChannel | None:
    return None if tokens is None else PerChannel(tokens, axis)
