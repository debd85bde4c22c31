"""Width of the codes."""

from dataclasses import dataclass

from isvit_lightning.errors import IsvitError


@dataclass(frozen=True)
class Bits:
    """Width of the codes; the placement of a recipe may set another one for a role.

    Args:
        weight: bits of every weight, 2 to 8.
        activation: bits of every input of a matrix product, 2 to 8.

    Raises:
        IsvitError: a width that is no whole number from 2 to 8.
    """

    weight: int = 4
    activation: int = 4

    def __post_init__(self) -> None:
        for name, value in (("weight", self.weight), ("activation", self.activation)):
            require_width(f"model.bits.{name}", value)


def require_width(option: str, value: int) -> None:
    """Refuse a width that no code can have.

    Raises:
        IsvitError: ``value`` is no whole number from 2 to 8.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 2 <= value <= 8:
        raise IsvitError(f"{option} is {value!r}, expected 2 to 8: change it there.")
