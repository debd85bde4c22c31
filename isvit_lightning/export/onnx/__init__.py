"""ONNX graphs of calibrated networks: integers in containers of 8 bits, or weights of 4 bits, and a way to run them."""

from isvit_lightning.export.onnx.compare import Distance
from isvit_lightning.export.onnx.export import ExportReport, export_onnx, export_onnx_int4
from isvit_lightning.export.onnx.files import read_metadata
from isvit_lightning.export.onnx.runner import OnnxNetwork

__all__ = ["Distance", "ExportReport", "OnnxNetwork", "export_onnx", "export_onnx_int4", "read_metadata"]
