"""ONNX files of a network, which several engines read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.export.onnx import export_onnx, export_onnx_int4
from isvit_lightning.export.onnx.engines import require
from isvit_lightning.export.onnx.metadata import metadata_of
from isvit_lightning.export.onnx.write import write_graph
from isvit_lightning.run.benchmark.forms import Absent, Subject


@dataclass(frozen=True)
class Graph:
    """A file.

    Args:
        path: of it.
        floats: why products of a quantized network are written as ones of floats, by path of their layer; None of the
            float network.
    """

    path: Path
    floats: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Graphs:
    """ONNX files of a network in its forms, each written when it is first asked for.

    Args:
        subject: what is measured.
        folder: where they are written.
    """

    subject: Subject
    folder: Path
    _written: dict[str, Graph] = field(default_factory=dict)

    def missing(self, engine: str, *packages: str) -> Absent | None:
        """Why an engine has no form at all; None where it may have.

        Args:
            engine: its name in tables.
            packages: that it needs.
        """
        if not self.subject.is_whole:
            reason = "Only a part of this network is timed, expected a whole one for a graph: PyTorch times the part."
            return Absent(engine, "all", reason)
        try:
            for package in ("onnx", "onnxscript", *packages):
                require(package)
        except IsvitError as error:
            return Absent(engine, "all", str(error))
        return None

    def float_network(self) -> Graph:
        """The float network.

        Raises:
            IsvitError: it is not at hand.
        """
        network = self.subject.float_network
        if isinstance(network, str):
            raise IsvitError(network)
        if "float" not in self._written:
            path = self.folder / "float.onnx"
            texts = metadata_of(self.subject.simulated, None, "", form="float")
            write_graph(network, [torch.zeros(2, *self.subject.size)], path, ["images"], ["logits"], texts)
            self._written["float"] = Graph(path)
        return self._written["float"]

    def quantized(self) -> Graph:
        """The network in integers of 8 bits."""
        if "quantized" not in self._written:
            path = self.folder / "quantized.onnx"
            report = export_onnx(self.subject.simulated, path, images=self.subject.images)
            self._written["quantized"] = Graph(path, report.floats)
        return self._written["quantized"]

    def int4(self) -> Graph:
        """The network with weights of 4 bits and activations in float."""
        path = self.folder / "int4.onnx"
        export_onnx_int4(self.subject.simulated, path)
        return Graph(path)
