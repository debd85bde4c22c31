"""The shipped data: 1797 handwritten digits of 8 x 8 pixels in 10 classes, with a fixed split.

The images are those of scikit-learn's ``load_digits``, the test set of "Optical Recognition of Handwritten Digits" by
E. Alpaydin and C. Kaynak (UCI Machine Learning Repository, 1998, doi 10.24432/C50P49, licence CC BY 4.0). The split is
stratified by class and made with seed 0; it is stored, so that no later library version can change it.
"""

from pathlib import Path
from typing import Final, Literal, get_args

import torch
from safetensors.torch import save
from torch import nn

from isvit_lightning.embedded.files import read_embedded
from isvit_lightning.errors import IsvitError

Split = Literal["train", "held_out"]

DIGITS_FILE: Final = "digits.safetensors"
IMAGE_SIZE: Final = 32
CLASSES: Final = 10
HELD_OUT: Final = 600
MEAN: Final = 0.5
STD: Final = 0.5
SPLIT_SEED: Final = 0

_WHITE: Final = 16  # the largest value of a stored pixel


def digit_images(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of one split, ready for a network, and their classes.

    Args:
        split: ``train`` (1197 digits) or ``held_out`` (600 digits that the shipped networks never saw).

    Returns:
        Images ``(n, 3, 32, 32)`` float32 in ``[-1, 1]``, upsampled bilinearly, three equal channels; labels ``(n,)``
        int64.

    Raises:
        IsvitError: no such split.
    """
    stored = read_embedded(DIGITS_FILE)
    index = _index(stored, split)
    grey = stored["images"][index].unsqueeze(1).float() / _WHITE
    grey = nn.functional.interpolate(grey, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False)
    images = ((grey - MEAN) / STD).repeat(1, 3, 1, 1)
    return images, stored["labels"][index].long()


def digit_names(split: Split) -> list[str]:
    """Names of the images in the order of :func:`digit_images`, such as ``digit-0012``.

    The number is the place of the digit in scikit-learn's order.

    Args:
        split: ``train`` or ``held_out``.

    Raises:
        IsvitError: no such split.
    """
    return [f"digit-{number:04d}" for number in _index(read_embedded(DIGITS_FILE), split).tolist()]


def write_digits(path: Path) -> None:
    """Write images, labels and split to ``path``; the only place that needs scikit-learn.

    Args:
        path: safetensors file to write: ``images`` ``(1797, 8, 8)`` uint8 from 0 to 16, ``labels`` ``(1797,)`` uint8,
            ``train`` ``(1197,)`` and ``held_out`` ``(600,)`` int16, the ascending numbers of the images of each split.

    Raises:
        IsvitError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415 - not a dependency of the package
        from sklearn.model_selection import train_test_split  # noqa: PLC0415
    except ImportError:
        raise IsvitError(
            f"Cannot write {path.name} without scikit-learn, from which the digits come: install scikit-learn."
        ) from None
    digits = load_digits()
    train, held_out = train_test_split(
        range(len(digits.target)), test_size=HELD_OUT, stratify=digits.target, random_state=SPLIT_SEED
    )
    content = save(
        {
            "images": torch.from_numpy(digits.images).to(torch.uint8),
            "labels": torch.from_numpy(digits.target).to(torch.uint8),
            "train": torch.tensor(sorted(train), dtype=torch.int16),
            "held_out": torch.tensor(sorted(held_out), dtype=torch.int16),
        },
        # CC BY asks for the attribution to travel with the data.
        metadata={"source": "E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, CC BY 4.0"},
    )
    # Not save_file, which leaves a file that only its owner may read.
    path.write_bytes(content)


def _index(stored: dict[str, torch.Tensor], split: Split) -> torch.Tensor:
    """Numbers ``(n,)`` int64 of the images of ``split``."""
    if split not in get_args(Split):
        raise IsvitError(
            f"The digits have no split {split!r}, expected one of {', '.join(get_args(Split))}: change split."
        )
    return stored[split].long()
