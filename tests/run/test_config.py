"""What a run of an earlier version does not say has its default; everything else must be the same."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from detection.detector import Detector
from detection.source import DetectorSource
from isvit_lightning.classifier import Classifier
from isvit_lightning.errors import IsvitError
from isvit_lightning.recipe.method import Method
from isvit_lightning.run.config import require_same_model
from isvit_lightning.run.task import ModelSection
from isvit_lightning.sources.source import NetworkSource

MODELS: dict[str, ModelSection] = {
    "classifier": Classifier(NetworkSource("vit_digits")),
    "detector": Detector(DetectorSource("mask_rcnn_swin_digits")),
}


def content(model: ModelSection) -> dict[str, Any]:
    """What a run of ``model`` writes."""
    return {"model": {"network": asdict(model.source), "bits": asdict(model.bits), "method": asdict(model.method)}}


@pytest.mark.parametrize("name", MODELS)
def test_missing_keys_have_their_defaults(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    given, stored = yaml.safe_dump(content(model)), content(model)
    require_same_model(tmp_path, model, given)  # no configuration, nothing to compare
    del stored["model"]["bits"]["parts"], stored["model"]["network"]["pretrained"]
    del stored["model"]["method"]["range_images"], stored["model"]["method"]["stage3"]["inputs"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    require_same_model(tmp_path, model, given)


@pytest.mark.parametrize("name", MODELS)
def test_another_choice_is_refused(name: str, tmp_path: Path) -> None:
    model, stored = MODELS[name], content(MODELS[name])
    del stored["model"]["method"]["stage3"]["inputs"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    changed = content(model)
    changed["model"]["method"] = asdict(Method(stage3=replace(Method().stage3, inputs="float")))
    with pytest.raises(IsvitError, match=r"another model\.method, expected the same: leave it out"):
        require_same_model(tmp_path, model, yaml.safe_dump(changed))
