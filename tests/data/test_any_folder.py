"""Folders that nobody made on purpose: the right number and the right classes, or one sentence; never anything else."""

import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isvit_lightning.data import ImageFolderDataModule, TimmDataModule
from isvit_lightning.data.files import FileSource, open_source
from isvit_lightning.data.listing import is_hidden, is_image
from isvit_lightning.data.sources import UnreadableImageError
from isvit_lightning.errors import IsvitError
from tests.data.samples import PREPROCESSING, png

PLAIN = ("a", "B", "b", "1", "2", "10", "x.png", "y.JPG", "z.webp", "e.png")
STRANGE = (
    "._x.png",
    ".d",
    "train",
    "val",
    "__MACOSX",
    "é ²\n",
    "f.heic",
    "g",
    "h.tar",
    "n.txt",
    os.fsdecode(b"\xff.png"),
)
NAMES = st.sampled_from(PLAIN + STRANGE)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
CONTENTS = st.sampled_from([png(7), b"", b"text", png(7)[:30], b"\xff\xd8\xff\xe0"])
TARGETS = st.one_of(PATHS, st.sampled_from([".", "..", "../..", "/", "/nowhere", "/dev/null", "/proc/self/fd"]))
FILES = st.dictionaries(PATHS, CONTENTS, max_size=8)
LINKS = st.dictionaries(PATHS, st.tuples(TARGETS, st.sampled_from(["soft", "hard", "pipe", "folder"])), max_size=6)
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@contextmanager
def made(files: dict[str, bytes], links: dict[str, tuple[str, str]]) -> Iterator[Path]:
    """The folder, as far as its parts do not exclude each other."""
    top = Path(tempfile.mkdtemp())
    root = top / "images"
    root.mkdir()
    try:
        for name, content in files.items():
            with suppress(OSError):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(content)
        for name, (target, kind) in links.items():
            with suppress(OSError):
                _link(root, root / name, target, kind)
        yield root
    finally:
        shutil.rmtree(top)


def _link(root: Path, path: Path, target: str, kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or path.exists():
        return
    if kind == "soft":
        path.symlink_to(target)
    elif kind == "hard":
        path.hardlink_to(root / target)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()


def key(path: Path) -> tuple[int, int]:
    """What all names of one file share."""
    status = path.stat()
    return status.st_dev, status.st_ino


def real_images(root: Path) -> set[tuple[int, int]]:
    """Each file that has the ending of an image and lies in no hidden folder, without regard to links."""
    found: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(root):
        folders[:] = [folder for folder in folders if not is_hidden(folder)]
        for path in (Path(parent, file) for file in files if is_image(file) and not is_hidden(file)):
            if path.is_file() and not path.is_symlink():
                found.add(key(path))
    return found


@FEW
@given(FILES, LINKS)
def test_each_image_is_listed_once(files: dict[str, bytes], links: dict[str, tuple[str, str]]) -> None:
    with made(files, links) as root:
        try:
            source = open_source(root, "data.calibration")
        except IsvitError as error:
            assert "holds no image" in str(error)
            assert not real_images(root)
            return
        listed = [key(root / name) for name in source.names if (root / name).exists()]
        assert len(set(listed)) == len(listed)
        assert real_images(root) <= set(listed)
        assert all(source.place(name) == index for index, name in enumerate(source.names))
        read(source)


@FEW
@given(FILES, LINKS)
def test_an_archive_lists_what_its_folder_does(files: dict[str, bytes], links: dict[str, tuple[str, str]]) -> None:
    with made(files, links) as root:
        path = root.parent / "images.tar"
        with tarfile.open(path, "w") as archive:
            archive.add(root, ".")
        try:
            source = open_source(path, "data.calibration")
        except IsvitError as error:
            assert "holds no image" in str(error)
            assert not real_images(root)
            return
        listed = [key(root / name) for name in source.names]
        assert len(set(listed)) == len(listed)
        assert real_images(root) <= set(listed)
        read(source)


def read(source: FileSource) -> None:
    for index in range(len(source)):
        with suppress(UnreadableImageError):
            assert source.image(index).getpixel((0, 0)) == (7, 7, 7)


@FEW
@given(FILES, LINKS, st.sampled_from([None, "plain", "natural"]), st.booleans())
def test_labels_are_right_or_refused(
    files: dict[str, bytes], links: dict[str, tuple[str, str]], order: str | None, timm: bool
) -> None:
    with made(files, links) as root:
        options = {"class_order": order, "calibration_images": 1, "workers": 0}
        if timm:
            data = TimmDataModule(root=str(root), calibration_split=None, evaluation_split="images", **options)
        else:
            data = ImageFolderDataModule(evaluation=str(root), **options)
        data.attach(PREPROCESSING)
        try:
            images = data._evaluation
        except IsvitError as error:
            assert ", expected " in str(error)
            assert ": " in str(error)
            return
        folders = [Path(images.source.name(index)).parts[:-1] for index in range(len(images.source))]
        if images.num_classes == 0:
            assert len(set(folders)) == 1
            return
        around = 0  # folders that hold everything
        while len({parts[: around + 1] for parts in folders}) == 1:
            around += 1
        pairs = set(zip([parts[-1 if timm else around] for parts in folders], images.labels, strict=True))
        assert len(pairs) == images.num_classes == len(dict(pairs))
        by_label = [name for name, _ in sorted(pairs, key=lambda pair: pair[1])]
        if order != "natural":
            assert by_label == sorted(by_label)
        if order != "plain":
            numbers = [int(name) for name in by_label if name.isdigit()]
            assert numbers == sorted(numbers)
