"""The backbone of a detector as an ONNX graph, whose maps mmdet's neck and heads read."""

import logging
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.export.artifact import QuantizedNetwork
from isvit_lightning.export.onnx.lookup import FLIPPED_AT_MOST
from isvit_lightning.export.onnx.metadata import metadata_of
from isvit_lightning.export.onnx.network import graph_network
from isvit_lightning.export.onnx.runner import OnnxNetwork
from isvit_lightning.export.onnx.write import write_graph
from isvit_lightning.export.openvino import OpenVinoNetwork
from isvit_lightning.networks import copied

_LOG = logging.getLogger(__name__)


class Pyramid(nn.Module):
    """A backbone that gives its maps as a tuple, as a graph does.

    Args:
        backbone: float or quantized.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map ``images (batch, 3, height, width)`` to the maps of all levels, the finest first."""
        return tuple(self.backbone(images))


class GraphBackbone(nn.Module):
    """A backbone that another engine computes; it takes the place of a detector's own.

    Example::

        detector = Detection().load(Path("runs/quickstart_detection")).model
        detector.backbone = GraphBackbone(OnnxNetwork("backbone.onnx"))

    Args:
        network: made of a file of :func:`export_backbone`, or of what another exporter made of that.

    Raises:
        IsvitError: the file holds no backbone.
    """

    def __init__(self, network: OnnxNetwork | OpenVinoNetwork) -> None:
        super().__init__()
        self.network = network
        self.size = tuple(network.metadata.get("size") or ())
        if len(self.size) != 2:
            raise IsvitError("The graph is no backbone of a detector, expected that of export_backbone: name another.")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map ``images (batch, 3, height, width)`` to the maps of all levels, the finest first.

        Raises:
            IsvitError: the images have another height or width than the graph.
        """
        size = tuple(images.shape[2:])
        if size != self.size:
            raise IsvitError(
                f"Images are {size[0]} x {size[1]}, expected {self.size[0]} x {self.size[1]} as the graph was written "
                "for: change data.canvas, or export the backbone for this size."
            )
        return tuple(self.network.outputs(images))


def export_backbone(
    network: QuantizedNetwork,
    path: str | Path,
    size: tuple[int, int],
    *,
    images: Tensor | None = None,
    flipped_at_most: float = FLIPPED_AT_MOST,
) -> Path:
    """Write the backbone of a quantized detector for images of one size, in batches of any, and run it once.

    Windows, padding and masks of the shifted blocks follow from the size, so that a graph has but one.

    Args:
        network: calibrated detector.
        path: file to write.
        size: height and width of the images.
        images: preprocessed calibration images ``(n, 3, height, width)`` that lookups are made for; None spreads what
            they see evenly.
        flipped_at_most: share of a tensor's numbers that a lookup may flip; above it the exact form is written.

    Returns:
        The file, which :class:`GraphBackbone` reads.

    Raises:
        IsvitError: a package of the extra export is missing, the images are of another size, a quantizer is not
            calibrated or has no integer codes, or the file cannot be written.
    """
    path = Path(path)
    if images is not None and tuple(images.shape[2:]) != size:
        raise IsvitError(
            f"Calibration images are {images.shape[2]} x {images.shape[3]}, expected {size[0]} x {size[1]}: change "
            "size."
        )
    _LOG.info("Writing %s for images of %d x %d: tracing and checking the graph.", path, *size)
    backbone = Pyramid(copied(cast("nn.Module", network.model.backbone)))
    graph = graph_network(backbone, images, flipped_at_most)
    example = torch.zeros(2, 3, *size)
    with torch.no_grad():
        levels = [f"level{index}" for index, _ in enumerate(backbone(example))]
    more: dict[str, Any] = {"form": "integers in 8 bits", "size": list(size)}
    write_graph(graph.model, [example], path, ["images"], levels, metadata_of(network, None, "", **more))
    GraphBackbone(OnnxNetwork(path))(example)
    _LOG.info("Wrote %s: %.1f MB.", path, path.stat().st_size / 1e6)
    return path
