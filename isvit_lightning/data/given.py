"""Images that are given from Python: a tensor, an array, or batches as a DataLoader gives them."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from isvit_lightning.errors import IsvitError, first_line

_WANTED = "expected preprocessed images (n, channels, height, width) or batches of them: check the argument images."


def joined(given: object, input_size: tuple[int, int, int] | None) -> Tensor:
    """All images in one float32 tensor ``(n, channels, height, width)``.

    Args:
        given: tensor or numpy array, or batches of them. A batch may be a sequence that begins with its images, or a
            mapping with one entry of four dimensions.
        input_size: channels, height and width that the network takes; None takes any.

    Raises:
        IsvitError: there are none, or they are something else: of another shape, whole numbers, or not finite.
    """
    batches = [_checked(_images_of(batch), input_size) for batch in _batches(given)]
    if not sum(map(len, batches)):
        raise IsvitError(
            "There are no images, expected (n, channels, height, width) with n of 1 or more: check the argument images."
        )
    return torch.cat(batches)


def _batches(given: object) -> Iterable[object]:
    if isinstance(given, Tensor | np.ndarray | Mapping):
        return [given]
    if not isinstance(given, Iterable) or isinstance(given, str | bytes):
        raise IsvitError(f"The images are a {type(given).__name__}, {_WANTED}")
    return given


def _images_of(batch: object) -> Tensor:
    """The images of a batch, whatever else it holds."""
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, np.ndarray):
        try:
            return torch.tensor(np.ascontiguousarray(batch))
        except (TypeError, ValueError) as error:
            raise IsvitError(f"The images are an array of {batch.dtype} ({first_line(error)}), {_WANTED}") from None
    if isinstance(batch, Mapping):
        found = [value for value in batch.values() if getattr(value, "ndim", 0) == 4]
        if len(found) != 1:
            raise IsvitError(
                f"A batch is a mapping with {len(found)} entries of four dimensions (its keys are "
                f"{', '.join(map(str, batch))}), expected one, its images: check the argument images."
            )
        return _images_of(found[0])
    if isinstance(batch, list | tuple) and batch:
        return _images_of(batch[0])
    raise IsvitError(f"A batch is a {type(batch).__name__}, {_WANTED}")


def _checked(images: Tensor, input_size: tuple[int, int, int] | None) -> Tensor:
    """The images in float32.

    Raises:
        IsvitError: they are something else.
    """
    if images.dim() != 4 or (input_size is not None and tuple(images.shape[1:]) != tuple(input_size)):
        wanted = ("channels", "height", "width") if input_size is None else input_size
        raise IsvitError(
            f"The images have shape {tuple(images.shape)}, expected (n, {', '.join(map(str, wanted))}): check the "
            "argument images; a data set goes into a DataLoader first."
        )
    if not images.is_floating_point():
        raise IsvitError(
            f"The images are {images.dtype}, expected preprocessed ones in floating-point numbers: scale them to 0 to "
            "1, subtract the network's mean and divide by its standard deviation, as timm.data.create_transform does."
        )
    images = images.detach().to("cpu", torch.float32)
    if not images.isfinite().all():
        raise IsvitError("The images hold NaN or infinity, expected finite numbers: check the argument images.")
    return images
