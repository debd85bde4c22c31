"""Detectors by name, by file and with changes; a sentence for each that is none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmdet")

from detection import zoo
from detection.embedded.network import digits_detector_config
from detection.runtime import import_mmdet
from detection.source import DetectorSource
from isvit_lightning.errors import IsvitError
from tests.detection.detectors import mask_rcnn_config

SHIPPED = "mask-rcnn_swin-t-p4-w7_fpn_1x_coco"


@pytest.fixture(autouse=True)
def mmdet() -> None:
    import_mmdet()


def written(tmp_path: Path, content: dict[str, Any], name: str = "tiny.py") -> Path:
    path = tmp_path / name
    lines = [f"{key} = {value!r}\n" for key, value in content.items()]
    path.write_text(json.dumps(content) if name.endswith(".json") else "".join(lines))
    return path


def test_the_shipped_detector_is_described_anew_each_time() -> None:
    first = zoo.model_config(zoo.EMBEDDED)
    assert first == digits_detector_config()
    first["backbone"]["depths"] = (9,)
    assert zoo.model_config(zoo.EMBEDDED) == digits_detector_config()


@pytest.mark.parametrize(
    ("name", "depths"),
    [
        ("mask_rcnn_swin_tiny", [2, 2, 6, 2]),
        ("mask_rcnn_swin_small", [2, 2, 18, 2]),
        ("cascade_mask_rcnn_swin_tiny", [2, 2, 6, 2]),
        ("cascade_mask_rcnn_swin_small", [2, 2, 18, 2]),
    ],
)
def test_the_detectors_of_the_paper(name: str, depths: list[int]) -> None:
    config = zoo.model_config(name)
    assert config["type"] == ("CascadeRCNN" if name.startswith("cascade") else "MaskRCNN")
    assert (config["backbone"]["type"], config["backbone"]["depths"]) == ("SwinTransformer", depths)
    assert "style" not in config["backbone"]  # of the ResNet in whose place it stands
    assert config["neck"]["in_channels"] == [96, 192, 384, 768]
    assert (config["neck"]["type"], config["neck"]["out_channels"]) == ("FPN", 256)
    if name.startswith("cascade"):
        spreads = [head["bbox_coder"]["target_stds"] for head in config["roi_head"]["bbox_head"]]
        assert spreads == [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]]
        assert {head["num_shared_convs"] for head in config["roi_head"]["bbox_head"]} == {4}


def test_own_and_shipped_configurations_agree() -> None:
    own = DetectorSource("mask_rcnn_swin_tiny", pretrained=False).build()
    shipped = DetectorSource("mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco", pretrained=False).build()
    assert {key: value.shape for key, value in own.model.state_dict().items()} == {
        key: value.shape for key, value in shipped.model.state_dict().items()
    }


@pytest.mark.parametrize("name", [SHIPPED, f"{SHIPPED}.py", f"swin/{SHIPPED}.py"])
def test_a_configuration_of_mmdet_is_found_by_its_name(name: str) -> None:
    config = zoo.model_config(name)
    assert (config["type"], config["backbone"]["type"]) == ("MaskRCNN", "SwinTransformer")
    assert type(config) is type(config["backbone"]) is dict


@pytest.mark.parametrize("name", ["tiny.py", "tiny.json"])
def test_a_file_is_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, {"model": mask_rcnn_config()}, name)
    monkeypatch.setenv("PLACE", str(tmp_path))
    assert zoo.model_config(str(tmp_path / name)) == mask_rcnn_config()
    assert zoo.model_config(f"$PLACE/{name}") == mask_rcnn_config()


def test_a_file_is_preferred_to_a_name_of_mmdet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, {"model": {"type": "Mine"}}, f"{SHIPPED}.py")
    monkeypatch.chdir(tmp_path)
    assert zoo.model_config(f"{SHIPPED}.py") == {"type": "Mine"}


def test_an_unknown_name_is_a_sentence() -> None:
    with pytest.raises(IsvitError, match=r"^There is no configuration mask_rcnn_swin_tinny, .* such as mask_rcnn_swin"):
        zoo.model_config("mask_rcnn_swin_tinny")
    with pytest.raises(IsvitError, match=r"expected a file, .* or one of mask_rcnn_swin_digits, .*: change model.net"):
        zoo.model_config("0")


def test_a_file_that_is_no_configuration_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("model = dict(\n")
    with pytest.raises(IsvitError, match="cannot be read as a configuration of mmdet"):
        zoo.model_config(str(path))


def test_a_file_without_a_model_is_a_sentence(tmp_path: Path) -> None:
    path = written(tmp_path, {"optimizer": {"lr": 1.0}})
    with pytest.raises(IsvitError, match=r"tiny.py describes no detector: it has no section model"):
        zoo.read_model(path)


def test_a_missing_mmdet_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere: Callable[[str], None] = lambda _: None  # noqa: E731
    monkeypatch.setattr(zoo, "find_spec", nowhere)
    with pytest.raises(IsvitError, match=r"^mmdet is not installed, .*isvit-lightning\[detection\]"):
        zoo.model_config(SHIPPED)


def test_changes_are_merged_section_by_section() -> None:
    before = mask_rcnn_config()
    changed = zoo.merged(before, {"backbone": {"window_size": 8}, "neck": {"num_outs": 4}, "extra": [1]})
    assert changed["backbone"] == {**before["backbone"], "window_size": 8}
    assert changed["neck"] == {**before["neck"], "num_outs": 4}
    assert changed["extra"] == [1]
    assert before == mask_rcnn_config()
    assert zoo.merged(before, {}) == before


def test_a_section_can_be_replaced() -> None:
    changed = zoo.merged(mask_rcnn_config(), {"backbone": {"_delete_": True, "type": "ResNet", "depth": 18}})
    assert changed["backbone"] == {"type": "ResNet", "depth": 18}


@pytest.mark.parametrize("changes", [{"backbone": {"depths": {"7": 1}}}, {"type": {"name": 1}}])
def test_changes_that_do_not_fit_are_sentences(changes: dict[str, Any]) -> None:
    with pytest.raises(IsvitError, match=r"^The overrides do not fit the detector \(.*\), .* model.network.overrides"):
        zoo.merged(mask_rcnn_config(), changes)
