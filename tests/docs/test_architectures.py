"""The worked example of ``docs/architectures.md`` runs as it stands there."""

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parent.parent.parent / "docs" / "architectures.md"


def test_the_worked_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE))
    names: dict[str, object] = {"__name__": "architectures"}
    exec(compile(code, str(PAGE), "exec"), names)
    images = torch.randn(2, 3, 16, 16)
    quantized, again = names["quantized"], names["again"]
    assert torch.equal(quantized(images), again(images))  # type: ignore[operator]
