"""PyTorch: float, simulated and integer, eager and compiled."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from isvit_lightning.export import integer
from isvit_lightning.export.lower import float_products, lower
from isvit_lightning.networks import copied
from isvit_lightning.run.benchmark.forms import Absent, Form, Forms, Subject, made
from isvit_lightning.run.results import float_size
from isvit_lightning.stages.compilation import missing_compiler

ENGINE = "PyTorch"
SIMULATED, IN_FLOAT64 = "simulated, eager", "simulated, float64"
_HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class PyTorch:
    """PyTorch on a device.

    Args:
        subject: what is measured.
        device: where it computes.
    """

    subject: Subject
    device: torch.device

    def forms(self) -> Forms:
        """All that are timed; of half precision only on an accelerator."""
        network = self.subject.float_network
        if isinstance(network, str):
            yield Absent(ENGINE, "float", network)
        else:
            size = float_size(network)
            yield from self._both("float", lambda: copied(network).eval(), file_bytes=size, is_float=True)
            for name, dtype in _HALVES.items() if self.device.type == "cuda" else ():
                half = self._form(name, copied(network).eval().to(dtype), file_bytes=size // 2, dtype=dtype)
                yield compiled(replace(half, is_float=True))
        yield self._simulated()
        if self.subject.is_whole:
            yield self._in_float64()
        packed = self.subject.packed_bytes
        yield from self._both("integer", self._integer, file_bytes=packed, profile=self._float_products)

    def references(self) -> Forms:
        """What those of other engines are compared with; not timed."""
        network = self.subject.float_network
        if not isinstance(network, str):
            size = float_size(network)
            yield self._form("float, eager", copied(network).eval(), file_bytes=size, is_float=True, is_timed=False)
        yield replace(self._simulated(), is_timed=False)
        if self.subject.is_whole:
            yield self._in_float64()

    def _simulated(self) -> Form:
        return self._form(SIMULATED, copied(self.subject.simulated), file_bytes=self.subject.packed_bytes)

    def _in_float64(self) -> Form:
        """The simulated network with other roundings: how far it is from itself."""
        network = copied(self.subject.simulated).double()
        return self._form(IN_FLOAT64, network, dtype=torch.float64, is_timed=False)

    def _integer(self) -> nn.Module:
        return integer(self.subject.simulated, self.device)

    def _float_products(self) -> Mapping[str, str]:
        return float_products(lower(self.subject.simulated.model))

    def _both(self, name: str, build: Callable[[], nn.Module], **options: Any) -> Forms:
        """A network as it is, and compiled."""
        eager = made(ENGINE, f"{name}, eager", lambda: self._form(f"{name}, eager", build(), **options))
        yield eager
        yield compiled(eager) if isinstance(eager, Form) else replace(eager, name=f"{name}, compiled")

    def _form(self, name: str, network: nn.Module, **options: Any) -> Form:
        network = network.requires_grad_(False).to(self.device)
        timed = self.subject.part(network)
        resident = weight_bytes(network)
        return Form(
            ENGINE, name, lambda _: timed, resident_bytes=resident, device=self.device, whole=network, **options
        )


def compiled(eager: Form) -> Form | Absent:
    """The same network by torch.compile, anew for each number of threads and images.

    Args:
        eager: the network as it is.
    """
    name = f"{eager.name.removesuffix(', eager')}, compiled"
    missing = missing_compiler(eager.device.type)
    if missing:
        return Absent(ENGINE, name, f"It cannot be compiled: {missing}, expected one: install it, or name it with CXX.")

    def make(threads: int) -> Any:
        return torch.compile(eager.make(threads), dynamic=False)

    return replace(eager, name=name, make=make, is_fixed=True, whole=None, profile=None)


def weight_bytes(network: nn.Module) -> int:
    """Memory of all parameters and buffers."""
    resident = getattr(network, "resident_bytes", None)  # packed tensors do not tell it by themselves
    if resident is not None:
        return int(resident)
    return sum(each.nbytes for each in {*network.parameters(), *network.buffers()})
