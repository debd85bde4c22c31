import pytest
import torch

pytest.importorskip("mmdet")

from detection.detections import Detections, encode_masks
from detection.runtime import import_mmdet


def test_what_mmdet_predicts_is_kept() -> None:
    import_mmdet()
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    sample = DetDataSample(metainfo={"img_id": 7})
    boxes, scores, labels = torch.rand(2, 4).double(), torch.rand(2), torch.tensor([3, 1])
    sample.pred_instances = InstanceData(bboxes=boxes, scores=scores, labels=labels, masks=torch.rand(2, 5, 6) > 0.5)
    found = Detections.of(sample)
    assert (found.image_id, len(found)) == (7, 2)
    assert found.boxes.dtype == torch.float32
    torch.testing.assert_close(found.boxes, boxes.float())
    assert torch.equal(found.scores, scores)
    assert torch.equal(found.labels, labels)
    for place in range(2):
        mask = found.mask(place)
        assert mask is not None
        assert torch.equal(mask, sample.pred_instances.masks[place])


def test_nothing_found() -> None:
    found = Detections(
        1, torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), encode_masks(torch.zeros(0, 4, 4))
    )
    assert len(found) == 0
    assert found.masks == ()


def test_boxes_only() -> None:
    import_mmdet()
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    sample = DetDataSample(metainfo={"img_id": 1})
    sample.pred_instances = InstanceData(bboxes=torch.zeros(1, 4), scores=torch.ones(1), labels=torch.zeros(1))
    found = Detections.of(sample)
    assert found.masks is None
    assert found.mask(0) is None
