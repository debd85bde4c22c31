"""Images in a folder or in a .tar archive."""

import os
import tarfile
from abc import abstractmethod
from pathlib import Path

from typing_extensions import override

from isvit_lightning.data.listing import IMAGES, Listing, list_archive, list_folder
from isvit_lightning.data.sources import ImageSource
from isvit_lightning.errors import IsvitError
from isvit_lightning.sources.paths import expand_path


class FileSource(ImageSource):
    """Image files below one root, sorted by their path relative to it.

    Args:
        root: folder or archive.
        listing: what is there.
    """

    def __init__(self, root: Path, listing: Listing) -> None:
        self.root = root
        self.names = tuple(sorted(listing.names))
        self.folders = frozenset(listing.folders)

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
    def _read(self, index: int) -> bytes:
        """Contents of the file."""


class FolderSource(FileSource):
    """Image files in a folder and its subfolders, links followed.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root, list_folder(root))

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
    def _read(self, index: int) -> bytes:
        return (self.root / self.names[index]).read_bytes()


class TarSource(FileSource):
    """Image members of an uncompressed .tar archive, read in place.

    Args:
        root: the archive.

    Raises:
        tarfile.TarError: the file is no such archive.
    """

    def __init__(self, root: Path) -> None:
        # Places in the file instead of an open archive, so that every worker process reads through a file of its own.
        listing, self._members = list_archive(root)
        super().__init__(root, listing)

    @override
    def location(self, index: int) -> str:
        return f"{os.path.realpath(self.root)}/{self.names[index]}"

    @override
    def size(self, index: int) -> int:
        return self._members[self.names[index]][1]

    @override
    def _read(self, index: int) -> bytes:
        offset, size = self._members[self.names[index]]
        with self.root.open("rb") as archive:
            archive.seek(offset)
            content = archive.read(size)
        if len(content) < size:
            raise OSError(f"the archive ends after {len(content)} of its {size} bytes")
        return content


def open_source(path: str, option: str) -> FileSource:
    """The images at ``path``.

    Args:
        path: folder or .tar archive; ``~`` and variables are replaced.
        option: option that holds the path, for messages.

    Raises:
        IsvitError: there is no image.
    """
    root = expand_path(path)
    if not root.exists():
        raise IsvitError(f"{root} does not exist, expected a folder of images or a .tar archive: change {option}.")
    try:
        source: FileSource = FolderSource(root) if root.is_dir() else TarSource(root)
    except (tarfile.TarError, OSError) as error:
        raise IsvitError(
            f"{root} cannot be opened ({error}), expected a folder of images or an uncompressed .tar archive: change "
            f"{option}."
        ) from None
    if len(source) == 0:
        raise IsvitError(f"{root} holds no image, expected files such as {', '.join(IMAGES)}: change {option}.")
    return source
