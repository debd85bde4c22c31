"""Where images come from, with the network's own preprocessing."""

from isvit_lightning.data.base import CalibrationDataModule
from isvit_lightning.data.digits import DigitsDataModule
from isvit_lightning.data.folder import ImageFolderDataModule
from isvit_lightning.data.selection import CalibrationList
from isvit_lightning.data.timm_dataset import TimmDataModule

__all__ = [
    "CalibrationDataModule",
    "CalibrationList",
    "DigitsDataModule",
    "ImageFolderDataModule",
    "TimmDataModule",
]
