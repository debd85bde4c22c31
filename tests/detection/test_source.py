from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("mmdet")

from detection import zoo
from detection.runtime import import_mmdet
from detection.source import DetectorSource, from_original
from isvit_lightning.errors import IsvitError
from tests.detection.detectors import build, mask_rcnn_config

OWN_NAMES = [
    ("mask_rcnn_swin_tiny", "MaskRCNN", 12),
    ("mask_rcnn_swin_small", "MaskRCNN", 24),
    ("cascade_mask_rcnn_swin_tiny", "CascadeRCNN", 12),
    ("cascade_mask_rcnn_swin_small", "CascadeRCNN", 24),
]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration file of the tiny detector."""
    path = tmp_path / "tiny.py"
    path.write_text(f"model = {mask_rcnn_config()!r}\n")
    return path


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def original_names(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights of ``model`` as the original Swin repository stores them: the inverse of mmdet's conversion."""
    renamed = {
        "stages.": "layers.",
        "attn.w_msa.": "attn.",
        "ffn.layers.0.0.": "mlp.fc1.",
        "ffn.layers.1.": "mlp.fc2.",
        "patch_embed.projection.": "patch_embed.proj.",
    }
    state = {}
    for key, stored in model.state_dict().items():
        name, value = key, stored
        if key.startswith("backbone."):
            for own, original in renamed.items():
                name = name.replace(own, original, 1)
        if "downsample" in key:
            # mmdet's channels run (channel, column, row) of the 2 x 2 patch, the original's (column, row, channel).
            parts = value.shape[-1] // 4
            value = value.unflatten(-1, (parts, 2, 2)).movedim(-3, -1).transpose(-3, -2).flatten(-3)
        state[name] = value.clone()
    return state


def test_the_checkpoint_of_mmdet_loads(config: Path, tmp_path: Path) -> None:
    model = build(mask_rcnn_config())
    torch.save({"meta": {"epoch": 12}, "state_dict": model.state_dict()}, tmp_path / "mmdet.pth")
    loaded = DetectorSource(str(config), checkpoint=str(tmp_path / "mmdet.pth")).build()
    assert same(loaded.model.state_dict(), model.state_dict())
    assert loaded.architecture.name == "MaskRCNN"
    assert not loaded.model.training


@pytest.mark.parametrize(
    ("meta", "names"),
    [
        ({"dataset_meta": {"classes": ("dog", "cat")}}, ("dog", "cat")),
        ({"CLASSES": ["dog", "cat"]}, ("dog", "cat")),
        ({"dataset_meta": {}}, ()),
        ({"dataset_meta": {"classes": "dog"}}, ()),
        ("none", ()),
    ],
)
def test_class_names_of_a_checkpoint(meta: object, names: tuple[str, ...], config: Path, tmp_path: Path) -> None:
    torch.save({"meta": meta, "state_dict": build(mask_rcnn_config()).state_dict()}, tmp_path / "mmdet.pth")
    loaded = DetectorSource(str(config), checkpoint=str(tmp_path / "mmdet.pth")).build()
    assert loaded.model.dataset_meta == {"classes": names}


def test_the_checkpoint_of_the_original_repository_loads(config: Path, tmp_path: Path) -> None:
    model = build(mask_rcnn_config())
    original = original_names(model)
    assert "backbone.layers.0.blocks.0.attn.qkv.weight" in original
    assert not torch.equal(
        original["backbone.layers.0.downsample.reduction.weight"],
        model.state_dict()["backbone.stages.0.downsample.reduction.weight"],
    )
    torch.save({"state_dict": original}, tmp_path / "swin.pth")
    loaded = DetectorSource(str(config), checkpoint=str(tmp_path / "swin.pth")).build()
    assert same(loaded.model.state_dict(), model.state_dict())


def test_merged_patches_are_what_the_original_merges() -> None:
    """The reduction of the original repository on its own order of neighbors gives what mmdet's gives."""
    import_mmdet()
    model = build(mask_rcnn_config())
    merging: Any = model.get_submodule("backbone.stages.0.downsample")
    original = original_names(model)
    prefix = "backbone.layers.0.downsample."
    x = torch.randn(1, 4, 6, 8)
    # Swin-Transformer's order: even rows and columns, odd rows, odd columns, both odd.
    neighbors = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    joined = torch.cat(neighbors, dim=-1).flatten(1, 2)
    weight, bias = original[f"{prefix}norm.weight"], original[f"{prefix}norm.bias"]
    expected = nn.functional.layer_norm(joined, (32,), weight, bias) @ original[f"{prefix}reduction.weight"].T
    found, size = merging(x.flatten(1, 2), (4, 6))
    assert size == (2, 3)
    torch.testing.assert_close(found, expected)


def test_mmdets_own_names_stay() -> None:
    state = build(mask_rcnn_config()).state_dict()
    assert from_original(state) is state


def test_more_than_tensors_needs_trust(config: Path, tmp_path: Path) -> None:
    model, path = build(mask_rcnn_config()), tmp_path / "full.pth"
    torch.save({"state_dict": model.state_dict(), "message_hub": Path("anything but tensors")}, path)
    with pytest.raises(IsvitError, match="holds more than tensors.*model.network.trust_checkpoint to true"):
        DetectorSource(str(config), checkpoint=str(path)).build()
    loaded = DetectorSource(str(config), checkpoint=str(path), trust_checkpoint=True).build()
    assert same(loaded.model.state_dict(), model.state_dict())


@pytest.mark.parametrize("key", [None, "ema_state_dict"])
def test_the_weights_that_are_taken(key: str | None, config: Path, tmp_path: Path) -> None:
    smooth, plain, path = build(mask_rcnn_config()), build(mask_rcnn_config()), tmp_path / "ema.pth"
    averages = {f"module.{key}": value for key, value in plain.state_dict().items()}
    torch.save({"state_dict": smooth.state_dict(), "ema_state_dict": averages}, path)
    loaded = DetectorSource(str(config), checkpoint=str(path), checkpoint_key=key).build()
    assert same(loaded.model.state_dict(), (plain if key else smooth).state_dict())


def test_a_checkpoint_of_other_classes_is_a_sentence(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save(build(mask_rcnn_config()).state_dict(), path)
    with pytest.raises(IsvitError, match="knows 2 classes but tiny has 5, .*model.network.classes"):
        DetectorSource(str(config), checkpoint=str(path), classes=5).build()


def test_a_checkpoint_of_another_detector_is_a_sentence(config: Path, tmp_path: Path) -> None:
    state, path = build(mask_rcnn_config()).state_dict(), tmp_path / "other.pth"
    del state["neck.lateral_convs.0.conv.weight"]
    torch.save(state, path)
    with pytest.raises(IsvitError, match=r"neck.lateral_convs.0.conv.weight is missing.*model.network.overrides"):
        DetectorSource(str(config), checkpoint=str(path)).build()


@pytest.mark.parametrize(("name", "kind", "blocks"), OWN_NAMES)
def test_the_detectors_of_the_paper_build(name: str, kind: str, blocks: int) -> None:
    loaded = DetectorSource(name, pretrained=False).build()
    assert type(loaded.model).__name__ == kind
    found = [module for module in loaded.model.modules() if type(module).__name__ == "SwinBlock"]
    assert len(found) == blocks
    if kind == "CascadeRCNN":
        head: Any = loaded.model.get_submodule("roi_head.bbox_head.2")
        assert len(head.shared_convs) == 4
        assert len(head.shared_fcs) == 1
        assert head.fc_reg.out_features == 320  # four numbers for each of 80 classes


def test_random_weights_depend_on_the_seed_alone(config: Path) -> None:
    first = DetectorSource(str(config), pretrained=False).build()
    assert DetectorSource(str(config), pretrained=False).build().fingerprint == first.fingerprint


def test_overrides_and_classes(config: Path) -> None:
    changes = {"backbone": {"window_size": 8}, "neck": {"num_outs": 4}}
    loaded = DetectorSource(str(config), pretrained=False, classes=7, overrides=changes).build()
    assert loaded.architecture.args["backbone"]["window_size"] == 8
    assert loaded.architecture.args["backbone"]["embed_dims"] == 8
    assert loaded.architecture.args["roi_head"]["mask_head"]["num_classes"] == 7
    head: Any = loaded.model.get_submodule("roi_head.bbox_head")
    assert head.num_classes == 7


def test_the_shipped_detector_has_weights() -> None:
    loaded = DetectorSource(zoo.EMBEDDED).build()
    assert loaded.fingerprint["name"] == zoo.EMBEDDED
    assert loaded.preprocessing.divisor == 32  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (DetectorSource(), "No detector is named"),
        (DetectorSource("mask_rcnn_swin_tiny"), "comes without weights.*model.network.pretrained to false"),
        (DetectorSource("mask-rcnn_swin-t-p4-w7_fpn_2x_coco", pretrained=False), "no configuration .* such as mask-rc"),
        (DetectorSource("retinanet_swin-t-p4-w7_fpn_1x_coco", pretrained=False), "RetinaNet is no detector that can"),
        (DetectorSource("mask-rcnn_r50_fpn", pretrained=False), "Cannot open the backbone ResNet"),
        (DetectorSource("schedule_1x", pretrained=False), "no section model"),
        (DetectorSource("mask_rcnn_swin_tiny", False, overrides={"neck": {"colour": 1}}), "cannot build MaskRCNN"),
        (DetectorSource("mask_rcnn_swin_tiny", False, classes=0), "model.network.classes is 0"),
        (DetectorSource("mask_rcnn_swin_tiny", checkpoint="/nowhere/x.pth"), "/nowhere/x.pth does not exist"),
    ],
)
def test_mistakes_are_sentences(source: DetectorSource, sentence: str) -> None:
    with pytest.raises(IsvitError, match=sentence):
        source.build()
