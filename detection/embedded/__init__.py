"""A small trained detector and the scenes of digits that it was made for, so that a first run needs no download."""

from detection.embedded.network import digits_detector, digits_detector_config

__all__ = ["digits_detector", "digits_detector_config"]
