"""Images in a folder or in a .tar archive."""

import logging
import os
import posixpath
import tarfile
from abc import abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from typing_extensions import Self, override

from isvit_lightning.data.archive_listing import Place, list_archive
from isvit_lightning.data.folder_listing import Identity, identity, list_folder
from isvit_lightning.data.listing import IMAGES, Listing
from isvit_lightning.data.sources import ImageSource
from isvit_lightning.errors import IsvitError
from isvit_lightning.sources.paths import expand_path

_LOG: Final = logging.getLogger(__name__)
Order = Callable[[str], Any]
"""A key that sorts paths."""


class FileSource(ImageSource):
    """Image files below one root, each once, sorted by their path relative to it.

    Args:
        root: folder or archive.
        listing: what is there.
        order: key that sorts the paths.
    """

    def __init__(self, root: Path, listing: Listing, order: Order) -> None:
        self.root = root
        self.names = tuple(sorted(listing.names, key=order))
        self.folders = frozenset(listing.folders)
        self.left_out = listing.without()

    def only(self, names: Sequence[str]) -> Self:
        """The same files without some of them.

        Args:
            names: those that are kept, in order.
        """
        part = copy(self)
        part.names = tuple(names)
        return part

    @override
    def __len__(self) -> int:
        return len(self.names)

    @override
    def name(self, index: int) -> str:
        return self.names[index]

    @override
    def read(self, index: int) -> bytes:
        try:
            return self._read(index)
        except OSError as error:
            raise self.unreadable(index, error.strerror or error) from None

    @abstractmethod
    def place(self, name: str) -> int | None:
        """Index of the image that a path leads to, links followed, also those that are listed under another name.

        Args:
            name: posix path relative to the root.

        Returns:
            The index; None where there is no such image.
        """

    @abstractmethod
    def _read(self, index: int) -> bytes:
        """Contents of the file."""


class FolderSource(FileSource):
    """Image files in a folder and its subfolders, links followed.

    Args:
        root: the folder.
        order: key that sorts the paths.

    Raises:
        OSError: a folder cannot be read.
    """

    def __init__(self, root: Path, order: Order = str) -> None:
        super().__init__(root, list_folder(root), order)

    @override
    def location(self, index: int) -> str:
        return os.path.realpath(self.root / self.names[index])

    @override
    def size(self, index: int) -> int | None:
        try:
            return (self.root / self.names[index]).stat().st_size
        except OSError:
            return None

    @override
    def place(self, name: str) -> int | None:
        return self._places.get(identity(self.root / name))

    @cached_property
    def _places(self) -> dict[Identity, int]:
        return {identity(self.root / name): index for index, name in enumerate(self.names)}

    @override
    def _read(self, index: int) -> bytes:
        return (self.root / self.names[index]).read_bytes()


class TarSource(FileSource):
    """Image members of an uncompressed .tar archive, read in place.

    Args:
        root: the archive.
        order: key that sorts the paths.

    Raises:
        tarfile.TarError: the file is no such archive.
        OSError: it cannot be read.
    """

    def __init__(self, root: Path, order: Order = str) -> None:
        # Places in the file instead of an open archive, so that every worker process reads through a file of its own.
        self._archive = list_archive(root)
        super().__init__(root, self._archive.listing, order)

    @override
    def location(self, index: int) -> str:
        return f"{os.path.realpath(self.root)}/{self.names[index]}"

    @override
    def size(self, index: int) -> int:
        return self._archive.files[self.names[index]][1]

    @override
    def place(self, name: str) -> int | None:
        target = self._archive.target(posixpath.normpath(name))
        return None if target is None else self._places.get(self._archive.files.get(target))

    @cached_property
    def _places(self) -> dict[Place | None, int]:
        return {self._archive.files[name]: index for index, name in enumerate(self.names)}

    @override
    def _read(self, index: int) -> bytes:
        offset, size = self._archive.files[self.names[index]]
        with self.root.open("rb") as archive:
            archive.seek(offset)
            content = archive.read(size)
        if len(content) < size:
            raise OSError(f"the archive ends after {len(content)} of its {size} bytes")
        return content


def open_source(path: str | Path, option: str, order: Order = str) -> FileSource:
    """The images at ``path``.

    Args:
        path: folder or .tar archive; ``~`` and variables are replaced.
        option: option that holds the path, for messages.
        order: key that sorts the paths of the images.

    Raises:
        IsvitError: there is no image.
    """
    root = expand_path(path)
    if not root.exists():
        raise IsvitError(f"{root} does not exist, expected a folder of images or a .tar archive: change {option}.")
    try:
        source: FileSource = FolderSource(root, order) if root.is_dir() else TarSource(root, order)
    except (tarfile.TarError, OSError) as error:
        raise IsvitError(
            f"{root} cannot be opened ({error}), expected a folder of images or an uncompressed .tar archive: change "
            f"{option}."
        ) from None
    if len(source) == 0:
        but = f" (left out: {source.left_out})" if source.left_out else ""
        raise IsvitError(f"{root} holds no image{but}, expected files such as {', '.join(IMAGES)}: change {option}.")
    if source.left_out:
        _LOG.info("Left out of %s: %s", root, source.left_out)
    return source
