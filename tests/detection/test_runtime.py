import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest
import torch

from detection import runtime
from detection.ops.extension import NAME
from isvit_lightning.errors import IsvitError
from isvit_lightning.program import main


def test_the_packages_do_not_import_mmdet() -> None:
    code = """
        import sys, isvit_lightning, isvit_lightning.cli, detection
        print([name for name in ("mmdet", "mmcv", "mmengine") if name in sys.modules])
    """
    printed = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True,
                             cwd=Path(__file__).parents[2]).stdout  # fmt: skip
    assert printed.strip() == "[]"


def test_a_missing_package_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmcv", None)
    monkeypatch.setitem(sys.modules, "mmdet.utils", None)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    with pytest.raises(IsvitError, match=r"pip install \"isvit-lightning\[detection\]\""):
        runtime.import_mmdet()


def test_the_command_line_names_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "mmdet.utils", None)
    monkeypatch.setattr(sys, "argv", ["pytest"])
    config = Path(__file__).parents[2] / "configs" / "quickstart_detection.yaml"
    assert main(["inspect", "--config", str(config)]) == 2
    assert 'run pip install "isvit-lightning[detection]"' in capsys.readouterr().err


def test_the_full_mmcv_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, registered = ModuleType(NAME), {}
    utils = ModuleType("mmdet.utils")
    utils.register_all_modules = registered.update  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, NAME, compiled)
    monkeypatch.setitem(sys.modules, "mmdet", ModuleType("mmdet"))
    monkeypatch.setitem(sys.modules, "mmdet.utils", utils)
    runtime.import_mmdet()
    assert sys.modules[NAME] is compiled
    assert registered == {"init_default_scope": True}


def test_mmcv_runs_on_the_operators() -> None:
    pytest.importorskip("mmdet")
    runtime.import_mmdet()
    runtime.import_mmdet()  # a second time does nothing
    from mmcv.ops import RoIAlign, batched_nms, soft_nms

    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [30, 30, 40, 40]])
    scores, classes = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 0, 1])
    dets, kept = batched_nms(boxes, scores, classes, {"type": "nms", "iou_threshold": 0.5})
    assert kept.tolist() == [0, 2]
    torch.testing.assert_close(dets[:, 4], torch.tensor([0.9, 0.7]))
    lowered, _ = soft_nms(boxes, scores, iou_threshold=0.5, method="linear")
    assert lowered[-1, 4] < 0.2
    features = torch.ones(1, 2, 16, 16, requires_grad=True)
    rois = torch.tensor([[0.0, 8, 8, 40, 40]])
    pooled = RoIAlign((7, 7), 0.25, 0)(features, rois)
    torch.testing.assert_close(pooled, torch.ones(1, 2, 7, 7))
    pooled.sum().backward()
    assert features.grad is not None
    assert float(features.grad.sum()) == pytest.approx(98)
