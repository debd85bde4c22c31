"""The model card of a hub folder: what the network is, what was measured, what its limits are, and how it is loaded."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import yaml
from torch import nn

from isvit_lightning.networks import quantizers
from isvit_lightning.quantizers import Quantizer

_TITLES: Final = {"top1": "top-1 %", "top5": "top-5 %", "agreement": "agreement with float %", "kl": "KL to float"}
_TAGS: Final = ("isvit-lightning", "quantization", "post-training-quantization", "vision-transformer")
_OPERANDS: Final = ("input_quantizer", "weight_quantizer", "left_quantizer", "right_quantizer")
_WHAT: Final = """Made with isvit-lightning: weights and the inputs of matrix products lie on integer grids, and the
weights are stored as packed codes.
"""
_LOADING: Final = """## How to load it

In Python, with `pip install isvit-lightning`; logits are the same to the last bit as those of the run:

```python
import isvit_lightning

network = isvit_lightning.load("OWNER/NAME")        # or this folder
prepare = network.preprocessing.transform()         # from a PIL image to a tensor
logits = network(prepare(image)[None])
```

In ONNX Runtime, after `isvit export RUN --format onnx` (`pip install "isvit-lightning[export]"`), `RUN` being the run
directory:

```python
import onnxruntime

session = onnxruntime.InferenceSession("MODEL.onnx", providers=["CPUExecutionProvider"])
logits = session.run(None, {session.get_inputs()[0].name: images})[0]
```

In OpenVINO, the fastest form on CPUs, after `isvit export RUN --format openvino`:

```python
import openvino

compiled = openvino.Core().compile_model("MODEL.xml", "CPU")
logits = compiled(images)[0]
```

The weights of its linear layers open in programs that read the format `pack-quantized` of compressed-tensors (0.18 or
later); grids of inputs, and layers that the format does not cover, have keys of their own.
"""
_LIMITS: Final = """* Softmax, LayerNorm, GELU and sums are computed in float.
* No engine computes with 3 or 4 bits natively: they store small codes, and compute with integers of 8 bits or in float.
  In Python the grids are simulated in float, which is not faster than the float network.
* 3 and 6 bits save space in this file only; in ONNX they take 8.
"""


def card_of(
    model: nn.Module,
    name: str,
    pipeline_tag: str,
    record: Mapping[str, Any],
    results: Mapping[str, Any] | None,
    license: str | None = None,  # noqa: A002 - as the hub calls it
) -> str:
    """The text of a model card, with its front matter in YAML.

    Args:
        model: network with quantizers.
        name: of the float network.
        pipeline_tag: what the hub calls its task.
        record: what the network was made with; nothing in it is relied upon.
        results: what its run measured; None where nothing is known.
        license: left out where it is not given.
    """
    front: dict[str, Any] = {"library_name": "isvit-lightning", "pipeline_tag": pipeline_tag, "tags": list(_TAGS)}
    if license is not None:
        front["license"] = license
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
        f"# {_text(name)}, quantized to {_widths(model)}\n",
        _WHAT,
        f"## What was measured\n\n{_measured(results or {})}",
        f"## How it was made\n\n{_made(record, results or {})}",
        f"## What is quantized\n\n{_quantized(model)}",
        f"## Limits\n\n{_LIMITS}{_float_parts(model)}",
        _LOADING,
    ]
    return "\n".join(parts)


def _widths(model: nn.Module) -> str:
    """Bits of weights and inputs in words, the most frequent ones."""
    found = quantizers(model).values()
    widths = [Counter(one.bits for one in found if one.role.weight is weight) for weight in (True, False)]
    words = [f"{width.most_common(1)[0][0]} bits" if width else "float" for width in widths]
    return f"{words[0]} (weights) and {words[1]} (inputs)"


def _measured(results: Mapping[str, Any]) -> str:
    rows = {str(row): metrics for row, metrics in _section(results, "metrics").items() if isinstance(metrics, Mapping)}
    rows = {row: metrics for row, metrics in rows.items() if metrics}
    if not rows:
        return "Nothing is known of it: the network was not evaluated, or comes without its run's results.\n"
    columns = list(dict.fromkeys(str(key) for metrics in rows.values() for key in metrics))
    shown = [
        [row.replace("_", " "), *(_text(metrics.get(key, "")) for key in columns)] for row, metrics in rows.items()
    ]
    titles = ["", *(_TITLES.get(key, key.replace("_", " ")) for key in columns)]
    sizes = _section(results, "size_bytes")
    told = [f"{kind} {size / 1e6:.2f} MB" for kind, size in sizes.items() if isinstance(size, int | float)]
    size = f" Size: {', '.join(told)}." if told else ""
    images = _text(_section(results, "images").get("evaluation", "an unknown number of"))
    return (
        f"{_table(titles, shown)}\nOn {images} evaluation images. `quantized` is this network, `float` the one that it "
        f"was made from.{size}\n"
    )


def _made(record: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    schedule, bits = _section(record, "schedule"), _section(record, "bits")
    facts = {
        "network": record.get("network", results.get("network")),
        "recipe": _section(record, "recipe").get("name", results.get("recipe")),
        "bits of weights": bits.get("weight"),
        "bits of inputs": bits.get("activation"),
        "calibration images": _section(results, "images").get("calibration"),
        "steps per unit and stage": schedule.get("iterations", results.get("iterations")),
        "batch size": schedule.get("batch_size"),
        "seed": record.get("seed", results.get("seed")),
        "hash of the float weights": record.get("weights"),
        **{f"version of {name}": version for name, version in _section(results, "versions").items()},
    }
    return _table(["", ""], [[key, _text(value)] for key, value in facts.items() if value is not None])


def _quantized(model: nn.Module) -> str:
    """One row for each kind of tensor."""
    kinds = Counter(_kind(quantizer) for quantizer in quantizers(model).values())
    rows = [[*kind[:4], str(count)] for kind, count in kinds.items()]
    return _table(["tensor", "format", "bits", "grids", "number"], rows)


def _kind(quantizer: Quantizer) -> tuple[str, str, str, str]:
    form = type(quantizer.format).__name__
    return quantizer.role.name, form, str(quantizer.bits), str(quantizer.granularity)


def _float_parts(model: nn.Module) -> str:
    """Layers and operands that stay float, by name."""
    layers = [path for path, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    operands = [
        f"{path}.{name.removesuffix('_quantizer')}"
        for path, module in model.named_modules()
        for name in _OPERANDS
        if getattr(module, name, module) is None
    ]
    return "".join(f"* `{path}` stays float.\n" for path in [*layers, *operands])


def _section(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A part of JSON that somebody may have changed; empty where it is none."""
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}


def _text(value: object) -> str:
    """``value`` in one cell of a table."""
    shown = f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join(shown.replace("|", "/").split())


def _table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
