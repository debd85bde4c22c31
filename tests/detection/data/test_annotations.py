"""Annotations: which category each label is, and objects on their pictures."""

import logging
from typing import Any

import pytest

pytest.importorskip("mmdet")  # the package of the module reads images with it

from isvit_lightning.errors import IsvitError
from tests.detection.data.contents import HEIGHT, WIDTH, clean, measured, read, runs

SIZES = dict.fromkeys((11, 12, 13, 14), (HEIGHT, WIDTH))


def with_first(**changes: Any) -> dict[str, Any]:
    """The clean contents with another first annotation, whose box is [4, 6, 20, 12]."""
    content = clean()
    content["annotations"][0] |= changes
    return content


def test_images_are_listed_by_name() -> None:
    listed = [(image.id, image.file) for image in read(clean()).images]
    assert listed == [(12, "a.png"), (14, "b.png"), (11, "c.png"), (13, "d.png")]


def test_classes_are_categories_in_their_order() -> None:
    truth = read(clean()).ground_truth([11, 12], None)
    assert (truth.class_names, truth.category_ids) == (("cat", "dog"), (2, 5))
    assert [annotation["id"] for annotation in truth.dataset["annotations"]] == [1, 2, 3, 4]


def test_chosen_classes_and_images() -> None:
    truth = read(clean()).ground_truth([11, 13], ["dog"])
    assert truth.category_ids == (5,)
    assert sorted(truth.image_ids) == [11, 13]
    assert [annotation["bbox"] for annotation in truth.dataset["annotations"]] == [[26, 10, 14, 22]]


def test_the_order_of_the_detector_decides() -> None:
    assert read(clean()).ground_truth([11], ["dog", "cat"]).category_ids == (5, 2)


def test_an_order_that_the_file_tells_twice_must_be_named() -> None:
    content = clean()
    content["categories"].reverse()
    with pytest.raises(IsvitError, match=r"its categories as dog, cat but numbers them as cat, dog, .* data.classes"):
        read(content).classes(None)
    assert measured(content, ["cat", "dog"]) == measured(clean())
    # Numbers given as texts are numbers; other texts have no order but the file's.
    for category in content["categories"]:
        category["id"] = str(category["id"])
    with pytest.raises(IsvitError, match="dog, cat but numbers them as cat, dog"):
        read(content).classes(None)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["dog", "bird"], r"^The class 'bird' is no category of list.json, expected one of cat, dog: "),
        (["dog", "dog"], r"^data.classes names 'dog' 2 times, expected each class once"),
        ([], r"^data.classes names no class, expected one or more"),
    ],
)
def test_classes_that_cannot_be_meant(names: list[str], reason: str) -> None:
    with pytest.raises(IsvitError, match=reason):
        read(clean()).ground_truth([11], names)


def test_two_categories_of_one_name() -> None:
    content = clean()
    content["categories"].append({"id": 8, "name": "cat"})
    for names in (None, ["cat", "dog"]):
        with pytest.raises(IsvitError, match=r"In list.json, the categories 2 and 8 are both called 'cat', expected"):
            read(content).classes(names)
    assert [category.id for category in read(content).classes(["dog"])] == [5]


@pytest.mark.parametrize("crowd", [False, True])
def test_no_object_on_any_image(crowd: bool) -> None:
    content = clean()
    for annotation in content["annotations"]:
        annotation["iscrowd"] = int(crowd)
    with pytest.raises(IsvitError, match=r"has no object of the 2 classes on the \d evaluated images, expected"):
        read(content).ground_truth([11] if crowd else [13], None)


def test_a_picture_of_another_size() -> None:
    with pytest.raises(
        IsvitError, match=r"c.png is 40 pixels high and 50 wide but the picture, read upright, 50 and 40"
    ):
        read(clean()).ground_truth([11], None, {11: (50, 40)})
    content = clean()
    for image in content["images"]:
        del image["height"], image["width"]
    with pytest.raises(IsvitError, match=r"the image c.png has no height and width, expected both"):
        read(content).ground_truth([11], None)
    # Where they are not told, those of the pictures are taken.
    assert read(content).ground_truth([11], None, SIZES).dataset == read(clean()).ground_truth([11], None).dataset


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bbox": [50, 6, 20, 12]}, r"annotation 1 \(id 1\) has the box \[50.0, 6.0, 20.0, 12.0\] outside its image"),
        ({"bbox": [-30, -9, 20, 9]}, "outside its image of height 40 and width 50"),
        ({"segmentation": {**runs([[4, 6, 24, 6, 24, 18, 4, 18]]), "size": [50, 40]}},
         r"a mask of height and width \[50, 40\] on an image of \[40, 50\], expected the same size"),
        ({"segmentation": [[0.1, 0.2, 0.5, 0.2, 0.5, 0.5]]}, r"a mask from \[0.1, 0.2\] to \[0.5, 0.5\] and a box"),
        ({"segmentation": [[4, 6, 24, 6, 1e9, 18]]}, r"expected both in pixels of the image and in one place"),
    ],
)  # fmt: skip
def test_an_object_beside_its_picture(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(IsvitError, match=reason):
        read(with_first(**changes)).ground_truth([11], None)
    read(with_first(**changes)).ground_truth([12], None)  # not evaluated


def test_a_box_that_reaches_beyond_its_picture_is_kept() -> None:
    truth = read(with_first(bbox=[-4, 6, 28, 12])).ground_truth([11], None)
    assert truth.dataset["annotations"][0]["bbox"] == [-4, 6, 28, 12]


def test_boxes_by_two_corners() -> None:
    content = clean()
    for annotation in content["annotations"]:
        left, top, width, height = annotation["bbox"]
        annotation["bbox"] = [left, top, left + width, top + height]
    with pytest.raises(
        IsvitError, match=r"all lie inside as \[left, top, right, bottom\], expected \[left, top, width"
    ):
        read(content).ground_truth([11, 12, 14], None)


def test_an_object_without_a_mask_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        read(with_first(segmentation=[])).ground_truth([11], None)
    assert "list.json: 1 of 2 objects have no mask; mask AP does not judge their boxes" in caplog.text
