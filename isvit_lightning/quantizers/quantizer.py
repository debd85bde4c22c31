"""The one quantizer: bits, codes, a grid that is chosen from data, and an on/off switch."""

from typing import Any

import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.quantizers.formats import Format, Grid
from isvit_lightning.quantizers.granularity import Granularity
from isvit_lightning.quantizers.role import Role
from isvit_lightning.quantizers.site import Search, Site
from isvit_lightning.quantizers.spec import Spec


class Quantizer(nn.Module):
    """Tensor → integer codes → tensor on a fixed grid.

    Every number of the grid lives in a buffer whose shape is known at construction and which holds NaN until
    :meth:`calibrate` fills it, so that a ``state_dict`` round-trips and an uncalibrated quantizer is recognised.

    Args:
        spec: format, width, granularity and role.
        search: how the grid is chosen; None where it is only loaded.

    Attributes:
        enabled: whether :meth:`forward` quantizes.
        calibrated: whether there is a grid.
        held: what :meth:`forward` returns instead of quantizing, while a step of tuning is made.
        kept: ones where :meth:`forward` lets elements through as they are, else zeros, while a step of tuning is made.
    """

    def __init__(self, spec: Spec, search: Search | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.search = search
        self.n_codes = spec.n_codes
        self.enabled = True
        self.calibrated = False
        self.held: torch.Tensor | None = None
        self.kept: torch.Tensor | None = None
        self._constants: tuple[float, ...] = ()
        for name in spec.format.numbers:
            self.register_buffer(name, torch.full(spec.granularity.shape, torch.nan))

    @property
    def bits(self) -> int:
        """Width of a code."""
        return self.spec.bits

    @property
    def role(self) -> Role:
        """What the quantized tensor is."""
        return self.spec.role

    @property
    def format(self) -> Format:
        """Which grids there are."""
        return self.spec.format

    @property
    def granularity(self) -> Granularity:
        """Which elements share a grid."""
        return self.spec.granularity

    @property
    def grid(self) -> Grid:
        """The numbers of the grid."""
        return tuple(self.get_buffer(name) for name in self.format.numbers)

    def encode(self, tensor: torch.Tensor) -> torch.Tensor:
        """Integer codes (int32, same shape as ``tensor``) in ``[0, n_codes)``, computed in the type of the grid.

        Raises:
            IsvitError: the grid is not chosen, or is that of a reproduction without integer codes.
        """
        self.require_calibrated()
        if not self.format.has_codes(self.grid):
            raise IsvitError(
                "A fractional zero point has no integer codes, expected a whole one: set round_zero_point of the fold "
                "to true under model.recipe.steps."
            )
        return self.format.codes(self._widened(tensor), self.grid).clamp_(0, self.n_codes - 1).to(torch.int32)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Grid values of integer ``codes``, same shape."""
        self.require_calibrated()
        return self.format.values(codes.to(self.grid[0].dtype, copy=True), self.grid)

    def table(self) -> torch.Tensor:
        """All grid values by code, ``(n_codes, *shape of the grid's numbers)``."""
        self.require_calibrated()
        return self.format.table(self.grid, self.n_codes)

    @torch.no_grad()
    def calibrate(self, samples: torch.Tensor | Site) -> None:
        """Choose the grid.

        Args:
            samples: a tensor of the shape that the quantizer will see (any batch size), or what more is known of it.

        Raises:
            IsvitError: there is no search, the samples are empty, or hold NaN, infinity or what the format cannot hold.
        """
        site = samples if isinstance(samples, Site) else Site(samples)
        if self.search is None:
            raise IsvitError(f"The {self.role} quantizer was loaded, expected one with a search to calibrate it anew.")
        _require_usable(site.samples, self.spec)
        for buffer, number in zip(self.grid, self.search.choose(self.spec, site), strict=True):
            buffer.copy_(number)
        self.refresh()

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        """Fake-quantized ``tensor`` in the type of the grid; the tensor itself while the quantizer is switched off.

        Gradients are straight-through, see :class:`Format`.

        Raises:
            IsvitError: switched on but not calibrated.
        """
        if not self.enabled:
            return tensor
        if self.held is not None:
            return self.held
        self.require_calibrated()
        tensor = self._widened(tensor)
        quantized = self.format.fake_quantize(tensor, self.grid, self.n_codes, self._constants)
        # Exact: a weight of 0 or 1 gives one of the two.
        return quantized if self.kept is None else torch.lerp(quantized, tensor, self.kept)

    def _widened(self, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor`` in the type of the grid where that is wider.

        Under autocast layers hand on half precision, in which neither codes nor grid values would be exact.
        """
        if tensor.dtype not in (torch.float16, torch.bfloat16):
            return tensor
        return tensor.to(torch.promote_types(tensor.dtype, self.grid[0].dtype))

    def require_calibrated(self) -> None:
        """Refuse to compute with a grid that nobody chose.

        Raises:
            IsvitError: the quantizer is not calibrated.
        """
        if not self.calibrated:
            raise IsvitError(
                f"A quantizer ({self.role}) was used before it was calibrated; run `isvit fit`, or load a finished run "
                "with --ckpt_path."
            )

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.refresh()

    def refresh(self) -> None:
        """Derive the plain Python state from the buffers; call it after changing them from outside."""
        self.calibrated = all(bool(torch.isfinite(number).all()) for number in self.grid)
        self._constants = self.format.constants(self.grid, self.n_codes)

    def extra_repr(self) -> str:
        """One line for ``print(network)``."""
        return f"{self.role}, {self.format}, {self.bits} bits, {self.n_codes} codes, {self.granularity}"


def _require_usable(samples: torch.Tensor, spec: Spec) -> None:
    """Refuse samples that no grid can be chosen from.

    Raises:
        IsvitError: they are empty, or hold NaN, infinity or negative values that the format cannot hold.
    """
    if samples.numel() == 0:
        raise IsvitError(f"Cannot calibrate {spec.role} on an empty tensor; raise data.calibration_images.")
    if not bool(torch.isfinite(samples).all()):
        raise IsvitError(
            f"Cannot calibrate {spec.role}: the activation holds NaN or infinity, expected finite values; check "
            "model.network.checkpoint and the images, and trainer.precision where it is mixed."
        )
    if spec.format.non_negative and bool((samples < 0).any()):
        raise IsvitError(
            f"Cannot calibrate {spec.role} on negative values, expected none for {type(spec.format).__name__}: choose "
            f"another format with model.recipe.placement.{spec.role}.format, such as Uniform."
        )
