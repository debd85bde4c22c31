"""The section of a configuration by which compressed-tensors knows which layers hold packed weights, and how."""

from typing import Any

from torch import nn

from isvit_lightning.export.weights import weights_of
from isvit_lightning.layers import QuantLinear
from isvit_lightning.quantizers import PerTensor

LAYOUT_SINCE = "0.18.0"
"""The version of compressed-tensors whose packing without idle bits is ours."""


def quantization_config(model: nn.Module) -> dict[str, Any]:
    """``quantization_config`` of a calibrated network: one group for each width and granularity of linear layers.

    Layers are named one by one: a class of layers would mean those of other widths too. Grids of inputs are not in it.

    Args:
        model: network with quantizers.
    """
    shared = [weight for weight in weights_of(model) if weight.is_shared]
    groups: dict[tuple[int, str], list[str]] = {}
    for weight in shared:
        strategy = "tensor" if isinstance(weight.quantizer.granularity, PerTensor) else "channel"
        groups.setdefault((weight.bits, strategy), []).append(weight.layer)
    layers = {weight.layer for weight in shared}
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear | QuantLinear))
    return {
        "quant_method": "compressed-tensors",
        "version": LAYOUT_SINCE,
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{place}": {
                "targets": targets,
                "weights": {
                    "num_bits": bits,
                    "type": "int",
                    "symmetric": False,
                    "strategy": strategy,
                    "dynamic": False,
                },
            }
            for place, ((bits, strategy), targets) in enumerate(groups.items())
        },
        "ignore": [name for name in linear if name not in layers],
    }
