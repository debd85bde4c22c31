"""Which files are images, and what a folder or .tar archive holds of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

IMAGES: Final = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".bmp",
    ".gif",
    ".avif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
)
"""Endings of image files, in lower case: kinds that Pillow decodes without help."""

HIDDEN: Final = "hidden"
REPEATED: Final = "links to what is listed already"
OTHER_ENDING: Final = "images under another ending"
ARCHIVE: Final = "archives, which are not looked into"
NO_FILE: Final = "neither files nor folders"
NOWHERE: Final = "links that lead out of the archive"

_SYSTEM_FOLDERS: Final = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
_ARCHIVES: Final = (".tar", ".tgz", ".gz", ".bz2", ".xz", ".zip", ".7z", ".rar")
_SIGNATURES: Final = (
    (0, b"\xff\xd8\xff"),  # JPEG
    (0, b"\x89PNG\r\n\x1a\n"),
    (0, b"GIF87a"),
    (0, b"GIF89a"),
    (0, b"II*\0"),  # TIFF
    (0, b"MM\0*"),
    (8, b"WEBP"),
    *((4, b"ftyp" + brand) for brand in (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif", b"avis")),
    (4, b"jP  "),  # JPEG 2000
    (4, b"JXL "),
)
HEAD: Final = 32
"""Bytes from which a kind of image is told."""


@dataclass(frozen=True)
class Listing:
    """What a folder or archive holds.

    Args:
        names: posix path of each image, relative to the folder or archive.
        folders: relative posix path of each folder, with or without images.
        left_out: relative posix paths of what could be taken for images but is not listed, by reason.
    """

    names: list[str] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, reason: str, name: str) -> None:
        """Remember that ``name`` is not listed."""
        self.left_out.setdefault(reason, []).append(name)

    def without(self) -> str:
        """Number and names of what is left out, by reason, in one line; empty where nothing is."""
        reasons = sorted(self.left_out.items())
        return "; ".join(f"{reason}: {len(names)} ({shortened(sorted(names))})" for reason, names in reasons)


def shortened(names: Sequence[str], count: int = 3) -> str:
    """The first ``count`` names in one line."""
    return ", ".join([*names[:count], *(["…"] if len(names) > count else [])])


def is_image(name: str) -> bool:
    """Whether a file has the ending of an image."""
    return name.lower().endswith(IMAGES)


def is_archive(name: str) -> bool:
    """Whether a file has the ending of an archive."""
    return name.lower().endswith(_ARCHIVES)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not for people, such as ``._photo.jpg`` and ``__MACOSX`` of macOS."""
    return (name.startswith(".") and name != "..") or name in _SYSTEM_FOLDERS


def holds_image(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a known kind of image."""
    return any(head.startswith(signature, start) for start, signature in _SIGNATURES)
