"""Memory of a file that is opened."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from isvit_lightning.run.benchmark.resident import grown_by, resident_bytes

NUMBERS = 16_000_000


class Opener(nn.Module):
    """Keeps as many numbers as the file says."""

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__()
        assert threads == 1
        self.kept = torch.ones(int(path.read_text()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images * self.kept[0]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_a_process_grows_by_what_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    path.write_text(str(NUMBERS))
    assert grown_by(Opener, ("json",), path, (3, 2, 2)) == pytest.approx(4 * NUMBERS, rel=0.25)


def test_what_cannot_be_opened_has_no_memory(tmp_path: Path) -> None:
    assert resident_bytes(Opener, ("no_such_package",), tmp_path / "none", (3, 2, 2)) is None
