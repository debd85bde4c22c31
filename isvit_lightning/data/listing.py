"""Which images a folder or a .tar archive holds."""

import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

IMAGES: Final = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
"""Extensions of image files, in lower case; the same as torchvision's."""


@dataclass(frozen=True)
class Listing:
    """What a folder or archive holds.

    Args:
        names: posix path of each image, relative to the folder or archive.
        folders: relative posix path of each folder, with or without images.
    """

    names: list[str] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)


def list_folder(root: Path) -> Listing:
    """The images in a folder and its subfolders, links followed.

    Args:
        root: the folder.
    """
    listing = Listing()
    for parent, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = [folder for folder in subfolders if not folder.startswith(".")]
        relative = Path(parent).relative_to(root)
        listing.folders.update((relative / folder).as_posix() for folder in subfolders)
        listing.names.extend((relative / file).as_posix() for file in files if _is_image(file))
    return listing


def list_archive(path: Path) -> tuple[Listing, dict[str, tuple[int, int]]]:
    """The images in an archive, and place and size of each in bytes.

    Args:
        path: an uncompressed .tar archive.

    Raises:
        tarfile.TarError: the file is no such archive.
    """
    members: dict[str, tuple[int, int]] = {}
    folders: set[str] = set()
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            name = Path(member.name.lstrip("/")).as_posix()
            if member.isreg() and _is_image(Path(name).name):
                members[name] = (member.offset_data, member.size)
                folders |= {parent.as_posix() for parent in Path(name).parents} - {"."}
            elif member.isdir() and name != ".":
                folders.add(name)
    return Listing(list(members), folders), members


def _is_image(name: str) -> bool:
    # macOS leaves files such as ._photo.jpg that are no images.
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGES
