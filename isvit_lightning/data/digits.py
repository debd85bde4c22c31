"""The digits that ship with the package."""

from isvit_lightning.data.base import CalibrationDataModule
from isvit_lightning.data.sources import LabeledImages, TensorSource
from isvit_lightning.embedded.digits import CLASSES, Split, digit_images, digit_names
from isvit_lightning.errors import IsvitError
from isvit_lightning.sources.preprocessing import Preprocessing


class DigitsDataModule(CalibrationDataModule):
    """Handwritten digits in 10 classes that ship with the package: nothing to download.

    The calibration draws from the 1197 digits that the embedded networks were trained on, the evaluation from the 600
    that they never saw. The images come preprocessed, as the embedded networks expect them.
    """

    calibration_option = evaluation_option = "data"

    def attach(self, preprocessing: Preprocessing) -> None:
        """Check that the network takes the images as they are.

        Args:
            preprocessing: that of the network.

        Raises:
            IsvitError: it expects another size or scaling.
        """
        expected = Preprocessing(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
        for name in ("input_size", "mean", "std"):
            given, fixed = getattr(preprocessing, name), getattr(expected, name)
            if tuple(given) != tuple(fixed):
                raise IsvitError(
                    f"The network expects images of {name} {tuple(given)}, but the embedded digits have {fixed}: set "
                    "model.network.name to vit_digits or swin_digits, or choose other images with data."
                )
        super().attach(preprocessing)

    def calibration_source(self) -> TensorSource:
        """The training digits."""
        return _source("train")

    def evaluation_source(self) -> LabeledImages:
        """The held-out digits."""
        labels = digit_images("held_out")[1]
        return LabeledImages(_source("held_out"), tuple(labels.tolist()), CLASSES, tuple(map(str, range(CLASSES))))


def _source(split: Split) -> TensorSource:
    return TensorSource(digit_images(split)[0], digit_names(split), "digits")
