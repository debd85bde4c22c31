"""How long and on how much a unit is tuned."""

from dataclasses import dataclass

from isvit_lightning.errors import IsvitError
from isvit_lightning.storage.caches import Caches

_IN_MEMORY = Caches()


@dataclass(frozen=True)
class Schedule:
    """How long and on how much a unit is tuned.

    Args:
        iterations: optimizer steps per unit and step of the recipe.
        batch_size: calibration images per optimizer step.
        micro_batch: images that pass a unit at once; smaller needs less memory and changes nothing but the order of
            summation. Null takes 16 on a CPU, where that is also faster, and the whole batch elsewhere.
        caches: where inputs and targets of a unit are kept; `isvit inspect` tells how large they are.
        compile: compile each unit with torch.compile before it is tuned, which can only pay with many iterations on
            large units. Needs a C++ compiler on a CPU, Triton on an accelerator.

    Raises:
        IsvitError: iterations, batch_size or micro_batch below 1.
    """

    iterations: int = 1000
    batch_size: int = 64
    micro_batch: int | None = None
    caches: Caches = _IN_MEMORY
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size", "micro_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise IsvitError(f"model.{name} is {value}, expected at least 1: change it there.")
