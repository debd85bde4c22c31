"""What every quantizer has: bits, codes, a range that is chosen once, and an on/off switch."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.quantizers.granularity import Granularity, PerTensor
from isvit_lightning.quantizers.role import Role


class Quantizer(nn.Module, ABC):
    """Tensor → integer codes → tensor on a fixed grid.

    Every value of the grid lives in a buffer whose shape is known at construction and which holds NaN until
    :meth:`calibrate` fills it, so that a ``state_dict`` round-trips and an uncalibrated quantizer is recognised.

    Args:
        bits: width of a code, 2 to 8.
        granularity: which elements share a scale.
        role: what the quantized tensor is.
        extra_codes: codes spent beyond ``2**bits``. Zero, except where a published method is reproduced.

    Raises:
        IsvitError: bits outside 2 to 8.
    """

    non_negative = False
    """Whether the format holds no negative values."""

    def __init__(
        self, bits: int, granularity: Granularity | None = None, role: Role = Role.OTHER, extra_codes: int = 0
    ) -> None:
        super().__init__()
        if not 2 <= bits <= 8:
            raise IsvitError(f"Bits must lie between 2 and 8, got {bits}: change model.bits.")
        self.bits = bits
        self.granularity: Granularity = granularity or PerTensor()
        self.role = role
        self.n_codes = 2**bits + extra_codes
        self.enabled = True
        self.frozen = False
        self.calibrated = False

    def _register_grid(self, *names: str) -> None:
        for name in names:
            self.register_buffer(name, torch.full(self.granularity.shape, torch.nan))

    @abstractmethod
    def encode(self, tensor: torch.Tensor) -> torch.Tensor:
        """Integer codes (int32, same shape as ``tensor``) in ``[0, n_codes)``, computed in the type of the grid."""

    @abstractmethod
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Grid values of integer ``codes``, same shape."""

    @abstractmethod
    def fake_quantize(self, tensor: torch.Tensor) -> torch.Tensor:
        """``decode(encode(tensor))`` with straight-through gradients, bit for bit the same values."""

    @abstractmethod
    def _choose_grid(self, samples: torch.Tensor) -> None:
        """Fill the buffers from finite, non-empty ``samples``."""

    @torch.no_grad()
    def calibrate(self, samples: torch.Tensor) -> None:
        """Choose the grid from ``samples``, a tensor of the shape that the quantizer will see (any batch size).

        Raises:
            IsvitError: the quantizer is frozen, or the samples are empty or hold NaN or infinity.
        """
        if self.frozen:
            raise IsvitError(f"The {self.role.value} quantizer is frozen; unfreeze it before calibrating it again.")
        if samples.numel() == 0:
            raise IsvitError(f"Cannot calibrate {self.role.value} on an empty tensor; raise data.calibration_images.")
        if not bool(torch.isfinite(samples).all()):
            raise IsvitError(
                f"Cannot calibrate {self.role.value}: the activation holds NaN or infinity, expected finite values; "
                "check model.network.checkpoint and the images, or set trainer.precision to 32-true."
            )
        if self.non_negative and bool((samples < 0).any()):
            raise IsvitError(
                f"Cannot calibrate {self.role.value} on negative values, expected probabilities: choose a uniform "
                "quantizer for it with model.method.softmax."
            )
        self._choose_grid(self._widened(samples))
        self.refresh()

    def freeze(self) -> None:
        """Forbid another :meth:`calibrate` until :meth:`unfreeze`."""
        self.frozen = True

    def unfreeze(self) -> None:
        """Allow :meth:`calibrate` again."""
        self.frozen = False

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        """Fake-quantized ``tensor`` in the type of the grid; the tensor itself while the quantizer is switched off.

        Raises:
            IsvitError: switched on but not calibrated.
        """
        if not self.enabled:
            return tensor
        self.require_calibrated()
        return self.fake_quantize(self._widened(tensor))

    def _widened(self, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor`` in the type of the grid where that is wider.

        Under autocast layers hand on half precision, in which neither codes nor grid values would be exact.
        """
        if tensor.dtype not in (torch.float16, torch.bfloat16):
            return tensor
        return tensor.to(torch.promote_types(tensor.dtype, next(self.buffers(recurse=False)).dtype))

    def require_calibrated(self) -> None:
        """Refuse to compute with a grid that nobody chose.

        Raises:
            IsvitError: the quantizer is not calibrated.
        """
        if not self.calibrated:
            raise IsvitError(
                f"A quantizer ({self.role.value}) was used before it was calibrated; run `isvit fit`, or load a "
                "finished run with --ckpt_path."
            )

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.refresh()

    def refresh(self) -> None:
        """Derive the plain Python state from the buffers; call it after changing them from outside."""
        self.calibrated = all(bool(torch.isfinite(buffer).all()) for buffer in self.buffers(recurse=False))

    def extra_repr(self) -> str:
        """One line for ``print(network)``."""
        return f"{self.role.value}, {self.bits} bits, {self.n_codes} codes, {self.granularity}"
