"""The images in a folder: each file once, however many links lead to it."""

import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from isvit_lightning.data.listing import (
    ARCHIVE,
    HEAD,
    HIDDEN,
    NO_FILE,
    OTHER_ENDING,
    REPEATED,
    Listing,
    holds_image,
    is_archive,
    is_hidden,
    is_image,
)

Identity = str | tuple[int, int]
"""What all names of one file share: its path without links, or device and number where it has several such paths."""


def list_folder(root: Path) -> Listing:
    """The images in a folder and its subfolders, links followed.

    What lies in the folder itself comes before what only links lead to, so that a file keeps its own name. A link to a
    folder that holds the link, or the root, is not followed: it leads round in a circle, or to what is not meant.

    Args:
        root: the folder.

    Raises:
        OSError: a folder cannot be read.
    """
    walk = _Walk(_without_links(root))
    walk.run()
    return walk.listing


def identity(path: Path) -> Identity:
    """What all names of one file share.

    Args:
        path: of the file; links in it are followed.
    """
    real = _without_links(path)
    try:
        return _identity(str(real), real.stat())
    except OSError:
        return str(real)


@dataclass
class _Walk:
    root: Path
    listing: Listing = field(default_factory=Listing)
    folders: set[Path] = field(default_factory=set)
    """Paths without links of those that were entered."""
    files: set[Identity] = field(default_factory=set)
    linked_folders: deque[tuple[str, Path]] = field(default_factory=deque)
    linked_files: list[tuple[str, Path]] = field(default_factory=list)
    """Name and path of each link to a file, or to nothing."""

    def run(self) -> None:
        self._enter("", self.root)
        while self.linked_folders:
            name, link = self.linked_folders.popleft()
            target = _without_links(link)
            if any(path.is_relative_to(target) for path in (link, self.root)):
                self.listing.leave_out(REPEATED, name)
            else:
                self.listing.folders.add(name)
                self._enter(name, target)
        for name, link in sorted(self.linked_files):
            self._add(name, identity(link))

    def _enter(self, name: str, folder: Path) -> None:
        """List a folder with all that lies in it, and put links aside."""
        waiting = [(name, folder)]
        while waiting:
            name, folder = waiting.pop()
            if folder in self.folders:
                self.listing.leave_out(REPEATED, name)
                continue
            self.folders.add(folder)
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    child = f"{name}/{entry.name}" if name else entry.name
                    if not _is(entry.is_dir):
                        self._see_file(child, entry)
                    elif is_hidden(entry.name):
                        self.listing.leave_out(HIDDEN, child)
                    elif entry.is_symlink():
                        self.linked_folders.append((child, Path(entry)))
                    else:
                        self.listing.folders.add(child)
                        waiting.append((child, Path(entry)))

    def _see_file(self, name: str, entry: os.DirEntry[str]) -> None:
        image, regular = is_image(entry.name), _is(entry.is_file)
        if is_hidden(entry.name):
            if image:
                self.listing.leave_out(HIDDEN, name)
        elif is_archive(entry.name):
            self.listing.leave_out(ARCHIVE, name)
        elif not image:
            if regular and holds_image(_head(Path(entry))):
                self.listing.leave_out(OTHER_ENDING, name)
        elif not regular and _is(Path(entry).exists):
            self.listing.leave_out(NO_FILE, name)
        elif entry.is_symlink():
            self.linked_files.append((name, Path(entry)))
        else:
            self._add(name, _identity(entry.path, entry.stat()))

    def _add(self, name: str, key: Identity) -> None:
        """List a file unless it is listed already."""
        if key in self.files:
            self.listing.leave_out(REPEATED, name)
        else:
            self.files.add(key)
            self.listing.names.append(name)


def _without_links(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _identity(path: str, status: os.stat_result) -> Identity:
    return (status.st_dev, status.st_ino) if status.st_nlink > 1 else path


def _is(test: Callable[[], bool]) -> bool:
    try:
        return test()
    except OSError:  # a link that leads to itself
        return False


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""
