"""Images from the datasets that timm opens by name."""

from typing import Any, Final

from timm.data.dataset import ImageDataset
from timm.data.dataset_factory import create_dataset

from isvit_lightning.data.base import CalibrationDataModule
from isvit_lightning.data.sources import LabeledImages
from isvit_lightning.data.timm_sources import ReaderSource, TorchvisionSource
from isvit_lightning.errors import IsvitError
from isvit_lightning.sources.paths import expand_path

_STREAMS: Final = ("tfds", "wds", "hfids")


class TimmDataModule(CalibrationDataModule):
    """A dataset of timm with a split to calibrate on and a split to evaluate on.

    That calibration and evaluation share no image is checked by contents for folders and archives, but only by split
    and number for Hugging Face and torchvision datasets.

    Args:
        dataset: name for timm's create_dataset, such as hfds/imagenet-1k or torch/cifar10; empty for a folder or .tar
            archives at root. Streams (tfds, wds, hfids) have no random access and are refused.
        root: folder of the dataset, or where it is cached; ``~`` and variables are replaced.
        calibration_split: split to calibrate on; none to evaluate only.
        evaluation_split: split to evaluate on; none to calibrate only.
        class_map: text file with one class per line in class order, for the evaluation split.
        download: download a torchvision dataset that is not at root.
        **options: those of every data module.
    """

    calibration_option = "data.calibration_split"
    evaluation_option = "data.evaluation_split"

    def __init__(
        self,
        dataset: str = "",
        root: str | None = None,
        *,
        calibration_split: str | None = "train",
        evaluation_split: str | None = "validation",
        class_map: str | None = None,
        download: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if dataset.partition("/")[0].lower() in _STREAMS:
            raise IsvitError(
                f"The dataset {dataset} is a stream, expected one with random access, such as hfds/imagenet-1k or a "
                "folder at data.root: change data.dataset."
            )
        self.dataset = dataset
        self.root = root
        self.calibration_split = calibration_split
        self.evaluation_split = evaluation_split
        self.class_map = class_map
        self.download = download

    def calibration_source(self) -> ReaderSource | TorchvisionSource | None:
        """All images of the calibration split."""
        return None if self.calibration_split is None else self._open(self.calibration_split, None)

    def evaluation_source(self) -> LabeledImages | None:
        """All images of the evaluation split."""
        if self.evaluation_split is None:
            return None
        class_map = None if self.class_map is None else str(expand_path(self.class_map))
        try:
            return self._open(self.evaluation_split, class_map).labeled()
        except KeyError as error:
            raise IsvitError(
                f"The class {error} of split {self.evaluation_split} is not in {class_map}, expected a line for each "
                "class: change data.class_map."
            ) from None

    def _open(self, split: str, class_map: str | None) -> ReaderSource | TorchvisionSource:
        root = None if self.root is None else str(expand_path(self.root))
        options: dict[str, Any] = {"class_map": class_map, "download": self.download}
        try:
            dataset = create_dataset(self.dataset, root, split, **options)
        # What timm, torchvision and datasets raise for a missing folder, name, split, package or connection.
        except (AssertionError, ImportError, OSError, RuntimeError, ValueError, TypeError) as error:
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise IsvitError(
                f"timm cannot open split {split} of dataset {self.dataset!r} at {root} ({reason.rstrip('.')}), "
                "expected a dataset that its create_dataset knows: change data.dataset, data.root, "
                "data.calibration_split, data.evaluation_split or data.class_map."
            ) from None
        origin = f"{self.dataset}/{split}"
        if isinstance(dataset, ImageDataset):
            return ReaderSource(dataset, origin)
        return TorchvisionSource(dataset, origin)
