"""Average precision: closed forms, mmdet's own metric, and each image once on any number of processes."""

import copy
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")
from pycocotools import mask as run_lengths

from detection.data import DigitsDetectionDataModule
from detection.data.annotations import GroundTruth
from detection.data.reading import read_annotations
from detection.detections import Detections, encode_masks
from detection.embedded.coco import coco_dataset, scene_names
from detection.embedded.scenes import digit_scene
from detection.evaluation import DetectionEvaluator, average_precision
from detection.runtime import import_mmdet
from isvit_lightning.errors import IsvitError
from tests.detection.oracle import Oracle, exact
from tests.helpers import quiet_trainer

AREA = 60 * 40


def truth_of(*objects: tuple[int, int, list[float]], images: int = 1) -> GroundTruth:
    """Ground truth of images 1 to ``images`` with objects of ``(image, category, box by corners)``; categories 3, 8."""
    annotations = [
        {"id": number + 1, "image_id": image, "category_id": category, "iscrowd": 0}
        | {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}
        | {"segmentation": [[left, top, right, top, right, bottom, left, bottom]]}
        for number, (image, category, (left, top, right, bottom)) in enumerate(objects)
    ]
    listed = [{"id": image + 1, "height": 100, "width": 100, "file_name": f"{image}.jpg"} for image in range(images)]
    categories = [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}]
    return GroundTruth({"images": listed, "annotations": annotations, "categories": categories}, (3, 8), ("cat", "dog"))


def found(image: int, *objects: tuple[int, float, list[float]], masks: bool = True) -> Detections:
    """Detections of ``(label, score, box by corners)``, each mask its box."""
    drawn = torch.zeros(len(objects), 100, 100, dtype=torch.bool)
    for mask, (_, _, box) in zip(drawn, objects, strict=True):
        left, top, right, bottom = (int(edge) for edge in box)
        mask[top:bottom, left:right] = True
    return Detections(
        image,
        torch.tensor([box for _, _, box in objects]).view(-1, 4),
        torch.tensor([score for _, score, _ in objects]),
        torch.tensor([label for label, _, _ in objects], dtype=torch.int64),
        encode_masks(drawn) if masks else None,
    )


def perturbed(truth: GroundTruth, seed: int) -> list[Detections]:
    """The ground truth as predictions: shifted, some of another class, some left out, some twice."""
    random = np.random.default_rng(seed)
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth.dataset["images"]}
    everything = []
    for image_id in truth.image_ids:
        boxes, labels, masks = [], [], []
        for entry in truth.dataset["annotations"]:
            if entry["image_id"] != image_id or random.random() < 0.1:
                continue
            for _ in range(random.integers(1, 3)):
                left, top, width, height = entry["bbox"]
                shift = random.normal(0, 0.06, 4) * [width, height, width, height]
                boxes.append(np.array([left, top, left + width, top + height]) + shift)
                label = truth.category_ids.index(entry["category_id"])
                labels.append((label + int(random.random() < 0.1)) % len(truth.category_ids))
                masks.append(np.roll(pixels_of(entry, *sizes[image_id]), int(shift[0]), axis=1))
        everything.append(
            Detections(
                image_id,
                torch.tensor(np.array(boxes), dtype=torch.float32).view(-1, 4),
                torch.tensor(random.random(len(boxes)), dtype=torch.float32),
                torch.tensor(labels, dtype=torch.int64),
                encode_masks(torch.from_numpy(np.array(masks)).view(-1, *sizes[image_id])),
            )
        )
    return everything


def pixels_of(entry: dict[str, Any], height: int, width: int) -> Any:
    segmentation = entry["segmentation"]
    if isinstance(segmentation, list):
        segmentation = run_lengths.merge(run_lengths.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = run_lengths.frPyObjects(segmentation, height, width)
    return run_lengths.decode(segmentation)


def measured_by_mmdet(
    everything: list[Detections], annotations: Path, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> dict[str, float]:
    """What mmdet's CocoMetric computes, before it rounds to three digits."""
    import_mmdet()
    from mmdet.evaluation.metrics import coco_metric

    exact: dict[str, float] = {}

    class Recording(coco_metric.COCOeval):  # type: ignore[misc]
        def summarize(self) -> None:
            super().summarize()
            name = {"bbox": "box", "segm": "mask"}[self.params.iouType]
            exact.update({f"{name}_ap": 100 * self.stats[0], f"{name}_ap50": 100 * self.stats[1]})

    monkeypatch.setattr(coco_metric, "COCOeval", Recording)
    metric = coco_metric.CocoMetric(ann_file=str(annotations), metric=["bbox", "segm"])
    metric.dataset_meta = {"classes": names}
    for each in everything:
        predictions = {
            "bboxes": each.boxes,
            "scores": each.scores,
            "labels": each.labels,
            "masks": list(each.masks or ()),
        }
        metric.process({}, [{"img_id": each.image_id, "ori_shape": (1, 1), "pred_instances": predictions}])
    metric.evaluate(len(everything))
    return exact


def test_the_truth_has_100_per_cent() -> None:
    truth = truth_of((1, 3, [10, 10, 70, 50]), (2, 8, [5, 5, 25, 45]), images=3)
    everything = [found(1, (0, 0.9, [10, 10, 70, 50])), found(2, (1, 0.8, [5, 5, 25, 45])), found(3)]
    assert average_precision(everything, truth) == pytest.approx(dict.fromkeys(
        ("box_ap", "box_ap50", "mask_ap", "mask_ap50"), 100.0))  # fmt: skip


@pytest.mark.parametrize(("right", "hits"), [(70, 10), (64, 9), (55, 6), (48, 3), (41, 1), (39, 0)])
def test_one_box_is_found_up_to_its_overlap(right: int, hits: int) -> None:
    overlap = (right - 10) / 60
    assert hits == sum(overlap >= threshold - 1e-9 for threshold in np.arange(0.5, 1.0, 0.05))
    metrics = average_precision([found(1, (0, 0.9, [10, 10, right, 50]))], truth_of((1, 3, [10, 10, 70, 50])))
    assert metrics["box_ap"] == pytest.approx(10.0 * hits)
    assert metrics["mask_ap"] == pytest.approx(10.0 * hits)
    assert metrics["box_ap50"] == pytest.approx(100.0 if hits else 0.0)


def test_a_surer_mistake_halves_the_precision() -> None:
    truth = truth_of((1, 3, [10, 10, 70, 50]), images=2)
    mistake = found(2, (0, 0.95, [0, 0, 20, 20]))  # on an image without an object
    metrics = average_precision([found(1, (0, 0.9, [10, 10, 70, 50])), mistake], truth)
    assert metrics["box_ap"] == pytest.approx(50)


def test_classes_are_averaged_and_told_apart() -> None:
    truth = truth_of((1, 3, [10, 10, 70, 50]), (1, 8, [5, 55, 25, 95]))
    metrics = average_precision([found(1, (0, 0.9, [10, 10, 70, 50]), (0, 0.8, [5, 55, 25, 95]))], truth)
    assert metrics["box_ap"] == pytest.approx(50)


@pytest.mark.parametrize("everything", [[], [found(1), found(2)]])
def test_nothing_found_is_zero(everything: list[Detections]) -> None:
    metrics = average_precision(everything, truth_of((1, 3, [10, 10, 70, 50]), images=2))
    assert metrics == dict.fromkeys(("box_ap", "box_ap50", "mask_ap", "mask_ap50"), 0.0)


def test_a_detector_of_boxes_has_no_mask_precision() -> None:
    truth = truth_of((1, 3, [10, 10, 70, 50]))
    metrics = average_precision([found(1, (0, 0.9, [10, 10, 70, 50]), masks=False)], truth)
    assert metrics == {"box_ap": pytest.approx(100), "box_ap50": pytest.approx(100)}


def test_a_mask_is_not_judged_where_the_truth_has_none() -> None:
    first, second = [10, 10, 70, 50], [-20, 60, 40, 130]
    truth = truth_of((1, 3, first), (1, 3, second))
    del truth.dataset["annotations"][1]["segmentation"]
    # The second object is missed, and a surer mask of another place in its box is no mistake.
    inside = found(1, (0, 0.9, first), (0, 0.95, [0, 65, 20, 95]))
    assert average_precision([inside], truth)["mask_ap"] == pytest.approx(100)
    beside = found(1, (0, 0.9, first), (0, 0.95, [60, 65, 90, 95]))
    assert average_precision([beside], truth)["mask_ap"] == pytest.approx(50)
    assert average_precision([inside], truth)["box_ap"] < 50


def test_a_class_that_the_annotations_lack() -> None:
    with pytest.raises(IsvitError, match=r"its class 2, counted from 0, but the annotations have 2 classes, expected"):
        average_precision([found(1, (2, 0.9, [10, 10, 70, 50]))], truth_of((1, 3, [10, 10, 70, 50])))


def test_nothing_is_printed_and_the_truth_stays_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    truth = truth_of((1, 3, [10, 10, 70, 50]))
    before = copy.deepcopy(truth.dataset)
    for _ in range(2):
        average_precision([found(1, (0, 0.9, [10, 10, 70, 50]))], truth)
    assert truth.dataset == before
    assert capsys.readouterr().out == ""


def test_mmdets_metric_agrees_on_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = [digit_scene("train", number) for number in range(12)]
    path = tmp_path / "scenes.json"
    path.write_text(json.dumps(coco_dataset(scenes, "train", scene_names("train", 12))))
    truth = read_annotations(path, "").ground_truth(range(12), None)
    everything = perturbed(truth, seed=0)
    metrics = average_precision(everything, truth)
    assert 10 < metrics["box_ap"] < 90
    assert metrics == pytest.approx(measured_by_mmdet(everything, path, truth.class_names, monkeypatch), abs=1e-6)


@pytest.mark.real
def test_mmdets_metric_agrees_on_coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(os.environ.get("ISVIT_DATA", Path(__file__).parents[3] / "shared" / "data"))
    archive = root / "coco_mini.tar"
    if not archive.exists():
        pytest.skip(f"{archive} is absent: set ISVIT_DATA to a folder that holds it")
    path = tmp_path / "instances_val2017.json"
    with tarfile.open(archive) as packed:
        member = packed.extractfile("coco_mini/annotations/instances_val2017.json")
        assert member is not None
        path.write_bytes(member.read())
    annotations = read_annotations(path, "")
    truth = annotations.ground_truth([image.id for image in annotations.images], None)
    assert len(truth.class_names) == 80
    everything = perturbed(truth, seed=1)
    metrics = average_precision(everything, truth)
    assert 10 < metrics["mask_ap"] < 90
    assert metrics == pytest.approx(measured_by_mmdet(everything, path, truth.class_names, monkeypatch), abs=1e-6)


def test_the_trainer_measures_and_predicts() -> None:
    data = DigitsDetectionDataModule(evaluation_images=5, batch_size=2)
    truth = data.ground_truth()
    oracle = Oracle(truth)
    metrics = quiet_trainer(devices=1).test(DetectionEvaluator(oracle, truth), datamodule=data, verbose=False)[0]
    assert metrics == pytest.approx(dict.fromkeys(("box_ap", "box_ap50", "mask_ap", "mask_ap50"), 100.0))
    assert sorted(oracle.asked) == sorted(truth.image_ids)
    batches = quiet_trainer(devices=1).predict(DetectionEvaluator(oracle), datamodule=data)
    predicted = [each for batch in batches or [] for each in batch]
    assert [each.image_id for each in predicted] == truth.image_ids
    assert torch.equal(predicted[3].boxes, exact(truth)[3].boxes)


def test_a_second_test_starts_anew() -> None:
    data = DigitsDetectionDataModule(evaluation_images=2)
    truth = data.ground_truth()
    evaluator = DetectionEvaluator(Oracle(truth), truth)
    first, second = (quiet_trainer(devices=1).test(evaluator, datamodule=data, verbose=False)[0] for _ in range(2))
    assert first == second


def test_two_processes_measure_what_one_does() -> None:
    data = DigitsDetectionDataModule(evaluation_images=5)
    truth = data.ground_truth()
    oracle = Oracle(truth)
    del oracle.known[truth.image_ids[0]]  # found wrongly below, so that the result is not a round 100
    oracle.known[truth.image_ids[0]] = found(truth.image_ids[0], (0, 1.0, [0, 0, 9, 9]))
    one, two = (
        quiet_trainer(**options).test(DetectionEvaluator(oracle, truth), datamodule=data, verbose=False)[0]
        for options in ({"devices": 1}, {"devices": 2, "strategy": "ddp_fork"})
    )
    assert 0 < one["box_ap"] < 100
    assert two == pytest.approx(one)


@pytest.mark.parametrize(
    "options",
    [{"devices": 1, "limit_test_batches": 2}, {"devices": 2, "strategy": "ddp_fork", "use_distributed_sampler": True}],
)
def test_images_that_were_left_out(options: dict[str, Any]) -> None:
    data = DigitsDetectionDataModule(evaluation_images=5)
    truth = data.ground_truth()
    with pytest.raises(Exception, match=r"[23] of 5 evaluation images were left out, expected all to be measured"):
        quiet_trainer(**options).test(DetectionEvaluator(Oracle(truth), truth), datamodule=data, verbose=False)


def test_an_image_that_two_processes_measured_counts_once() -> None:
    from detection.evaluation import _gathered

    twice = [found(1, (0, 0.9, [10, 10, 70, 50])), found(2), found(1, (0, 0.9, [10, 10, 70, 50]))]
    assert [each.image_id for each in _gathered(twice)] == [1, 2]
