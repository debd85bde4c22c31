"""Every file under ``configs/`` parses, instantiates and explains itself."""

import re
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from isvit_lightning.cli import IsvitCLI
from isvit_lightning.quantizers import Log, Sulq, Uniform
from isvit_lightning.recipe import Choice, names_recipe, read_recipe
from isvit_lightning.stages import Fold, Inputs, SquaredError, StraightThrough, Tune
from tests.helpers import PUBLISHED_ETAS

CONFIGS = Path(__file__).parents[1] / "configs"
QUICKSTART = CONFIGS / "quickstart.yaml"
DETECTORS = [CONFIGS / "quickstart_detection.yaml", *sorted(CONFIGS.glob("coco/*.yaml"))]  # tests/detection has more
NETWORKS = [*sorted({*CONFIGS.glob("quickstart*.yaml")} - {*DETECTORS}), *sorted(CONFIGS.glob("imagenet/*.yaml")),
            *sorted(CONFIGS.glob("cifar10/*.yaml"))]  # fmt: skip
BITS, METHODS = sorted(CONFIGS.glob("bits/*.yaml")), sorted(CONFIGS.glob("methods/*.yaml"))
ALL = sorted(CONFIGS.rglob("*.yaml"))
# Reading takes a quarter of a second: each file meets each kind of partner, but not everyone meets everyone.
FLAVOURS = [path for path in NETWORKS if path.parent.name == "imagenet"][:9]
PAIRS = [(network, BITS[place % len(BITS)]) for place, network in enumerate(FLAVOURS)]
CHANGING = [path for path in NETWORKS if "recipe" in yaml.safe_load(path.read_text())["model"]]
TOPPED = sorted(
    {(network, path) for network in (QUICKSTART, *CHANGING) for path in METHODS}
    | {(network, METHODS[place % len(METHODS)]) for place, network in enumerate(NETWORKS)}
)


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
    assert sorted([*NETWORKS, *DETECTORS, *BITS, *METHODS]) == ALL
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


@pytest.mark.parametrize("path", BITS, ids=name_of)
def test_bits_compose_with_a_network(path: Path) -> None:
    cli, content = instantiate(QUICKSTART, path), yaml.safe_load(path.read_text())
    assert content.keys() == {"model"}
    assert content["model"].keys() == {"bits", "iterations"}
    assert asdict(cli.model.bits) == content["model"]["bits"]
    assert cli.model.schedule.iterations == content["model"]["iterations"]


@pytest.mark.parametrize(("network", "bits"), PAIRS, ids=name_of)
def test_bits_and_networks_compose_in_either_order(network: Path, bits: Path) -> None:
    both = [instantiate(network, bits), instantiate(bits, network)]
    width = int(bits.stem[1])
    for cli in both:
        assert (cli.model.bits.weight, cli.model.bits.activation) == (width, width)
        assert cli.model.source.name == yaml.safe_load(network.read_text())["model"]["network"]["name"]
    assert type(both[0].datamodule) is type(both[1].datamodule)
    if "iterations" not in yaml.safe_load(network.read_text())["model"]:
        assert both[0].model.schedule.iterations == both[1].model.schedule.iterations == (200 if width == 6 else 1000)


@pytest.mark.parametrize("path", METHODS, ids=name_of)
def test_a_method_is_a_whole_recipe_and_nothing_else(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    assert names_recipe(content)
    assert content.keys() == {"model"}
    assert content["model"].keys() == {"recipe"}
    recipe = read_recipe(path.stem)
    assert recipe.name == path.stem
    assert recipe == read_recipe(str(path))
    assert [step.name for step in recipe.steps] == [
        step["init_args"]["name"] for step in content["model"]["recipe"]["steps"]
    ]


@pytest.mark.parametrize(("network", "path"), TOPPED, ids=name_of)
def test_a_method_on_top_of_a_network_is_the_one_of_its_file(network: Path, path: Path) -> None:
    assert instantiate(network, path).model.recipe == read_recipe(path.stem)


@pytest.mark.parametrize("network", NETWORKS, ids=name_of)
def test_a_network_without_a_method_has_the_default_one(network: Path) -> None:
    alone, after = (
        instantiate(network).model.recipe,
        instantiate(CONFIGS / "methods" / "isvit.yaml", network).model.recipe,
    )
    assert alone == after
    changes = yaml.safe_load(network.read_text())["model"].get("recipe", {}).get("changes")
    assert (alone == read_recipe("isvit")) is (changes is None)


def test_the_sample_of_imagenet_changes_what_it_says() -> None:
    default = read_recipe("isvit").steps
    stage1, stage2, stage3 = instantiate(CONFIGS / "imagenet" / "vit_tiny_sample.yaml").model.recipe.steps
    rate = StraightThrough(6e-4, relative=False)
    assert stage1 == replace(default[0], inputs=Inputs("float"), trainables=rate)
    assert stage2 == default[1]
    assert stage3 == replace(default[2], trainables=rate)


def test_methods_that_are_compared_with_do_not_tune() -> None:
    for name in ("repq", "round_to_nearest"):
        assert not any(step.tunes for step in read_recipe(name).steps)
    assert read_recipe("repq").placement.attn_prob.format == Log(steps_per_octave=2)
    placement = read_recipe("round_to_nearest").placement
    uniform = {choice for choice in vars(placement).values() if isinstance(choice, Choice) and choice.format}
    assert {type(choice.format) for choice in uniform} == {Uniform}
    assert {choice.granularity for choice in uniform - {placement.weight}} == {"tensor"}


def test_the_published_method_differs_where_the_published_code_does() -> None:
    recipe = instantiate(QUICKSTART, CONFIGS / "methods" / "isvit_published.yaml").model.recipe
    placement: Any = recipe.placement
    assert placement.attn_prob.format == Sulq(extra_codes=1, steps_per_octave=1)
    assert placement.attn_prob.search.free == PUBLISHED_ETAS
    quantized = [choice for choice in vars(placement).values() if isinstance(choice, Choice) and choice.format]
    assert not any(choice.search.per_token for choice in quantized)
    uniform = [choice.search.include_zero for choice in quantized if choice.format == Uniform()]
    assert uniform
    assert all(include_zero is False for include_zero in uniform)
    assert placement.reduction_in.granularity == "tensor"
    stage1, stage2, stage3 = recipe.steps
    assert stage2 == Fold("stage2", round_zero_point=False)
    for tuning, read, weights in ((stage1, "float", False), (stage3, "quantized", True)):
        assert tuning == Tune(
            tuning.name,
            weights=weights,
            inputs=Inputs(read),
            loss=SquaredError(),
            trainables=StraightThrough(4e-5, relative=False),
            range_learning_rate=0.0,
        )


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_every_key_is_explained(path: Path) -> None:
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        key, _, value = line.strip().removeprefix("- ").partition(":")
        # A section, even one with an anchor, and the class whose arguments the next lines are speak for themselves.
        if re.fullmatch(r"\s*(&\w+)?", value) or line.strip().startswith("#") or key == "class_path":
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
