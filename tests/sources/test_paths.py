from pathlib import Path

import pytest

from isvit_lightning.sources.paths import expand_path


@pytest.mark.parametrize("path", ["$PLACE/images", "${PLACE}/images"])
def test_variables(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("PLACE", "/data")
    assert expand_path(path) == Path("/data/images")


def test_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("PLACE", "~/data")
    assert expand_path("~/images") == Path("/home/me/images")
    assert expand_path("$PLACE/images") == Path("/home/me/data/images")


def test_isvit_data_has_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ISVIT_DATA", raising=False)
    assert expand_path("$ISVIT_DATA/x.tar") == Path("../shared/data/x.tar")
    monkeypatch.setenv("ISVIT_DATA", "/data")
    assert expand_path("$ISVIT_DATA/x.tar") == Path("/data/x.tar")


def test_anything_else_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MISSING", raising=False)
    assert expand_path(Path("$MISSING/a b.tar")) == Path("$MISSING/a b.tar")
