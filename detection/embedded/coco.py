"""Scenes of digits in COCO's format, in memory or as a folder."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image
from pycocotools import mask as run_lengths
from torch import Tensor

from detection.embedded.scenes import CLASS_NAMES, Scene, SceneStyle, digit_scene
from isvit_lightning.embedded.digits import Split

_FIRST_CATEGORY: Final = 1  # COCO counts categories from one
_IDS: Final = {"train": 0, "held_out": 1_000_000}


def scene_names(split: Split, count: int) -> list[str]:
    """Names of the scenes of a split, such as ``digits-train-00012.png``."""
    return [f"digits-{split}-{number:05d}.png" for number in range(count)]


def scene_image(scene: Scene) -> Image.Image:
    """The picture, RGB."""
    return Image.fromarray(scene.image.permute(1, 2, 0).contiguous().numpy())


def coco_dataset(scenes: Iterable[Scene], split: Split, names: Sequence[str]) -> dict[str, Any]:
    """The contents of an annotation file: images, annotations with boxes and masks as run lengths, ten categories.

    Args:
        scenes: the pictures.
        split: split of the digits on them; numbers of images of different splits differ.
        names: name of each picture.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (scene, name) in enumerate(zip(scenes, names, strict=True)):
        image_id = _IDS[split] + number
        height, width = scene.image.shape[1:]
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for box, label, mask in zip(scene.boxes.tolist(), scene.labels.tolist(), scene.masks, strict=True):
            left, top, right, bottom = box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label + _FIRST_CATEGORY,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": _run_length(mask),
                }
            )
    categories = [{"id": label + _FIRST_CATEGORY, "name": name} for label, name in enumerate(CLASS_NAMES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco_folder(folder: Path, split: Split, count: int, seed: int = 0, style: SceneStyle | None = None) -> Path:
    """Write scenes as ``images/<split>/*.png`` and ``annotations/<split>.json``.

    Args:
        folder: where to; it may hold the other split already.
        split: digits that are drawn: ``train`` or ``held_out``.
        count: number of scenes.
        seed: seed of the set.
        style: what scenes look like; None takes the default.

    Returns:
        The annotation file.

    Raises:
        IsvitError: no such split.
    """
    scenes = [digit_scene(split, number, seed, style or SceneStyle()) for number in range(count)]
    names = scene_names(split, count)
    images, annotations = folder / "images" / split, folder / "annotations" / f"{split}.json"
    images.mkdir(parents=True, exist_ok=True)
    annotations.parent.mkdir(parents=True, exist_ok=True)
    for scene, name in zip(scenes, names, strict=True):
        scene_image(scene).save(images / name)
    annotations.write_text(json.dumps(coco_dataset(scenes, split, names)), encoding="utf-8")
    return annotations


def _run_length(mask: Tensor) -> dict[str, Any]:
    """A mask ``(height, width)`` as COCO's compressed run lengths, in a form that JSON holds."""
    encoded = run_lengths.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    return {"size": [int(size) for size in encoded["size"]], "counts": encoded["counts"].decode()}
