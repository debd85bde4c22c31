"""Where a quantizer sits, as a search for its grid sees it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.quantizers.formats import Grid
from isvit_lightning.quantizers.spec import Spec

Operand = Literal["input", "weight", "left", "right"]


class Layer(Protocol):
    """A quantized layer, as far as a search is concerned."""

    def product(self, operand: Operand, values: torch.Tensor, partner: torch.Tensor) -> torch.Tensor:
        """What the layer computes, without bias, with ``values`` in the place of one operand."""

    @property
    def channels_last(self) -> bool:
        """Whether the last axis of an input holds its channels."""


@dataclass(frozen=True)
class Site:
    """What is known of the tensor that a grid is chosen for.

    Args:
        samples: the tensor, of the shape that the quantizer will see (any batch size).
        layer: the layer that reads it; None where that is not known.
        operand: which operand of the layer the tensor is.
        partner: the other operand of the product, unquantized; None where that is not known.
        gradients: gradient of the loss by the layer's output on the samples; None where that is not known.
        quantized: ``partner`` on its own grid; None where it is float, or has none yet.
    """

    samples: torch.Tensor
    layer: Layer | None = None
    operand: Operand = "input"
    partner: torch.Tensor | None = None
    gradients: torch.Tensor | None = None
    quantized: torch.Tensor | None = None

    @property
    def has_output(self) -> bool:
        """Whether the output of the layer can be computed."""
        return self.layer is not None and self.partner is not None

    @property
    def channels_last(self) -> bool:
        """Whether the last axis holds channels, so that a token is a row."""
        return self.layer is None or self.operand == "weight" or self.layer.channels_last

    def output(self, values: torch.Tensor, quantized: bool = False) -> torch.Tensor:
        """What the layer computes, without bias, with ``values`` in the place of the samples.

        Args:
            values: of the shape of the samples.
            quantized: take the other operand on its grid, where it has one.

        Raises:
            IsvitError: layer or partner are not known here.
        """
        if self.layer is None or self.partner is None:
            raise IsvitError(
                "A search wants the output of a layer where none is known, expected a search that looks at the tensor "
                "alone: change search under model.recipe.placement."
            )
        partner = self.quantized if quantized and self.quantized is not None else self.partner
        return self.layer.product(self.operand, values, partner)

    def require_gradients(self) -> torch.Tensor:
        """The gradients.

        Raises:
            IsvitError: there are none here.
        """
        if self.gradients is None:
            raise IsvitError(
                "A search wants gradients where none can be had, expected a search without them: change search under "
                "model.recipe.placement."
            )
        return self.gradients


class Search(ABC):
    """How the grid of a quantizer is chosen. Subclasses are frozen dataclasses of plain values."""

    @property
    def sees_output(self) -> bool:
        """Whether it looks at the output of the layer, so that a weight is shown with what its layer reads."""
        return False

    @property
    def sees_gradients(self) -> bool:
        """Whether it wants the gradients of the loss by that output."""
        return False

    @abstractmethod
    def choose(self, spec: Spec, site: Site) -> Grid:
        """The numbers of a grid, each of shape ``spec.granularity.shape``.

        Args:
            spec: format, width and granularity.
            site: finite, non-empty samples, and what is known beside them.
        """
