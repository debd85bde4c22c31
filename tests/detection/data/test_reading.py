"""Reading annotation files: the clean file's number for what is evident, a sentence for what cannot be meant."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("mmdet")

from detection.data.reading import read_annotations, read_images
from isvit_lightning.errors import IsvitError
from tests.detection.data.contents import clean, measured, read, runs

Change = Callable[[dict[str, Any]], object]
CLEAN = measured(clean())


def every(key: str, **values: Callable[[int, dict[str, Any]], Any]) -> Change:
    """Give each entry of a list new values, by place and entry; those that are None are removed."""

    def change(content: dict[str, Any]) -> None:
        for place, entry in enumerate(content[key]):
            new = {name: value(place, entry) for name, value in values.items()}
            entry.update(new)
            for name in [name for name, value in new.items() if value is None]:
                del entry[name]

    return change


def renamed(key: str, own: str, name: Callable[[int], Any]) -> Change:
    """Call images or categories otherwise, in their own list and in the annotations."""

    def change(content: dict[str, Any]) -> None:
        every(key, id=lambda _, entry: name(entry["id"]))(content)
        every("annotations", **{own: lambda _, entry: name(entry[own])})(content)

    return change


def turned(key: str) -> Change:
    """Another order of a list."""
    return lambda content: content[key].reverse()


EVIDENT: dict[str, dict[str, Change]] = {
    "annotations": {
        "from 0": every("annotations", id=lambda place, _: place),
        "one id for all": every("annotations", id=lambda *_: 7),
        "no ids": every("annotations", id=lambda *_: None),
        "of every kind": every("annotations", id=lambda place, _: ["a", [1], {}, True, 1.5][place]),
    },
    "order": {"of annotations": turned("annotations"), "of images": turned("images")},
    "images": {
        "texts": renamed("images", "image_id", str),
        "padded texts": every("images", id=lambda _, entry: f"{entry['id']:012d}"),
        "names": renamed("images", "image_id", lambda number: f"image {number}"),
        "from 0": renamed("images", "image_id", lambda number: number - 11),
        "from below 0": renamed("images", "image_id", lambda number: number - 13),
        "large": renamed("images", "image_id", lambda number: number + 10**17),
        "with a point": every("annotations", image_id=lambda _, entry: float(entry["image_id"])),
    },
    "files": {"from here": every("images", file_name=lambda _, entry: f"./{entry['file_name']}")},
    "categories": {
        "from 0": renamed("categories", "category_id", lambda number: {2: 0, 5: 1}[number]),
        "texts": renamed("categories", "category_id", str),
        "names": renamed("categories", "category_id", lambda number: {2: "z", 5: "a"}[number]),
    },
    "crowds": {
        "missing": every("annotations", iscrowd=lambda *_: None),
        "words": every("annotations", iscrowd=lambda *_: False),
    },
    "areas": {
        "missing": every("annotations", area=lambda *_: None),
        "of every kind": every("annotations", area=lambda place, _: [-1, 1e300, "12", float("nan"), 0][place]),
    },
    "boxes": {"with a point": every("annotations", bbox=lambda _, entry: [float(edge) for edge in entry["bbox"]])},
    "masks": {
        "flat": every("annotations", segmentation=lambda _, entry: entry["segmentation"][0]),
        "short parts": every(
            "annotations", segmentation=lambda _, entry: [*entry["segmentation"], [1, 2], [3, 4, 5, 6]]
        ),
        "run lengths": every("annotations", segmentation=lambda _, entry: runs(entry["segmentation"])),
        "plain run lengths": every("annotations", segmentation=lambda _, entry: plain_runs(entry)),
    },
    "entries": {
        "an image twice": lambda content: content["images"].append(dict(content["images"][0])),
        "a category twice": lambda content: content["categories"].append(dict(content["categories"][0])),
        "of other images": lambda content: content["annotations"].append({**content["annotations"][0], "image_id": 99}),
        "further keys": lambda content: content.update(
            info=None, licenses=[], annotations=[{**each, "score": 1, "ignore": 0} for each in content["annotations"]]
        ),
    },
}
"""Changes that leave the meaning of the clean file, by what they change; one of each goes together with the others."""


def plain_runs(entry: dict[str, Any]) -> dict[str, Any]:
    """The mask of a box as run lengths that are not compressed, column by column."""
    left, top, width, height = (int(edge) for edge in entry["bbox"])
    counts = [left * 40 + top, *[height, 40 - height] * (width - 1), height]
    return {"size": [40, 50], "counts": [*counts, 2000 - sum(counts)]}


@pytest.mark.parametrize(("subject", "name"), [(subject, name) for subject, some in EVIDENT.items() for name in some])
def test_what_is_evident_gives_the_clean_files_number(subject: str, name: str) -> None:
    content = clean()
    EVIDENT[subject][name](content)
    assert measured(content) == CLEAN


ANNOTATION = ("annotations", 2)
WRONG: dict[str, list[tuple[Any, str, list[Any]]]] = {
    "annotations": [
        (2, "bbox", ["gone", None, [], [1, 2, 3], [1, 2, 0, 4], [1, 2, 3, -4], [1, 2, 3, "4"], [1, 2, 3, float("nan")],
                     [1, 2, float("inf"), 4], [1, 2, 10**400, 4], [1e308, 2, 1e308, 4], {"x": 1}, "1 2 3 4", True]),
        (2, "image_id", ["gone", None, 1.5, [], True, ""]),
        (2, "category_id", ["gone", None, 3, "cat", {}, float("nan")]),
        (2, "iscrowd", [2, -1, "yes", [], 0.5]),
        (2, "segmentation", [3, "polygon", [[1, 2, 3, 4, 5, None]], [[1, 2, 3, 4, 5, 6, 7]],
                             [[1, 2, 3, float("nan"), 5, 6]], [[[1, 2], [3, 4], [5, 6]]], {"size": [40, 50]},
                             {"counts": "abc"},
                             {"size": [40, 50], "counts": "garbled"}, {"size": [40, 50], "counts": [1, 2]},
                             {"size": [40, 50], "counts": [2000, -1, 1]}, {"size": None, "counts": []},
                             {"size": [40, 50], "counts": "\u20ac"}, {"size": [-40, -50], "counts": [2000]}]),
    ],
    "images": [
        (1, "id", ["gone", None, 11, "11", 11.0, [], False]),
        (1, "file_name", ["gone", None, 5, "", "c.png", "./c.png", "\ud800"]),
        (1, "height", [0, -40, "tall", 40.5, [40], float("nan")]),
        (1, "width", [0, True]),
    ],
    "categories": [
        (1, "id", ["gone", None, 2, "2", [], 0.1]),
        (1, "name", ["gone", None, "", [], {}, True]),
    ],
}  # fmt: skip
REFUSALS = [
    (key, place, name, value) for key, rows in WRONG.items() for place, name, values in rows for value in values
]
PATTERN = (
    r"^In list\.json, (image|category|annotation) \d( \(id .*\))? (has|lacks) \w+.*, expected .*: correct it or .*\.$"
)


def spoiled(content: dict[str, Any], refusal: tuple[str, int, str, Any]) -> None:
    key, place, name, value = refusal
    if value == "gone":
        del content[key][place][name]
    else:
        content[key][place][name] = value


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: f"{refusal[0]} {refusal[2]} {refusal[3]!r:.20}")
def test_what_cannot_be_meant_is_refused_by_name(refusal: tuple[str, int, str, Any]) -> None:
    content = clean()
    spoiled(content, refusal)
    with pytest.raises(IsvitError, match=PATTERN) as error:
        read(content)
    assert f"{refusal[2]}" in str(error.value)
    assert "data.evaluation_annotations" in str(error.value)


def test_boxes_in_shares_of_the_image() -> None:
    content = clean()
    every("annotations", bbox=lambda _, entry: [edge / 50 for edge in entry["bbox"]])(content)
    with pytest.raises(IsvitError, match=r"no box is larger than a pixel, expected .*, not in shares of the image"):
        read(content)


def test_annotations_of_other_images_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    content = clean()
    EVIDENT["entries"]["of other images"](content)
    with caplog.at_level(logging.INFO):
        read(content)
    assert "list.json: 1 of 6 annotations are of images that it does not list and left out" in caplog.text


@pytest.mark.parametrize("value", [None, [], {}, [[]], [[1, 2, 3, 4]], [5, 6], {"size": [40, 50], "counts": [2000]}])
def test_one_object_without_a_mask_is_left_out_of_mask_precision_only(value: object) -> None:
    content = clean()
    content["annotations"][0]["segmentation"] = value
    metrics = measured(content)
    assert metrics["box_ap"] == CLEAN["box_ap"]
    # Of the two cats one is left, found with an overlap of 24 / 26: nine of ten thresholds. Dogs are as before.
    dogs = 2 * CLEAN["mask_ap"] - 100 * cats_ap()
    assert metrics["mask_ap"] == pytest.approx((90 + dogs) / 2)


def cats_ap() -> float:
    """Mask AP of the cats of the clean file alone."""
    content = clean()
    content["annotations"] = [each for each in content["annotations"] if each["category_id"] == 2]
    return measured(content)["mask_ap"] / 100


def test_without_any_mask_boxes_are_measured() -> None:
    content = clean()
    every("annotations", segmentation=lambda *_: None)(content)
    assert measured(content) == {name: CLEAN[name] for name in ("box_ap", "box_ap50")}


CHOICES = {subject: st.none() | st.sampled_from(sorted(some)) for subject, some in EVIDENT.items()}


@settings(deadline=None, max_examples=60)
@given(st.fixed_dictionaries(CHOICES), st.booleans(), st.data())
def test_any_mixture_gives_the_number_or_a_sentence(chosen: dict[str, Any], wrong: bool, data: st.DataObject) -> None:
    content = clean()
    for subject, some in EVIDENT.items():
        if chosen[subject] is not None:
            some[chosen[subject]](content)
    if not wrong:
        assert measured(content) == CLEAN
        return
    spoiled(content, data.draw(st.sampled_from(REFUSALS)))
    try:
        metrics = measured(content)
    except IsvitError as error:
        assert "\n" not in str(error)
        assert ", expected " in str(error)
    else:
        assert all(0 <= value <= 100 for value in metrics.values())


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_any_value_in_any_place_gives_a_number_or_a_sentence(data: st.DataObject) -> None:
    simple = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    anything = st.recursive(
        simple, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    )
    content = clean()
    key = data.draw(st.sampled_from(sorted(content)))
    if data.draw(st.booleans()):
        entry = data.draw(st.sampled_from(content[key]))
        entry[data.draw(st.sampled_from(sorted(entry)))] = data.draw(anything)
    else:
        content[key] = data.draw(anything)
    try:
        metrics = measured(content, ["cat", "dog"])
    except IsvitError as error:
        assert "\n" not in str(error)
        assert ", expected " in str(error)
    except KeyError as error:  # an image whose detections are kept has another name
        assert str(error) in {"'a.png'", "'b.png'", "'c.png'", "'d.png'"}
    else:
        assert all(0 <= value <= 100 for value in metrics.values())


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(IsvitError, match=r"\(there is no such file\), expected JSON .* change data.evaluation_annot"):
        read_annotations(tmp_path / "absent.json", "data.evaluation_annotations")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps(clean()), encoding=encoding)
    assert read_annotations(path, "").objects == read(clean()).objects


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        ("[" * 100_000, "recursion"),
        (b"\xff\xff", "can't decode"),
        ([1], "it holds a list"),
        (None, "it holds a NoneType"),
        ({**clean(), "images": None}, "has images null, expected a list"),
        ({"images": []}, "lacks categories, expected a list"),
        ({**clean(), "annotations": {}}, r"has annotations \{\}, expected a list"),
        ({**clean(), "annotations": [1]}, "annotation 1 is 1, expected an object with keys and values"),
    ],
)
def test_a_file_of_something_else(content: object, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(IsvitError, match=reason) as error:
        read_annotations(path, "data.evaluation_annotations")
    assert "change data.evaluation_annotations" in str(error.value)


def test_a_list_of_images_needs_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"images": clean()["images"], "annotations": [{}]}))
    assert read_images(path, "") == read(clean()).images
