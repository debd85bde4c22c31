"""Archives as people have them: each image once, and a word about whatever is left out."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from isvit_lightning.data.archive_listing import Archive, list_archive
from isvit_lightning.data.files import TarSource
from isvit_lightning.data.listing import ARCHIVE, HIDDEN, NO_FILE, NOWHERE, OTHER_ENDING, REPEATED
from tests.data.samples import png, write, write_tar

Member = tuple[str, bytes | str, bytes]
"""Name; contents, or where a link leads; type of the member."""


def archive(path: Path, *members: Member) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content, kind in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            if isinstance(content, bytes):
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
            else:
                member.linkname = content
                file.addfile(member)
    return path


def files(**contents: bytes) -> Sequence[Member]:
    return [(f"{name.replace('_', '/')}.png", content, tarfile.REGTYPE) for name, content in contents.items()]


def listed(*members: Member, path: Path) -> Archive:
    return list_archive(archive(path / "images.tar", *members))


def test_links_to_what_is_there_are_left_out(tmp_path: Path) -> None:
    links = [
        ("dog/hard.png", "cat/1.png", tarfile.LNKTYPE),
        ("dog/soft.png", "../cat/1.png", tarfile.SYMTYPE),
        ("dog/twice.png", "soft.png", tarfile.SYMTYPE),
        ("dog/around.png", "../cats/1.png", tarfile.SYMTYPE),
        ("cats", "cat", tarfile.SYMTYPE),
        ("cat/up", "..", tarfile.SYMTYPE),
        ("cat/up2", ".", tarfile.SYMTYPE),
    ]
    listing = listed(*files(cat_1=png(1), dog_2=png(2)), *links, path=tmp_path).listing
    assert listing.names == ["cat/1.png", "dog/2.png"]
    assert sorted(listing.left_out.pop(REPEATED)) == sorted(name for name, _, _ in links)
    assert listing.left_out == {}
    assert listing.folders == {"cat", "dog", "cats"}


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_links_to_files_without_endings_are_images(tmp_path: Path, kind: bytes) -> None:
    around = "" if kind == tarfile.LNKTYPE else "../"
    blobs: list[Member] = [(f"blobs/{number}", png(number), tarfile.REGTYPE) for number in range(3)]
    links: list[Member] = [
        (f"{'cat' if number else 'dog'}/{number}.png", f"{around}blobs/{number}", kind) for number in range(3)
    ]
    again: Member = ("dog/again.png", f"{around}blobs/1", kind)
    path = archive(tmp_path / "images.tar", *blobs, *links, again)
    source = TarSource(path)
    assert source.names == ("cat/1.png", "cat/2.png", "dog/0.png")
    assert [source.read(index) for index in range(3)] == [png(1), png(2), png(0)]
    assert list_archive(path).listing.left_out[REPEATED] == ["dog/again.png"]


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    links = [
        ("cat/gone.png", "nothing.png", tarfile.SYMTYPE),
        ("cat/out.png", "/etc/passwd", tarfile.SYMTYPE),
        ("cat/above.png", "../../x.png", tarfile.SYMTYPE),
        ("cat/self.png", "self.png", tarfile.SYMTYPE),
        ("cow/a.png", "b.png", tarfile.SYMTYPE),
        ("cow/b.png", "a.png", tarfile.SYMTYPE),
    ]
    listing = listed(*files(cat_1=png(1), dog_2=png(2)), *links, path=tmp_path).listing
    assert listing.names == ["cat/1.png", "dog/2.png"]
    assert sorted(listing.left_out[NOWHERE]) == sorted(name for name, _, _ in links)
    assert "cow" in listing.folders  # a class without images


def test_a_later_member_of_one_name_counts(tmp_path: Path) -> None:
    path = archive(tmp_path / "images.tar", *files(a_1=png(1)), ("./a/1.png", png(7), tarfile.REGTYPE))
    source = TarSource(path)
    assert (source.names, source.read(0)) == (("a/1.png",), png(7))
    path = archive(tmp_path / "images.tar", *files(a_1=png(1), a_2=png(2)), ("a/1.png", "2.png", tarfile.SYMTYPE))
    assert TarSource(path).names == ("a/2.png",)


def test_an_archive_of_archives(tmp_path: Path) -> None:
    inner = [
        write_tar(tmp_path / f"{name}.tar", {"1.png": png(k), "x/2.png": png(k + 1)}) for k, name in enumerate("ab")
    ]
    outer = {path.name: path.read_bytes() for path in inner}
    source = TarSource(
        write_tar(tmp_path / "images.tar", {**outer, "deep/c.tar": outer["a.tar"], "broken.tar": b"x" * 600})
    )
    assert source.names == ("a/1.png", "a/x/2.png", "b/1.png", "b/x/2.png", "deep/c/1.png", "deep/c/x/2.png")
    assert [source.read(index) for index in range(4)] == [png(0), png(1), png(1), png(2)]
    assert source.left_out == f"{ARCHIVE}: 1 (broken.tar)"


def test_what_else_archives_hold(tmp_path: Path) -> None:
    others: list[Member] = [
        ("__MACOSX/cat/._1.png", b"x", tarfile.REGTYPE),
        ("cat/._1.png", b"x", tarfile.REGTYPE),
        (".git/1.png", b"x", tarfile.REGTYPE),
        ("cat/3.heic", b"\0\0\0\x18ftypheic", tarfile.REGTYPE),
        ("cat/4", png(4), tarfile.REGTYPE),
        ("notes.txt", b"text", tarfile.REGTYPE),
        ("pipe.png", b"", tarfile.FIFOTYPE),
        ("__MACOSX", b"", tarfile.DIRTYPE),
    ]
    listing = listed(*files(cat_1=png(1), dog_2=png(2)), *others, path=tmp_path).listing
    assert listing.names == ["cat/1.png", "dog/2.png"]
    assert listing.folders == {"cat", "dog"}
    assert listing.left_out == {
        NO_FILE: ["pipe.png"],
        HIDDEN: ["__MACOSX/cat/._1.png", "cat/._1.png", ".git/1.png"],
        OTHER_ENDING: ["cat/3.heic", "cat/4"],
    }


def test_a_folder_and_an_archive_of_it_are_listed_alike(tmp_path: Path) -> None:
    root = write(
        tmp_path / "images", {"cat/1.png": png(1), "cat/x": png(1), "dog/.x.png": b"", ".z/1.png": b"", "a.PNG": b""}
    )
    (root / "dog" / "hard.png").hardlink_to(root / "cat" / "1.png")
    (root / "cat" / "soft.png").symlink_to("x")
    (root / "cat" / "up").symlink_to("..")
    with tarfile.open(tmp_path / "images.tar", "w") as file:
        file.add(root, ".")
    archived = TarSource(tmp_path / "images.tar")
    assert archived.names[0] == "a.PNG"
    assert len(archived) == 3
    assert archived.folders == {"cat", "dog"}


def test_a_member_without_its_zeros(tmp_path: Path) -> None:
    path = archive(tmp_path / "images.tar", *files(cat_1=png(1)), ("cat/2.png", bytes(512), tarfile.GNUTYPE_SPARSE))
    with pytest.raises(tarfile.TarError, match="cat/2.png is stored without its zeros"):
        list_archive(path)
