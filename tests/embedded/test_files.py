"""Files that ship with the package."""

import pytest
import torch

from isvit_lightning.embedded.digits import DIGITS_FILE
from isvit_lightning.embedded.files import read_embedded
from isvit_lightning.errors import IsvitError


def test_tensors_come_by_name() -> None:
    content = read_embedded(DIGITS_FILE)
    assert content["images"].dtype == torch.uint8
    assert len(content["images"]) == len(content["labels"]) == 1797


def test_missing_file_is_told() -> None:
    with pytest.raises(IsvitError, match=r"^letters.safetensors is missing from the installed package, .* reinstall"):
        read_embedded("letters.safetensors")
