"""The model section of a detector, and how detectors are measured and shown."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip("mmdet")

from detection.data import DigitsDetectionDataModule
from detection.detector import Detection, Detector, number_of_classes
from detection.pictures import draw_detections
from detection.source import DetectorSource
from isvit_lightning.errors import IsvitError
from isvit_lightning.export.artifact import QuantizedNetwork
from isvit_lightning.recipe import Bits, read_recipe
from isvit_lightning.run.unseen import require_hold_out
from isvit_lightning.stages import Schedule
from isvit_lightning.storage.caches import Caches
from tests.detection.detectors import build, cascade_config, mask_rcnn_config
from tests.detection.oracle import Oracle, exact
from tests.helpers import quiet_trainer

ISVIT = read_recipe("isvit")


class Knowing(Oracle):
    """An oracle with as many classes as a detector of digits."""

    def __init__(self, data: DigitsDetectionDataModule, classes: int = 10) -> None:
        super().__init__(data.ground_truth())
        self.roi_head = SimpleNamespace(bbox_head=SimpleNamespace(num_classes=classes))


class Blind(Knowing):
    """One that finds no mask."""

    def test_step(self, batch: dict[str, Any]) -> list[Any]:
        samples = super().test_step(batch)
        for sample in samples:
            del sample.pred_instances.masks
        return samples


@pytest.fixture
def data() -> DigitsDetectionDataModule:
    return DigitsDetectionDataModule(evaluation_images=3)


def test_the_model_section_holds_what_it_is_given() -> None:
    source, bits = DetectorSource("mask_rcnn_swin_digits"), Bits(3, 6)
    schedule = {"iterations": 7, "batch_size": 2, "micro_batch": 1, "caches": Caches(where="recompute")}
    detector = Detector(source, recipe=ISVIT, bits=bits, **schedule)
    assert (detector.source, detector.recipe, detector.bits) == (source, ISVIT, bits)
    assert detector.schedule == Schedule(**schedule)
    assert isinstance(detector.task, Detection)


def test_defaults() -> None:
    detector = Detector(DetectorSource("mask_rcnn_swin_digits"), recipe=ISVIT)
    assert (detector.bits, detector.schedule) == (Bits(), Schedule())


@pytest.mark.parametrize("name", ["iterations", "batch_size", "micro_batch"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(IsvitError, match=rf"model\.{name} is 0, expected at least 1"):
        Detector(DetectorSource(), recipe=ISVIT, **{name: 0})


def test_detectors_are_not_compared_with_the_float_one_on_images_without_labels() -> None:
    task = Detection()
    assert task.distance(nn.Identity(), torch.zeros(2, 3, 32, 32), 1, quiet_trainer) is None  # type: ignore[func-returns-value]
    with pytest.raises(IsvitError, match="leave --choose_on out"):
        require_hold_out(2, 8, task.compares_with_float)


def test_classes_are_counted_in_one_head_or_in_a_cascade() -> None:
    config = mask_rcnn_config()
    config["roi_head"]["bbox_head"]["num_classes"] = 7
    assert number_of_classes(build(config)) == 7
    assert number_of_classes(build(cascade_config())) == 2


def test_classes_of_a_quantized_detector_are_those_of_the_one_inside() -> None:
    config = mask_rcnn_config()
    config["roi_head"]["bbox_head"]["num_classes"] = 7
    assert number_of_classes(QuantizedNetwork(build(config), None, None)) == 7


def test_precision_is_in_per_cent_and_by_column(data: DigitsDetectionDataModule) -> None:
    task = Detection()
    oracle = Knowing(data)
    for network in (oracle, QuantizedNetwork(oracle, None, None)):
        found = task.measure(network, data, quiet_trainer(devices=1))
        assert list(found) == [name for name, _ in task.columns]
        assert set(found.values()) == {100.0}
    assert sorted(oracle.asked) == sorted(2 * data.ground_truth().image_ids)


def test_precision_is_rounded_to_a_thousandth(data: DigitsDetectionDataModule) -> None:
    oracle = Knowing(data)
    image_id, known = next(iter(oracle.known.items()))
    shifted = known.boxes + torch.tensor([3.0, 0.0, 3.0, 0.0])
    oracle.known[image_id] = type(known)(image_id, shifted, known.scores, known.labels, known.masks)
    found = Detection().measure(oracle, data, quiet_trainer(devices=1))
    assert 0 < found["box_ap"] < 100
    assert found["mask_ap"] == 100
    assert found == {name: round(value, 3) for name, value in found.items()}


def test_a_detector_without_masks_has_no_column_of_masks(data: DigitsDetectionDataModule) -> None:
    assert list(Detection().measure(Blind(data), data, quiet_trainer(devices=1))) == ["box_ap", "box_ap50"]


def test_a_detector_of_other_classes_is_refused_before_anything_runs(data: DigitsDetectionDataModule) -> None:
    oracle = Knowing(data, classes=3)
    with pytest.raises(IsvitError, match="evaluation images have 10 classes but the detector has 3"):
        Detection().measure(oracle, data, quiet_trainer(devices=1))
    assert oracle.asked == []


def test_a_detector_of_classes_in_another_order_is_refused_before_anything_runs(
    data: DigitsDetectionDataModule,
) -> None:
    oracle = Knowing(data)
    oracle.dataset_meta = {"classes": data.class_names[::-1]}
    with pytest.raises(IsvitError, match=r"but the detector was trained on 9, 8, 7, …, expected one order"):
        Detection().measure(oracle, data, quiet_trainer(devices=1))
    assert oracle.asked == []


def test_pictures_show_what_is_found(data: DigitsDetectionDataModule, tmp_path: Path) -> None:
    folder = Detection().predict(Knowing(data), None, data, quiet_trainer(devices=1), tmp_path)
    assert folder == tmp_path / "predictions"
    pictures = sorted(folder.rglob("*.png"))
    assert [path.relative_to(folder).as_posix() for path in pictures] == sorted(data.predict_names())
    for path, image, found in zip(pictures, data.predict_images(), exact(data.ground_truth()), strict=True):
        expected = draw_detections(image, found, data.class_names)
        drawn = Image.open(path).convert("RGB")
        assert drawn.width == expected.width
        assert drawn.crop((0, drawn.height - expected.height, *drawn.size)).tobytes() == expected.tobytes()


def test_the_float_detector_is_drawn_beside_the_quantized_one(data: DigitsDetectionDataModule, tmp_path: Path) -> None:
    made: list[nn.Module] = []

    def make_float() -> nn.Module:
        made.append(Knowing(data))
        return made[0]

    task, trainer = Detection(), quiet_trainer(devices=1)
    alone = task.predict(Knowing(data), None, data, trainer, tmp_path / "alone")
    both = task.predict(Knowing(data), make_float, data, trainer, tmp_path / "both")
    assert len(made) == 1
    for one, two in zip(sorted(alone.rglob("*.png")), sorted(both.rglob("*.png")), strict=True):
        assert Image.open(two).width > 2 * Image.open(one).width
        assert Image.open(two).height == Image.open(one).height


def test_a_folder_that_cannot_be_written_is_a_sentence(data: DigitsDetectionDataModule, tmp_path: Path) -> None:
    (tmp_path / "predictions").write_text("in the way")
    with pytest.raises(IsvitError, match=r"^Cannot write \S*\.png: .*; expected a writable folder: .*default_root_dir"):
        Detection().predict(Knowing(data), None, data, quiet_trainer(devices=1), tmp_path)


def test_a_folder_without_a_run_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(IsvitError, match=str(tmp_path)):
        Detection().load(tmp_path)


def test_the_backbone_is_what_benchmarks_time() -> None:
    network = build(mask_rcnn_config())
    assert Detection().timed_part(network) is network.backbone
