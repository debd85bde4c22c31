"""Images from the datasets that timm opens by name."""

from pathlib import Path
from typing import Any, Final

from timm.data.dataset import ImageDataset
from timm.data.dataset_factory import create_dataset

from isvit_lightning.data.base import CalibrationDataModule
from isvit_lightning.data.class_order import ClassOrder, natural_key
from isvit_lightning.data.files import FileSource, open_source
from isvit_lightning.data.labels import ClassFolders, read_class_map
from isvit_lightning.data.loading import UNLABELED
from isvit_lightning.data.sources import LabeledImages
from isvit_lightning.data.timm_sources import ReaderSource, TorchvisionSource
from isvit_lightning.errors import IsvitError
from isvit_lightning.sources.paths import expand_path

_STREAMS: Final = ("tfds", "wds", "hfids")
_FOLDERS_OF_TORCHVISION: Final = ("torch/folder", "torch/image_folder")
_SYNONYMS: Final = (("train", "training"), ("val", "valid", "validation", "eval", "evaluation"))
"""Names of one split, as timm has them."""


class TimmDataModule(CalibrationDataModule):
    """A dataset of timm with a split to calibrate on and a split to evaluate on.

    That calibration and evaluation share no image is checked by contents for folders and archives, but only by split
    and number for Hugging Face and torchvision datasets.

    Args:
        dataset: name for timm's create_dataset, such as hfds/imagenet-1k or torch/cifar10; empty for a folder or .tar
            archive at root, whose innermost folders are the classes, torch/folder for one whose outermost are. Streams
            (tfds, wds, hfids) have no random access and are refused.
        root: folder of the dataset, or where it is cached; ``~`` and variables are replaced.
        calibration_split: split to calibrate on: the subfolder of root with this name or a like one, root itself where
            there is none; none to evaluate only.
        evaluation_split: split to evaluate on; none to calibrate only.
        class_map: text file with one class per line in class order, for the evaluation split. Images of other classes
            are left out of a folder or archive.
        class_order: how the folders of classes are sorted: plain compares characters (class10 before class2, Zebra
            before ant) as torchvision does, natural compares numbers and ignores capitals as timm does. Needed where
            the two differ and there is no class_map.
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
        class_order: ClassOrder | None = None,
        download: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        kind = dataset.partition("/")[0].lower() if "/" in dataset else ""
        if kind in _STREAMS or dataset.lower() in _STREAMS:
            raise IsvitError(
                f"The dataset {dataset} is a stream, expected one with random access, such as hfds/imagenet-1k or a "
                "folder at data.root: change data.dataset."
            )
        self.dataset = dataset
        self.root = root
        self.calibration_split = calibration_split
        self.evaluation_split = evaluation_split
        self.class_map = class_map
        self.class_order: ClassOrder | None = class_order
        self.download = download
        self._like_torchvision = dataset.lower() in _FOLDERS_OF_TORCHVISION
        self._in_files = self._like_torchvision or kind not in ("torch", "hfds")
        path = None if class_map is None else _class_map(class_map, root)
        self._classes = ClassFolders(self.evaluation_option, path, class_order, innermost=not self._like_torchvision)
        for option, value in (("class_order", class_order), ("class_map", class_map if kind == "torch" else None)):
            if value is not None and not self._in_files:
                raise IsvitError(
                    f"data.{option} is {value} but the dataset {dataset} has its own order of classes, expected a "
                    f"folder or archive of images: leave out data.{option}."
                )

    def calibration_source(self) -> FileSource | ReaderSource | TorchvisionSource | None:
        """All images of the calibration split."""
        if self.calibration_split is None:
            return None
        return self._files(self.calibration_split) if self._in_files else self._open(self.calibration_split)

    def evaluation_source(self) -> LabeledImages | None:
        """All images of the evaluation split."""
        if self.evaluation_split is None:
            return None
        if self._in_files:
            return self._classes.label(self._files(self.evaluation_split))
        path = self._classes.class_map
        classes = None if path is None else {name: number for number, name in enumerate(read_class_map(path))}
        try:
            return self._open(self.evaluation_split, classes).labeled()
        except KeyError as error:
            raise IsvitError(
                f"The class {error} of split {self.evaluation_split} is not in {path}, expected a line for each class: "
                "change data.class_map."
            ) from None

    def prediction_source(self) -> LabeledImages | None:
        """All images of the evaluation split, whatever the folders of a folder or archive are called."""
        if self.evaluation_split is None or not self._in_files:
            return super().prediction_source()
        source = self._files(self.evaluation_split)
        return LabeledImages(source, [UNLABELED] * len(source), 0)

    def _files(self, split: str) -> FileSource:
        """The folder or archive of a split, in the order in which timm or torchvision lists it."""
        if self.root is None:
            raise IsvitError(
                "There is no folder or archive to take images from, expected one, or the name of a dataset: set "
                "data.root or data.dataset."
            )
        root = expand_path(self.root)
        place = _split_folder(root, split)
        source = open_source(place, "data.root", _torchvision_key if self._like_torchvision else natural_key)
        if place == root:
            self._classes.require_classes(source)
        return source

    def _open(self, split: str, class_map: dict[str, int] | None = None) -> ReaderSource | TorchvisionSource:
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


def _class_map(class_map: str, root: str | None) -> Path:
    """Where the class map lies: as it is given, or in the folder of the dataset, as timm finds it."""
    path = expand_path(class_map)
    return path if root is None or path.exists() else expand_path(root) / path


def _split_folder(root: Path, split: str) -> Path:
    """The subfolder of a split, by its name or a like one; ``root`` itself where there is none."""
    name = split.split("[", maxsplit=1)[0]
    alike = next((names for names in _SYNONYMS if name in names), ())
    folders = (root / folder for folder in (name, *alike))
    return next((folder for folder in folders if root.is_dir() and folder.exists()), root)


def _torchvision_key(name: str) -> tuple[str, str, str]:
    """Key that sorts paths as torchvision does: by class, by folder in it, and by name."""
    folder, _, file = name.rpartition("/")
    return name.partition("/")[0], folder, file
