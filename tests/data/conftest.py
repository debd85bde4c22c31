"""Files in a folder or in an archive."""

from pathlib import Path

import pytest

from tests.data.samples import Store, write, write_tar


@pytest.fixture(params=["folder", "tar"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Stores files in a folder or in an archive and returns its path."""

    def store(name: str, files: dict[str, bytes]) -> Path:
        if request.param == "folder":
            return write(tmp_path / name, files)
        return write_tar(tmp_path / f"{name}.tar", files)

    return store
