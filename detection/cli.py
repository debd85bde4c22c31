"""``isvit`` for detectors: the same verbs and options, with a detector in the section model."""

from detection.detector import Detector
from detection.runtime import import_mmdet
from isvit_lightning.cli import IsvitCLI


class DetectionCLI(IsvitCLI):
    """The command line of detectors; a configuration chooses it with ``program: detection.cli.DetectionCLI``."""

    model_section = Detector

    def before_instantiate_classes(self) -> None:
        """Data of detectors are prepared by mmcv, so that what is missing is told here."""
        import_mmdet()
        super().before_instantiate_classes()
