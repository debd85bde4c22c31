"""The model section of a detector's configuration, and how detectors are measured and shown."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Trainer
from torch import Tensor, nn

from detection.architecture import DetectorArchitecture
from detection.source import DetectorSource
from isvit_lightning.errors import IsvitError
from isvit_lightning.export.artifact import QuantizedNetwork, load
from isvit_lightning.run.task import ModelSection, bare


class Detector(ModelSection):
    """A detector and how it is to be quantized: all of it, while its backbone is tuned, or neck and heads too.

    Args:
        network: where the float detector comes from.
        **options: recipe, widths, and how long and on how much a unit is tuned.
    """

    def __init__(self, network: DetectorSource, **options: Any) -> None:
        super().__init__(network, Detection(), **options)


class Detection:
    """Networks that find objects, measured by COCO's average precision of boxes and masks."""

    columns: tuple[tuple[str, str], ...] = (
        ("box_ap", "box AP %"),
        ("box_ap50", "box AP50 %"),
        ("mask_ap", "mask AP %"),
        ("mask_ap50", "mask AP50 %"),
    )
    compares_with_float = False
    packages: tuple[str, ...] = ("mmdet", "mmcv", "mmcv-lite", "mmengine", "pycocotools")

    def load(self, directory: Path) -> QuantizedNetwork:
        """The quantized detector of a run directory, built from its description alone.

        Raises:
            IsvitError: the directory holds none, or mmdet is missing.
        """
        from detection.data.preprocessing import DetectorPreprocessing  # noqa: PLC0415 - imports mmcv

        return load(directory, None, DetectorArchitecture, DetectorPreprocessing)

    def measure(self, network: nn.Module, data: Any, trainer: Trainer, is_float: bool = False) -> dict[str, float]:
        """Average precision in per cent, of boxes and, where the annotations have them, of masks.

        Args:
            network: float or quantized.
            data: the configured data.
            trainer: runs the evaluation.
            is_float: whether it is the float detector; nothing is compared with it.

        Raises:
            IsvitError: the data is not that of a detector, or of other classes.
        """
        from detection.evaluation import DetectionEvaluator  # noqa: PLC0415 - imports pycocotools

        described = getattr(bare(network), "dataset_meta", {})
        data.require_classes(number_of_classes(network), described.get("classes", ()))
        found = trainer.test(DetectionEvaluator(bare(network), data.ground_truth()), datamodule=data, verbose=False)[0]
        return {name: round(float(found[name]), 3) for name, _ in self.columns if name in found}

    def distance(
        self, network: nn.Module, images: Tensor, batch_size: int, make_trainer: Callable[[], Trainer]
    ) -> None:
        """Nothing: objects that two detectors find have no distance."""

    def timed_part(self, network: nn.Module) -> nn.Module:
        """The backbone: neck and heads work on as many objects as they find."""
        return cast("nn.Module", bare(network).backbone)

    def write_onnx(
        self, network: QuantizedNetwork, path: Path, data: Any, images: Tensor | None, weights_only: bool = False
    ) -> Path:
        """Write the backbone for images of the configured size; mmdet's neck and heads read its maps.

        Raises:
            IsvitError: weights alone are asked for.
        """
        from detection.export import export_backbone  # noqa: PLC0415 - only a verb needs it

        if weights_only:
            raise IsvitError(
                "The format onnx-int4 holds classifiers, expected another one for a detector: choose onnx, openvino, "
                "packed or hub."
            )
        # Boxes take every flipped code amiss: lookups are only for what they give exactly.
        return export_backbone(network, path, tuple(data.input_size[1:]), images=images, flipped_at_most=0.0)

    def predict(
        self, network: nn.Module, make_float: Callable[[], nn.Module] | None, data: Any, trainer: Trainer, folder: Path
    ) -> Path:
        """Write pictures with boxes and masks, the float detector's beside the quantized one's."""
        from detection.pictures import comparison  # noqa: PLC0415 - imports pycocotools

        networks = {"quantized" if make_float else "float": network}
        if make_float is not None:
            networks = {"float": make_float(), **networks}
        found = {title: _detections(each, data, trainer) for title, each in networks.items()}
        pictures = folder / "predictions"
        for place, (name, image) in enumerate(zip(data.predict_names(), data.predict_images(), strict=True)):
            drawn = comparison(image, {title: each[place] for title, each in found.items()}, data.class_names)
            path = (pictures / name).with_suffix(".png")
            _save(drawn, path)
        return pictures


def number_of_classes(network: nn.Module) -> int:
    """Number of classes of a detector, float or quantized."""
    head: Any = cast("Any", bare(network)).roi_head.bbox_head
    first: Any = next(iter(head)) if isinstance(head, nn.ModuleList) else head
    return int(first.num_classes)


def _detections(network: nn.Module, data: Any, trainer: Trainer) -> list[Any]:
    """What ``network`` finds on each image, in order."""
    from detection.evaluation import DetectionEvaluator  # noqa: PLC0415 - imports pycocotools

    batches: Any = trainer.predict(DetectionEvaluator(bare(network)), datamodule=data) or []
    return [detections for batch in batches for detections in batch]


def _save(picture: Any, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    except OSError as error:
        raise IsvitError(
            f"Cannot write {path}: {error.strerror}; expected a writable folder: free some space or set "
            "trainer.default_root_dir elsewhere."
        ) from None
