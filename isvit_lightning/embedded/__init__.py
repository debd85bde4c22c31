"""Data and two small trained networks that ship with the package, so that a first run needs no download."""

from isvit_lightning.embedded.digits import Split, digit_images, digit_names
from isvit_lightning.embedded.networks import EmbeddedName, embedded_network

__all__ = ["EmbeddedName", "Split", "digit_images", "digit_names", "embedded_network"]
