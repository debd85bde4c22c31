"""The images in a .tar archive: each file once, however many links lead to it."""

import posixpath
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from isvit_lightning.data.listing import (
    ARCHIVE,
    HEAD,
    HIDDEN,
    NO_FILE,
    NOWHERE,
    OTHER_ENDING,
    REPEATED,
    Listing,
    holds_image,
    is_archive,
    is_hidden,
    is_image,
)

Place = tuple[int, int]
"""Where a file begins in the archive, and its size, in bytes."""
_MOST_LINKS = 40
"""Links in a row that are followed, as on Linux."""


@dataclass
class Archive:
    """What an archive holds, by relative posix path.

    Args:
        files: each regular file, whatever its kind.
        links: where each link leads, itself relative to the archive unless it leads out.
        listing: those of them that are images, and what is left out.
    """

    files: dict[str, Place] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    listing: Listing = field(default_factory=Listing)

    def target(self, name: str) -> str | None:
        """Where a path leads when all links are followed; None where they go round in a circle."""
        for _ in range(_MOST_LINKS):
            parts = name.split("/")
            heads = ("/".join(parts[:count]) for count in range(1, len(parts) + 1))
            link = next((head for head in heads if head in self.links), None)
            if link is None:
                return name
            name = posixpath.normpath(self.links[link] + name[len(link) :])
        return None


def list_archive(path: Path) -> Archive:
    """The images in an archive and in the archives that it holds.

    Args:
        path: an uncompressed .tar archive.

    Raises:
        tarfile.TarError: the file is no such archive.
        OSError: it cannot be read.
    """
    archive = Archive()
    with tarfile.open(path, "r:") as file:
        _read(file, archive)
    with path.open("rb") as content:
        places = _list_files(archive, content)
    _list_links(archive, places)
    return archive


def _read(file: tarfile.TarFile, archive: Archive, around: str = "", start: int = 0) -> None:
    """Take over the members of a file.

    Args:
        file: the archive, or one in it.
        archive: takes them.
        around: name of the archive in the archive, without its ending.
        start: where it begins, in bytes.
    """
    for member in file:
        name = posixpath.normpath(posixpath.join(around, member.name.lstrip("/")))
        # A later member of one name replaces an earlier one.
        archive.files.pop(name, None)
        archive.links.pop(name, None)
        if member.isdir():
            if name != "." and not any(map(is_hidden, name.split("/"))):
                archive.listing.folders.add(name)
        elif member.issym():
            archive.links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
        elif member.islnk():
            archive.links[name] = posixpath.normpath(posixpath.join(around, member.linkname.lstrip("/")))
        elif not member.isreg():
            if is_image(name):
                archive.listing.leave_out(NO_FILE, name)
        elif member.issparse():
            raise tarfile.ReadError(f"{name} is stored without its zeros")
        elif not _read_inner(file, member, archive, name, start):
            archive.files[name] = (start + member.offset_data, member.size)


def _read_inner(file: tarfile.TarFile, member: tarfile.TarInfo, archive: Archive, name: str, start: int) -> bool:
    """Take over the members of an archive in the archive; False where ``member`` is none."""
    stem, ending = posixpath.splitext(name)
    if ending.lower() != ".tar":
        return False
    try:
        with tarfile.open(fileobj=file.extractfile(member), mode="r:") as inner:
            _read(inner, archive, stem, start + member.offset_data)
    except tarfile.TarError:
        return False
    return True


def _list_files(archive: Archive, content: BinaryIO) -> set[Place]:
    """List the files that are images; their places."""
    listing = archive.listing
    places: set[Place] = set()
    for name, place in archive.files.items():
        if any(map(is_hidden, name.split("/"))):
            if is_image(name):
                listing.leave_out(HIDDEN, name)
        elif is_image(name):
            places.add(place)
            listing.names.append(name)
            _add_folders(listing, name)
        elif is_archive(name):
            listing.leave_out(ARCHIVE, name)
        else:
            content.seek(place[0])
            if holds_image(content.read(min(HEAD, place[1]))):
                listing.leave_out(OTHER_ENDING, name)
                _add_folders(listing, name)
    return places


def _list_links(archive: Archive, places: set[Place]) -> None:
    """List the links that lead to a file that is not listed, as where images are kept under names without endings."""
    listing = archive.listing
    folders = {str(parent) for name in archive.files for parent in Path(name).parents} | listing.folders
    for name in sorted(archive.links):
        target = archive.target(name)
        if any(map(is_hidden, name.split("/"))):
            continue
        if target in folders:
            listing.leave_out(REPEATED, name)
            if target != "." and not name.startswith(f"{target}/"):
                listing.folders.add(name)
        elif is_image(name):
            place = archive.files.get(target or "")
            if place is None:
                listing.leave_out(NOWHERE, name)
            elif place in places:
                listing.leave_out(REPEATED, name)
            else:
                places.add(place)
                archive.files[name] = place
                listing.names.append(name)
            _add_folders(listing, name)


def _add_folders(listing: Listing, name: str) -> None:
    """List the folders around a file: many archives have no members of their own for them."""
    listing.folders.update(str(parent) for parent in Path(name).parents if str(parent) != ".")
