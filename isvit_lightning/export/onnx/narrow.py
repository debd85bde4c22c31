"""Integers of 4 bits in an ONNX file, which PyTorch has no type for."""

from typing import Any

from isvit_lightning.export.onnx.engines import require


def store_in_four_bits(model: Any) -> None:
    """Give the uint8 initializers that ``DequantizeLinear`` reads 4 bits, where their numbers are below 16.

    Args:
        model: ``onnx.ModelProto``, changed in place.
    """
    onnx = require("onnx")
    read = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.input}
    for tensor in model.graph.initializer:
        if tensor.name in read and tensor.data_type == onnx.TensorProto.UINT8:
            numbers = onnx.numpy_helper.to_array(tensor)
            packed = onnx.helper.make_tensor(
                tensor.name, onnx.TensorProto.UINT4, numbers.shape, _packed(numbers), raw=True
            )
            tensor.CopyFrom(packed)
    # What tells the types of values in between is of the wider ones.
    for value in [entry for entry in model.graph.value_info if entry.name in read]:
        model.graph.value_info.remove(value)


def _packed(numbers: Any) -> bytes:
    """Two numbers in a byte, the first one in its lower half."""
    flat = numbers.reshape(-1)
    even, odd = flat[0::2], flat[1::2]
    pairs = even.copy()
    pairs[: len(odd)] |= odd << 4
    return bytes(pairs.tobytes())
