"""Folders as people have them: each image once, and a word about whatever is left out."""

import os
from pathlib import Path

import pytest

from isvit_lightning.data.folder_listing import list_folder
from isvit_lightning.data.listing import ARCHIVE, HIDDEN, NO_FILE, OTHER_ENDING, REPEATED
from tests.data.samples import png, write

TWO = {"cat/1.png": png(1), "dog/2.png": png(2)}


def linked(root: Path, **links: str) -> Path:
    """Add links by name, with ``/`` for ``_``, to where each leads."""
    for name, target in links.items():
        (root / name.replace("_", "/")).symlink_to(target)
    return root


@pytest.mark.parametrize("target", [".", "..", "/", "/proc/self/cwd"])
def test_a_link_to_a_parent_leads_to_nothing_new(tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(
        tmp_path / "images", {f"{name}/{number}.png": b"x" for name in ("cat", "dog") for number in range(100)}
    )
    write(tmp_path, {"beside.png": png(3)})
    monkeypatch.chdir(root)
    listing = list_folder(linked(root, cat_up=target, up=target))
    assert len(listing.names) == len(set(listing.names)) == 200
    assert listing.folders == {"cat", "dog"}
    assert listing.left_out == {REPEATED: ["up", "cat/up"]}


def test_links_that_lead_to_each_other(tmp_path: Path) -> None:
    root = linked(write(tmp_path / "images", TWO), cat_dogs="../dog", dog_cats="../cat")
    linked(root, self="self", one="two", two="one")
    listing = list_folder(root)
    assert sorted(listing.names) == ["cat/1.png", "dog/2.png"]
    assert {reason: sorted(names) for reason, names in listing.left_out.items()} == {REPEATED: ["cat/dogs", "dog/cats"]}


def test_a_folder_that_two_links_lead_to_is_listed_once_and_seen_twice(tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "elsewhere", {"1.png": png(1)})
    root = linked(write(tmp_path / "images", TWO), ant=str(elsewhere), bee=str(elsewhere))
    listing = list_folder(root)
    assert sorted(listing.names) == ["ant/1.png", "cat/1.png", "dog/2.png"]
    assert listing.folders == {"ant", "bee", "cat", "dog"}
    assert listing.left_out == {REPEATED: ["bee"]}


def test_a_linked_folder_that_leads_back(tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "elsewhere", {"1.png": png(1), "inner/3.png": png(3)})
    root = linked(write(tmp_path / "images", TWO), ant=str(elsewhere / "inner"), bee=str(elsewhere))
    linked(elsewhere, back=str(root), up=str(tmp_path))
    listing = list_folder(root)
    assert sorted(listing.names) == ["ant/3.png", "bee/1.png", "cat/1.png", "dog/2.png"]
    assert listing.left_out == {REPEATED: ["bee/inner", "bee/back", "bee/up"]}


def test_links_to_one_file(tmp_path: Path) -> None:
    outside = write(tmp_path, {"outside.png": png(3), "cache/blob": png(4)})
    root = linked(
        write(tmp_path / "images", TWO),
        **{"a.png": "cat/1.png", "cat_b.png": str(outside / "outside.png"), "dog_c.png": "../cat/b.png"},
        **{"dog_d.png": str(outside / "cache" / "blob"), "cat_e.png": "../dog/d.png"},
    )
    listing = list_folder(root)
    assert sorted(listing.names) == ["cat/1.png", "cat/b.png", "cat/e.png", "dog/2.png"]
    assert listing.left_out == {REPEATED: ["a.png", "dog/c.png", "dog/d.png"]}


def test_hard_links_are_one_file(tmp_path: Path) -> None:
    root = write(tmp_path / "images", TWO)
    (root / "dog" / "1.png").hardlink_to(root / "cat" / "1.png")
    (root / "cat" / "0.png").symlink_to("../dog/1.png")
    listing = list_folder(root)
    assert len(listing.names) == 2
    assert len(listing.left_out[REPEATED]) == 2


def test_links_to_nothing_are_images_that_cannot_be_read(tmp_path: Path) -> None:
    root = linked(write(tmp_path / "images", TWO), **{"cat_gone.png": "nowhere.png", "dog_self.png": "self.png"})
    linked(root, gone="nowhere")
    assert sorted(list_folder(root).names) == ["cat/1.png", "cat/gone.png", "dog/2.png", "dog/self.png"]


def test_what_systems_leave_behind(tmp_path: Path) -> None:
    stray = [
        ".x.jpg",
        "cat/._1.png",
        "__MACOSX/cat/._1.png",
        "@eaDir/1.jpg",
        ".git/1.png",
        "cat/.ipynb_checkpoints/1.png",
    ]
    files = {**TWO, **dict.fromkeys([*stray, "Thumbs.db", ".DS_Store", "desktop.ini"], png(9))}
    listing = list_folder(
        write(tmp_path / "images", {**files, "Thumbs.db": b"\xd0\xcf\x11\xe0", "desktop.ini": b"[x]"})
    )
    assert sorted(listing.names) == ["cat/1.png", "dog/2.png"]
    assert listing.folders == {"cat", "dog"}
    assert sorted(listing.left_out.pop(HIDDEN)) == [
        ".git",
        ".x.jpg",
        "@eaDir",
        "__MACOSX",
        "cat/._1.png",
        "cat/.ipynb_checkpoints",
    ]
    assert listing.left_out == {}


def test_images_under_other_endings_are_told(tmp_path: Path) -> None:
    heads = {
        "1": png(1),
        "2.jpg_": b"\xff\xd8\xff\xe0",
        "3.heic": b"\0\0\0\x18ftypheic\0\0\0\0",
        "4.jp2": b"\0\0\0\x0cjP  \r\n",
        "5.bak": b"RIFF\0\0\0\0WEBPVP8 ",
        "6.NEF": b"MM\0*\0\0\0\x08",
        "7.gif.part": b"GIF89a",
    }
    others = {"notes.txt": b"text", "empty": b"", "video.mp4": b"\0\0\0\x18ftypisom", "short": b"\xff\xd8"}
    listing = list_folder(write(tmp_path / "images", {**TWO, **heads, **others}))
    assert sorted(listing.names) == ["cat/1.png", "dog/2.png"]
    assert listing.left_out == {OTHER_ENDING: sorted(heads)}


def test_archives_and_pipes_among_images(tmp_path: Path) -> None:
    root = write(tmp_path / "images", {**TWO, "n01.tar": b"", "more.zip": b"", "old.tar.gz": b""})
    os.mkfifo(root / "pipe.png")
    os.mkfifo(root / "pipe")
    (root / "link.png").symlink_to("pipe.png")
    listing = list_folder(root)
    assert sorted(listing.names) == ["cat/1.png", "dog/2.png"]
    assert listing.left_out == {ARCHIVE: ["more.zip", "n01.tar", "old.tar.gz"], NO_FILE: ["link.png", "pipe.png"]}


def test_folders_called_like_images(tmp_path: Path) -> None:
    assert list_folder(write(tmp_path / "images", {"a.jpg/1.png": png(1), "b.png/c": b""})).names == ["a.jpg/1.png"]
