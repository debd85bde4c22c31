"""What stands in front of a tensor, as plain values that a file can hold."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args, get_type_hints

from isvit_lightning.errors import IsvitError, first_line
from isvit_lightning.quantizers.formats import Format
from isvit_lightning.quantizers.granularity import Granularity, PerChannel, PerTensor
from isvit_lightning.quantizers.role import Role

_PER_TENSOR = PerTensor()
VERSION = 1
"""Of the description of a quantizer in a file."""


@dataclass(frozen=True)
class Spec:
    """Everything about a quantizer but the numbers of its grid.

    Args:
        format: which grids there are; kept as :meth:`Format.at` the width.
        bits: width of a code, 2 to 8.
        granularity: which elements share a grid.
        role: what the quantized tensor is.

    Raises:
        IsvitError: bits outside 2 to 8.
    """

    format: Format
    bits: int
    granularity: Granularity = _PER_TENSOR
    role: Role = Role.OTHER

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise IsvitError(f"Bits must lie between 2 and 8, got {self.bits}: change model.bits.")
        object.__setattr__(self, "format", self.format.at(self.bits))

    @property
    def n_codes(self) -> int:
        """Number of codes."""
        return self.format.n_codes(self.bits)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, from which :meth:`of` makes the same again."""
        return {
            "version": VERSION,
            "format": _described(self.format),
            "bits": self.bits,
            "granularity": _described(self.granularity),
            "role": dataclasses.asdict(self.role),
        }

    @classmethod
    def of(cls, values: Any) -> "Spec":
        """The spec that :meth:`as_dict` described.

        Raises:
            IsvitError: the values describe none, or one of a later version.
        """
        try:
            if values["version"] != VERSION:
                raise IsvitError(
                    f"The file describes a quantizer in version {values['version']}, expected {VERSION}: install the "
                    "version of isvit-lightning that wrote it."
                )
            form = cast("Format", _made(_formats(), values["format"]))
            kinds: Mapping[str, type] = {kind.__name__: kind for kind in (PerTensor, PerChannel)}
            granularity = cast("Granularity", _made(kinds, values["granularity"]))
            return cls(form, _of_type(int, values["bits"]), granularity, _role(values["role"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise IsvitError(
                f"The file garbles the description of a quantizer ({first_line(error)}), expected format, bits, "
                "granularity and role: it is damaged, or was written by another version; calibrate again."
            ) from None


def _described(choice: Any) -> dict[str, Any]:
    return {"type": type(choice).__name__, **dataclasses.asdict(choice)}


def _made(kinds: Mapping[str, type], values: Mapping[str, Any]) -> object:
    """The choice that :func:`_described` described; only fields that it has, of the types that they have."""
    kind: Any = kinds[values["type"]]
    types = get_type_hints(kind)
    given = {name: _of_type(types[name], value) for name, value in values.items() if name != "type"}
    return kind(**given)


def _role(values: Mapping[str, Any]) -> Role:
    if set(values) != {"name", "weight"}:
        raise TypeError(f"a role has {', '.join(sorted(values))}")
    return Role(_of_type(str, values["name"]), _of_type(bool, values["weight"]))


def _of_type(kind: Any, value: Any) -> Any:
    """``value`` if it is of the type ``kind``; a whole number will do for a fraction."""
    kinds = get_args(kind) or (kind,)
    if type(value) not in kinds and not (float in kinds and type(value) is int):
        raise TypeError(f"{value!r} is no {getattr(kind, '__name__', kind)}")
    return value


def _formats() -> dict[str, type[Format]]:
    """All formats by name."""
    return {form.__name__: form for form in _below(Format)}


def _below(kind: type) -> Iterator[type[Format]]:
    """All formats that derive from ``kind``."""
    for form in cast("list[type[Format]]", kind.__subclasses__()):
        yield form
        yield from _below(form)
