"""What every data module of a detector does: canvases, batches, ground truth and classes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmdet")

from detection.data import CocoDataModule
from detection.data.base import AnnotatedImages, DetectionDataModule
from detection.data.entries import Origin
from detection.data.reading import annotations_of
from isvit_lightning.data.sources import ImageSource
from isvit_lightning.errors import IsvitError
from isvit_lightning.sources.preprocessing import Preprocessing
from tests.data.samples import source
from tests.detection.data.samples import PREPROCESSING, coco_data


class MemoryDetectionData(DetectionDataModule):
    """Four images in memory, named 100 to 103, the first with a dog; nothing to evaluate on unless ``annotated``."""

    def __init__(self, annotated: bool = True, **options: Any) -> None:
        super().__init__(**{"canvas": (8, 8), "calibration_images": 2, "workers": 0, **options})
        self.annotated = annotated
        self.asked = 0

    def calibration_source(self) -> ImageSource:
        return source(range(4))

    def annotated_images(self) -> AnnotatedImages | None:
        self.asked += 1
        if not self.annotated:
            return None
        images = [{"id": number, "file_name": str(number), "height": 8, "width": 8} for number in range(100, 104)]
        found = {"id": 1, "image_id": 100, "category_id": 2, "bbox": [0, 0, 2, 2], "area": 4}
        categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        content = {"images": images, "categories": categories, "annotations": [found]}
        annotations = annotations_of(content, Origin("memory", "data"))
        return AnnotatedImages(source(range(100, 104)), annotations.images, annotations)


def test_the_canvas_takes_the_place_of_the_detectors_smallest() -> None:
    data = MemoryDetectionData(canvas=(16, 24))
    data.attach(PREPROCESSING)
    assert data.input_size == (3, 16, 24)
    assert data._attached.mean == PREPROCESSING.mean


def test_annotations_are_read_once() -> None:
    data = MemoryDetectionData()
    data.attach(PREPROCESSING)
    for _ in range(2):
        assert data.ground_truth().image_ids == [100, 101, 102, 103]
        assert data.class_names == ("cat", "dog")
        assert data.num_evaluation_images == 4
        data.test_dataloader()
    assert data.asked == 1


def test_fewer_images_are_spaced_evenly_and_their_annotations_follow(root: Path) -> None:
    data = coco_data(root, evaluation_images=2)
    truth = data.ground_truth()
    assert sorted(truth.image_ids) == [100, 102]
    assert data.predict_names() == ("0100.jpg", "0102.jpg")
    assert truth.class_names == data.class_names == ("cat", "dog")
    assert data.num_classes == 2
    assert coco_data(root, classes=["dog"]).num_classes == 1


def test_classes_are_named_in_the_order_of_the_detector() -> None:
    data = MemoryDetectionData(classes=["dog", "cat"])
    assert data.class_names == ("dog", "cat")
    assert data.ground_truth().category_ids == (2, 1)
    with pytest.raises(IsvitError, match="The class 'bird' is no category of memory"):
        _ = MemoryDetectionData(classes=["bird"]).class_names


def test_a_detector_of_other_classes(root: Path) -> None:
    coco_data(root).require_classes(2)
    coco_data(root, classes=["dog"]).require_classes(1)
    coco_data(root, evaluation=None).require_classes(80)
    with pytest.raises(IsvitError, match=r"^The evaluation images have 2 classes but the detector has 80, expected"):
        coco_data(root).require_classes(80)


def test_a_detector_of_the_same_classes_in_another_order(root: Path) -> None:
    coco_data(root).require_classes(2, ("cat", "dog"))
    coco_data(root).require_classes(2, ("Cat", "Dog"))
    coco_data(root, classes=["cat", "dog"]).require_classes(2, ("dog", "cat"))
    message = r"have the classes cat, dog but the detector was trained on dog, cat, expected one order: .*data\.classes"
    with pytest.raises(IsvitError, match=message):
        coco_data(root).require_classes(2, ("dog", "cat"))


def test_an_image_without_an_object_is_evaluated(root: Path) -> None:
    assert 101 in coco_data(root).ground_truth().image_ids


def test_evaluation_batches(root: Path) -> None:
    data = coco_data(root)
    first, second = data.test_dataloader()
    assert [len(batch["inputs"]) for batch in (first, second)] == [2, 2]
    assert [sample.img_id for batch in (first, second) for sample in batch["data_samples"]] == [100, 101, 102, 103]
    image, sample = first["inputs"][0], first["data_samples"][0]
    assert image.dtype == torch.uint8
    assert image.shape == (3, 32, 21)  # 30 x 20 fits 32 x 24
    assert sample.ori_shape == (30, 20)
    assert sample.img_shape == (32, 21)
    assert sample.scale_factor == (21 / 20, 32 / 30)
    assert data.predict_names() == ("0100.jpg", "0101.jpg", "0102.jpg", "0103.jpg")
    assert next(data.predict_images()).size == (20, 30)
    assert data.num_evaluation_images == 4


def test_predictions_read_the_same_batches(root: Path) -> None:
    data = coco_data(root)
    for one, other in zip(data.test_dataloader(), data.predict_dataloader(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one["inputs"], other["inputs"], strict=True))


def test_processes_share_the_images(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Rank:
        world_size = 3

        def __init__(self, rank: int) -> None:
            self.global_rank = rank

    data = coco_data(root)
    seen: list[int] = []
    for rank in range(3):
        monkeypatch.setattr(data, "trainer", Rank(rank))
        mine = [sample.img_id for batch in data.test_dataloader() for sample in batch["data_samples"]]
        assert [f"{number:04d}.jpg" for number in mine] == list(data.predict_names())
        assert len(list(data.predict_images())) == len(mine)
        seen += mine
        assert sorted(data.ground_truth().image_ids) == [100, 101, 102, 103]  # of all processes together
    assert sorted(seen) == [100, 101, 102, 103]


def test_an_image_that_is_calibrated_on_is_not_evaluated() -> None:
    class Same(MemoryDetectionData):
        def calibration_source(self) -> ImageSource:
            return source(range(100, 104))

    data = Same()
    data.attach(PREPROCESSING)
    with pytest.raises(IsvitError, match="expected calibration and evaluation to share no image"):
        data.test_dataloader()


def test_nothing_to_evaluate_on(root: Path) -> None:
    data = coco_data(root, evaluation=None)
    assert data.num_evaluation_images == 0
    assert data.num_classes is None
    assert len(data.calibration_tensor()) == 3
    for use in (data.test_dataloader, data.predict_dataloader, data.ground_truth):
        with pytest.raises(IsvitError, match=r"no images to evaluate on.* set data.evaluation and data.evaluation_an"):
            use()
    with pytest.raises(IsvitError, match="no images to calibrate on"):
        coco_data(root, calibration=None).calibration_tensor()


def test_more_images_than_there_are() -> None:
    with pytest.raises(IsvitError, match=r"^5 evaluation images are asked for, but there are 4"):
        MemoryDetectionData(evaluation_images=5).ground_truth()


def test_a_classifier_is_refused() -> None:
    with pytest.raises(IsvitError, match=r"^CocoDataModule holds images for a detector, but the network is none"):
        CocoDataModule().attach(Preprocessing(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"canvas": (20, 24)}, r"data.canvas is \[20, 24\], but the detector pads its images to multiples of 8"),
        ({"canvas": (16, 0)}, r"data.canvas is \[16, 0\], expected two sizes"),
        ({"scale": (0, 24)}, r"data.scale is \[0, 24\], expected two sizes"),
    ],
)
def test_sizes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(IsvitError, match=message):
        MemoryDetectionData(**{"canvas": (16, 24), **options}).attach(PREPROCESSING)


def test_the_list_of_evaluation_images_tells_what_is_on_them() -> None:
    told = MemoryDetectionData().evaluation_list()
    assert told == MemoryDetectionData().evaluation_list()
    assert told.number == 4
    assert MemoryDetectionData(classes=["dog", "cat"]).evaluation_list() != told
    other = MemoryDetectionData()
    annotated = other.annotated_images()
    assert annotated is not None
    other._annotated = replace(annotated, annotations=replace(annotated.annotations, objects=()))
    assert other.evaluation_list() != told
    assert MemoryDetectionData(annotated=False).evaluation_list().number == 0
