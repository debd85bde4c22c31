"""How a float network is opened: units, wires, attention with reachable matmuls."""

from isvit_lightning.networks import swin, vit  # noqa: F401 - registers the adapters
from isvit_lightning.networks.adapter import adapter_for
from isvit_lightning.networks.factory import Axes, Build, LayerFactory
from isvit_lightning.networks.open import (
    Reconstructed,
    copied,
    open_float,
    open_quantized,
    quantizers,
    refresh,
    require_calibrated,
    switch,
)
from isvit_lightning.networks.opened import SINGLE, Data, Heads, OpenedNetwork, Stream, Unit, Wire, Writer
from isvit_lightning.networks.ranges import Gradients, calibrate_activations, calibrate_ranges, calibrate_weights
from isvit_lightning.networks.sensitivity import output_gradients
from isvit_lightning.networks.specs import open_by_specs, specs_of

__all__ = [
    "SINGLE",
    "Axes",
    "Build",
    "Data",
    "Gradients",
    "Heads",
    "LayerFactory",
    "OpenedNetwork",
    "Reconstructed",
    "Stream",
    "Unit",
    "Wire",
    "Writer",
    "adapter_for",
    "calibrate_activations",
    "calibrate_ranges",
    "calibrate_weights",
    "copied",
    "open_by_specs",
    "open_float",
    "open_quantized",
    "output_gradients",
    "quantizers",
    "refresh",
    "require_calibrated",
    "specs_of",
    "switch",
]
