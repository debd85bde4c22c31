"""A small set in COCO's format."""

from pathlib import Path

import pytest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Folder with five images to calibrate on in ``train`` and four to evaluate on in ``val``, and their lists."""
    from tests.detection.data.samples import write_set  # needs the extra

    write_set(tmp_path, "train", 5, first=0)
    write_set(tmp_path, "val", 4, first=100)
    return tmp_path
