"""The COCO data module: which images it takes, and a sentence for every wrong input."""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

pytest.importorskip("mmdet")

from detection.data import CocoDataModule
from detection.runtime import import_mmdet
from isvit_lightning.data.sources import UnreadableImageError
from isvit_lightning.errors import IsvitError
from tests.detection.data.samples import PREPROCESSING, coco_data, write_set


def test_calibration_canvases(root: Path) -> None:
    data = coco_data(root)
    assert data.calibration_tensor().shape == (3, 3, 16, 24)
    assert data.calibration_list().names == ("0000.jpg", "0001.jpg", "0002.jpg")


def test_calibration_takes_listed_images_only(root: Path) -> None:
    content = json.loads((root / "train.json").read_text())
    content["images"] = content["images"][2:4]
    (root / "train.json").write_text(json.dumps(content))
    assert coco_data(root, calibration_images=2).calibration_list().names == ("0002.jpg", "0003.jpg")
    everything = coco_data(root, calibration_images=5, calibration_annotations=None)
    assert everything.calibration_list().names[0] == "0000.jpg"


def test_part_of_the_training_images_is_enough(root: Path) -> None:
    (root / "train" / "0001.jpg").unlink()
    assert coco_data(root).calibration_list().names == ("0000.jpg", "0002.jpg", "0003.jpg")


def test_a_missing_annotation_file(root: Path) -> None:
    for name in ("evaluation_annotations", "calibration_annotations"):
        with pytest.raises(IsvitError, match=rf"there is no such file.*change data.{name}"):
            list(coco_data(root, **{name: str(root / "absent.json")}).test_dataloader())


def test_no_annotation_file_at_all(root: Path) -> None:
    with pytest.raises(IsvitError, match=r"have no annotations, .* set data.evaluation_annotations"):
        coco_data(root, evaluation_annotations=None).ground_truth()


def test_annotations_whose_images_are_missing(root: Path) -> None:
    (root / "val" / "0101.jpg").unlink()
    with pytest.raises(IsvitError, match=r"lists 4 images of which .* lacks 1, such as 0101.jpg, expected"):
        coco_data(root).test_dataloader()


def test_calibration_annotations_of_another_folder(root: Path) -> None:
    with pytest.raises(IsvitError, match=r"holds none of the 4 images .* such as 0100.jpg"):
        coco_data(root, calibration_annotations=str(root / "val.json")).calibration_tensor()


@pytest.mark.parametrize("use", ["calibration_tensor", "test_dataloader"])
def test_evaluation_images_are_not_calibrated_on(root: Path, use: str) -> None:
    same = {"calibration": str(root / "val"), "calibration_annotations": str(root / "val.json")}
    with pytest.raises(IsvitError, match="expected calibration and evaluation to share no image"):
        getattr(coco_data(root, **same), use)()


def test_a_copy_under_another_name_is_not_calibrated_on(root: Path) -> None:
    shutil.copy(root / "val" / "0100.jpg", root / "train" / "0000.jpg")
    with pytest.raises(IsvitError, match=r"0000.jpg is the evaluation image .*0100.jpg"):
        coco_data(root).calibration_tensor()


def test_the_same_entry_with_other_pixels_is_not_calibrated_on(tmp_path: Path) -> None:
    write_set(tmp_path, "train", 4, first=0)
    write_set(tmp_path, "val", 4, first=2)
    (tmp_path / "val" / "0002.jpg").write_bytes((tmp_path / "val" / "0005.jpg").read_bytes() + b"\0")
    (tmp_path / "val" / "0003.jpg").write_bytes((tmp_path / "val" / "0004.jpg").read_bytes() + b"\0")
    with pytest.raises(IsvitError, match=r"0002.jpg has the name and id \(2\) of .* leave it out"):
        coco_data(tmp_path).calibration_tensor()
    assert len(coco_data(tmp_path, calibration_images=2).calibration_tensor()) == 2
    assert len(coco_data(tmp_path, calibration_annotations=None).calibration_tensor()) == 3


@pytest.mark.parametrize("damage", [b"", b"no image", b"\xff\xd8\xff\xe0 damaged"])
def test_a_damaged_image(root: Path, damage: bytes) -> None:
    (root / "train" / "0001.jpg").write_bytes(damage)
    (root / "val" / "0101.jpg").write_bytes(damage + b" ")
    with pytest.raises(UnreadableImageError, match="0001.jpg cannot be read"):
        coco_data(root).calibration_tensor()
    assert coco_data(root, on_unreadable="skip").calibration_list().names == ("0000.jpg", "0002.jpg", "0003.jpg")
    with pytest.raises(UnreadableImageError, match="0101.jpg cannot be read"):
        list(coco_data(root, on_unreadable="skip").test_dataloader())


def test_an_archive_of_images(root: Path) -> None:
    with tarfile.open(root / "val.tar", "w") as archive:
        for path in sorted((root / "val").iterdir()):
            member = tarfile.TarInfo(path.name)
            member.size = path.stat().st_size
            archive.addfile(member, io.BytesIO(path.read_bytes()))
    packed = list(coco_data(root, evaluation=str(root / "val.tar")).test_dataloader())
    plain = list(coco_data(root).test_dataloader())
    assert torch.equal(packed[0]["inputs"][1], plain[0]["inputs"][1])


def write_turned(path: Path, upright: np.ndarray[Any, Any]) -> None:
    """Write a PNG that lies on its side, with the EXIF orientation that turns it."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(upright).rotate(90, expand=True).save(path, "PNG", exif=exif)


def test_a_picture_on_its_side_is_upright_everywhere(root: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 30, 20, 3), dtype=np.uint8)
    for place, number in enumerate((1, 4, 100, 103)):  # 30 pixels high and 20 wide in the lists
        folder = root / ("val" if number >= 100 else "train")
        write_turned(folder / f"{number:04d}.jpg", pixels[place])
        assert Image.open(folder / f"{number:04d}.jpg").size == (30, 20)  # as it is stored
    data = coco_data(root, calibration_images=5)
    batches = list(data.test_dataloader())
    assert data.ground_truth().dataset["images"][0]["height"] == 30
    sample = batches[0]["data_samples"][0]
    assert sample.ori_shape == (30, 20)
    assert next(data.predict_images()).size == (20, 30)
    lying = (data.calibration_tensor(), [batch["inputs"] for batch in batches])
    for place, number in enumerate((1, 4, 100, 103)):
        folder = root / ("val" if number >= 100 else "train")
        Image.fromarray(pixels[place]).save(folder / f"{number:04d}.jpg", "PNG")
    data = coco_data(root, calibration_images=5)
    assert torch.equal(data.calibration_tensor(), lying[0])
    for batch, inputs in zip(data.test_dataloader(), lying[1], strict=True):
        assert all(torch.equal(one, other) for one, other in zip(batch["inputs"], inputs, strict=True))


def test_annotations_of_a_picture_as_it_is_stored_are_refused(root: Path) -> None:
    write_turned(root / "val" / "0101.jpg", np.zeros((30, 16, 3), dtype=np.uint8))
    content = json.loads((root / "val.json").read_text())
    content["images"][1] |= {"height": 16, "width": 30}
    (root / "val.json").write_text(json.dumps(content))
    with pytest.raises(IsvitError, match="0101.jpg is 16 pixels high and 30 wide but the picture, read upright, 30"):
        coco_data(root).ground_truth()
    assert coco_data(root, evaluation_images=2).ground_truth().image_ids == [100, 102]  # it is not among these


def test_sixteen_bits_are_scaled_to_eight(root: Path) -> None:
    gray = np.random.default_rng(0).integers(0, 256, (30, 20), dtype=np.uint8)
    inputs = []
    for pixels in (gray, gray.astype(np.uint16) * 257):
        Image.fromarray(pixels).save(root / "val" / "0100.jpg", "PNG")
        inputs.append(next(iter(coco_data(root).test_dataloader()))["inputs"][0])
    assert torch.equal(*inputs)


def test_floating_point_pictures_are_read_as_those_of_a_classifier(root: Path) -> None:
    gray = np.random.default_rng(0).integers(0, 256, (30, 20), dtype=np.uint8)
    inputs = []
    for pixels in (gray, gray.astype(np.float32) / 255):
        Image.fromarray(pixels).save(root / "val" / "0100.jpg", "TIFF")
        inputs.append(next(iter(coco_data(root).test_dataloader()))["inputs"][0])
    assert torch.equal(*inputs)


def test_a_listed_link_is_the_picture_that_it_leads_to(root: Path) -> None:
    told = coco_data(root).ground_truth()
    (root / "val" / "0100.jpg").rename(root / "val" / "a.jpg")
    (root / "val" / "0100.jpg").symlink_to("a.jpg")
    assert coco_data(root).ground_truth() == told
    assert coco_data(root).annotated_images().source.name(0) == "0100.jpg"  # type: ignore[union-attr]


def test_sizes_that_the_annotations_lack_are_those_of_the_pictures(root: Path) -> None:
    told = coco_data(root).ground_truth()
    content = json.loads((root / "val.json").read_text())
    for image in content["images"]:
        del image["height"], image["width"]
    (root / "val.json").write_text(json.dumps(content))
    assert coco_data(root).ground_truth() == told


def test_the_order_of_classes_is_told_before_any_picture_is_loaded(root: Path) -> None:
    content = json.loads((root / "val.json").read_text())
    content["categories"].reverse()
    (root / "val.json").write_text(json.dumps(content))
    (root / "train" / "0000.jpg").write_bytes(b"no image")
    with pytest.raises(IsvitError, match="lists its categories as dog, cat but numbers them as cat, dog, expected"):
        coco_data(root).calibration_tensor()
    assert coco_data(root, classes=["cat", "dog"]).class_names == ("cat", "dog")


def test_pictures_without_an_object_are_predicted_on(root: Path) -> None:
    content = json.loads((root / "val.json").read_text())
    (root / "val.json").write_text(json.dumps({**content, "annotations": []}))
    data = coco_data(root)
    assert data.class_names == ("cat", "dog")
    assert len(list(data.predict_dataloader())) == 2
    with pytest.raises(IsvitError, match="has no object of the 2 classes on the 4 evaluated images"):
        data.ground_truth()


@pytest.mark.real
def test_real_images_come_as_from_mmdets_own_dataset(tmp_path: Path) -> None:
    root = Path(os.environ.get("ISVIT_DATA", Path(__file__).parents[4] / "shared" / "data"))
    archive = root / "coco_mini.tar"
    if not archive.exists():
        pytest.skip(f"{archive} is absent: set ISVIT_DATA to a folder that holds it")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path)
    folder = tmp_path / "coco_mini"
    options = {
        name: str(folder / place)
        for name, place in (
            ("calibration", "train2017"),
            ("calibration_annotations", "annotations/instances_train2017.json"),
            ("evaluation", "val2017"),
            ("evaluation_annotations", "annotations/instances_val2017.json"),
        )
    }
    data = CocoDataModule(**options, canvas=(256, 320), scale=(320, 256), calibration_images=2, workers=0)
    data.attach(PREPROCESSING)
    assert data.calibration_tensor().shape == (2, 3, 256, 320)
    assert (data.num_evaluation_images, data.num_classes) == (158, 80)
    assert len(CocoDataModule(**options, calibration_images=128).calibration_list().names) == 128

    import_mmdet()
    from mmdet.datasets import CocoDataset

    pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": (320, 256), "keep_ratio": True},
        {"type": "PackDetInputs", "meta_keys": ("img_id", "ori_shape", "img_shape", "scale_factor")},
    ]
    theirs = CocoDataset(
        ann_file=options["evaluation_annotations"],
        data_prefix={"img": options["evaluation"]},
        pipeline=pipeline,
        test_mode=True,
    )
    assert theirs.metainfo["classes"] == data.class_names
    assert tuple(theirs.cat_ids) == data.ground_truth().category_ids
    expected = {sample["data_samples"].img_id: sample for sample in (theirs[place] for place in range(12))}
    seen = 0
    for batch in data.test_dataloader():
        sample = batch["data_samples"][0]
        if sample.img_id in expected:
            wanted = expected[sample.img_id]
            assert torch.equal(batch["inputs"][0], wanted["inputs"])
            for name in ("ori_shape", "img_shape", "scale_factor"):
                assert sample.metainfo[name] == wanted["data_samples"].metainfo[name]
            seen += 1
    assert seen == 12
