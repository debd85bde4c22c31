"""Which quantizer goes where: by role, bits and method."""

import torch
from torch import nn

from isvit_lightning.layers import QuantConv2d, QuantLinear, QuantMatMul
from isvit_lightning.quantizers import (
    LogQuantizer,
    PerChannel,
    PerTensor,
    Quantizer,
    RangeSearch,
    Role,
    SulqQuantizer,
    UniformQuantizer,
)
from isvit_lightning.quantizers.search import ACTIVATION_PERCENTILES, TOKEN_PERCENTILES, WEIGHT_PERCENTILES
from isvit_lightning.quantizers.sulq import POWER_OF_TWO_ETAS, PUBLISHED_ETAS
from isvit_lightning.recipe.method import Bits, Method, Part

_PAIR_ROLES = (Role.QKV_IN, Role.FC1_IN)


class QuantizerFactory:
    """Builds quantized layers for the adapters.

    Args:
        bits: widths.
        method: choices of quantizer.
        deployed: build the grids of a finished network: every activation per tensor, as after stage 2.
    """

    def __init__(self, bits: Bits, method: Method, deployed: bool = False) -> None:
        self.bits = bits
        self.method = method
        self.deployed = deployed
        self._activation_search = RangeSearch(ACTIVATION_PERCENTILES, include_zero=method.clamp_zero_points)
        self._input_search = self._activation_search
        if method.range_error == "normalized":
            self._input_search = RangeSearch(TOKEN_PERCENTILES, method.clamp_zero_points, per_token=True)
        self._weight_search = RangeSearch(WEIGHT_PERCENTILES, include_zero=method.clamp_zero_points)

    def is_reparameterized(self, role: Role) -> bool:
        """Whether an input of this role is per channel until stage 2."""
        paired = role in _PAIR_ROLES or (role is Role.REDUCTION_IN and self.method.reparameterize_reductions)
        return paired and self.method.reparameterize

    def activation(self, role: Role, channels: int | None = None) -> Quantizer:
        """Quantizer of an activation of ``role`` with ``channels`` features in its last axis; None: no linear input."""
        if role is Role.ATTN_PROB:
            return self._softmax()
        if channels is None:
            return UniformQuantizer(self.bits.activation, PerTensor(), role, self._activation_search)
        if self.is_reparameterized(role):
            granularity = PerTensor() if self.deployed else PerChannel(channels)
            return UniformQuantizer(self.bits.activation, granularity, role, self._activation_search)
        return UniformQuantizer(self.bits.activation, PerTensor(), role, self._input_search)

    def weight(self, weight: torch.Tensor) -> Quantizer:
        """Quantizer of a weight with its output channels in axis 0."""
        granularity = PerChannel(weight.shape[0], axis=-weight.dim())
        return UniformQuantizer(self.bits.weight, granularity, Role.WEIGHT, self._weight_search)

    def linear(self, linear: nn.Linear, role: Role) -> QuantLinear:
        """Quantized form of ``linear`` whose input plays ``role``."""
        bias: torch.Tensor | None = linear.bias
        if self.deployed and bias is None and self.is_reparameterized(role):
            # Stage 2 gives such a layer a bias; the finished network is built with room for it.
            linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features), requires_grad=False)
        return QuantLinear(linear, self.activation(role, linear.in_features), self.weight(linear.weight))

    def conv(self, conv: nn.Conv2d, role: Role | None = None) -> QuantConv2d:
        """Quantized form of ``conv`` whose input plays ``role``; None where it is the image, which stays float."""
        return QuantConv2d(conv, self.weight(conv.weight), None if role is None else self.activation(role))

    def of(self, part: Part) -> "QuantizerFactory":
        """The same choices with the widths of one part of a detector."""
        return QuantizerFactory(self.bits.of(part), self.method, self.deployed)

    def scores(self) -> QuantMatMul:
        """Product of queries and keys."""
        return QuantMatMul(self.activation(Role.QUERY), self.activation(Role.KEY))

    def context(self) -> QuantMatMul:
        """Product of attention probabilities and values."""
        return QuantMatMul(self.activation(Role.ATTN_PROB), self.activation(Role.VALUE))

    def _softmax(self) -> Quantizer:
        bits, method = self.bits.activation, self.method
        if method.softmax == "uniform":
            return UniformQuantizer(bits, PerTensor(), Role.ATTN_PROB, self._activation_search)
        if method.softmax == "sulq":
            etas = POWER_OF_TWO_ETAS if method.eta_candidates == "powers_of_two" else PUBLISHED_ETAS
            return SulqQuantizer(bits, etas=etas, extra_codes=method.extra_softmax_codes)
        return LogQuantizer(bits, steps_per_octave=1 if method.softmax == "log2" else 2)
