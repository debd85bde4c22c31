import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from isvit_lightning.errors import IsvitError
from isvit_lightning.storage.caches import Caches, computable, peak_values


def test_memory_is_where_the_first_value_lies() -> None:
    made = Caches().empty((4, 3), torch.zeros(2, dtype=torch.float64))
    assert made.shape == (4, 3)
    assert made.dtype is torch.float64


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_file_holds_what_is_written_and_leaves_no_name(tmp_path: Path, precision: str) -> None:
    caches = Caches(where="disk", precision=precision, directory=str(tmp_path / "new"))  # type: ignore[arg-type]
    made = caches.empty((4, 3), torch.zeros(()))
    assert not list((tmp_path / "new").iterdir())
    values = torch.arange(12.0).view(4, 3)
    made.copy_(values)
    assert made.dtype is (torch.float16 if precision == "float16" else torch.float32)
    assert made.nbytes == 12 * caches.bytes_per_value
    assert torch.equal(computable(made), values)
    assert computable(made).dtype is torch.float32


def test_images_keep_their_precision(tmp_path: Path) -> None:
    images = Caches(where="disk", precision="float16", directory=str(tmp_path)).empty_images(2, 3, 4, 5)
    assert images.shape == (2, 3, 4, 5)
    assert images.dtype is torch.float32


def test_too_small_a_disk_is_refused_with_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caches = Caches(where="disk", directory=str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3_000_000_000))
    caches.require_space(2_900_000_000)
    with pytest.raises(IsvitError, match=r"need 3.1 GB but .* has 3.0 GB free"):
        caches.require_space(3_100_000_000)
    Caches(directory=str(tmp_path)).require_space(3_100_000_000)  # memory is not asked


def test_nothing_is_held_that_is_recomputed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The images go to files where a folder is named, and to memory otherwise."""
    named = Caches(where="recompute", directory=str(tmp_path))
    assert named.bytes_per_value == Caches(where="recompute").bytes_per_value == 0
    assert named.empty_images(2, 3, 4, 5).shape == Caches(where="recompute").empty_images(2, 3, 4, 5).shape
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    Caches(where="recompute").require_space(11)
    with pytest.raises(IsvitError, match="GB free"):
        named.require_space(11)


def test_a_disk_that_fills_up_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(IsvitError, match="GB free, expected room"):
        Caches(where="disk", directory=str(tmp_path)).empty((4,), torch.zeros(()))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(IsvitError, match=r"change\s+model.caches.directory"):
        Caches(where="disk", directory=str(tmp_path / "file" / "below")).require_space(1)


def test_no_image_at_once_is_refused() -> None:
    with pytest.raises(IsvitError, match="chunk is 0"):
        Caches(chunk=0)


def test_the_peak_counts_both_networks() -> None:
    # Outputs of both networks (2 x 10) while inputs of 5 are made, or one, both inputs and a target of 1.
    assert peak_values({"a": (4, 10), "b": (5, 1)}) == 25
    assert peak_values({"a": (7, 3)}) == 17
