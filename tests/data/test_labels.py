"""Classes from folders: in which order, and a sentence wherever the folders leave it open."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from isvit_lightning.data.files import open_source
from isvit_lightning.data.labels import in_one_folder, label_by_folder, read_class_map
from isvit_lightning.data.sources import LabeledImages
from isvit_lightning.errors import IsvitError
from tests.data.samples import Store, evaluation_files, png, write


def labeled(path: Path, classes: Sequence[str] | None = None) -> LabeledImages:
    return label_by_folder(open_source(str(path), "data.evaluation"), classes)


def by_name(images: LabeledImages) -> dict[str, int]:
    names = map(images.source.name, range(len(images.source)))
    return dict(zip(names, images.labels, strict=True))


def test_classes_are_the_sorted_folders(place: Store) -> None:
    files = {"dog/a.png": png(1), "cat/b.png": png(2), "cat/more/c.png": png(3), "ant/d.png": png(4)}
    images = labeled(place("evaluation", files))
    assert by_name(images) == {"ant/d.png": 0, "cat/b.png": 1, "cat/more/c.png": 1, "dog/a.png": 2}
    assert images.num_classes == 3


@pytest.mark.parametrize("around", ["all/", "all/these/"])
def test_folders_around_the_class_folders_are_looked_through(place: Store, around: str) -> None:
    images = labeled(place("evaluation", {f"{around}cat/1.png": png(1), f"{around}dog/1.png": png(2)}))
    assert by_name(images) == {f"{around}cat/1.png": 0, f"{around}dog/1.png": 1}


def test_given_classes_set_the_order_and_the_number(place: Store) -> None:
    files = {"cat/1.png": png(1), "dog/1.png": png(2), "sea lion/1.png": png(3)}
    images = labeled(place("evaluation", files), ["dog", "sea lion", "unseen", "cat"])
    assert by_name(images) == {"cat/1.png": 3, "dog/1.png": 0, "sea lion/1.png": 1}
    assert images.num_classes == 4


def test_given_classes_allow_a_single_folder_and_empty_ones(tmp_path: Path) -> None:
    root = write(tmp_path / "evaluation", {"cat/1.png": png(1)})
    (root / "dog").mkdir()
    assert labeled(root, ["dog", "cat"]).labels == (1,)


def test_a_class_that_the_map_lacks(place: Store) -> None:
    with pytest.raises(IsvitError, match=r"^The class folder dog of .* is not in the class map, .* data.class_map"):
        labeled(place("evaluation", evaluation_files()), ["bird", "cat"])


def test_an_image_outside_the_class_folders(place: Store) -> None:
    with pytest.raises(IsvitError, match=r"^The image loose.png of .* lies in no class folder, .* data.evaluation.$"):
        labeled(place("evaluation", {**evaluation_files(), "loose.png": png(9)}))


def test_a_flat_evaluation_folder(place: Store) -> None:
    with pytest.raises(IsvitError, match="holds the single class folder images, expected one subfolder per class"):
        labeled(place("evaluation", {"images/1.png": png(1), "images/2.png": png(2)}))


@pytest.mark.parametrize("around", ["", "all/"])
def test_an_empty_class_folder_leaves_the_order_open(tmp_path: Path, around: str) -> None:
    root = write(tmp_path / "evaluation", {f"{around}{name}": content for name, content in evaluation_files().items()})
    (root / around / "ant").mkdir()
    with pytest.raises(IsvitError, match=r"^The class folder ant of .* holds no image, .* set data.class_map"):
        labeled(root)


def test_empty_folders_that_are_no_class_folders_do_not_matter(tmp_path: Path) -> None:
    root = write(tmp_path / "evaluation", evaluation_files())
    (root / "cat" / "empty").mkdir()
    assert labeled(root).num_classes == 3


@pytest.mark.parametrize(
    ("names", "together"),
    [
        (["1.png"], True),
        (["1.png", "2.png", "3.JPG"], True),
        (["all/1.png", "all/2.png"], True),
        (["all/these/1.png", "all/these/2.png"], True),
        (["cat/1.png", "dog/1.png"], False),
        (["all/cat/1.png", "all/dog/1.png"], False),
        (["1.png", "cat/1.png"], False),
        (["cat/1.png", "cat/more/1.png"], False),
    ],
)
def test_whether_all_images_lie_in_one_folder(place: Store, names: list[str], together: bool) -> None:
    files = {name: png(number) for number, name in enumerate(names)} | {"aside/notes.txt": b""}
    assert in_one_folder(open_source(str(place("evaluation", files)), "data.evaluation")) is together


def test_a_class_map_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("dog\n\n  sea lion \r\nÄhre", encoding="utf-8")
    assert read_class_map(path) == ("dog", "sea lion", "Ähre")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "cannot be read"),
        (b"\xff\xfe\xfa", "cannot be read"),
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"cat\ndog\ncat\n", "names a class twice"),
    ],
)
def test_class_maps_that_cannot_be_used(tmp_path: Path, content: bytes | None, fault: str) -> None:
    path = tmp_path / "classes.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(IsvitError, match=rf"classes.txt {fault}.*: change data.class_map.$"):
        read_class_map(path)
