"""Images from folders and .tar archives."""

import logging
from typing import Any

from isvit_lightning.data.base import CalibrationDataModule
from isvit_lightning.data.files import FileSource, open_source
from isvit_lightning.data.labels import in_one_folder, label_by_folder, read_class_map
from isvit_lightning.data.loading import UNLABELED
from isvit_lightning.data.sources import LabeledImages
from isvit_lightning.sources.paths import expand_path

_LOG = logging.getLogger(__name__)


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
        **options: those of every data module.
    """

    def __init__(
        self,
        calibration: str | None = None,
        evaluation: str | None = None,
        class_map: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.calibration = calibration
        self.evaluation = evaluation
        self.class_map = class_map

    def calibration_source(self) -> FileSource | None:
        """All images of the calibration folder or archive."""
        return None if self.calibration is None else open_source(self.calibration, self.calibration_option)

    def evaluation_source(self) -> LabeledImages | None:
        """All images of the evaluation folder or archive, labeled by subfolder, where there are some."""
        if self.evaluation is None:
            return None
        source = open_source(self.evaluation, self.evaluation_option)
        if self.class_map is None and in_one_folder(source):
            _LOG.info("%s holds images without classes: the network is compared with the float one alone", source.root)
            return LabeledImages(source, [UNLABELED] * len(source), 0)
        classes = None if self.class_map is None else read_class_map(expand_path(self.class_map))
        return label_by_folder(source, classes)

    def prediction_source(self) -> LabeledImages | None:
        """All images of the evaluation folder or archive, whatever its subfolders are called."""
        if self.evaluation is None:
            return None
        source = open_source(self.evaluation, self.evaluation_option)
        return LabeledImages(source, [UNLABELED] * len(source), 0)
