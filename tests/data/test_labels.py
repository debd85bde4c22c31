"""Classes from folders: in which order, and a sentence wherever the folders leave it open."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from isvit_lightning.data.files import open_source
from isvit_lightning.data.labels import ClassFolders, in_one_folder, read_class_map
from isvit_lightning.data.sources import LabeledImages
from isvit_lightning.errors import IsvitError
from tests.data.samples import Store, evaluation_files, png, write


def labeled(path: Path, classes: Sequence[str] | None = None, **options: Any) -> LabeledImages:
    """Labels of the images at ``path``, where ``classes`` lie beside it in a file."""
    class_map = None
    if classes is not None:
        class_map = path.parent / "classes.txt"
        class_map.write_text("\n".join(classes))
    folders = ClassFolders("data.evaluation", class_map, **options)
    return folders.label(open_source(path, "data.evaluation"))


def by_name(images: LabeledImages) -> dict[str, int]:
    names = map(images.source.name, range(len(images.source)))
    return dict(zip(names, images.labels, strict=True))


def test_classes_are_the_sorted_folders(place: Store) -> None:
    files = {"dog/a.png": png(1), "cat/b.png": png(2), "cat/more/c.png": png(3), "ant/d.png": png(4)}
    images = labeled(place("evaluation", files))
    assert by_name(images) == {"ant/d.png": 0, "cat/b.png": 1, "cat/more/c.png": 1, "dog/a.png": 2}
    assert images.num_classes == 3
    assert images.class_names == ("ant", "cat", "dog")


@pytest.mark.parametrize("around", ["all/", "all/these/"])
def test_folders_around_the_class_folders_are_looked_through(place: Store, around: str) -> None:
    images = labeled(place("evaluation", {f"{around}cat/1.png": png(1), f"{around}dog/1.png": png(2)}))
    assert by_name(images) == {f"{around}cat/1.png": 0, f"{around}dog/1.png": 1}


def test_given_classes_set_the_order_and_the_number(place: Store) -> None:
    files = {"cat/1.png": png(1), "dog/1.png": png(2), "sea lion/1.png": png(3)}
    images = labeled(place("evaluation", files), ["dog", "sea lion", "unseen", "cat"])
    assert by_name(images) == {"cat/1.png": 3, "dog/1.png": 0, "sea lion/1.png": 1}
    assert images.num_classes == 4
    assert images.class_names == ("dog", "sea lion", "unseen", "cat")


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


def test_a_single_class_folder(place: Store) -> None:
    with pytest.raises(IsvitError, match="holds the single class folder cat, expected one subfolder per class"):
        labeled(place("evaluation", {"cat/1.png": png(1), "cat/more/2.png": png(2)}))


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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_class_map_is_read_line_by_line(tmp_path: Path, encoding: str, end: str) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(end.join(["dog", "", "  sea lion ", "Ähre", "a\x0bb", "", " "]).encode(encoding))
    assert read_class_map(path) == ("dog", "sea lion", "Ähre", "a\x0bb")


def test_class_maps_that_were_joined(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes("cat\n".encode("utf-8-sig") + "dog\n".encode("utf-8-sig"))
    assert read_class_map(path) == ("cat", "dog")


TEN = [f"class{number}" for number in range(1, 11)]


@pytest.mark.parametrize("innermost", [False, True])
def test_the_order_of_classes_is_asked_for_where_rules_differ(place: Store, innermost: bool) -> None:
    path = place("evaluation", evaluation_files(TEN, 1))
    with pytest.raises(IsvitError) as raised:
        labeled(path, innermost=innermost)
    assert str(raised.value) == (
        f"The 10 class folders of {path} sort as class1, class10, class2, … by their characters (plain) but as class1, "
        "class2, class3, … by numbers and without regard to capitals (natural), expected the order in which the "
        "network was trained: set data.class_order to plain, as torchvision sorts, or to natural, as timm does, or "
        "name the classes in order with data.class_map."
    )
    natural = by_name(labeled(path, innermost=innermost, order="natural"))
    assert natural == {f"class{number}/0.png": number - 1 for number in range(1, 11)}
    assert [label for _, label in sorted(natural.items())] == [0, 9, 1, 2, 3, 4, 5, 6, 7, 8]
    plain = by_name(labeled(path, innermost=innermost, order="plain"))
    assert [label for _, label in sorted(plain.items())] == list(range(10))
    mapped = by_name(labeled(path, TEN, innermost=innermost))
    assert mapped == natural


def test_capitals_are_a_matter_of_order_too(place: Store) -> None:
    path = place("evaluation", evaluation_files(["Zebra", "ant", "Bee"], 1))
    with pytest.raises(IsvitError, match=r"sort as Bee, Zebra, ant by .* but as ant, Bee, Zebra by"):
        labeled(path)
    assert sorted(by_name(labeled(path, order="natural")).values()) == [0, 1, 2]
    assert [name[:3] for name in sorted(by_name(labeled(path, order="plain")))] == ["Bee", "Zeb", "ant"]


@pytest.mark.parametrize("order", [None, "plain", "natural"])
def test_an_order_that_all_rules_share(place: Store, order: Any) -> None:
    path = place("evaluation", evaluation_files(["n01", "n02", "n10"], 1))
    assert labeled(path, order=order).labels == (0, 1, 2)


def test_a_class_map_and_an_order(tmp_path: Path) -> None:
    with pytest.raises(
        IsvitError, match=r"data.class_order is plain and data.class_map .*, expected one of them: leave"
    ):
        ClassFolders("data.evaluation", tmp_path / "classes.txt", "plain")


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        (["train", "val"], "val"),
        (["Test", "Train"], "Test"),
        (["train2017", "val2017"], "val2017"),
        (["training_set", "test_set", "extra"], "test_set"),
        (["trainA", "trainB", "testA"], "testA"),
        (["calibration", "evaluation"], "evaluation"),
        (["fold1", "fold2"], "fold1"),
        (["images", "masks"], "images"),
    ],
)
@pytest.mark.parametrize("innermost", [False, True])
def test_parts_of_a_data_set_are_no_classes(tmp_path: Path, parts: list[str], named: str, innermost: bool) -> None:
    files = {f"all/{part}/{name}": png(1) for part in parts for name in ("cat/1.png", "dog/1.png")}
    root = write(tmp_path / "evaluation", files)
    with pytest.raises(IsvitError) as raised:
        labeled(root, innermost=innermost)
    assert "which are parts of a data set and no classes, expected one subfolder per class" in str(raised.value)
    assert f"give one part alone, such as {root}/all/{named}, with data.evaluation, or name the class" in str(
        raised.value
    )


def test_parts_of_each_class_are_no_classes(place: Store) -> None:
    files = {f"{name}/{part}/1.png": png(1) for name in ("cat", "dog") for part in ("train", "test")}
    with pytest.raises(
        IsvitError, match="holds test, train, which are parts .* give one part alone with data.evaluation"
    ):
        labeled(place("evaluation", files), innermost=True)


@pytest.mark.parametrize(
    "names", [["cat", "train", "truck"], ["label0", "label1"], ["test1", "test2"], ["valley", "tests"]]
)
def test_classes_called_almost_like_parts(place: Store, names: list[str]) -> None:
    assert labeled(place("evaluation", evaluation_files(names, 1))).num_classes == len(names)


def test_a_class_map_may_name_parts(place: Store) -> None:
    path = place("evaluation", evaluation_files(["train", "test"], 1))
    assert by_name(labeled(path, ["train", "test"])) == {"train/0.png": 0, "test/0.png": 1}
    with pytest.raises(IsvitError, match="holds test, train, which are parts"):
        labeled(path, ["cat", "dog"], innermost=True)


def test_a_split_alone_is_looked_through(place: Store) -> None:
    assert labeled(place("evaluation", {"val/cat/1.png": png(1), "val/dog/1.png": png(2)})).labels == (0, 1)


def test_innermost_folders_are_classes_wherever_they_lie(place: Store) -> None:
    files = {"pets/cat/1.png": png(1), "pets/dog/1.png": png(2), "farm/cow/1.png": png(3), "farm/cat/2.png": png(4)}
    images = labeled(place("evaluation", files), innermost=True)
    assert by_name(images) == {"farm/cat/2.png": 0, "farm/cow/1.png": 1, "pets/cat/1.png": 0, "pets/dog/1.png": 2}


def test_innermost_folders_that_the_map_lacks_are_left_out(place: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="isvit_lightning.data.labels")
    path = place("evaluation", evaluation_files(["ant", "bee", "cat", "dog"], 2))
    images = labeled(path, ["dog", "ant", "yak"], innermost=True)
    assert by_name(images) == {"ant/0.png": 1, "ant/1.png": 1, "dog/0.png": 0, "dog/1.png": 0}
    assert [images.source.read(index) for index in range(4)] == [png(100), png(101), png(106), png(107)]
    assert caplog.messages == [f"Left out of {path}: 4 images of classes not in the map (bee, cat)"]
    with pytest.raises(IsvitError, match="The class folder ant of .* is not in the class map"):
        labeled(path, ["one", "two"], innermost=True)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "cannot be read"),
        (b"\xff\xfe\xfa", "cannot be read"),
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"cat\ndog\ncat\n", r"names a class twice \(cat\)"),
    ],
)
def test_class_maps_that_cannot_be_used(tmp_path: Path, content: bytes | None, fault: str) -> None:
    path = tmp_path / "classes.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(IsvitError, match=rf"classes.txt {fault}.*: change data.class_map.$"):
        read_class_map(path)
