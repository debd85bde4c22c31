"""A calibrated network as an ONNX file, checked and run."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.export.artifact import QuantizedNetwork
from isvit_lightning.export.onnx.compare import Distance, distance
from isvit_lightning.export.onnx.int4 import weight_only
from isvit_lightning.export.onnx.lookup import FLIPPED_AT_MOST
from isvit_lightning.export.onnx.metadata import metadata_of
from isvit_lightning.export.onnx.network import graph_network
from isvit_lightning.export.onnx.runner import OnnxNetwork
from isvit_lightning.export.onnx.write import write_graph

_log = logging.getLogger(__name__)
_COMPARED = 16
"""Images on which a file is compared with the simulated network."""


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Args:
        path: the file.
        size: of it, in bytes.
        distance: from the simulated network on the given images; None where there were none.
        flipped: share of the numbers that each lookup flips on these images, by path of its quantizer.
        floats: why products are ones of floats, by path of their layer.
        notes: sentences for the user.
    """

    path: Path
    size: int
    distance: Distance | None
    flipped: Mapping[str, float] = field(default_factory=dict)
    floats: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def export_onnx(
    network: QuantizedNetwork,
    path: str | Path,
    *,
    images: torch.Tensor | None = None,
    classes: Sequence[str] | None = None,
    packed_hash: str = "",
    flipped_at_most: float = FLIPPED_AT_MOST,
) -> ExportReport:
    """Write a network with integers in containers of 8 bits, and run it once.

    Args:
        network: calibrated.
        path: file to write.
        images: preprocessed calibration images ``(n, 3, height, width)``: what lookups flip is measured on them, and
            the file is compared with the network on some. None uses images of noise for the run, and compares nothing.
        classes: names of the classes in the order of the logits.
        packed_hash: hash of the packed file of the network.
        flipped_at_most: share of a tensor's numbers that a lookup may flip; above it the exact form is written.

    Raises:
        IsvitError: a package of the extra export is missing, the images do not fit the network, a quantizer has no
            integer codes, or the file cannot be written.
    """
    path = Path(path)
    _log.info("Writing %s: measuring lookups, tracing and checking the graph.", path)
    graph = graph_network(network.model, images, flipped_at_most)
    metadata = metadata_of(network, classes, packed_hash, form="integers in 8 bits")
    write_graph(graph.model, [_example(network, images)], path, ["images"], ["logits"], metadata)
    found = _checked(path, network, images)
    return _told(ExportReport(path, path.stat().st_size, found, graph.flipped, graph.floats, graph.notes))


def export_onnx_int4(
    network: QuantizedNetwork,
    path: str | Path,
    *,
    images: torch.Tensor | None = None,
    classes: Sequence[str] | None = None,
    packed_hash: str = "",
) -> ExportReport:
    """Write a network with weights of 4 bits and activations in float: a small file, no faster than the float network.

    Args:
        network: calibrated, with weights of up to 4 bits; those of 3 and 2 bits take 4 there.
        path: file to write.
        images: preprocessed images ``(n, 3, height, width)``, on some of which the file is compared with the network
            whose activations are float.
        classes: names of the classes in the order of the logits.
        packed_hash: hash of the packed file of the network.

    Raises:
        IsvitError: a package of the extra export is missing, a weight has more than 4 bits, or the file cannot be
            written.
    """
    path = Path(path)
    _log.info("Writing %s: tracing and checking the graph.", path)
    model, simulated = weight_only(network.model)
    metadata = metadata_of(network, classes, packed_hash, form="weights in 4 bits")
    write_graph(model, [_example(network, images)], path, ["images"], ["logits"], metadata, narrow=True)
    found = _checked(path, simulated, images)
    return _told(ExportReport(path, path.stat().st_size, found))


def _example(network: QuantizedNetwork, images: torch.Tensor | None) -> torch.Tensor:
    """Two images."""
    if images is not None:
        return images[:1].repeat(2, 1, 1, 1)
    if network.preprocessing is None:
        raise IsvitError(
            "The network does not say how large its images are, expected images to trace it with: pass them as images."
        )
    return torch.zeros(2, *network.preprocessing.input_size)


def _checked(path: Path, network: torch.nn.Module, images: torch.Tensor | None) -> Distance | None:
    engine = OnnxNetwork(path)
    return None if images is None else distance(engine, network, images[:_COMPARED])


def _told(report: ExportReport) -> ExportReport:
    found = "not compared, as there were no images" if report.distance is None else str(report.distance)
    _log.info("Wrote %s: %.1f MB; %s.", report.path, report.size / 1e6, found)
    return report
