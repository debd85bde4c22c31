"""The engines that a benchmark knows, and the forms of a network in each."""

from collections.abc import Sequence
from pathlib import Path

import torch

from isvit_lightning.run.benchmark import onnx_runtime, openvino
from isvit_lightning.run.benchmark.forms import Forms, Subject
from isvit_lightning.run.benchmark.graphs import Graphs
from isvit_lightning.run.benchmark.pytorch import PyTorch


def forms_of(subject: Subject, engines: Sequence[str], device: torch.device, folder: Path) -> Forms:
    """All forms in the order of the tables: with those that there are not, and those that others are compared with.

    Args:
        subject: what is measured.
        engines: their names, as the command line spells them.
        device: where PyTorch computes; other engines compute on the CPU.
        folder: for files of other engines.
    """
    pytorch, graphs = PyTorch(subject, device), Graphs(subject, folder)
    yield from pytorch.forms() if "pytorch" in engines else pytorch.references()
    if "onnxruntime" in engines:
        yield from onnx_runtime.forms(graphs)
    if "openvino" in engines:
        yield from openvino.forms(graphs)
