"""An exact rewrite of the float network, before it is opened."""

from abc import ABC, abstractmethod

from torch import nn


class Transform(ABC):
    """A rewrite that changes nothing but rounding. Subclasses are frozen dataclasses of plain choices."""

    @abstractmethod
    def apply(self, model: nn.Module) -> None:
        """Rewrite ``model``, a float network of a supported architecture, in place.

        Raises:
            IsvitError: the network cannot be rewritten so.
        """
