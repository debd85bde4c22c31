"""Scenes in COCO's format: the file and the pictures say what the scenes say."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("pycocotools")
from PIL import Image
from pycocotools.coco import COCO

from detection.embedded.coco import coco_dataset, scene_names, write_coco_folder
from detection.embedded.scenes import SceneStyle, digit_scene


def test_folder_holds_what_the_scenes_hold(tmp_path: Path) -> None:
    annotations = write_coco_folder(tmp_path, "held_out", 3, seed=5)
    assert annotations == tmp_path / "annotations" / "held_out.json"
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(annotations))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list("0123456789")
    for number, image_id in enumerate(coco.getImgIds()):
        scene, entry = digit_scene("held_out", number, seed=5), coco.loadImgs(image_id)[0]
        stored = np.asarray(Image.open(tmp_path / "images" / "held_out" / entry["file_name"]))
        assert torch.equal(torch.from_numpy(stored.copy()), scene.image.permute(1, 2, 0))
        objects = coco.loadAnns(coco.getAnnIds(imgIds=image_id))
        assert len(objects) == len(scene.labels)
        for found, label, mask, box in zip(objects, scene.labels, scene.masks, scene.boxes, strict=True):
            assert found["category_id"] == label + 1
            assert np.array_equal(coco.annToMask(found).astype(bool), mask.numpy())
            assert found["area"] == mask.sum()
            left, top, width, height = found["bbox"]
            assert [left, top, left + width, top + height] == box.tolist()


def test_splits_share_neither_name_nor_number(tmp_path: Path) -> None:
    sets = [json.loads(write_coco_folder(tmp_path, split, 2).read_text()) for split in ("train", "held_out")]
    for key in ("id", "file_name"):
        train, held_out = ({image[key] for image in each["images"]} for each in sets)
        assert train.isdisjoint(held_out)


def test_a_scene_without_a_digit_is_listed() -> None:
    scene = digit_scene("train", 0, style=SceneStyle(min_objects=0, max_objects=0))
    dataset = coco_dataset([scene], "train", scene_names("train", 1))
    assert len(dataset["images"]) == 1
    assert dataset["annotations"] == []
