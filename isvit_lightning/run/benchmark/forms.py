"""A network as one engine computes it: what is measured, whatever the engine."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from isvit_lightning.errors import IsvitError, first_line
from isvit_lightning.export.artifact import QuantizedNetwork

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Form:
    """A network in one engine.

    Args:
        engine: such as ``PyTorch``.
        name: such as ``integer, compiled``; unlike all others of the engine.
        make: builds it for a number of threads: a module that maps images ``(batch, channels, height, width)`` to
            logits, or to whatever the network gives.
        is_float: whether it is the float network, which others of the engine are compared with.
        file_bytes: size of the file that it is loaded from.
        resident_bytes: memory of its weights.
        device: where it reads images.
        dtype: of the images that it reads.
        is_fixed: whether it is built anew for each number of images, as a compiler does.
        is_timed: whether its speed is of interest.
        profile: tells why products are ones of floats, by path; None where that goes without saying.
        whole: the network with all of its parts, where only a part is timed; None where the engine has but that.
    """

    engine: str
    name: str
    make: Callable[[int], nn.Module]
    is_float: bool = False
    file_bytes: int | None = None
    resident_bytes: int | None = None
    device: torch.device = _CPU
    dtype: torch.dtype = torch.float32
    is_fixed: bool = False
    is_timed: bool = True
    profile: Callable[[], Mapping[str, str]] | None = None
    whole: nn.Module | None = None

    def placed(self, images: torch.Tensor) -> torch.Tensor:
        """``images`` where and as it reads them."""
        return images.to(self.device, self.dtype)


@dataclass(frozen=True)
class Absent:
    """A form that there is not.

    Args:
        engine: of the form.
        name: of the form.
        reason: why, in one sentence.
    """

    engine: str
    name: str
    reason: str


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Args:
        simulated: the quantized network, computed in float on its grids.
        float_network: the network that it was made from; or why that is not at hand.
        size: channels, height and width of an image.
        packed_bytes: size of the packed file.
        images: some that exporters may look at; None for none.
        part: what of a network is timed.
    """

    simulated: QuantizedNetwork
    float_network: nn.Module | str
    size: tuple[int, int, int]
    packed_bytes: int | None = None
    images: torch.Tensor | None = None
    part: Callable[[nn.Module], nn.Module] = lambda network: network

    @property
    def is_whole(self) -> bool:
        """Whether all of a network is timed."""
        return self.part(self.simulated) is self.simulated


Forms = Iterator[Form | Absent]


def made(engine: str, name: str, make: Callable[[], Form]) -> Form | Absent:
    """The form that ``make`` gives, or why it gives none.

    Args:
        engine: of the form.
        name: of the form.
        make: exports or converts, and may fail.
    """
    try:
        return make()
    except Exception as error:  # noqa: BLE001 - the other forms are measured all the same
        return Absent(engine, name, reason_of(error))


def profiles_of(forms: Iterable[Form]) -> dict[str, dict[str, str]]:
    """Why products are ones of floats, by engine with form and by path.

    Args:
        forms: those that cannot tell, and float ones, are left out.
    """
    return {f"{form.engine}, {form.name}": dict(form.profile()) for form in forms if form.profile is not None}


def reason_of(error: Exception) -> str:
    """What went wrong, in one line."""
    return str(error) if isinstance(error, IsvitError) else f"{type(error).__name__}: {first_line(error)}."
