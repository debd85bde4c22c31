"""Images and annotations for detectors."""

from detection.data.base import DetectionDataModule
from detection.data.coco import CocoDataModule
from detection.data.digits import DigitsDetectionDataModule

__all__ = ["CocoDataModule", "DetectionDataModule", "DigitsDetectionDataModule"]
