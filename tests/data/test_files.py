"""Images in folders and archives: which are found, how they are read, and a sentence for every place without any."""

import errno
import logging
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest

from isvit_lightning.data.files import FileSource, FolderSource, TarSource, open_source
from isvit_lightning.data.listing import IMAGES
from isvit_lightning.data.sources import UnreadableImageError
from isvit_lightning.errors import IsvitError
from tests.data.samples import PNG, Store, calibration_files, png, write, write_tar


def opened(path: Path) -> FileSource:
    return open_source(str(path), "data.calibration")


def test_images_are_sorted_by_their_path_and_all_else_is_left_out(place: Store) -> None:
    nested = {"b/x/1.png": png(1), "a/2.JPG": png(2), "3.png": png(3), "a/notes.txt": b"", "a/._2.png": b""}
    source = opened(place("images", nested))
    assert source.names == ("3.png", "a/2.JPG", "b/x/1.png")
    assert [source.name(index) for index in range(len(source))] == list(source.names)
    assert [source.read(index) for index in range(3)] == [png(3), png(2), png(1)]
    assert [source.size(index) for index in range(3)] == [len(png(3)), len(png(2)), len(png(1))]
    assert {"a", "b", "b/x"} <= source.folders


@pytest.mark.parametrize("ending", IMAGES)
def test_every_ending_counts_in_either_case(ending: str, place: Store) -> None:
    names = (f"1{ending.upper()}", f"2{ending}")
    assert opened(place("images", dict.fromkeys(names, b"x"))).names == names


def test_places_are_told_from_the_root(tmp_path: Path) -> None:
    folder = write(tmp_path / "images", {"a/1.png": png(1)})
    archive = write_tar(tmp_path / "images.tar", {"a/1.png": png(1)})
    assert FolderSource(folder).location(0) == os.path.realpath(folder / "a" / "1.png")
    assert TarSource(archive).location(0) == f"{os.path.realpath(archive)}/a/1.png"


def test_an_image_reached_by_a_link_lies_where_it_is(tmp_path: Path) -> None:
    real = write(tmp_path / "real", {"1.png": png(1)})
    (tmp_path / "link").symlink_to(real)
    assert opened(tmp_path / "link").location(0) == opened(real).location(0)


def test_linked_folders_are_followed_and_hidden_ones_are_not(tmp_path: Path) -> None:
    real = write(tmp_path / "elsewhere", calibration_files(3))
    root = write(tmp_path / "images", {".thumbnails/1.png": png(1)})
    (root / "linked").symlink_to(real)
    source = opened(root)
    assert source.names == ("linked/0000.png", "linked/0001.png", "linked/0002.png")
    assert source.folders == {"linked"}
    assert source.read(2) == png(2)


def test_empty_folders_are_seen(tmp_path: Path) -> None:
    root = write(tmp_path / "images", {"cat/1.png": png(1)})
    (root / "dog").mkdir()
    assert opened(root).folders == {"cat", "dog"}


def test_an_archive_is_read_in_place_and_after_pickling(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "images.tar", {"./a/1.png": png(1), "a/notes.txt": b"text", "/b/2.png": png(2)})
    source = pickle.loads(pickle.dumps(opened(path)))
    assert source.names == ("a/1.png", "b/2.png")
    assert source.read(1) == png(2)
    assert source.size(1) == len(png(2))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["images.tar"]


def test_an_archive_that_ends_early(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "images.tar", {"1.png": png(1)})
    whole = path.read_bytes()
    source = opened(path)
    path.write_bytes(whole[: 512 + 20])
    with pytest.raises(UnreadableImageError, match=rf"images.tar/1.png .*ends after 20 of its {len(png(1))} bytes"):
        source.read(0)
    with pytest.raises(IsvitError, match=r"images.tar"):
        opened(path).read(0)


def test_an_image_that_vanished(tmp_path: Path) -> None:
    root = write(tmp_path / "images", calibration_files(1))
    source = opened(root)
    (root / "0000.png").unlink()
    assert source.size(0) is None
    with pytest.raises(UnreadableImageError, match=r"0000.png cannot be read \(No such file or directory\)"):
        source.read(0)


def test_damaged_contents_are_read_but_not_decoded(place: Store) -> None:
    source = opened(place("images", {"1.png": PNG}))
    assert source.read(0) == PNG
    with pytest.raises(UnreadableImageError, match=r"1.png cannot be read"):
        source.image(0)


@pytest.mark.parametrize("option", ["data.calibration", "data.evaluation"])
def test_no_such_path(tmp_path: Path, option: str) -> None:
    with pytest.raises(IsvitError, match=rf"^\S*/none does not exist, expected a folder .*: change {option}.$"):
        open_source(str(tmp_path / "none"), option)


def test_no_image(place: Store) -> None:
    with pytest.raises(IsvitError, match=r"holds no image, expected files such as .jpg, .*: change data.calibration.$"):
        opened(place("empty", {"notes.txt": b"text"}))


@pytest.mark.parametrize("kind", ["text", "compressed"])
def test_a_file_that_is_no_archive(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "images.tar"
    if kind == "text":
        path.write_text("no archive" * 100)
    else:
        write_tar(path, calibration_files(), "w:gz")
    with pytest.raises(IsvitError, match=r"cannot be opened .* uncompressed .tar archive: change data.calibration.$"):
        opened(path)


def test_what_is_left_out_is_counted_and_named_in_one_line(place: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="isvit_lightning.data.files")
    path = place("images", {**calibration_files(3), "a/._1.png": b"x", **{f"{name}.heic": png(1) for name in "dbca"}})
    assert len(opened(path)) == 3
    expected = "hidden: 1 (a/._1.png)", "images under another ending: 4 (a.heic, b.heic, c.heic, …)"
    assert caplog.messages == [f"Left out of {path}: {'; '.join(expected)}"]


def test_nothing_left_out_is_not_worth_a_word(place: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="isvit_lightning.data.files")
    opened(place("images", {**calibration_files(3), "notes.txt": b"text", "labels.csv": b"", "Thumbs.db": b"x"}))
    assert caplog.messages == []


def test_only_images_under_other_endings(place: Store) -> None:
    with pytest.raises(
        IsvitError, match=r"holds no image \(left out: images under another ending: 2 \(1, b\)\), expected"
    ):
        opened(place("images", {"1": png(1), "b": png(2)}))


def test_the_place_of_an_image_is_found_by_every_path_to_it(tmp_path: Path) -> None:
    root = write(tmp_path / "images", {"a/1.png": png(1), "b/2.png": png(2)})
    (root / "c").symlink_to("a")
    (root / "b" / "soft.png").symlink_to("../a/1.png")
    (root / "b" / "hard.png").hardlink_to(root / "b" / "2.png")
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(root, ".")
    for source in (opened(root), opened(tmp_path / "images.tar")):
        for name, content in {"a/1.png": 1, "c/1.png": 1, "b/soft.png": 1, "b/2.png": 2, "b/hard.png": 2}.items():
            place = source.place(name)
            assert place is not None
            assert source.read(place) == png(content)
        assert [source.place(name) for name in ("a", "c", "a/2.png", "../1.png", "/etc/passwd")] == [None] * 5


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by its mode, which does not keep out the owner of everything."""
    root = write(tmp_path / "images", {"a/1.png": png(1), "b/2.png": png(2)})
    scan = os.scandir

    def refuse(path: Path) -> Any:
        if path.name == "b":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr("isvit_lightning.data.folder_listing.os.scandir", refuse)
    with pytest.raises(IsvitError, match=r"images cannot be opened \(.*Permission denied: '\S*images/b'\), expected"):
        opened(root)


def test_variables_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", str(write(tmp_path / "images", calibration_files(1)).parent))
    assert open_source("${PLACE}/images", "data.calibration").names == ("0000.png",)
