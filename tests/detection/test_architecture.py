import dataclasses
import json

import pytest
import torch

pytest.importorskip("mmdet")

from detection.architecture import DetectorArchitecture
from isvit_lightning.errors import IsvitError
from tests.detection.detectors import cascade_config, mask_rcnn_config


def test_plain_values_build_the_same_detector_twice() -> None:
    architecture = DetectorArchitecture.from_config(cascade_config())
    stored = DetectorArchitecture(**json.loads(json.dumps(dataclasses.asdict(architecture))))
    assert stored == architecture
    first, second = architecture.build(), stored.build()
    assert [(key, value.shape) for key, value in first.state_dict().items()] == [
        (key, value.shape) for key, value in second.state_dict().items()
    ]
    assert not first.training


def test_places_of_initial_weights_are_left_out() -> None:
    config = mask_rcnn_config()
    config["backbone"]["init_cfg"] = {"type": "Pretrained", "checkpoint": "https://nowhere.example/swin.pth"}
    assert "nowhere" not in json.dumps(DetectorArchitecture.from_config(config).args)


@pytest.mark.parametrize("kind", ["os.system", "mmdet.models.SwinTransformer", "print('executed') or nms", ""])
def test_a_type_that_is_no_plain_name_is_refused(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = mask_rcnn_config()
    config["test_cfg"]["rpn"]["nms"] = {"type": kind, "iou_threshold": 0.7}
    with pytest.raises(IsvitError, match="expected a plain name that mmdet registers"):
        DetectorArchitecture.from_config(config).build()
    assert "executed" not in capsys.readouterr().out


def test_what_is_no_plain_value_is_refused() -> None:
    with pytest.raises(IsvitError, match="no detector in plain values"):
        DetectorArchitecture.from_config({**mask_rcnn_config(), "type": "MaskRCNN", "extra": torch.nn.Linear})
    with pytest.raises(IsvitError, match="no detector in plain values"):
        DetectorArchitecture.from_config({"backbone": {}})


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(IsvitError, match="mmdet cannot build NoSuchDetector"):
        DetectorArchitecture("NoSuchDetector").build()


def test_a_backbone_is_no_detector() -> None:
    with pytest.raises(IsvitError, match="FPN is no detector that can be opened"):
        DetectorArchitecture("FPN", {"in_channels": [8], "out_channels": 8, "num_outs": 2}).build()
