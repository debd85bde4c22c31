"""Images from folders and .tar archives."""

from typing import Any

from isvit_lightning.data.base import CalibrationDataModule
from isvit_lightning.data.class_order import ClassOrder
from isvit_lightning.data.files import FileSource, open_source
from isvit_lightning.data.labels import ClassFolders
from isvit_lightning.data.loading import UNLABELED
from isvit_lightning.data.sources import LabeledImages
from isvit_lightning.sources.paths import expand_path


class ImageFolderDataModule(CalibrationDataModule):
    """Images in folders or .tar archives, which are read in place.

    ``$NAME``, ``${NAME}`` and ``~`` in paths are replaced; ISVIT_DATA is ../shared/data where it is not set.

    Args:
        calibration: folder, flat or nested, or .tar archive of the calibration images; not needed to evaluate only.
        evaluation: folder or .tar archive with one subfolder per class; not needed to calibrate only. Where all images
            lie in one folder, they have no classes, and the network is only compared with the float one. For `isvit
            predict`, any folder or archive of images, flat or nested.
        class_map: text file with the name of one class folder per line, in class order; needed where not every class
            has an image, none sorts the names of the subfolders.
        class_order: how the names are sorted: plain compares characters (class10 before class2, Zebra before ant) as
            torchvision does, natural compares numbers and ignores capitals as timm does. Needed where the two differ
            and there is no class_map.
        **options: those of every data module.
    """

    def __init__(
        self,
        calibration: str | None = None,
        evaluation: str | None = None,
        class_map: str | None = None,
        class_order: ClassOrder | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.calibration = calibration
        self.evaluation = evaluation
        self.class_map = class_map
        self.class_order: ClassOrder | None = class_order
        path = None if class_map is None else expand_path(class_map)
        self._classes = ClassFolders(self.evaluation_option, path, class_order)

    def calibration_source(self) -> FileSource | None:
        """All images of the calibration folder or archive."""
        return None if self.calibration is None else open_source(self.calibration, self.calibration_option)

    def evaluation_source(self) -> LabeledImages | None:
        """All images of the evaluation folder or archive, labeled by subfolder, where there are some."""
        if self.evaluation is None:
            return None
        return self._classes.label(open_source(self.evaluation, self.evaluation_option))

    def prediction_source(self) -> LabeledImages | None:
        """All images of the evaluation folder or archive, whatever its subfolders are called."""
        if self.evaluation is None:
            return None
        source = open_source(self.evaluation, self.evaluation_option)
        return LabeledImages(source, [UNLABELED] * len(source), 0)
