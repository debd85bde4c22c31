"""What a run of an earlier version does not say of its network has its default; all else must be the same."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from detection.cli import DetectionCLI  # needs no mmdet until it is run
from isvit_lightning.cli import IsvitCLI
from isvit_lightning.errors import IsvitError
from isvit_lightning.run.config import require_same_network, run_directory
from tests.command_line import DETECTION, QUICKSTART

PROGRAMS: dict[str, tuple[type[IsvitCLI], str]] = {
    "classifier": (IsvitCLI, QUICKSTART),
    "detector": (DetectionCLI, DETECTION),
}


@pytest.fixture(scope="module", params=PROGRAMS)
def content(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What a run writes."""
    program, config = PROGRAMS[request.param]
    written: dict[str, Any] = yaml.safe_load(program(["--config", config], run=False)._dump())
    return written


def test_what_a_run_writes_agrees_with_itself(content: dict[str, Any], tmp_path: Path) -> None:
    given = yaml.safe_dump(content)
    require_same_network(tmp_path, given)  # no configuration, nothing to compare
    (tmp_path / "config.yaml").write_text(given)
    require_same_network(tmp_path, given)


def test_missing_keys_have_their_defaults(content: dict[str, Any], tmp_path: Path) -> None:
    stored = copy.deepcopy(content)
    del stored["model"]["network"]["pretrained"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    require_same_network(tmp_path, yaml.safe_dump(content))


def test_another_network_is_refused(content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    changed = copy.deepcopy(content)
    changed["model"]["network"]["pretrained"] = False
    with pytest.raises(IsvitError, match=r"another model\.network, expected the same: leave it out"):
        require_same_network(tmp_path, yaml.safe_dump(changed))


def test_a_run_is_named_by_its_folder_or_its_file(tmp_path: Path) -> None:
    (tmp_path / "quantized.safetensors").write_bytes(b"")
    assert run_directory(str(tmp_path)) == tmp_path
    assert run_directory(str(tmp_path / "quantized.safetensors")) == tmp_path


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "alone.safetensors").write_bytes(b"")
    for given in (
        tmp_path / "absent",
        tmp_path / "empty",
        tmp_path / "empty" / "quantized.safetensors",
        tmp_path / "alone.safetensors",
    ):
        with pytest.raises(IsvitError, match=r"holds no finished run; expected .*--ckpt_path"):
            run_directory(str(given))


def test_an_interrupted_run_is_told_from_none(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(
        IsvitError, match=r"no finished run, but an interrupted one; .* go on with isvit fit and --resume"
    ):
        run_directory(str(tmp_path))
