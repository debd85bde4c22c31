"""Every file under ``configs/`` parses, instantiates and explains itself."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from isvit_lightning.cli import IsvitCLI
from isvit_lightning.recipe.method import Method, Tuning, repq, round_to_nearest

CONFIGS = Path(__file__).parents[1] / "configs"
QUICKSTART = CONFIGS / "quickstart.yaml"
DETECTORS = [CONFIGS / "quickstart_detection.yaml", *sorted(CONFIGS.glob("coco/*.yaml"))]  # tests/detection has more
NETWORKS = [*sorted({*CONFIGS.glob("quickstart*.yaml")} - {*DETECTORS}), *sorted(CONFIGS.glob("imagenet/*.yaml")),
            *sorted(CONFIGS.glob("cifar10/*.yaml"))]  # fmt: skip
PARTS = [*sorted(CONFIGS.glob("bits/*.yaml")), *sorted(CONFIGS.glob("methods/*.yaml"))]
ALL = sorted(CONFIGS.rglob("*.yaml"))


def name_of(path: Path) -> str:
    return path.relative_to(CONFIGS).with_suffix("").as_posix()


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data that is nowhere: nothing is opened while a configuration is read."""
    monkeypatch.setenv("IMAGENET", "/nowhere/imagenet")
    monkeypatch.setenv("ISVIT_DATA", "/nowhere/data")
    monkeypatch.setattr(sys, "argv", ["pytest"])


def instantiate(*paths: Path) -> IsvitCLI:
    return IsvitCLI([argument for path in paths for argument in ("--config", str(path))], run=False)


def test_every_file_belongs_to_a_room() -> None:
    assert sorted([*NETWORKS, *DETECTORS, *PARTS]) == ALL
    assert {"deit_tiny", "deit_small", "deit_base", "vit_small", "vit_base", "swin_small", "swin_base"} <= {
        path.stem for path in NETWORKS
    }


@pytest.mark.parametrize("path", NETWORKS, ids=name_of)
def test_a_network_instantiates(path: Path) -> None:
    cli, content = instantiate(path), yaml.safe_load(path.read_text())
    network, options = content["model"]["network"], content["data"]["init_args"]
    assert cli.model.source.name == network["name"]
    assert cli.model.source.checkpoint == network.get("checkpoint")
    assert cli.datamodule.calibration_images == options["calibration_images"]
    assert type(cli.datamodule).__name__ == content["data"]["class_path"].rpartition(".")[2]
    assert cli.datamodule.seed == content["seed_everything"]


@pytest.mark.parametrize("path", PARTS, ids=name_of)
def test_a_part_composes_with_a_network(path: Path) -> None:
    cli = instantiate(QUICKSTART, path)
    content = yaml.safe_load(path.read_text())
    assert content.keys() == {"model"}
    assert set(content["model"]) <= {"bits", "iterations", "method"}
    for name, value in content["model"].get("bits", {}).items():
        assert getattr(cli.model.bits, name) == value
    check_method(cli.model.method, content["model"].get("method", {}))


def check_method(method: Method, content: dict[str, Any]) -> None:
    for name, value in content.items():
        own = getattr(method, name)
        if isinstance(own, Tuning):
            for key, inner in value.items():
                assert getattr(own, key) == inner
        else:
            assert own == value


@pytest.mark.parametrize("network", [path for path in NETWORKS if path.parent.name == "imagenet"][:9], ids=name_of)
@pytest.mark.parametrize("bits", sorted(CONFIGS.glob("bits/*.yaml")), ids=name_of)
def test_bits_and_networks_compose_in_either_order(network: Path, bits: Path) -> None:
    both = [instantiate(network, bits), instantiate(bits, network)]
    width = int(bits.stem[1])
    for cli in both:
        assert (cli.model.bits.weight, cli.model.bits.activation) == (width, width)
        assert cli.model.source.name == yaml.safe_load(network.read_text())["model"]["network"]["name"]
    assert type(both[0].datamodule) is type(both[1].datamodule)
    if "iterations" not in yaml.safe_load(network.read_text())["model"]:
        assert both[0].model.iterations == both[1].model.iterations == (200 if width == 6 else 1000)


@pytest.mark.parametrize(("name", "method"), [("repq", repq()), ("round_to_nearest", round_to_nearest())])
def test_methods_are_those_of_the_package(name: str, method: Method) -> None:
    cli = instantiate(QUICKSTART, CONFIGS / "methods" / f"{name}.yaml")
    given = cli.model.method
    for field in ("softmax", "reparameterize", "reparameterize_reductions", "round_zero_point", "extra_softmax_codes"):
        assert getattr(given, field) == getattr(method, field)
    assert not given.stage1.enabled
    assert not given.stage3.enabled


def test_the_published_method_differs_where_the_published_code_does() -> None:
    method = instantiate(QUICKSTART, CONFIGS / "methods" / "isvit_published.yaml").model.method
    assert method.extra_softmax_codes == 1
    assert method.eta_candidates == "published"
    assert not method.round_zero_point
    assert not method.clamp_zero_points
    assert not method.reparameterize_reductions
    assert (method.stage1.inputs, method.stage3.inputs) == ("float", "quantized")
    for tuning in (method.stage1, method.stage3):
        assert tuning.learning_rate == 4e-5
        assert tuning.range_learning_rate == 0
        assert tuning.recalibrate == "never"


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_every_key_is_explained(path: Path) -> None:
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        key, _, value = line.strip().partition(":")
        # A section, and the class whose arguments the next lines are, speak for themselves.
        if not value.strip() or line.strip().startswith("#") or key == "class_path":
            continue
        comment = re.search(r"\s#\s+(\S.*)$", line)
        assert comment, f"{name_of(path)}:{number}: {line}"
        assert len(comment.group(1)) > 5


@pytest.mark.parametrize("path", [path for path in NETWORKS if path.parent.name == "imagenet"], ids=name_of)
def test_weights_are_named_by_tag_or_by_file(path: Path) -> None:
    network = yaml.safe_load(path.read_text())["model"]["network"]
    if network.get("pretrained"):
        assert re.fullmatch(r"\w+\.\w+", network["name"])
    else:
        assert network["checkpoint"].startswith("$ISVIT_DATA/")
