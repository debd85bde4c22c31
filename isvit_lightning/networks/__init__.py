"""How a float network is opened: units, (norm, linear) pairs, attention with reachable matmuls."""

# The adapters register themselves with `adapter_for` on import.
from isvit_lightning.networks import swin, vit
from isvit_lightning.networks.adapter import Adapter, adapter_for
from isvit_lightning.networks.open import open_float, open_quantized, quantizers, require_calibrated, switch
from isvit_lightning.networks.opened import NormLinearPair, OpenedNetwork, Unit
from isvit_lightning.networks.ranges import calibrate_activations, calibrate_weights

__all__ = [
    "Adapter",
    "NormLinearPair",
    "OpenedNetwork",
    "Unit",
    "adapter_for",
    "calibrate_activations",
    "calibrate_weights",
    "open_float",
    "open_quantized",
    "quantizers",
    "require_calibrated",
    "swin",
    "switch",
    "vit",
]
