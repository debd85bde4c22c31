"""``isvit`` for detectors: the same verbs and options, with a detector in the section model."""

from lightning.pytorch.cli import ArgsType
from typing_extensions import override

from detection.detector import Detector
from detection.runtime import import_mmdet
from isvit_lightning.cli import IsvitCLI
from isvit_lightning.data import CalibrationDataModule


class DetectionCLI(IsvitCLI):
    """The command line of detectors; a configuration chooses it with ``program: detection.cli.DetectionCLI``."""

    model_section = Detector

    def __init__(self, args: ArgsType, run: bool = True) -> None:
        import_mmdet()  # before the parser imports the data, so that a missing package is told by name
        super().__init__(args, run)

    @override
    def data_section(self) -> type[CalibrationDataModule]:
        from detection.data import DetectionDataModule  # noqa: PLC0415 - imports mmcv

        return DetectionDataModule
